"""Operators that look up, search and scatter."""

# ruff: noqa: ARG001 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.reading import Operation


def _gather(g: Builder, op: Operation, data: Value, index: Value) -> Any:
    axis = op.get("axis", 0)
    if isinstance(data, Tensor) and isinstance(index, Tensor):
        return data[(slice(None),) * (axis % data.dim()) + (index.to(torch.int64),)]
    if isinstance(data, Tensor) and data.dim() == 2 and axis in {0, -2} and data.is_floating_point():
        return _embedding(g, data, index)
    if axis < 0:
        axis %= g.rank(data)
    if isinstance(index, Tensor) and index.dim() == 0:
        return g.call("select", data, axis, int(index))
    if isinstance(index, Tensor) and bool((index < 0).any()):
        size = g.size(data, axis)
        if not isinstance(size, int):
            raise InvalidInput(f"{op} counts from the end of a dimension whose size is free")
        index = torch.remainder(index, size)
    places = _int64(g, index)
    if (isinstance(index, Tensor) and index.dim() == 1) or len(g.shape(index) or ()) == 1:
        return g.call(torch.index_select, data, axis, places)
    node = g.tensor(places)
    return g.call(functions.take, data, axis, node)


def _embedding(g: Builder, table: Tensor, index: Value) -> Any:
    # Given a weight it draws none, but it makes a parameter of its own of it.
    layer = nn.Embedding(table.shape[0], table.shape[1], _weight=table)
    layer.weight = g.parameter(table)
    return g.module(layer, g.layer_name(table), _int64(g, index))


def _int64(g: Builder, index: Value) -> Any:
    return index if g.dtype(index) in {torch.int64, torch.int32} else g.call("to", index, torch.int64)


def _gather_elements(g: Builder, op: Operation, data: Value, index: Value) -> Any:
    places = index if g.dtype(index) == torch.int64 else g.call("to", index, torch.int64)
    if isinstance(places, Tensor) and bool((places < 0).any()):
        places = g.call(torch.remainder, places, g.size(data, op.get("axis", 0)))
    return g.call(torch.gather, data, op.get("axis", 0), places)


def _gather_nd(g: Builder, op: Operation, data: Value, index: Value) -> Any:
    return g.call(functions.gather_nd, data, index, op.get("batch_dims", 0))


def _scatter_nd(g: Builder, op: Operation, data: Value, index: Value, updates: Value) -> Any:
    return g.call(functions.scatter_nd, data, index, updates, op.get("reduction", "none"))


def _scatter_elements(g: Builder, op: Operation, data: Value, index: Value, updates: Value) -> Any:
    return g.call(functions.scatter_elements, data, index, updates, op.get("axis", 0), op.get("reduction", "none"))


def _one_hot(g: Builder, op: Operation, index: Value, depth: Value, values: Value) -> Any:
    return g.call(functions.one_hot, index, g.ints(depth, "depth")[0], values, op.get("axis", -1))


def _top_k(g: Builder, op: Operation, x: Value, k: Value | None = None) -> Any:
    counts: Any = [op.get("k")] if k is None else g.sizes(k)
    if not counts:
        raise InvalidInput(f"{op} computes how many it returns from data, which can't be followed")
    order = (op.get("axis", -1), bool(op.get("largest", 1)), bool(op.get("sorted", 1)))
    found = g.call(torch.topk, x, counts[0], *order)
    return g.call(operator.getitem, found, 0), g.call(operator.getitem, found, 1)


def _arg(*, largest: bool) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value) -> Any:
        axis, keep = op.get("axis", 0), bool(op.get("keepdims", 1))
        if op.get("select_last_index", 0):
            return g.call(functions.last_arg, x, axis, keep, largest)
        return g.call(torch.argmax if largest else torch.argmin, x, axis, keepdim=keep)

    return apply


def _trilu(g: Builder, op: Operation, x: Value, k: Value | None = None) -> Any:
    offset = g.ints(k, "diagonal")[0] if k is not None else 0
    return g.call(torch.triu if op.get("upper", 1) else torch.tril, x, offset)


def _cum_sum(g: Builder, op: Operation, x: Value, axis: Value) -> Any:
    exclusive, reverse = bool(op.get("exclusive", 0)), bool(op.get("reverse", 0))
    place = g.ints(axis, "axis")[0]
    if not exclusive and not reverse:
        return g.call(torch.cumsum, x, place)
    return g.call(functions.cumulative, x, place, exclusive, reverse)


def _non_zero(g: Builder, op: Operation, x: Value) -> Any:
    return g.call("t", g.call(torch.nonzero, x))


OPERATORS: dict[str, Callable[..., Any]] = {
    "ArgMax": _arg(largest=True),
    "ArgMin": _arg(largest=False),
    "CumSum": _cum_sum,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "NonZero": _non_zero,
    "OneHot": _one_hot,
    "Scatter": _scatter_elements,
    "ScatterElements": _scatter_elements,
    "ScatterND": _scatter_nd,
    "TopK": _top_k,
    "Trilu": _trilu,
}
