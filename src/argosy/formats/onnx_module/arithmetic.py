"""Elementwise operators with one answer per number: arithmetic, comparisons, logic, casts."""

# ruff: noqa: ARG001 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.reading import DTYPES, Operation


def _unary(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, x: Value) -> Any:
        return g.call(function, x)

    return apply


def _operands(g: Builder, *values: Value) -> list[Any]:
    """Return constants without dimensions as numbers, unless nothing else is there to say the datatype."""
    if all(isinstance(value, Tensor) for value in values):
        return list(values)
    return [g.operand(value) for value in values]


def _binary(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, left: Value, right: Value) -> Any:
        return g.call(function, *_operands(g, left, right))

    return apply


def _tensors(function: Callable[..., Any]) -> Callable[..., Any]:
    def apply(g: Builder, op: Operation, *values: Value) -> Any:
        return reduce(lambda left, right: g.call(function, left, right), values)

    return apply


def _sum(g: Builder, op: Operation, *values: Value) -> Any:
    return reduce(lambda left, right: g.call(operator.add, left, right), values)


def _mean(g: Builder, op: Operation, *values: Value) -> Any:
    return g.call(operator.truediv, _sum(g, op, *values), len(values))


def _div(g: Builder, op: Operation, left: Value, right: Value) -> Any:
    dtype = g.dtype(left) or g.dtype(right)
    if dtype is not None and dtype.is_floating_point:
        return g.call(operator.truediv, *_operands(g, left, right))
    return g.call(functions.divide, left, right)


def _pow(g: Builder, op: Operation, base: Value, exponent: Value) -> Any:
    dtype = g.dtype(base)
    found = g.call(torch.pow, *_operands(g, base, exponent))
    if dtype is not None and not dtype.is_floating_point and dtype != g.dtype(exponent):
        return g.call("to", found, dtype)
    return found


def _mod(g: Builder, op: Operation, left: Value, right: Value) -> Any:
    return g.call(torch.fmod if op.get("fmod", 0) else torch.remainder, *_operands(g, left, right))


def _where(g: Builder, op: Operation, condition: Value, left: Value, right: Value) -> Any:
    choices = _operands(g, left, right)
    if isinstance(condition, Tensor) and any(isinstance(choice, Tensor) for choice in choices):
        choices = [left, right]
    return g.call(torch.where, condition, *choices)


def _cast(g: Builder, op: Operation, x: Value, like: Value | None = None) -> Any:
    dtype = g.dtype(like) if like is not None else DTYPES.get(op.get("to"))
    if dtype is None:
        raise InvalidInput(f"{op} casts to a type that PyTorch has no tensors of (number {op.get('to')} of ONNX)")
    if g.dtype(x) == dtype and not isinstance(x, Tensor):
        return x
    return g.call("to", x, dtype)


def _clip(g: Builder, op: Operation, x: Value, low: Value | None = None, high: Value | None = None) -> Any:
    least: Any = op.get("min") if low is None else low
    most: Any = op.get("max") if high is None else high
    bounds = {name: bound for name, bound in (("min", least), ("max", most)) if bound is not None}
    if all(not isinstance(bound, Tensor) or bound.numel() == 1 for bound in bounds.values()):
        plain = {k: v.reshape(()).item() if isinstance(v, Tensor) else v for k, v in bounds.items()}
        if any(not isinstance(v, int | float) for v in plain.values()):
            plain = {k: g.tensor(v) if not isinstance(v, int | float) else v for k, v in plain.items()}
            for name, bound in plain.items():
                if isinstance(bound, int | float):
                    x = g.call(torch.clamp, x, **{name: bound})
                else:
                    x = g.call(torch.maximum if name == "min" else torch.minimum, x, bound)
            return x
        return g.call(torch.clamp, x, **plain) if plain else x
    raise InvalidInput(f"{op} has bounds of more than one number")


def _shift(g: Builder, op: Operation, left: Value, right: Value) -> Any:
    is_left = op.get("direction") == "LEFT"
    return g.call(torch.bitwise_left_shift if is_left else torch.bitwise_right_shift, left, right)


def _is_inf(g: Builder, op: Operation, x: Value) -> Any:
    above, below = op.get("detect_positive", 1), op.get("detect_negative", 1)
    if above and below:
        return g.call(torch.isinf, x)
    if not above and not below:
        return g.call(torch.zeros_like, x, dtype=torch.bool)
    return g.call(torch.isposinf if above else torch.isneginf, x)


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": _unary(torch.abs),
    "Acos": _unary(torch.acos),
    "Acosh": _unary(torch.acosh),
    "Add": _binary(operator.add),
    "And": _tensors(torch.logical_and),
    "Asin": _unary(torch.asin),
    "Asinh": _unary(torch.asinh),
    "Atan": _unary(torch.atan),
    "Atanh": _unary(torch.atanh),
    "BitShift": _shift,
    "BitwiseAnd": _tensors(torch.bitwise_and),
    "BitwiseNot": _unary(torch.bitwise_not),
    "BitwiseOr": _tensors(torch.bitwise_or),
    "BitwiseXor": _tensors(torch.bitwise_xor),
    "Cast": _cast,
    "CastLike": _cast,
    "Ceil": _unary(torch.ceil),
    "Clip": _clip,
    "Cos": _unary(torch.cos),
    "Cosh": _unary(torch.cosh),
    "Div": _div,
    "Equal": _binary(operator.eq),
    "Erf": _unary(torch.erf),
    "Exp": _unary(torch.exp),
    "Floor": _unary(torch.floor),
    "Greater": _binary(operator.gt),
    "GreaterOrEqual": _binary(operator.ge),
    "IsInf": _is_inf,
    "IsNaN": _unary(torch.isnan),
    "Less": _binary(operator.lt),
    "LessOrEqual": _binary(operator.le),
    "Log": _unary(torch.log),
    "Max": _tensors(torch.maximum),
    "Mean": _mean,
    "Min": _tensors(torch.minimum),
    "Mod": _mod,
    "Mul": _binary(operator.mul),
    "Neg": _unary(torch.neg),
    "Not": _unary(torch.logical_not),
    "Or": _tensors(torch.logical_or),
    "Pow": _pow,
    "Reciprocal": _unary(torch.reciprocal),
    "Round": _unary(torch.round),
    "Sign": _unary(torch.sign),
    "Sin": _unary(torch.sin),
    "Sinh": _unary(torch.sinh),
    "Sqrt": _unary(torch.sqrt),
    "Sub": _binary(operator.sub),
    "Sum": _sum,
    "Tan": _unary(torch.tan),
    "Where": _where,
    "Xor": _tensors(torch.logical_xor),
}
