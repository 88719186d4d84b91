"""Calls to a gateway over gRPC as bytes, so that a test can send what no client would."""

import grpc
import numpy as np

from argosy.core.tensors import DATATYPE_OF_NUMPY
from argosy.serve.rpc.messages import ModelInferRequest, ModelInferResponse
from served import until

SERVICE = "/inference.GRPCInferenceService"


def grpc_port(served):
    """Wait until gRPC is served, and say where."""
    return until(lambda: max(0, served.client.status().grpc_port))


class Answer:
    """What came of a call."""

    def __init__(self, code, details, trailers, data):
        self.code = code
        """Name of the status, such as NOT_FOUND."""
        self.details = details
        self.trailers = trailers
        self.data = data

    def message(self, kind=ModelInferResponse):
        assert self.code == "OK", (self.code, self.details)
        return kind.FromString(self.data)


class Rpc:
    """A client of one gateway."""

    def __init__(self, port, *, credentials=None, options=()):
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1), *options]
        target = f"127.0.0.1:{port}"
        self.channel = (
            grpc.secure_channel(target, credentials, options) if credentials else grpc.insecure_channel(target, options)
        )

    def call(self, method, data=b"", *, metadata=(), timeout=10.0, compression=None):
        path = method if method.startswith("/") else f"{SERVICE}/{method}"
        ask = self.channel.unary_unary(path)
        try:
            found, call = ask.with_call(
                data, timeout=timeout, metadata=tuple(metadata), compression=compression, wait_for_ready=True
            )
        except grpc.RpcError as error:
            return Answer(error.code().name, error.details(), dict(error.trailing_metadata() or ()), b"")
        return Answer("OK", call.details(), dict(call.trailing_metadata()), found)

    def infer(self, rows, *, name="m", metadata=(), timeout=10.0, **more):
        return self.call("ModelInfer", infer(rows, name=name, **more), metadata=metadata, timeout=timeout)

    def start(self, rows, **more):
        """Return a call that is under way."""
        return self.channel.unary_unary(f"{SERVICE}/ModelInfer").future(infer(rows, **more), timeout=20)

    def close(self):
        self.channel.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def infer(rows, *, name="m", version="", dtype="float32", outputs=(), **more):
    """A request with raw input x."""
    array = np.asarray(rows, dtype=dtype)
    return ModelInferRequest(
        model_name=name,
        model_version=version,
        inputs=[{"name": "x", "datatype": DATATYPE_OF_NUMPY[dtype], "shape": array.shape}],
        outputs=[{"name": output} for output in outputs],
        raw_input_contents=[array.tobytes()],
        **more,
    ).SerializeToString()


def rows_of(answer, output=0):
    """The raw FP32 output as rows."""
    found = answer.message()
    return np.frombuffer(found.raw_output_contents[output], "float32").reshape(found.outputs[output].shape)
