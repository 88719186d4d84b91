"""gRPC: `inference.GRPCInferenceService` over the data plane that HTTP uses; imported only where it is served."""
