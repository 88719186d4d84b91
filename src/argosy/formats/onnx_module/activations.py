"""Activation functions, as layers under the names of their nodes."""

# ruff: noqa: ARG001 - the functions of a table are all called alike, by a node's inputs

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Value, clean_path
from argosy.formats.onnx_module.reading import Operation

Layer = Callable[[Operation], nn.Module]


def _layer(make: Layer) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value) -> Any:
        return g.module(make(op), clean_path(op.name, keep=True), x)

    return apply


def _hard_sigmoid(g: Builder, op: Operation, x: Value) -> Any:
    alpha, beta = op.get("alpha", 0.2), op.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return g.module(nn.Hardsigmoid(), clean_path(op.name, keep=True), x)
    scaled = g.call(torch.add, g.call(torch.mul, x, alpha), beta)
    return g.call(torch.clamp, scaled, min=0.0, max=1.0)


def _selu(g: Builder, op: Operation, x: Value) -> Any:
    alpha, gamma = op.get("alpha", 1.6732632), op.get("gamma", 1.0507010)
    if abs(alpha - 1.6732632) < 1e-6 and abs(gamma - 1.0507010) < 1e-6:
        return g.module(nn.SELU(), clean_path(op.name, keep=True), x)
    return g.call(torch.mul, g.module(nn.ELU(alpha), clean_path(op.name, keep=True), x), gamma)


def _prelu(g: Builder, op: Operation, x: Value, slope: Value) -> Any:
    shape = g.shape(x)
    is_one = isinstance(slope, Tensor) and slope.numel() == 1
    # A slope per channel is written as [C, 1, 1], so that it meets the second of four dimensions.
    is_per_channel = (
        isinstance(slope, Tensor)
        and shape is not None
        and slope.dim() >= len(shape) - 1
        and slope.numel() == (slope.shape[1 - len(shape)] if slope.dim() else 0)
    )
    if isinstance(slope, Tensor) and (is_one or is_per_channel):
        layer = nn.PReLU(slope.numel(), device="meta")
        layer.weight = g.parameter(slope.reshape(-1))
        return g.module(layer, g.layer_name(slope), x)
    below = g.call(torch.mul, slope, g.call(torch.clamp, x, max=0.0))
    return g.call(torch.add, g.call(torch.clamp, x, min=0.0), below)


def _softmax(plain: Callable[[int], nn.Module]) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value) -> Any:
        name = clean_path(op.name, keep=True)
        if g.opset >= 13:
            return g.module(plain(op.get("axis", -1)), name, x)
        axis = op.get("axis", 1)
        rank = g.rank(x)
        axis %= rank
        if axis == rank - 1:
            return g.module(plain(-1), name, x)
        # Until opset 12 everything from the axis on is one dimension.
        rest = [g.size(x, i) for i in range(axis, rank)]
        found = g.module(plain(-1), name, g.call(torch.flatten, x, axis))
        return g.call("unflatten", found, axis, rest)

    return apply


def _hardmax(g: Builder, op: Operation, x: Value) -> Any:
    axis = op.get("axis", -1 if g.opset >= 13 else 1)
    if g.opset < 13 and axis % g.rank(x) != g.rank(x) - 1:
        rest = [g.size(x, i) for i in range(axis, g.rank(x))]
        return g.call("unflatten", g.call(functions.hardmax, g.call(torch.flatten, x, axis), axis), axis, rest)
    return g.call(functions.hardmax, x, axis)


def _shrink(g: Builder, op: Operation, x: Value) -> Any:
    bias, bound = op.get("bias", 0.0), op.get("lambd", 0.5)
    above = g.call(torch.where, g.call(torch.gt, x, bound), g.call(torch.sub, x, bias), 0.0)
    return g.call(torch.where, g.call(torch.lt, x, -bound), g.call(torch.add, x, bias), above)


def _swish(g: Builder, op: Operation, x: Value) -> Any:
    alpha = op.get("alpha", 1.0)
    if alpha == 1.0:
        return g.module(nn.SiLU(), clean_path(op.name, keep=True), x)
    return g.call(torch.mul, x, g.call(torch.sigmoid, g.call(torch.mul, x, alpha)))


OPERATORS: dict[str, Callable[..., Any]] = {
    "Celu": _layer(lambda op: nn.CELU(op.get("alpha", 1.0))),
    "Elu": _layer(lambda op: nn.ELU(op.get("alpha", 1.0))),
    "Gelu": _layer(lambda op: nn.GELU(approximate=op.get("approximate", "none"))),
    "HardSigmoid": _hard_sigmoid,
    "HardSwish": _layer(lambda _: nn.Hardswish()),
    "Hardmax": _hardmax,
    "LeakyRelu": _layer(lambda op: nn.LeakyReLU(op.get("alpha", 0.01))),
    "LogSoftmax": _softmax(nn.LogSoftmax),
    "Mish": _layer(lambda _: nn.Mish()),
    "PRelu": _prelu,
    "Relu": _layer(lambda _: nn.ReLU()),
    "Selu": _selu,
    "Shrink": _shrink,
    "Sigmoid": _layer(lambda _: nn.Sigmoid()),
    "Softmax": _softmax(nn.Softmax),
    "Softplus": _layer(lambda _: nn.Softplus()),
    "Softsign": _layer(lambda _: nn.Softsign()),
    "Swish": _swish,
    "Tanh": _layer(lambda _: nn.Tanh()),
    "ThresholdedRelu": _layer(lambda op: nn.Threshold(op.get("alpha", 1.0), 0.0)),
}
