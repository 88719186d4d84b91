"""Products of matrices: linear layers where one side is a weight."""

# ruff: noqa: ARG001 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.reading import Operation


def linear_layer(g: Builder, x: Value, weight_oi: Tensor, bias: Tensor | None, *named: Value | None) -> Any:
    """Add a linear layer; `named` are the tensors of the file that may name it."""
    layer = nn.Linear(weight_oi.shape[1], weight_oi.shape[0], bias=bias is not None, device="meta")
    layer.weight = g.parameter(weight_oi)
    if bias is not None:
        layer.bias = g.parameter(bias.expand(weight_oi.shape[0]) if bias.numel() == 1 else bias.reshape(-1))
    return g.module(layer, g.layer_name(*named), x)


def is_weight(value: Value | None) -> bool:
    """Whether a value can be the weight of a linear layer."""
    return isinstance(value, Tensor) and value.dim() == 2 and value.is_floating_point() and value.numel() > 0


def is_bias(value: Value | None, width: int) -> bool:
    """Whether a value can be the bias of a linear layer."""
    return isinstance(value, Tensor) and value.numel() in {1, width} and all(s == 1 for s in value.shape[:-1])


def _matmul(g: Builder, op: Operation, left: Value, right: Value, bias: Value | None = None) -> Any:
    is_layer = isinstance(right, Tensor) and is_weight(right) and not isinstance(left, Tensor)
    if is_layer and isinstance(right, Tensor) and (bias is None or is_bias(bias, right.shape[1])):
        return linear_layer(g, left, right.t(), bias if isinstance(bias, Tensor) else None, right, bias)
    found = g.call(torch.matmul, left, right)
    return found if bias is None else g.call(operator.add, found, bias)


def _gemm(g: Builder, op: Operation, a: Value, b: Value, c: Value | None = None) -> Any:
    alpha, beta = op.get("alpha", 1.0), op.get("beta", 1.0)
    if isinstance(b, Tensor) and is_weight(b) and not op.get("transA", 0) and not isinstance(a, Tensor):
        weight = b if op.get("transB", 0) else b.t()
        if c is None or is_bias(c, weight.shape[0]):
            scaled = weight if alpha == 1.0 else weight * alpha
            bias = c if beta == 1.0 or not isinstance(c, Tensor) else c * beta
            return linear_layer(g, a, scaled, bias if isinstance(bias, Tensor) else None, b, c)
    left = g.call("t", a) if op.get("transA", 0) else a
    right = g.call("t", b) if op.get("transB", 0) else b
    found = g.call(torch.matmul, left, right)
    found = found if alpha == 1.0 else g.call(operator.mul, found, alpha)
    if c is None:
        return found
    return g.call(operator.add, found, c if beta == 1.0 else g.call(operator.mul, c, beta))


def _einsum(g: Builder, op: Operation, *parts: Value) -> Any:
    return g.call(torch.einsum, op.get("equation").replace(" ", ""), *parts)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Einsum": _einsum,
    "Gemm": _gemm,
    "MatMul": _matmul,
    # A product and the sum with its bias, found by patterns.
    "@Linear": _matmul,
}
