"""Pools: windows and whole planes."""

# ruff: noqa: ARG001 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Size, Value, clean_path
from argosy.formats.onnx_module.convolution import outer, padding
from argosy.formats.onnx_module.reading import Operation

_MAX: dict[int, Any] = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}
_AVERAGE: dict[int, Any] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}


def _window(g: Builder, op: Operation, x: Value) -> tuple[list[int], list[int], list[int], list[Size], list[Size]]:
    kernel = [int(size) for size in op.get("kernel_shape")]
    if len(kernel) not in _MAX:
        raise InvalidInput(f"{op} works in {len(kernel)} dimensions of space; 1 to 3 are known")
    stride = list(op.get("strides") or [1] * len(kernel))
    dilation = list(op.get("dilations") or [1] * len(kernel))
    return kernel, stride, dilation, *padding(g, op, x, kernel, stride, dilation)


def _max_pool(g: Builder, op: Operation, x: Value) -> Any:
    if any(op.outputs[1:]):
        raise InvalidInput(f"{op} gives the places of the largest numbers too, which can't be followed")
    kernel, stride, dilation, before, after = _window(g, op, x)
    ceil = bool(op.get("ceil_mode", 0))
    pads: Any = before
    # torch pads both sides alike, and by half a window at most.
    if before != after or any(not isinstance(p, int) or 2 * p > k for p, k in zip(before, kernel, strict=True)):
        x = g.call(F.pad, x, outer(before, after), "constant", float("-inf"))
        pads = [0] * len(kernel)
    layer = _MAX[len(kernel)](kernel, stride, pads, dilation, ceil_mode=ceil)
    return g.module(layer, clean_path(op.name, keep=True), x)


def _average_pool(g: Builder, op: Operation, x: Value) -> Any:
    kernel, stride, dilation, before, after = _window(g, op, x)
    if any(step != 1 for step in dilation):
        raise InvalidInput(f"{op} averages over windows with gaps (dilations), which can't be followed")
    ceil, counts = bool(op.get("ceil_mode", 0)), bool(op.get("count_include_pad", 0))
    is_even = before == after and all(isinstance(p, int) and 2 * p <= k for p, k in zip(before, kernel, strict=True))
    if is_even:
        layer = _AVERAGE[len(kernel)](kernel, stride, before, ceil, counts)
        return g.module(layer, clean_path(op.name, keep=True), x)
    if counts and not ceil:
        layer = _AVERAGE[len(kernel)](kernel, stride, 0, ceil, counts)
        return g.module(layer, clean_path(op.name, keep=True), g.call(F.pad, x, outer(before, after)))
    if counts:
        raise InvalidInput(f"{op} counts padding that differs between the sides, rounding up; it can't be followed")
    return g.call(functions.average_own, x, outer(before, after), kernel, stride, ceil)


def _global(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value) -> Any:
        axes = list(range(2, g.rank(x)))
        return g.call(function, x, axes, True)

    return apply


def _global_average(g: Builder, op: Operation, x: Value) -> Any:
    rank = g.rank(x)
    kinds: dict[int, Any] = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}
    if rank not in kinds:
        raise InvalidInput(f"{op} takes a value of {rank} dimensions; 3 to 5 are known")
    return g.module(kinds[rank](1), clean_path(op.name, keep=True), x)


def _lp_pool(g: Builder, op: Operation, x: Value) -> Any:
    kernel, stride, dilation, before, after = _window(g, op, x)
    if any(step != 1 for step in dilation):
        raise InvalidInput(f"{op} sums over windows with gaps (dilations), which can't be followed")
    power = op.get("p", 2)
    count = 1
    for size in kernel:
        count *= size
    if any(before) or any(after):
        x = g.call(F.pad, x, outer(before, after))
    layer = _AVERAGE[len(kernel)](kernel, stride, 0, bool(op.get("ceil_mode", 0)))
    raised = g.call(torch.pow, g.call(torch.abs, x), power)
    total = g.call(operator.mul, g.module(layer, clean_path(op.name, keep=True), raised), count)
    return g.call(torch.pow, total, 1 / power)


OPERATORS: dict[str, Callable[..., Any]] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "GlobalMaxPool": _global(torch.amax),
    "LpPool": _lp_pool,
    "MaxPool": _max_pool,
}
