"""Small ONNX files, made by hand so that each test can spoil one thing."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper


@pytest.fixture
def weights() -> onnx.TensorProto:
    return numpy_helper.from_array(np.array([[1, 2], [3, 4], [5, 6]], dtype=np.float32), "W")


@pytest.fixture
def make_onnx(weights: onnx.TensorProto) -> Callable[..., bytes]:
    """Return a function that makes y = x @ W, or the given nodes over x [batch, 3] to y [batch, 2]."""

    def make(
        nodes: list[Any] | None = None,
        constants: list[Any] | None = None,
        *,
        x_type: int = TensorProto.FLOAT,
        y_type: int = TensorProto.FLOAT,
        x_shape: Any = ("batch", 3),
        y_shape: Any = ("batch", 2),
    ) -> bytes:
        graph = helper.make_graph(
            nodes or [helper.make_node("MatMul", ["x", "W"], ["y"])],
            "graph",
            [helper.make_tensor_value_info("x", x_type, x_shape)],
            [helper.make_tensor_value_info("y", y_type, y_shape)],
            [weights] if constants is None else constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        return bytes(model.SerializeToString())

    return make
