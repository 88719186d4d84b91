"""ONNX models that give themselves away: y = x + v, where v is the version, after as much work as asked.

So every answer can be checked by its value: a request that got another one's answer, or an answer that doesn't come
from the version it says it comes from, is found, however many run together.
"""

import numpy as np

_CHANNELS, _SIDE = 32, 24


def told(value: float, *, layers: int = 0, width: int = 1) -> bytes:
    """Return the model y[n, width] = x[n, 1] + `value`, after `layers` convolutions whose result is dropped.

    A convolution takes about 0.3 ms of one core for each row, and rows run together are no cheaper: the capacity of a
    replica is what it is, whatever the batches. x is exact up to 2**24 less `value`.
    """
    from onnx import TensorProto, checker, helper, numpy_helper

    nodes = []
    weights = [numpy_helper.from_array(np.full(width, value, "float32"), "value")]
    last = "x"
    if layers:
        shape = np.array([1, _CHANNELS, _SIDE, _SIDE], "int64")
        kernel = np.random.default_rng(0).normal(0, 0.06, (_CHANNELS, _CHANNELS, 3, 3)).astype("float32")
        weights += [
            numpy_helper.from_array(shape, "shape"),
            numpy_helper.from_array(np.array([-1, 1, 1, 1], "int64"), "column"),
            numpy_helper.from_array(kernel, "kernel"),
            numpy_helper.from_array(np.zeros(1, "float32"), "zero"),
        ]
        nodes += [
            helper.make_node("Mul", ["x", "zero"], ["x0"]),
            helper.make_node("Cos", ["x0"], ["one"]),  # 1 for every x, which no optimizer can know
            helper.make_node("Reshape", ["one", "column"], ["pixel"]),
            helper.make_node("Expand", ["pixel", "shape"], ["h0"]),
        ]
        for i in range(layers):
            nodes.append(helper.make_node("Conv", [f"h{i}", "kernel"], [f"c{i}"], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Tanh", [f"c{i}"], [f"h{i + 1}"]))
        nodes += [
            helper.make_node("ReduceMean", [f"h{layers}"], ["m4"], axes=[1, 2, 3], keepdims=0),
            helper.make_node("Mul", ["m4", "zero"], ["m1"]),
            helper.make_node("Reshape", ["m1", "row"], ["m"]),
            helper.make_node("Add", ["x", "m"], ["worked"]),
        ]
        weights.append(numpy_helper.from_array(np.array([-1, 1], "int64"), "row"))
        last = "worked"
    nodes.append(helper.make_node("Add", [last, "value"], ["y"]))
    made = helper.make_model(
        helper.make_graph(
            nodes,
            "told",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", width])],
            weights,
        ),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,
    )
    checker.check_model(made)
    return bytes(made.SerializeToString())
