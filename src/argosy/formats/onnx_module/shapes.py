"""Operators that make, order and cut: shapes, constants, ranges, slices, padding."""

# ruff: noqa: ARG001, PLR0917 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Size, Value
from argosy.formats.onnx_module.reading import DTYPES, Operation, Shape


def _constant(g: Builder, op: Operation) -> Value:
    for name, dtype in (("value_int", torch.int64), ("value_ints", torch.int64)):
        if name in op.attributes:
            return torch.tensor(op.get(name), dtype=dtype)
    for name in ("value_float", "value_floats"):
        if name in op.attributes:
            return torch.tensor(op.get(name), dtype=torch.float32)
    value = op.get("value")
    if not isinstance(value, Tensor):
        raise InvalidInput(f"{op} holds texts or a sparse tensor, which can't be followed")
    return value


def _constant_of_shape(g: Builder, op: Operation, shape: Value) -> Any:
    value = op.get("value")
    fill = value.reshape(()) if isinstance(value, Tensor) else torch.tensor(0.0)
    return g.call(torch.full, _target(g, op, shape), fill.item(), dtype=fill.dtype)


def _target(g: Builder, op: Operation, shape: Value) -> list[Size]:
    found = g.sizes(shape)
    if found is None:
        raise InvalidInput(f"{op} computes a shape from data, which can't be followed")
    return found


def _range(g: Builder, op: Operation, start: Value, limit: Value, delta: Value) -> Any:
    ends = [g.sizes(part) for part in (start, limit, delta)]
    if all(end is not None and len(end) == 1 for end in ends):
        dtype = next((p.dtype for p in (start, limit, delta) if isinstance(p, Tensor)), torch.int64)
        plain = [end[0] for end in ends if end is not None]
        return g.call(torch.arange, *plain, dtype=dtype)
    return g.call(functions.arange_by, start, limit, delta)


def _shape(g: Builder, op: Operation, x: Value) -> Any:
    rank = g.rank(x)
    start, end, _ = slice(op.get("start", 0), op.get("end")).indices(rank)
    return g.made_sizes([g.size(x, axis) for axis in range(start, end)])


def _size(g: Builder, op: Operation, x: Value) -> Any:
    sizes: list[Size] = [g.size(x, axis) for axis in range(g.rank(x))]
    found: Size = 1
    for size in sizes:
        found = g.compute(operator.mul, found, size)
    return g.made_sizes([found], is_scalar=True)


def _reshape(g: Builder, op: Operation, x: Value, shape: Value | None = None) -> Any:
    target = op.get("shape") if shape is None else g.sizes(shape)
    if target is None:
        return g.call(functions.reshape_by, x, shape)
    target = list(target)
    if not op.get("allowzero", 0):
        target = [g.size(x, axis) if size == 0 else size for axis, size in enumerate(target)]
    known: Shape = tuple(size if isinstance(size, int) and size >= 0 else None for size in target)
    found = _flattened(g, x, target)
    if found is None:
        # Views of views are views of the first.
        while isinstance(x, fx.Node) and x.target == "reshape":
            x = x.args[0]  # type: ignore[assignment]
        nodes = [axis for axis, size in enumerate(target) if not isinstance(size, int)]
        if nodes and -1 not in target:
            # One free size needs no name; exporters then need no operation to find it.
            target[nodes[0]] = -1
        found = g.call("reshape", x, target)
    if isinstance(found, fx.Node) and found.meta.get("shape") is None:
        inferred = g.known.get(op.outputs[0])
        shapes = inferred.shape if inferred is not None else None
        if shapes is not None and len(shapes) == len(known):
            known = tuple(other if own is None else own for own, other in zip(known, shapes, strict=True))
        found.meta["shape"] = known
    return found


def _flattened(g: Builder, x: Value, target: list[Size]) -> Any:
    """Flatten behind the batch as such: what counts channels would hinder pruning."""
    shape = g.shape(x)
    if len(target) != 2 or shape is None or len(shape) < 3:
        return None
    rest = [size for size in shape[1:] if isinstance(size, int)]
    is_rest = len(rest) == len(shape) - 1 and target[1] == prod(rest)
    same_batch = target[0] == -1 or target[0] == shape[0] or target[0] is g.size(x, 0)
    if (is_rest and same_batch) or (target[1] == -1 and target[0] is g.size(x, 0)):
        return g.call(torch.flatten, x, 1)
    return None


def _flatten(g: Builder, op: Operation, x: Value) -> Any:
    axis, rank = op.get("axis", 1), g.rank(x)
    axis = axis + rank if axis < 0 else axis
    if axis == 1 and rank >= 2:
        return g.call(torch.flatten, x, 1)
    if axis in {0, rank}:
        return g.call("reshape", x, [1, -1] if axis == 0 else [-1, 1])
    return g.call(torch.flatten, g.call(torch.flatten, x, axis), 0, axis - 1)


def _transpose(g: Builder, op: Operation, x: Value) -> Any:
    axes: list[Any] = [int(axis) for axis in op.get("perm") or reversed(range(g.rank(x)))]
    if isinstance(x, fx.Node) and x.target == "permute":
        inner: Any = x.args
        x, axes = inner[0], [inner[1][axis] for axis in axes]
    if axes == sorted(axes):
        return x
    found, shape = g.call("permute", x, axes), g.shape(x)
    if isinstance(found, fx.Node) and shape is not None:
        found.meta["shape"] = tuple(shape[axis] for axis in axes)
    return found


def _axes(g: Builder, op: Operation, axes: Value | None) -> list[int] | None:
    found = op.get("axes") if axes is None else g.ints(axes, "axes")
    return None if found is None else [int(axis) for axis in found]


def _squeeze(g: Builder, op: Operation, x: Value, axes: Value | None = None) -> Any:
    found = _axes(g, op, axes)
    if found is None:
        shape = g.shape(x)
        if shape is None or not all(isinstance(size, int) for size in shape):
            raise InvalidInput(f"{op} removes every dimension of size 1, but which those are depends on the input")
        found = [axis for axis, size in enumerate(shape) if size == 1]
    if any(axis < 0 for axis in found):
        found = [axis % g.rank(x) for axis in found]
    for axis in sorted(found, reverse=True):
        part = _unbound(g, x, axis)
        if part is not None:
            x = part
            continue
        is_undone = isinstance(x, fx.Node) and x.target == "unsqueeze" and x.args[1] == axis
        x = x.args[0] if is_undone and isinstance(x, fx.Node) else g.call("squeeze", x, axis)  # type: ignore[assignment]
    return x


def _unbound(g: Builder, x: Value, axis: int) -> Any:
    """Return what a part of a split into single steps is without its dimension: exporters write unbind so."""
    split: Any = x.args[0] if isinstance(x, fx.Node) and x.target is operator.getitem else None
    if not isinstance(split, fx.Node) or split.target is not torch.split or split.args[2] != axis:
        return None
    sizes: Any = split.args[1]
    if not isinstance(sizes, list | tuple) or any(size != 1 for size in sizes):
        return None
    source: Any = split.args[0]
    if "unbound" not in split.meta:
        split.meta["unbound"] = g.call("unbind", source, axis)
    place = x.args[1] if isinstance(x, fx.Node) else 0
    found, shape = g.call(operator.getitem, split.meta["unbound"], place), g.shape(source)
    if shape is not None:
        found.meta["shape"] = shape[:axis] + shape[axis + 1 :]
    return found


def _unsqueeze(g: Builder, op: Operation, x: Value, axes: Value | None = None) -> Any:
    found = _axes(g, op, axes) or []
    if any(axis < 0 for axis in found):
        rank = g.rank(x) + len(found)
        found = [axis % rank for axis in found]
    for axis in sorted(found):
        x = g.call("unsqueeze", x, axis)
    return x


def _expand(g: Builder, op: Operation, x: Value, shape: Value) -> Any:
    target = _target(g, op, shape)
    rank = g.rank(x)
    if isinstance(x, Tensor) and x.numel() == 1 and len(target) >= rank:
        return g.call(torch.full, target, x.reshape(()).item(), dtype=x.dtype)
    target = [*([1] * (rank - len(target))), *target]
    # -1 keeps a size; a target of 1 never makes a size smaller.
    keeps = [axis >= len(target) - rank and _is_kept(g, x, axis - len(target) + rank, size)
             for axis, size in enumerate(target)]  # fmt: skip
    return g.call("expand", x, [-1 if keep else size for keep, size in zip(keeps, target, strict=True)])


def _is_kept(g: Builder, x: Value, axis: int, target: Size) -> bool:
    own = g.size(x, axis)
    return target == 1 or own is target or own == target


def _concat(g: Builder, op: Operation, *parts: Value) -> Any:
    tensors = [g.tensor(part) if not isinstance(part, Tensor) else part for part in parts]
    if len(tensors) == 1:
        return tensors[0]
    return g.call(torch.cat, tensors, op.get("axis", 1))


def _split(g: Builder, op: Operation, x: Value, sizes: Value | None = None) -> Any:
    axis = op.get("axis", 0)
    given: Any = op.get("split") if sizes is None else g.sizes(sizes)
    count = len(op.outputs)
    if given is None:
        whole = g.size(x, axis)
        if isinstance(whole, int):
            chunk = -(-whole // count)
            given = [chunk] * (whole // chunk) + ([whole % chunk] if whole % chunk else [])
            given += [0] * (count - len(given))
        else:
            chunk_size = g.compute(operator.floordiv, g.compute(operator.add, whole, count - 1), count)
            parts = g.call(torch.split, x, chunk_size, axis)
            return tuple(g.call(operator.getitem, parts, i) for i in range(count))
    if len(given) != count:
        raise InvalidInput(f"{op} splits into {len(given)} parts but has {count} outputs")
    parts = g.call(torch.split, x, list(given), axis)
    if not isinstance(parts, fx.Node):
        return tuple(parts)
    return tuple(g.call(operator.getitem, parts, i) for i in range(count))


def _slice(
    g: Builder,
    op: Operation,
    x: Value,
    starts: Value | None = None,
    ends: Value | None = None,
    axes: Value | None = None,
    steps: Value | None = None,
) -> Any:
    first: Any = op.get("starts") if starts is None else _target(g, op, starts)
    last: Any = op.get("ends") if ends is None else _target(g, op, ends)
    places: Any = op.get("axes") if axes is None else g.ints(axes, "axes")
    by = [1] * len(first) if steps is None else g.ints(steps, "steps")
    places = list(range(len(first))) if places is None else places
    if any(axis < 0 for axis in places):
        places = [axis % g.rank(x) for axis in places]
    window: list[Any] = [slice(None)] * (max(places, default=-1) + 1)
    for start, end, axis, step in zip(first, last, places, by, strict=True):
        if step < 0:
            x, start, end = _turned(g, x, axis, start, end)  # noqa: PLW2901 - the same slice from the other end
        whole = start == 0 and isinstance(end, int) and end >= 2**31 - 1 and abs(step) == 1
        window[axis] = slice(None) if whole else slice(start, end, abs(step))
    if all(part == slice(None) for part in window):
        return x
    # The smaller first: whatever stands for "to the end" is no number for an exporter.
    window = [_short(part) for part in window]
    return g.call(operator.getitem, x, tuple(window))


def _short(part: slice) -> slice:
    end = None if isinstance(part.stop, int) and part.stop >= 2**31 - 1 else part.stop
    start = None if isinstance(part.start, int) and part.start == 0 else part.start
    return slice(start, end, None if part.step == 1 else part.step)


def _turned(g: Builder, x: Value, axis: int, start: Size, end: Size) -> tuple[Any, Any, Any]:
    """Return x turned around along `axis`, and where a slice that runs backwards begins and ends in it."""
    if not isinstance(start, int) or not isinstance(end, int):
        raise InvalidInput(f"{g.operation} runs backwards between places that depend on its inputs")
    size = g.size(x, axis)
    if start < 0:
        first: Any = -start - 1
    elif start >= 2**31 - 1:
        first = 0
    elif isinstance(size, int):
        first = max(0, size - 1 - start)
    else:
        raise InvalidInput(f"{g.operation} runs backwards from a place that depends on its inputs")
    if end < -(2**31) + 1 or (isinstance(size, int) and end < -size):
        last: Any = None
    elif end < 0:
        last = -end - 1
    elif isinstance(size, int):
        last = max(0, size - 1 - end)
    else:
        raise InvalidInput(f"{g.operation} runs backwards to a place that depends on its inputs")
    turned = g.call("flip", x, axis)
    if isinstance(turned, fx.Node):
        turned.meta["shape"] = g.shape(x)
    return turned, first, last


def _pad(
    g: Builder, op: Operation, x: Value, pads: Value | None = None, fill: Value | None = None, axes: Value | None = None
) -> Any:
    given: Any = op.get("pads") if pads is None else _target(g, op, pads)
    value: Any = op.get("value", 0.0)
    if fill is not None:
        value = g.constant(fill, "value").reshape(()).item()
    half = len(given) // 2
    places = list(range(half)) if axes is None else [axis % g.rank(x) for axis in g.ints(axes, "axes")]
    both = [(axis, given[i], given[half + i]) for i, axis in enumerate(places)]
    both = [(axis, a, b) for axis, a, b in both if not (a == 0 and b == 0)]
    if not both:
        return x
    mode = op.get("mode", "constant")
    rank = g.rank(x)
    flat: list[Size] = [0] * (2 * (rank - min(axis for axis, _, _ in both)))
    for axis, before, after in both:
        flat[2 * (rank - 1 - axis)], flat[2 * (rank - 1 - axis) + 1] = before, after
    if mode == "constant":
        return g.call(F.pad, x, flat, "constant", value)
    if len(flat) <= 2 * (rank - 2) and mode in {"reflect", "edge"}:
        # torch reflects and repeats the last dimensions of [batch, channels, ...], all of them together.
        flat = flat + [0] * (2 * (rank - 2) - len(flat))
        return g.call(F.pad, x, flat, {"reflect": "reflect", "edge": "replicate"}[mode])
    for axis, before, after in both:
        x = g.call(functions.pad_axis, x, axis, before, after, mode)
    return x


def _tile(g: Builder, op: Operation, x: Value, repeats: Value) -> Any:
    return g.call("repeat", x, _target(g, op, repeats))


def _depth_to_space(g: Builder, op: Operation, x: Value) -> Any:
    block = op.get("blocksize")
    if op.get("mode", "DCR") == "CRD":
        return g.call(F.pixel_shuffle, x, block)
    channels, height, width = (g.size(x, axis) for axis in (1, 2, 3))
    inner = g.compute(operator.floordiv, channels, block * block)
    parts = g.call("reshape", x, [-1, block, block, inner, height, width])
    mixed = g.call("permute", parts, [0, 3, 4, 1, 5, 2])
    return g.call("reshape", mixed, [-1, inner, *(g.compute(operator.mul, size, block) for size in (height, width))])


def _space_to_depth(g: Builder, op: Operation, x: Value) -> Any:
    block = op.get("blocksize")
    channels = g.size(x, 1)
    height, width = (g.compute(operator.floordiv, g.size(x, axis), block) for axis in (2, 3))
    parts = g.call("reshape", x, [-1, channels, height, block, width, block])
    mixed = g.call("permute", parts, [0, 3, 5, 1, 2, 4])
    return g.call("reshape", mixed, [-1, g.compute(operator.mul, channels, block * block), height, width])


def _eye_like(g: Builder, op: Operation, x: Value) -> Any:
    dtype = DTYPES.get(op.get("dtype"), None) or g.dtype(x) or torch.float32
    rows, columns, k = g.size(x, 0), g.size(x, 1), op.get("k", 0)
    if k == 0:
        return g.call(torch.eye, rows, columns, dtype=dtype)
    ones = g.call(torch.ones, [rows, columns], dtype=dtype)
    return g.call(torch.tril, g.call(torch.triu, ones, k), k)


def _same(g: Builder, op: Operation, x: Value, *_: Value | None) -> Value:
    return x


def _dropout(g: Builder, op: Operation, x: Value, *_: Value | None) -> Any:
    if len(op.outputs) > 1 and op.outputs[1]:
        return x, g.call(torch.ones_like, x, dtype=torch.bool)
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _constant_of_shape,
    "DepthToSpace": _depth_to_space,
    "Dropout": _dropout,
    "Expand": _expand,
    "EyeLike": _eye_like,
    "Flatten": _flatten,
    "Identity": _same,
    "Pad": _pad,
    "Range": _range,
    "Reshape": _reshape,
    "Shape": _shape,
    "Size": _size,
    "Slice": _slice,
    "SpaceToDepth": _space_to_depth,
    "Split": _split,
    "Squeeze": _squeeze,
    "Tile": _tile,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
