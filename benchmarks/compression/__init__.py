"""The compression benchmark: models and data, peers in environments of their own, one judge for all."""
