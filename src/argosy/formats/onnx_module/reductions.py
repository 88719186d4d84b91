"""Operators that make one number of many."""

from collections.abc import Callable
from typing import Any

import torch

from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.reading import Operation

_Reduce = Callable[[Builder, Value, list[int], bool], Any]


def _reduction(reduce: _Reduce, empty: Callable[[Builder, Value], Any] | None = None) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value, axes: Value | None = None) -> Any:
        given = op.get("axes") if axes is None else g.ints(axes, "axes")
        if not given and op.get("noop_with_empty_axes", 0):
            return x if empty is None else empty(g, x)
        places = [int(axis) for axis in given] if given else list(range(g.rank(x)))
        return reduce(g, x, places, bool(op.get("keepdims", 1)))

    return apply


def _plain(function: Callable[..., Any]) -> _Reduce:
    return lambda g, x, axes, keep: g.call(function, x, axes, keep)


def _sum(g: Builder, x: Value, axes: list[int], keep: bool) -> Any:  # noqa: FBT001 - one of a table of functions
    dtype = g.dtype(x)
    # torch adds whole numbers up in int64 whatever they are.
    narrow = {} if dtype is None or dtype.is_floating_point or dtype == torch.int64 else {"dtype": dtype}
    return g.call(torch.sum, x, axes, keep, **narrow)


def _norm(power: int) -> _Reduce:
    return lambda g, x, axes, keep: g.call(torch.linalg.vector_norm, x, power, axes, keep)


def _squares(g: Builder, x: Value, axes: list[int], keep: bool) -> Any:  # noqa: FBT001
    return _sum(g, g.call(torch.mul, x, x), axes, keep)


def _log_sum(g: Builder, x: Value, axes: list[int], keep: bool) -> Any:  # noqa: FBT001
    return g.call(torch.log, _sum(g, x, axes, keep))


def _prod(g: Builder, x: Value, axes: list[int], keep: bool) -> Any:  # noqa: FBT001
    if len(axes) == 1:
        return g.call(torch.prod, x, axes[0], keep)
    return g.call(functions.product, x, axes, keep)


OPERATORS: dict[str, Callable[..., Any]] = {
    "ReduceL1": _reduction(_norm(1), lambda g, x: g.call(torch.abs, x)),
    "ReduceL2": _reduction(_norm(2), lambda g, x: g.call(torch.abs, x)),
    "ReduceLogSum": _reduction(_log_sum, lambda g, x: g.call(torch.log, x)),
    "ReduceLogSumExp": _reduction(_plain(torch.logsumexp)),
    "ReduceMax": _reduction(_plain(torch.amax)),
    "ReduceMean": _reduction(_plain(torch.mean)),
    "ReduceMin": _reduction(_plain(torch.amin)),
    "ReduceProd": _reduction(_prod),
    "ReduceSum": _reduction(_sum),
    "ReduceSumSquare": _reduction(_squares, lambda g, x: g.call(torch.mul, x, x)),
}
