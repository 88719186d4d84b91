"""Masks and kinds of tokens that exporters compute in dozens of operations, written in three or none.

What transformers adds to the scores of attention goes from positions, comparisons and expansions to nothing but "where
the mask is 0, a very negative number". It is recognized by what it comes to: in several shapes, with masks drawn at
random, every number of it must be that. A kind of token that callers do not give is a row of its table, always the
same. For an encoder of two thin blocks these were a third of all operations.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from argosy.data.text import ATTENTION_MASK

if TYPE_CHECKING:
    import onnx

Run = dict[str, np.ndarray]
Values = Callable[["onnx.ModelProto", Sequence[str], Sequence[Run]], list[Run]]
# An exporter's own short form has as many operations, and they are few.
_FEW = 6
# Before it, Unsqueeze takes its axes in another way.
_LEAST_OPSET = 13
_NONE: frozenset[str] = frozenset()


def with_drawn_masks(runs: Sequence[Run]) -> list[Run]:
    """Return the runs with any of a row's tokens masked, but never its first."""
    draw = np.random.default_rng(0)
    found = []
    for run in runs:
        if ATTENTION_MASK in run:
            mask = draw.integers(0, 2, run[ATTENTION_MASK].shape).astype(run[ATTENTION_MASK].dtype)
            mask[:, 0] = 1
            run = {**run, ATTENTION_MASK: mask}  # noqa: PLW2901 - the same run with another mask
        found.append(run)
    return found


def with_plain_masks(model: "onnx.ModelProto", runs: Sequence[Run], values: Values) -> int:
    """Write what is added to scores as a choice by the mask; return how many such values there were."""
    from onnx import TensorProto, helper, numpy_helper

    sources = _sources(model)
    if sources is None or ATTENTION_MASK not in sources or _opset(model) < _LEAST_OPSET:
        return 0
    made = {name: node for node in model.graph.node for name in node.output}
    added: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        before = made.get(node.input[0]) if node.op_type == "Softmax" else None
        for name in before.input if before is not None and before.op_type == "Add" else ():
            if sources.get(name, _NONE) == {ATTENTION_MASK} and _operations_behind(name, made) > _FEW:
                added.setdefault(name, []).append(made[node.input[0]])
    seen = values(model, list(added), runs) if added else []
    lows = {name: min(float(each[name].min()) for each in seen) for name in added}
    plain = [
        name
        for name in added
        if all(_is_choice(each[name], run[ATTENTION_MASK], lows[name]) for each, run in zip(seen, runs, strict=True))
    ]
    for name in plain:
        parts = {word: f"{name}/{word}" for word in ("real", "nothing", "low", "axes", "chosen", "added")}
        model.graph.initializer.extend(
            [
                numpy_helper.from_array(np.array(0, np.float32), parts["nothing"]),
                numpy_helper.from_array(np.array(lows[name], np.float32), parts["low"]),
                numpy_helper.from_array(np.array([1, 2], np.int64), parts["axes"]),
            ]
        )
        first = (
            helper.make_node("Cast", [ATTENTION_MASK], [parts["real"]], parts["real"], to=TensorProto.BOOL),
            helper.make_node(
                "Where", [parts["real"], parts["nothing"], parts["low"]], [parts["chosen"]], parts["chosen"]
            ),
            helper.make_node("Unsqueeze", [parts["chosen"], parts["axes"]], [parts["added"]], parts["added"]),
        )
        for place, node in enumerate(first):
            model.graph.node.insert(place, node)
        for node in added[name]:
            _rename(node, name, parts["added"])
    return len(plain)


def with_fixed_rows(model: "onnx.ModelProto", runs: Sequence[Run], values: Values) -> int:
    """Add one row of a table where it is looked up for every token, whatever callers give; return how often."""
    from onnx import numpy_helper

    sources = _sources(model)
    if sources is None:
        return 0
    tables = {tensor.name: tensor for tensor in model.graph.initializer if len(tensor.dims) == 2}
    outputs = {value.name for value in model.graph.output}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    made = {name: node for node in model.graph.node for name in node.output}
    todo = [
        node
        for node in model.graph.node
        if node.op_type == "Gather"
        and node.input[0] in tables
        and not any(attribute.i for attribute in node.attribute)
        and node.input[1] in made
        and sources[node.input[1]] == _NONE
        and node.output[0] not in outputs
        and all(user.op_type in ("Add", "Sum") for user in users.get(node.output[0], ()))
    ]
    seen = values(model, [node.input[1] for node in todo], runs) if todo else []
    count = 0
    for node in todo:
        places = [each[node.input[1]] for each in seen]
        # Of a single token the first position is the first kind, too.
        if min(each.shape[-1] if each.ndim else 0 for each in places) < 2 or any(np.ptp(p) for p in places):
            continue
        if len({int(each.flat[0]) for each in places}) > 1:
            continue
        row = numpy_helper.to_array(tables[node.input[0]])[int(places[0].flat[0])]
        name = f"{node.output[0]}/row"
        model.graph.initializer.append(numpy_helper.from_array(row.reshape((1,) * places[0].ndim + row.shape), name))
        for user in users.get(node.output[0], ()):
            _rename(user, node.output[0], name)
        count += 1
    return count


def _is_choice(value: np.ndarray, mask: np.ndarray, low: float) -> bool:
    """Whether it is 0 for tokens that are there and `low` for the others, in every row of scores."""
    if value.ndim != 4 or value.dtype != np.float32 or (value.shape[0], value.shape[3]) != mask.shape:
        return False
    chosen = np.where(mask[:, None, None, :] == 0, np.float32(low), np.float32(0))
    return bool(np.array_equal(value, np.broadcast_to(chosen, value.shape)))


def _sources(model: "onnx.ModelProto") -> dict[str, frozenset[str]] | None:
    """Return of which inputs' numbers each value is made; of a shape none. None for graphs with graphs inside."""
    found = {value.name: frozenset({value.name}) for value in model.graph.input}
    found |= {tensor.name: _NONE for tensor in model.graph.initializer}
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            return None
        mine = _NONE.union(*(found.get(name, _NONE) for name in node.input))
        for name in node.output:
            found[name] = _NONE if node.op_type in ("Shape", "Size") else mine
    return found


def _operations_behind(name: str, made: dict[str, "onnx.NodeProto"]) -> int:
    """How many operations a value takes, up to a few more than few."""
    todo = [name]
    seen: set[str] = set()
    while todo and len(seen) <= _FEW:
        node = made.get(todo.pop())
        if node is not None and node.op_type != "Constant" and node.output[0] not in seen:
            seen.add(node.output[0])
            todo.extend(node.input)
    return len(seen)


def _rename(node: "onnx.NodeProto", name: str, other: str) -> None:
    for place, own in enumerate(node.input):
        if own == name:
            node.input[place] = other


def _opset(model: "onnx.ModelProto") -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
