"""A data set, a model and candidates small enough for tests of single parts."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.compress.candidate import Candidate, Quality, Timing


class Blobs:
    """Three well separated classes in four numbers; the part's name seeds the noise."""

    task = "classification"
    labels = ("a", "b", "c")
    digest = "sha256:" + "0" * 64

    def __init__(self, **sizes: int) -> None:
        self.sizes = {"train": 60, "validation": 60, **sizes}

    def prepared(self, split: str) -> tuple[dict[str, Any], Any]:
        random = np.random.default_rng(len(split))
        y = np.arange(self.sizes[split]) % 3
        x = np.eye(4)[y] + 0.1 * random.normal(size=(len(y), 4))
        return {"x": x.astype(np.float32)}, y


@pytest.fixture
def blobs():
    return Blobs


@pytest.fixture
def linear_onnx():
    """Return a function that makes logits = x @ weights, with `padding` bytes of unused constant."""

    def make(weights: Any = None, *, padding: int = 0) -> bytes:
        matrix = np.eye(4, 3, dtype=np.float32) if weights is None else np.asarray(weights, np.float32)
        ballast = numpy_helper.from_array(np.ones(max(1, padding // 4), np.float32), "ballast")
        graph = helper.make_graph(
            [
                helper.make_node("ReduceMin", ["ballast"], ["one"], keepdims=0),
                helper.make_node("MatMul", ["x", "W"], ["product"]),
                helper.make_node("Mul", ["product", "one"], ["logits"]),
            ],
            "graph",
            [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
            [numpy_helper.from_array(matrix, "W"), ballast],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return bytes(model.SerializeToString())

    return make


@pytest.fixture
def candidate():
    """Return a function that makes a measured candidate: 3x faster and smaller, without any loss unless told."""

    def make(name: str = "made", **facts: Any) -> Candidate:
        ratio, size, p95_s = facts.pop("ratio", 1 / 3), facts.pop("size_ratio", 1 / 3), facts.pop("p95_s", 0.001)
        quality = {"measure": "accuracy", "value": 0.99, "drop_high": facts.get("drop", 0.0), "items": 200}
        quality |= {key: facts.pop(key) for key in Quality.__struct_fields__ if key in facts}
        return Candidate(
            name=name,
            recipe=facts.pop("recipe", [("fake", {"name": name})]),
            status=facts.pop("status", "measured"),
            size_bytes=round(size * 900_000),
            size_ratio=size,
            timings=[
                Timing(batch=1, p50_s=0.8 * p95_s, p95_s=p95_s, cpu_s=0.8 * p95_s, ratio=ratio),
                Timing(
                    batch=32, p50_s=8 * p95_s, p95_s=10 * p95_s, cpu_s=8 * p95_s, ratio=facts.pop("ratio_32", ratio)
                ),
            ],
            quality=Quality(**quality),
            **facts,
        )

    return make
