"""LSTM, GRU and simple recurrent layers.

Shape suffixes: d directions, g gates, h hidden, i inputs, t steps, b batch.
"""

# ruff: noqa: ARG001, PLR0917 - the functions of a table are all called alike, by a node's inputs

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.reading import Operation

# Where torch's gates stand among ONNX's: i f g o of i o f c, and r z n of z r h.
_ORDER = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}


def _recurrent(
    g: Builder,
    op: Operation,
    x: Value,
    weights: Value,
    recurrence: Value,
    bias: Value | None = None,
    lengths: Value | None = None,
    first: Value | None = None,
    cell: Value | None = None,
    peephole: Value | None = None,
) -> Any:
    w_dgi, r_dgh = g.constant(weights, "weights"), g.constant(recurrence, "weights")
    direction = op.get("direction", "forward")
    activation = _checked(g, op, direction, peephole)
    layer = _layer(g, op, w_dgi, r_dgh, bias, activation)
    batch_first = bool(op.get("layout", 0))
    steps = g.call("transpose", x, 0, 1) if batch_first else x
    if _are_whole(g, lengths, steps):
        lengths = None
    if lengths is not None and (direction != "forward" or any(op.outputs[1:])):
        raise InvalidInput(f"{op} reads sequences of several lengths (sequence_lens), which can't be followed")
    is_reverse = direction == "reverse"
    if is_reverse:
        steps = g.call("flip", steps, [0])
    states = [None if state is None or _is_zero(state) else state for state in (first, cell)]
    if batch_first:
        states = [None if state is None else g.call("transpose", state, 0, 1) for state in states]
    name = g.layer_name(weights, recurrence)
    found = _added(g, op, layer, name, steps, states, len(w_dgi))
    y = _item(g, found, 0)
    if lengths is not None:
        y = g.call(functions.masked_steps, y, lengths)
    if is_reverse:
        y = g.call("flip", y, [0])
    last = _item(g, found, 1)
    ends = [_item(g, last, 0), _item(g, last, 1)] if op.kind == "LSTM" else [last]
    return _as_onnx(g, op, y, ends, len(w_dgi), batch_first=batch_first)


def _item(g: Builder, parts: Any, place: int) -> fx.Node:
    found: fx.Node = g.call(operator.getitem, parts, place)
    return found


def _checked(g: Builder, op: Operation, direction: str, peephole: Value | None) -> str:
    """Refuse what torch's layers don't compute; return the activation of a simple layer."""
    count = 2 if direction == "bidirectional" else 1
    named = [name.lower() for name in op.get("activations") or _ACTIVATIONS[op.kind] * count]
    plain = _ACTIVATIONS[op.kind] * count
    if op.kind == "RNN" and set(named) == {"relu"}:
        plain = named
    if named != plain:
        raise InvalidInput(f"{op} has the activations {', '.join(named)}, which torch's layer can't have")
    if op.get("clip") or op.get("input_forget"):
        raise InvalidInput(f"{op} clips its cells or couples its gates, which torch's layer can't do")
    if peephole is not None and not _is_zero(peephole):
        raise InvalidInput(f"{op} has peephole weights, which torch's layer can't have")
    if op.kind == "GRU" and not op.get("linear_before_reset", 0):
        raise InvalidInput(
            f"{op} resets its state before the product (linear_before_reset=0); torch's layer resets behind it",
            hint="in Keras: GRU(..., reset_after=True)",
        )
    return str(named[0])


def _layer(g: Builder, op: Operation, w_dgi: Tensor, r_dgh: Tensor, bias: Value | None, activation: str) -> nn.RNNBase:
    directions, _, inputs = w_dgi.shape
    hidden = r_dgh.shape[2]
    more: dict[str, Any] = {"nonlinearity": activation} if op.kind == "RNN" else {}
    kinds: dict[str, Any] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
    layer: nn.RNNBase = kinds[op.kind](
        inputs, hidden, bias=bias is not None, bidirectional=directions == 2, device="meta", **more
    )
    order = _ORDER[op.kind]

    def sorted_gates(whole: Tensor) -> Tensor:
        gates = whole.chunk(len(order))
        return torch.cat([gates[gate] for gate in order])

    for place, suffix in zip(range(directions), ("", "_reverse"), strict=False):
        setattr(layer, f"weight_ih_l0{suffix}", g.parameter(sorted_gates(w_dgi[place])))
        setattr(layer, f"weight_hh_l0{suffix}", g.parameter(sorted_gates(r_dgh[place])))
        if bias is not None:
            inner, outer = g.constant(bias, "bias")[place].chunk(2)
            setattr(layer, f"bias_ih_l0{suffix}", g.parameter(sorted_gates(inner)))
            setattr(layer, f"bias_hh_l0{suffix}", g.parameter(sorted_gates(outer)))
    return layer


def _added(
    g: Builder, op: Operation, layer: nn.Module, name: str, x: Value, states: list[Value | None], directions: int
) -> Any:
    if not any(state is not None for state in states):
        return g.module(layer, name, x)
    if op.kind != "LSTM":
        assert states[0] is not None
        return g.module(layer, name, x, states[0])
    assert isinstance(layer, nn.LSTM)
    like = next(state for state in states if state is not None)
    both = [g.call(torch.zeros_like, like) if state is None else state for state in states]
    return g.module(layer, name, x, tuple(g.tensor(state) for state in both))  # type: ignore[arg-type]


def _as_onnx(g: Builder, op: Operation, y: Any, ends: list[fx.Node], directions: int, *, batch_first: bool) -> Any:
    """Give torch's [t, b, d * h] the form [t, d, b, h], or [b, t, d, h]."""
    if batch_first:
        y = g.call("transpose", y, 0, 1)
        ends = [g.call("transpose", end, 0, 1) for end in ends]
    if directions == 1:
        found = g.call("unsqueeze", y, 2 if batch_first else 1)
    else:
        found = g.call("unflatten", y, 2, [2, -1])
        if not batch_first:
            found = g.call("permute", found, [0, 2, 1, 3])
    return (found, *ends)


def _is_zero(value: Value) -> bool:
    """Whether a value is zeros, whatever its shape: torch's layers then need no state."""
    if isinstance(value, Tensor):
        return not bool(value.any())
    if isinstance(value, fx.Node) and value.target is torch.full:
        return bool(value.args[1] == 0)
    if isinstance(value, fx.Node) and value.target in {"expand", "reshape", "repeat", "permute", torch.cat}:
        source = value.args[0]
        parts = source if isinstance(source, tuple | list) else [source]
        return all(isinstance(part, fx.Node) and _is_zero(part) for part in parts)
    return isinstance(value, fx.Node) and bool(value.meta.get("zero"))


def _are_whole(g: Builder, lengths: Value | None, x: Value) -> bool:
    """Whether all sequences are as long as the input is."""
    if lengths is None:
        return True
    steps = g.size(x, 0)
    if isinstance(lengths, Tensor):
        return isinstance(steps, int) and bool((lengths == steps).all())
    if isinstance(lengths, fx.Node) and lengths.target in {torch.full, "expand", "to", "repeat"}:
        source = lengths.args[1] if lengths.target is torch.full else lengths.args[0]
        if isinstance(source, fx.Node) and source.target is functions.sizes_tensor:
            items = source.args[0]
            return isinstance(items, list | tuple) and all(item is steps for item in items)
        return source is steps or source == steps or (isinstance(source, fx.Node) and _are_whole(g, source, x))
    return False


OPERATORS: dict[str, Callable[..., Any]] = {"GRU": _recurrent, "LSTM": _recurrent, "RNN": _recurrent}
