"""Convolutions, and the padding they share with pools."""

# ruff: noqa: PLR0917 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module.builder import Builder, Size, Value
from argosy.formats.onnx_module.reading import Operation

_CONV: dict[int, tuple[Any, Any]] = {
    1: (nn.Conv1d, F.conv1d), 2: (nn.Conv2d, F.conv2d), 3: (nn.Conv3d, F.conv3d),
}  # fmt: skip
_TRANSPOSED: dict[int, tuple[Any, Any]] = {
    1: (nn.ConvTranspose1d, F.conv_transpose1d),
    2: (nn.ConvTranspose2d, F.conv_transpose2d),
    3: (nn.ConvTranspose3d, F.conv_transpose3d),
}


def padding(
    g: Builder, op: Operation, x: Value, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[Size], list[Size]]:
    """Return how much is put before and behind each dimension of space."""
    count = len(kernel)
    mode = op.get("auto_pad", "NOTSET")
    if mode in {"NOTSET", ""}:
        pads = [int(pad) for pad in op.get("pads") or [0] * (2 * count)]
        return list(pads[:count]), list(pads[count:])
    before: list[Size] = []
    after: list[Size] = []
    for axis in range(count):
        whole = 0 if mode == "VALID" else _same(g, g.size(x, axis + 2), kernel[axis], stride[axis], dilation[axis])
        half = g.compute(operator.floordiv, whole, 2)
        other = g.compute(operator.sub, whole, half)
        before.append(other if mode == "SAME_LOWER" else half)
        after.append(half if mode == "SAME_LOWER" else other)
    return before, after


def _same(g: Builder, size: Size, kernel: int, stride: int, dilation: int) -> Size:
    """The padding with which one number comes out per stride (the operator's SAME_UPPER and SAME_LOWER)."""
    reach = dilation * (kernel - 1) + 1
    if stride == 1:
        return reach - 1
    if not isinstance(size, int):
        raise InvalidInput(
            f"{g.operation} pads by a size that the file leaves open (auto_pad); give its input a fixed size"
        )
    return max(0, (-(-size // stride) - 1) * stride + reach - size)


def outer(before: Sequence[Size], after: Sequence[Size]) -> list[Size]:
    """Return pads in the order that torch's functions take: the last dimension first."""
    return [pad for pair in zip(reversed(before), reversed(after), strict=True) for pad in pair]


def _conv(g: Builder, op: Operation, x: Value, weight: Value, bias: Value | None = None) -> Any:
    shape: Any = g.shape(weight) or ()
    count = len(op.get("kernel_shape") or shape[2:])
    if count not in _CONV:
        raise InvalidInput(f"{op} works in {count} dimensions of space; 1 to 3 are known")
    kernel = [int(size) for size in op.get("kernel_shape") or shape[2:]]
    stride, dilation = op.get("strides") or [1] * count, op.get("dilations") or [1] * count
    before, after = padding(g, op, x, kernel, stride, dilation)
    pads = before
    if before != after:
        x = g.call(F.pad, x, outer(before, after))
        pads = [0] * count
    groups = op.get("group", 1)
    layer_kind, function = _CONV[count]
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        return g.call(function, x, weight, bias, stride, pads, dilation, groups)
    layer = layer_kind(
        weight.shape[1] * groups, weight.shape[0], kernel, stride, tuple(pads), dilation, groups,
        bias=bias is not None, device="meta",
    )  # fmt: skip
    layer.weight = g.parameter(weight)
    if bias is not None:
        layer.bias = g.parameter(bias)
    return g.module(layer, g.layer_name(weight, bias), x)


def _conv_transpose(g: Builder, op: Operation, x: Value, weight: Value, bias: Value | None = None) -> Any:
    shape: Any = g.shape(weight) or ()
    kernel = [int(size) for size in op.get("kernel_shape") or shape[2:]]
    count = len(kernel)
    if count not in _TRANSPOSED:
        raise InvalidInput(f"{op} works in {count} dimensions of space; 1 to 3 are known")
    stride, dilation = op.get("strides") or [1] * count, op.get("dilations") or [1] * count
    extra = list(op.get("output_padding") or [0] * count)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    before, after = _cut(g, op, x, [s * -1 + r + e for s, r, e in zip(stride, reach, extra, strict=True)], stride)
    pads, cut = list(before), [0] * count
    for axis, (first, last) in enumerate(zip(before, after, strict=True)):
        # torch cuts as much from both sides, and may put something back behind.
        pads[axis] = min(first, last) if first > last else first
        extra[axis] += max(0, first - last) if first <= last else 0
        cut[axis] = last - first
    groups = op.get("group", 1)
    layer_kind, function = _TRANSPOSED[count]
    if any(cut):
        # Sides that differ are cut afterwards.
        pads = [0] * count
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        found = g.call(function, x, weight, bias, stride, pads, extra, groups, dilation)
    else:
        layer = layer_kind(
            weight.shape[0], weight.shape[1] * groups, kernel, stride, pads, extra, groups, bias is not None, dilation,
            device="meta",
        )  # fmt: skip
        layer.weight = g.parameter(weight)
        if bias is not None:
            layer.bias = g.parameter(bias)
        found = g.module(layer, g.layer_name(weight, bias), x)
    return g.call(F.pad, found, outer([-b for b in before], [-a for a in after])) if any(cut) else found


def _cut(g: Builder, op: Operation, x: Value, more: list[int], stride: list[int]) -> tuple[list[int], list[int]]:
    """Return what is cut from the full product before and behind each dimension."""
    count = len(stride)
    mode, wanted = op.get("auto_pad", "NOTSET"), op.get("output_shape")
    if mode in {"NOTSET", "", "VALID"} and wanted is None:
        pads = [int(pad) for pad in (op.get("pads") if mode != "VALID" else None) or [0] * (2 * count)]
        return pads[:count], pads[count:]
    before, after = [], []
    for axis in range(count):
        if wanted is None:
            # The full size is stride * size + more, and stride * size is wanted.
            whole = max(0, more[axis])
        else:
            size = g.size(x, axis + 2)
            if not isinstance(size, int):
                raise InvalidInput(f"{op} fixes the size of its output, but the file leaves that of its input open")
            whole = stride[axis] * size + more[axis] - wanted[len(wanted) - count + axis]
        half = whole // 2
        first, last = (half, whole - half) if mode == "SAME_UPPER" else (whole - half, half)
        before.append(first)
        after.append(last)
    return before, after


OPERATORS: dict[str, Callable[..., Any]] = {"Conv": _conv, "ConvTranspose": _conv_transpose}
