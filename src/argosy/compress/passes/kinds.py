"""What a graph takes and computes with, as far as passes go by it."""

import functools
from pathlib import Path

from argosy.compress.passes import Model


def takes_tokens(model: Model) -> bool:
    """Return whether a graph reads texts."""
    return input_kinds(model.path) == {"int"}


def is_quantized(model: Model) -> bool:
    """Return whether a graph computes with whole numbers already."""
    return "quantized" in input_kinds(model.path)


def input_kinds(path: Path | None) -> frozenset[str]:
    """Return what a graph's inputs are, int or float, and "quantized" where its layers compute with whole numbers."""
    if path is None:
        return frozenset({"float"})
    stat = path.stat()
    return _kinds(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _kinds(path: Path, changed: int, size: int) -> frozenset[str]:
    del changed, size  # part of the key under which the answer is kept
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    whole = {onnx.TensorProto.INT64, onnx.TensorProto.INT32}
    kinds = {
        "int" if given.type.tensor_type.elem_type in whole else "float"
        for given in graph.input
        if given.name not in held
    }
    marks = ("DequantizeLinear", "MatMulInteger", "ConvInteger", "DynamicQuantizeMatMul", "QLinearConv", "MatMulNBits")
    return frozenset(kinds) | ({"quantized"} if any(node.op_type in marks for node in graph.node) else set())
