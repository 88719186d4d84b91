"""Normalization layers."""

# ruff: noqa: PLR0917 - the functions of a table are all called alike, by a node's inputs

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module.builder import Builder, Value, clean_path
from argosy.formats.onnx_module.reading import Operation

_BATCH = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_INSTANCE = {3: nn.InstanceNorm1d, 4: nn.InstanceNorm2d, 5: nn.InstanceNorm3d}


def _only_first(op: Operation) -> None:
    if any(op.outputs[1:]):
        raise InvalidInput(f"{op} gives its statistics too, as in training; export the model for inference")


def _batch_norm(g: Builder, op: Operation, x: Value, scale: Value, bias: Value, mean: Value, var: Value) -> Any:
    _only_first(op)
    epsilon = op.get("epsilon", 1e-5)
    parts = (scale, bias, mean, var)
    shape = g.shape(x)
    if not all(isinstance(part, Tensor) for part in parts):
        return g.call(F.batch_norm, x, mean, var, scale, bias, False, 0.0, epsilon)
    weight, offset, center, spread = (g.constant(part, "statistics") for part in parts)
    kind = _BATCH.get(4 if shape is None else len(shape))
    if kind is None:
        raise InvalidInput(f"{op} takes a value of {len(shape or ())} dimensions; 2 to 5 are known")
    layer = kind(weight.numel(), epsilon, 1 - op.get("momentum", 0.9), device="meta")
    layer.weight, layer.bias = g.parameter(weight), g.parameter(offset)
    layer.running_mean, layer.running_var = center.clone(), spread.clone()
    layer.num_batches_tracked = torch.tensor(0)
    return g.module(layer, g.layer_name(scale, bias, mean), x)


def _layer_norm(g: Builder, op: Operation, x: Value, scale: Value, bias: Value | None = None) -> Any:
    _only_first(op)
    epsilon, axis = op.get("epsilon", 1e-5), op.get("axis", -1)
    shape = g.shape(x)
    count = -axis if axis < 0 else g.rank(x) - axis
    is_whole = isinstance(scale, Tensor) and scale.dim() == count and _fits(scale, shape)
    if isinstance(scale, Tensor) and is_whole and (bias is None or _has_shape(bias, scale)):
        layer = nn.LayerNorm(list(scale.shape), epsilon, bias=bias is not None, device="meta")
        layer.weight = g.parameter(scale)
        if isinstance(bias, Tensor):
            layer.bias = g.parameter(bias)
        return g.module(layer, g.layer_name(scale, bias), x)
    sizes = [g.size(x, i) for i in range(-count, 0)]
    found = g.call(torch.mul, g.call(F.layer_norm, x, sizes, None, None, epsilon), scale)
    return found if bias is None else g.call(torch.add, found, bias)


def _fits(scale: Tensor, shape: tuple[Any, ...] | None) -> bool:
    behind = () if shape is None else shape[len(shape) - scale.dim() :]
    return all(not isinstance(size, int) or size == own for size, own in zip(behind, scale.shape, strict=False))


def _has_shape(value: Value, other: Tensor) -> bool:
    return isinstance(value, Tensor) and value.shape == other.shape


def _rms_norm(g: Builder, op: Operation, x: Value, scale: Value) -> Any:
    axis = op.get("axis", -1)
    count = -axis if axis < 0 else g.rank(x) - axis
    epsilon = op.get("epsilon", 1e-5)
    if isinstance(scale, Tensor) and scale.dim() == count and _fits(scale, g.shape(x)):
        layer = nn.RMSNorm(list(scale.shape), epsilon, device="meta")
        layer.weight = g.parameter(scale)
        return g.module(layer, g.layer_name(scale), x)
    return g.call(torch.mul, g.call(F.rms_norm, x, [g.size(x, i) for i in range(-count, 0)], None, epsilon), scale)


def _instance_norm(g: Builder, op: Operation, x: Value, scale: Value, bias: Value) -> Any:
    epsilon = op.get("epsilon", 1e-5)
    kind = _INSTANCE.get(g.rank(x))
    if kind is None or not isinstance(scale, Tensor) or not isinstance(bias, Tensor):
        return g.call(F.instance_norm, x, None, None, scale, bias, True, 0.0, epsilon)
    # Exporters write group norm as instance norm with the numbers 1 and 0 between two reshapes.
    is_plain = bool((scale == 1).all()) and bool((bias == 0).all())
    layer = kind(scale.numel(), epsilon, affine=not is_plain, device="meta")
    if not is_plain:
        layer.weight, layer.bias = g.parameter(scale), g.parameter(bias)
    return g.module(layer, clean_path(op.name) if is_plain else g.layer_name(scale, bias), x)


def _group_norm(g: Builder, op: Operation, x: Value, scale: Value, bias: Value) -> Any:
    groups, epsilon = op.get("num_groups"), op.get("epsilon", 1e-5)
    weight, offset = g.constant(scale, "scale"), g.constant(bias, "bias")
    channels = g.size(x, 1)
    if not isinstance(channels, int):
        raise InvalidInput(f"{op} takes a value whose number of channels the file leaves open")
    if weight.numel() == groups != channels:
        # Until opset 20 there is one number per group.
        weight, offset = (part.repeat_interleave(channels // groups) for part in (weight, offset))
    layer = nn.GroupNorm(groups, channels, epsilon, device="meta")
    layer.weight, layer.bias = g.parameter(weight), g.parameter(offset)
    return g.module(layer, g.layer_name(scale, bias), x)


def _lrn(g: Builder, op: Operation, x: Value) -> Any:
    layer = nn.LocalResponseNorm(op.get("size"), op.get("alpha", 1e-4), op.get("beta", 0.75), op.get("bias", 1.0))
    return g.module(layer, clean_path(op.name, keep=True), x)


def _lp_norm(g: Builder, op: Operation, x: Value) -> Any:
    axis, power = op.get("axis", -1), op.get("p", 2)
    size = g.call(torch.linalg.vector_norm, x, power, axis, True)
    return g.call(torch.div, x, g.call(torch.clamp, size, min=1e-38))


def _mean_variance(g: Builder, op: Operation, x: Value) -> Any:
    axes = op.get("axes", [0, 2, 3])
    center = g.call(torch.sub, x, g.call(torch.mean, x, axes, True))
    spread = g.call(torch.mean, g.call(torch.mul, center, center), axes, True)
    return g.call(torch.div, center, g.call(torch.add, g.call(torch.sqrt, spread), 1e-9))


OPERATORS: dict[str, Callable[..., Any]] = {
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LRN": _lrn,
    "LayerNormalization": _layer_norm,
    "LpNormalization": _lp_norm,
    "MeanVarianceNormalization": _mean_variance,
    "RMSNormalization": _rms_norm,
}
