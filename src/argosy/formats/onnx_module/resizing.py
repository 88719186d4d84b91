"""Resize and Upsample, and sampling on a grid.

Where torch's own interpolation means the same it is used; else each dimension becomes a product with the shares that
the old places have in the new ones, computed as the ONNX standard defines them.
"""

# ruff: noqa: ARG001, PLR0917 - the functions of a table are all called alike, by a node's inputs

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Size, Value
from argosy.formats.onnx_module.reading import Operation


def _upsample(g: Builder, op: Operation, x: Value, scales: Value | None = None) -> Any:
    found = op.get("scales") if scales is None else g.constant(scales, "scales").tolist()
    return _resized(g, op, x, list(range(len(found))), [float(scale) for scale in found], None, "asymmetric", "floor")


def _resize(g: Builder, op: Operation, x: Value, *more: Value | None) -> Any:
    if g.opset < 11:
        scales, sizes = more[0], None
        coordinates, nearest = "asymmetric", "floor"
    else:
        _, scales, sizes = (*more, None, None, None)[:3]
        coordinates = op.get("coordinate_transformation_mode", "half_pixel")
        nearest = op.get("nearest_mode", "round_prefer_floor")
    if coordinates == "tf_crop_and_resize" or op.get("antialias", 0) or op.get("exclude_outside", 0):
        raise InvalidInput(f"{op} crops or smooths while it resizes, which can't be followed")
    if op.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise InvalidInput(f"{op} keeps the aspect ratio while it resizes, which can't be followed")
    rank = g.rank(x)
    axes = [int(axis) % rank for axis in op.get("axes") or range(rank)]
    factors = None
    if isinstance(scales, Tensor) and scales.numel():
        factors = [float(scale) for scale in scales.tolist()]
    target = g.sizes(sizes) if sizes is not None and factors is None else None
    if factors is None and target is None:
        raise InvalidInput(f"{op} computes its new size from data, which can't be followed")
    return _resized(g, op, x, axes, factors, target, coordinates, nearest)


def _resized(
    g: Builder,
    op: Operation,
    x: Value,
    axes: list[int],
    factors: list[float] | None,
    target: list[Size] | None,
    coordinates: str,
    nearest: str,
) -> Any:
    mode = op.get("mode", "nearest")
    rank = g.rank(x)
    own = [g.size(x, axis) for axis in axes]
    if factors is not None:
        changed = [i for i, factor in enumerate(factors) if factor != 1.0]
    else:
        assert target is not None
        # Batches and channels are never resized: where they are free, their fixed size is one that was seen.
        free = {i for i, axis in enumerate(axes) if axis < 2 and not isinstance(own[i], int)}
        changed = [i for i, size in enumerate(target) if i not in free and size is not own[i] and size != own[i]]
    if not changed:
        return x
    native = _native(mode, coordinates, nearest, rank)
    space = [axes[i] for i in changed]
    if native and min(space) >= 2 and (factors is None or _is_exact(mode, factors)):
        by_axis = dict(zip(axes, target if factors is None else factors, strict=True))  # type: ignore[arg-type]
        wanted = [by_axis.get(axis, 1.0 if factors is not None else g.size(x, axis)) for axis in range(2, rank)]
        given = {"size": wanted} if factors is None else {"scale_factor": wanted}
        corners = {} if native in {"nearest", "nearest-exact"} else {"align_corners": coordinates == "align_corners"}
        return g.call(F.interpolate, x, mode=native, **given, **corners)
    for i in changed:
        before, after = own[i], None if target is None else target[i]
        if not isinstance(before, int) or not isinstance(after, int | None):
            raise InvalidInput(f"{op} resizes by a size that the file leaves open, in a mode that torch doesn't have")
        length = after if after is not None else math.floor(before * factors[i])  # type: ignore[index]
        factor = length / before if factors is None else factors[i]
        shares = _shares(mode, coordinates, nearest, before, length, factor, op.get("cubic_coeff_a", -0.75))
        x = g.call(functions.resample, x, axes[i], shares)
    return x


def _is_exact(mode: str, factors: list[float]) -> bool:
    # torch computes places from float32 factors; whole ones and halves are the same there.
    return all(factor == int(factor) or (1 / factor) == int(1 / factor) for factor in factors)


def _native(mode: str, coordinates: str, nearest: str, rank: int) -> str:
    """Return torch's name of what is asked for, or nothing."""
    if rank not in {3, 4, 5}:
        return ""
    if mode == "nearest":
        return "nearest" if coordinates == "asymmetric" and nearest == "floor" else ""
    names = {("linear", 3): "linear", ("linear", 4): "bilinear", ("linear", 5): "trilinear", ("cubic", 4): "bicubic"}
    fits = coordinates in {"half_pixel", "pytorch_half_pixel", "align_corners"}
    return names.get((mode, rank), "") if fits else ""


def _shares(mode: str, coordinates: str, nearest: str, before: int, after: int, factor: float, cubic: float) -> Tensor:
    """Return the share of each old place [before] in each new one [after]."""
    shares = torch.zeros(before, after)
    for new in range(after):
        place = _place(coordinates, new, before, after, factor)
        if mode == "nearest":
            shares[min(max(_rounded(place, nearest), 0), before - 1), new] = 1.0
            continue
        low = math.floor(place)
        part = place - low
        if mode == "linear":
            weights = {low: 1 - part, low + 1: part}
        else:
            weights = {low + k: _cubic(abs(part - k), cubic) for k in (-1, 0, 1, 2)}
        for old, weight in weights.items():
            shares[min(max(old, 0), before - 1), new] += weight
    return shares


def _place(coordinates: str, new: int, before: int, after: int, factor: float) -> float:
    if coordinates == "asymmetric":
        return new / factor
    if coordinates == "align_corners":
        return 0.0 if after == 1 else new * (before - 1) / (after - 1)
    if coordinates == "pytorch_half_pixel" and after <= 1:
        return 0.0
    if coordinates == "half_pixel_symmetric":
        center = before / 2
        return center * (1 - after / (factor * before)) + (new + 0.5) / factor - 0.5
    return (new + 0.5) / factor - 0.5


def _rounded(place: float, nearest: str) -> int:
    if nearest == "floor":
        return math.floor(place)
    if nearest == "ceil":
        return math.ceil(place)
    return math.floor(place + 0.5) if nearest == "round_prefer_ceil" else math.ceil(place - 0.5)


def _cubic(distance: float, a: float) -> float:
    """The kernel of Keys 1981, equation 15, with `a` for -1/2."""
    if distance <= 1:
        return (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    return a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a if distance < 2 else 0.0


def _grid_sample(g: Builder, op: Operation, x: Value, grid: Value) -> Any:
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(op.get("mode", "linear"), op.get("mode", "linear"))
    return g.call(
        F.grid_sample, x, grid, mode, op.get("padding_mode", "zeros"), align_corners=bool(op.get("align_corners", 0))
    )


OPERATORS: dict[str, Callable[..., Any]] = {"GridSample": _grid_sample, "Resize": _resize, "Upsample": _upsample}
