"""Operators on sizes: what exporters compute of shapes stays Python numbers, as long as it can.

Each function returns None when it can't follow; the operator is then applied to tensors.
"""

# ruff: noqa: ARG001, PLR0917 - the functions of a table are all called alike, by a node's inputs

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from argosy.formats.onnx_module.builder import Builder, Size, Sizes, Value
from argosy.formats.onnx_module.reading import Operation


def followed(g: Builder, op: Operation, inputs: list[Value | None]) -> Any:
    """Return the result of an operator on sizes, or None when none of its inputs is one, or it isn't among these."""
    if not any(isinstance(value, Sizes) for value in inputs) or op.kind not in _FOLLOWED:
        return None
    return _FOLLOWED[op.kind](g, op, *inputs)


def is_scalar(value: Value | None) -> bool:
    """Whether a value of sizes has no dimensions."""
    return value.is_scalar if isinstance(value, Sizes) else isinstance(value, Tensor) and value.dim() == 0


def _gather(g: Builder, op: Operation, data: Value, index: Value) -> Value | None:
    items = g.sizes(data)
    places = g.sizes(index)
    if not isinstance(index, Tensor) or items is None or places is None or is_scalar(data):
        return None
    return g.made_sizes([items[int(p)] for p in places if isinstance(p, int)], is_scalar=index.dim() == 0)


def _slice(
    g: Builder,
    op: Operation,
    data: Value,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Value | None:
    del axes
    items = g.sizes(data)
    given = (starts, ends) if starts is not None else (torch.tensor(op.get("starts")), torch.tensor(op.get("ends")))
    if items is None or is_scalar(data) or not all(isinstance(part, Tensor) for part in given):
        return None
    start, end = (g.ints(part, "slice")[0] for part in given)
    step = g.ints(steps, "step")[0] if steps is not None else 1
    if step < 0:
        end = None if end < -len(items) else end  # type: ignore[assignment]
    return g.made_sizes(items[slice(start, end, step)])


def _concat(g: Builder, op: Operation, *parts: Value) -> Value | None:
    items: list[Size] = []
    for part in parts:
        found = g.sizes(part)
        if found is None or is_scalar(part):
            return None
        items.extend(found)
    return g.made_sizes(items)


def _unsqueeze(g: Builder, op: Operation, data: Value, axes: Value | None = None) -> Value | None:
    items = g.sizes(data)
    places = op.get("axes") if axes is None else g.sizes(axes)
    if items is None or not is_scalar(data) or places is None or len(places) != 1:
        return None
    return g.made_sizes(items)


def _squeeze(g: Builder, op: Operation, data: Value, axes: Value | None = None) -> Value | None:
    del axes
    items = g.sizes(data)
    if items is None or len(items) != 1:
        return None
    return g.made_sizes(items, is_scalar=True)


def _reshape(g: Builder, op: Operation, data: Value, shape: Value | None = None) -> Value | None:
    items, target = g.sizes(data), g.sizes(shape)
    if items is None or target is None or len(target) > 1 or not isinstance(shape, Tensor):
        return None
    return g.made_sizes(items, is_scalar=not target)


def _same(g: Builder, op: Operation, data: Value, *_: Value | None) -> Value:
    return data


def _cast(g: Builder, op: Operation, data: Value, *_: Value | None) -> Value | None:
    # INT32 and INT64 by their numbers in onnx.proto3.
    return data if op.get("to") in {6, 7} else None


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Value | None]:
    def apply(g: Builder, op: Operation, *parts: Value) -> Value | None:
        pair = _paired(g, *parts)
        if pair is None:
            return None
        left, right, scalar = pair
        return g.made_sizes([g.compute(function, a, b) for a, b in zip(left, right, strict=True)], is_scalar=scalar)

    return apply


def _paired(g: Builder, left: Value, right: Value) -> tuple[list[Size], list[Size], bool] | None:
    first, second = g.sizes(left), g.sizes(right)
    if first is None or second is None:
        return None
    count = max(len(first), len(second))
    if {len(first), len(second)} - {1, count}:
        return None
    scalar = is_scalar(left) and is_scalar(right)
    return first * (count // len(first)), second * (count // len(second)), scalar


def _equal(g: Builder, op: Operation, left: Value, right: Value) -> Value | None:
    pair = _paired(g, left, right)
    if pair is None:
        return None
    found = [_are_equal(a, b) for a, b in zip(pair[0], pair[1], strict=True)]
    if None in found:
        return None
    return torch.tensor(found[0] if pair[2] else found)


def _are_equal(left: Size, right: Size) -> bool | None:
    if left is right or (isinstance(left, int) and isinstance(right, int)):
        return left == right
    known = [item for item in (left, right) if isinstance(item, int)]
    # A size is never negative, whatever it is.
    return False if known and known[0] < 0 else None


def _where(g: Builder, op: Operation, condition: Value, left: Value, right: Value) -> Value | None:
    pair = _paired(g, left, right)
    if pair is None or not isinstance(condition, Tensor) or condition.dim() > 1:
        return None
    choice = [bool(item) for item in condition.reshape(-1).tolist()]
    count = max(len(choice), len(pair[0]))
    if {len(choice), len(pair[0])} - {1, count}:
        return None
    first, second = (part * (count // len(part)) for part in pair[:2])
    chosen = [a if yes else b for yes, a, b in zip(choice * (count // len(choice)), first, second, strict=True)]
    return g.made_sizes(chosen, is_scalar=pair[2] and condition.dim() == 0)


def _reduce_prod(g: Builder, op: Operation, data: Value, axes: Value | None = None) -> Value | None:
    del axes
    items = g.sizes(data)
    if items is None:
        return None
    found: Size = 1
    for item in items:
        found = g.compute(operator.mul, found, item)
    return g.made_sizes([found], is_scalar=is_scalar(data) or not op.get("keepdims", 1))


def _size(g: Builder, op: Operation, data: Value) -> Value | None:
    found = g.shape(data)
    return torch.tensor(math.prod(s for s in found if isinstance(s, int))) if found is not None else None


def _shape(g: Builder, op: Operation, data: Value) -> Value | None:
    found = g.shape(data)
    return torch.tensor([s for s in found if isinstance(s, int)], dtype=torch.int64) if found is not None else None


_FOLLOWED: dict[str, Callable[..., Any]] = {
    "Add": _elementwise(operator.add),
    "Cast": _cast,
    "Concat": _concat,
    # Sizes are not negative, so that rounding down is rounding towards zero.
    "Div": _elementwise(operator.floordiv),
    "Equal": _equal,
    "Gather": _gather,
    "Identity": _same,
    "Mod": _elementwise(operator.mod),
    "Mul": _elementwise(operator.mul),
    "ReduceProd": _reduce_prod,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": _elementwise(operator.sub),
    "Unsqueeze": _unsqueeze,
    "Where": _where,
}
