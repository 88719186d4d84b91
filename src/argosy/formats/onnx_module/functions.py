"""What ONNX means and torch has no function for, as functions that tracers and exporters can follow."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, fx
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

P = ParamSpec("P")
T = TypeVar("T")


def leaf(function: Callable[P, T]) -> Callable[P, T]:
    """Let torch.fx take a call as one step, also when a module is traced again, as it is when it is unpickled."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        proxies: list[fx.Proxy] = []
        given: Any = (args, kwargs)
        fx.node.map_aggregate(given, lambda x: proxies.append(x) if isinstance(x, fx.Proxy) else x)
        if proxies:
            return proxies[0].tracer.create_proxy("call_function", called, args, kwargs)  # type: ignore[return-value]
        return function(*args, **kwargs)

    return called


@leaf
def sizes_tensor(items: Sequence[int], is_scalar: bool) -> Tensor:  # noqa: FBT001 - called by graphs only
    """Return sizes as a tensor of int64."""
    parts = [torch.scalar_tensor(item, dtype=torch.int64) for item in items]
    return parts[0] if is_scalar else torch.stack(parts)


@leaf
def divide(left: Tensor, right: Tensor) -> Tensor:
    """Divide as ONNX does: whole numbers towards zero."""
    is_float = any(torch.is_floating_point(part) for part in (left, right) if isinstance(part, Tensor))
    return torch.div(left, right) if is_float else torch.div(left, right, rounding_mode="trunc")


@leaf
def reshape_by(x: Tensor, shape: Tensor) -> Tensor:
    """Reshape to sizes that are computed from data; a 0 keeps the size."""
    return x.reshape([x.shape[i] if size == 0 else int(size) for i, size in enumerate(shape.tolist())])


@leaf
def arange_by(start: Tensor, limit: Tensor, step: Tensor) -> Tensor:
    """Return a range whose ends are computed from data."""
    first, last, by = (part.item() if isinstance(part, Tensor) else part for part in (start, limit, step))
    dtype = next((part.dtype for part in (start, limit, step) if isinstance(part, Tensor)), torch.int64)
    return torch.arange(first, last, by, dtype=dtype)


@leaf
def pad_axis(x: Tensor, axis: int, before: int, after: int, mode: str) -> Tensor:
    """Pad one dimension by its own values: reflected, wrapped around, or the edge repeated."""
    size = x.shape[axis]
    place = torch.arange(-before, size + after, device=x.device)
    if mode == "reflect":
        place = (size - 1) - ((size - 1) - place.abs()).abs()
    elif mode == "wrap":
        place = place % size
    else:
        place = place.clamp(min=0).minimum(torch.arange(1, device=x.device) + (size - 1))
    return x.index_select(axis, place)


@leaf
def average_own(
    x: Tensor,
    pads: list[int],
    kernel: list[int],
    stride: list[int],
    ceil: bool,  # noqa: FBT001
) -> Tensor:
    """Average windows over the numbers that are not padding, for padding that differs between the sides."""
    pool = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}[len(kernel)]
    total = pool(F.pad(x, list(pads)), kernel, stride, 0, ceil, True)
    share = pool(F.pad(torch.ones_like(x[:1, :1]), list(pads)), kernel, stride, 0, ceil, True)
    return total / share


@leaf
def one_hot(indices: Tensor, depth: int, values: Tensor, axis: int) -> Tensor:
    """Return values[1] where the new dimension's place is the index, and values[0] elsewhere."""
    places = torch.arange(depth, device=indices.device)
    hit = (indices.to(torch.int64) % depth).unsqueeze(-1) == places
    # An index beyond the depth is nowhere.
    hit = hit & ((indices >= -depth) & (indices < depth)).unsqueeze(-1)
    found = torch.where(hit, values[1], values[0])
    return found.movedim(-1, axis)


@leaf
def take(data: Tensor, axis: int, index: Tensor) -> Tensor:
    """Take slices along `axis`, in the shape of `index`."""
    return data[(slice(None),) * axis + (index,)]


@leaf
def gather_nd(data: Tensor, indices: Tensor, batch_dims: int) -> Tensor:
    """Take slices by the tuples that the last dimension of `indices` holds."""
    places: list[Tensor] = []
    for axis in range(batch_dims):
        shape = [1] * (indices.dim() - 1)
        shape[axis] = -1
        places.append(torch.arange(indices.shape[axis], device=data.device).reshape(shape))
    places.extend(indices[..., i].to(torch.int64) for i in range(indices.shape[-1]))
    return data[tuple(places)]


@leaf
def scatter_nd(data: Tensor, indices: Tensor, updates: Tensor, reduction: str) -> Tensor:
    """Put `updates` where the tuples in the last dimension of `indices` say."""
    places = tuple(indices[..., i].to(torch.int64) for i in range(indices.shape[-1]))
    if reduction in {"none", "add"}:
        return data.index_put(places, updates, accumulate=reduction == "add")
    shape = data.shape[: len(places)]
    flat = torch.zeros_like(places[0])
    for place, size in zip(places, shape, strict=True):
        flat = flat * size + place % size
    rest = data.shape[len(places) :]
    rows = updates.reshape(flat.numel(), -1)
    kind = {"mul": "prod", "max": "amax", "min": "amin"}[reduction]
    whole = data.reshape(-1, rows.shape[1])
    found = whole.scatter_reduce(0, flat.reshape(-1, 1).expand_as(rows), rows, kind)
    return found.reshape(*shape, *rest)


@leaf
def scatter_elements(data: Tensor, indices: Tensor, updates: Tensor, axis: int, reduction: str) -> Tensor:
    """Put each number of `updates` where `indices` says along `axis`."""
    places = indices.to(torch.int64) % data.shape[axis]
    if reduction == "none":
        return data.scatter(axis, places, updates)
    kind = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[reduction]
    return data.scatter_reduce(axis, places, updates, kind)


@leaf
def cumulative(x: Tensor, axis: int, exclusive: bool, reverse: bool) -> Tensor:  # noqa: FBT001
    """Return running sums, from the end or without the own number if asked."""
    turned = x.flip(axis) if reverse else x
    found = torch.cumsum(turned, axis, dtype=x.dtype)
    if exclusive:
        found = found - turned
    return found.flip(axis) if reverse else found


@leaf
def last_arg(x: Tensor, axis: int, keepdims: bool, largest: bool) -> Tensor:  # noqa: FBT001
    """Return the last place of the largest or smallest number."""
    turned = x.flip(axis)
    found = turned.argmax(axis, keepdim=keepdims) if largest else turned.argmin(axis, keepdim=keepdims)
    return x.shape[axis] - 1 - found


@leaf
def product(x: Tensor, axes: Sequence[int], keepdims: bool) -> Tensor:  # noqa: FBT001
    """Multiply over several dimensions."""
    for axis in sorted((a % x.dim() for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim=keepdims)
    return x


@leaf
def resample(x: Tensor, axis: int, weights_in_out: Tensor) -> Tensor:
    """Resize one dimension by a matrix of the shares that each old place has in each new one."""
    return torch.movedim(torch.movedim(x, axis, -1) @ weights_in_out.to(x.dtype), -1, axis)


@leaf
def hardmax(x: Tensor, axis: int) -> Tensor:
    """Return 1 at the first largest number along `axis`, 0 elsewhere."""
    return torch.zeros_like(x).scatter(axis, x.argmax(axis, keepdim=True), 1.0)


@leaf
def masked_steps(y_tbd: Tensor, lengths_b: Tensor) -> Tensor:
    """Return outputs with zeros behind each sequence's end."""
    steps = torch.arange(y_tbd.shape[0], device=y_tbd.device)
    own_tb = steps.unsqueeze(1) < lengths_b.unsqueeze(0)
    return y_tbd * own_tb.unsqueeze(2).to(y_tbd.dtype)
