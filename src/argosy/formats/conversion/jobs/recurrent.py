"""Recurrent layers written out in operators that every tool has, for those that have no such layers. Needs onnx.

Step by step, with the weights of all steps held once. The input's product is computed for all steps together, as
recurrent kernels do. Equations and the order of gates are those of ONNX's operators LSTM-22, GRU-22 and RNN-22.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

KINDS = ("LSTM", "GRU", "RNN")
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_USUAL = {"LSTM": ["Sigmoid", "Tanh", "Tanh"], "GRU": ["Sigmoid", "Tanh"], "RNN": ["Tanh"]}
_ACTIVATIONS = {"Sigmoid", "Tanh", "Relu"}
# More operations are no layer that a tool would compile in an hour; a step of one direction has about so many.
_MAX_NODES, _STEP_NODES = 50_000, 25
# More dimensions than any value has.
_MAX_SIZES = 16
# What these make of zeros is zeros.
_MOVING = (
    "Expand",
    "Slice",
    "Identity",
    "Cast",
    "Unsqueeze",
    "Squeeze",
    "Reshape",
    "Transpose",
    "Gather",
    "Tile",
    "Split",
)
# Before it, Unsqueeze takes its axes in another way.
_LEAST_OPSET = 13


def written_out(model: Any) -> Any:
    """Return the model with its recurrent layers of a fixed number of steps written out; else the same model.

    Layers that an exporter has written out itself begin with a product of zeros for the whole batch, which is taken
    out. Left as they are, for the tool to say so: layers whose number of steps is free, sequences of several lengths,
    peepholes, clipping.
    """
    import onnx

    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < _LEAST_OPSET:
        return model
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    zeros = _zeros(model, constants)
    spread = zeros - set(constants)
    has_layers = any(node.op_type in KINDS for node in model.graph.node)
    if not has_layers and not spread:
        return model
    known = _known(model)
    sums = _plain_sums(model, known, constants, spread)
    if not has_layers and not sums:
        return model
    nodes: list[Any] = []
    weights: list[Any] = []
    for node in model.graph.node:
        if node.output and node.output[0] in sums:
            nodes += sums[node.output[0]][0]
            weights += sums[node.output[0]][1]
            continue
        layer = _Layer(node, known, constants, zeros) if node.op_type in KINDS else None
        if layer is None or len(nodes) > _MAX_NODES or not layer.can_be_written():
            nodes.append(type(node).FromString(node.SerializeToString()))
            continue
        layer.write()
        nodes += layer.nodes
        weights += [onnx.numpy_helper.from_array(array, name) for name, array in layer.weights.items()]
    weights += _plain_reshapes(nodes, constants)
    # What made the zeros that layers began with, and sizes of what they give, is needed no more.
    left, taken = needed(nodes, [value.name for value in model.graph.output])
    kept = [tensor for tensor in model.graph.initializer if tensor.name in taken]
    graph = onnx.helper.make_graph(left, model.graph.name, model.graph.input, model.graph.output, [*kept, *weights])
    made = onnx.helper.make_model(graph, opset_imports=model.opset_import, functions=model.functions)
    made.ir_version = model.ir_version
    return made


def _plain_reshapes(nodes: list[Any], constants: dict[str, np.ndarray]) -> list[Any]:
    """Give reshapes whose sizes are those of what they reshape these as numbers; return the new constants.

    Exporters join directions and widths behind a layer in this way: its shape is taken, cut, multiplied and joined.
    """
    from onnx import helper, numpy_helper

    # What is known of sizes: whole numbers, or (value, axis) for a size of a value; None for one that is computed.
    sizes: dict[str, list[Any]] = {
        name: [int(one) for one in array.reshape(-1)]
        for name, array in constants.items()
        if array.dtype.kind == "i" and array.size <= _MAX_SIZES
    }
    made = []
    for node in nodes:
        options = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        known = [sizes.get(name) for name in node.input]
        given = [one for one in known if one is not None]
        is_known = len(given) == len(known)
        if node.op_type == "Shape" and not options.get("start") and "end" not in options:
            sizes[node.output[0]] = [(node.input[0], axis) for axis in range(_MAX_SIZES)]
        elif node.op_type == "Slice" and is_known and len(given) == 3:
            whole, start, end = given
            sizes[node.output[0]] = whole[start[0] : end[0]]
        elif node.op_type == "Concat" and is_known:
            sizes[node.output[0]] = [size for one in given for size in one]
        elif node.op_type == "Mul" and is_known and all(len(one) == 1 for one in given):
            sizes[node.output[0]] = [None]
        elif node.op_type in ("Reshape", "Squeeze", "Unsqueeze") and known[0] is not None and len(known[0]) == 1:
            sizes[node.output[0]] = known[0]
        elif node.op_type == "Reshape" and known[1] is not None and node.input[1] not in constants:
            found = [0 if size == (node.input[0], at) else size for at, size in enumerate(known[1])]
            found = [size if isinstance(size, int) else -1 for size in found]
            if found.count(-1) <= 1:
                name = f"{node.output[0]}/sizes"
                made.append(numpy_helper.from_array(np.array(found, np.int64), name))
                node.input[1] = name
    return made


def _zeros(model: Any, constants: dict[str, np.ndarray]) -> set[str]:
    """Return the values that are zeros whatever the inputs are: states, whose size depends on the batch."""
    found = {name for name, array in constants.items() if array.dtype.kind == "f" and not array.any()}
    for node in model.graph.node:
        if node.op_type == "ConstantOfShape":
            given = [attribute.t for attribute in node.attribute if attribute.name == "value"]
            if not any(_is_other(tensor) for tensor in given):
                found.update(node.output)
        elif (node.op_type in _MOVING and node.input[0] in found) or (
            node.op_type == "MatMul" and found & set(node.input)
        ):
            found.update(node.output)
    return found


def _plain_sums(
    model: Any, known: dict[str, list[int]], constants: Iterable[str], zeros: set[str]
) -> dict[str, tuple[list[Any], list[Any]]]:
    """Return what can stand for sums that zeros are part of, or a bias spread over them: nodes and constants of each.

    What is added to must have the shape of the sum, but for ones in front.
    """
    from onnx import helper, numpy_helper

    spread: dict[str, str] = {}
    made = {}
    for node in model.graph.node:
        if node.op_type != "Add":
            continue
        for one, other in (node.input, reversed(node.input)):
            total, shape = known.get(node.output[0]), known.get(other)
            if one in zeros and other in constants and total == known.get(one, []):
                spread[node.output[0]] = other
            elif (one in zeros or one in spread) and other not in zeros and total and shape:
                front = len(total) - len(shape)
                if front < 0 or total != [1] * front + shape:
                    continue
                own = f"{node.output[0]}/plain"
                axes = [numpy_helper.from_array(np.arange(front), f"{own}/axes")] if front else []
                summed = [helper.make_node("Add", [other, spread[one]], [own], name=own)] if one in spread else []
                given = [own if summed else other, *(tensor.name for tensor in axes)]
                last = helper.make_node("Unsqueeze" if front else "Identity", given, node.output, name=node.name)
                made[node.output[0]] = ([*summed, last], axes)
    return made


def _is_other(tensor: Any) -> bool:
    from onnx import numpy_helper

    return bool(numpy_helper.to_array(tensor).any())


def needed(nodes: Iterable[Any], outputs: Iterable[str]) -> tuple[list[Any], set[str]]:
    """Return the nodes that lead to `outputs`, in order, and the names of all values these and the outputs take."""
    taken = set(outputs)
    kept = []
    for node in reversed(list(nodes)):
        if taken & set(node.output):
            taken |= _taken(node)
            kept.append(node)
    return kept[::-1], taken


def _taken(node: Any) -> set[str]:
    """What a node takes, and what graphs inside of it may take."""
    found = set(node.input)
    for attribute in node.attribute:
        for graph in (attribute.g, *attribute.graphs):
            found |= {value.name for value in graph.output}
            for inner in graph.node:
                found |= _taken(inner)
    return found


def _known(model: Any) -> dict[str, list[int]]:
    import onnx

    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    found = {}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        tensor = value.type.tensor_type
        if tensor.HasField("shape"):
            found[value.name] = [size.dim_value if size.HasField("dim_value") else -1 for size in tensor.shape.dim]
    return found


class _Layer:
    """One recurrent node on its way to plain operators. Shapes: t steps, b batch, d directions, h hidden."""

    def __init__(
        self, node: Any, known: dict[str, list[int]], constants: dict[str, np.ndarray], zeros: set[str]
    ) -> None:
        from onnx import helper

        self.node, self.kind, self.constants = node, node.op_type, constants
        self.name = node.name or node.output[0]
        self.options = {one.name: helper.get_attribute_value(one) for one in node.attribute}
        self.inputs = [*node.input, *[""] * (8 - len(node.input))]
        for state in (5, 6):
            if self.inputs[state] in zeros:
                self.inputs[state] = ""
        self.shape = known.get(node.input[0], [])
        self.nodes: list[Any] = []
        self.weights: dict[str, np.ndarray] = {}
        self.own, self.step, self.hidden = self.name, "once", 0

    def can_be_written(self) -> bool:
        """Return whether all that matters is known."""
        lengths = self.constants.get(self.inputs[4]) if self.inputs[4] else None
        steps = self.shape[0] if len(self.shape) == 3 else -1
        is_whole = not self.inputs[4] or (lengths is not None and bool((lengths == steps).all()))
        has_weights = all(name in self.constants for name in self.inputs[1:4] if name)
        has_weights = has_weights and self.constants[self.inputs[1]].dtype == np.float32
        return (
            steps > 0
            and steps * _STEP_NODES <= _MAX_NODES
            and is_whole
            and has_weights
            and not self.inputs[7]
            and not self.options.get("layout", 0)
            and not self.options.get("clip", 0.0)
            and not self.options.get("input_forget", 0)
            and {one.decode() for one in self.options.get("activations", [])} <= _ACTIVATIONS
            and not self.options.get("activation_alpha")
        )

    def write(self) -> None:
        """Fill in `nodes` and `weights`, which give the outputs of the layer under their names."""
        direction = self.options.get("direction", b"forward").decode()
        sides = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[direction]
        given = [one.decode() for one in self.options.get("activations", [])] or _USUAL[self.kind] * len(sides)
        each = len(given) // len(sides)
        ways = [
            self._side(place, given[place * each : (place + 1) * each], is_reverse=is_reverse)
            for place, is_reverse in enumerate(sides)
        ]
        states, hidden, cells = zip(*ways, strict=True)
        self._join(states, 0)
        self._end(hidden, 1)
        if self.kind == "LSTM":
            self._end(cells, 2)

    def _side(self, place: int, activations: list[str], *, is_reverse: bool) -> tuple[list[str], str, str]:
        """Write one direction; return the states of all steps in the order of time, the last one, the last cell."""
        kind, own = self.kind, f"{self.name}/{'reverse' if is_reverse else 'forward'}"
        steps, gates = self.shape[0], _GATES[kind]
        w, r = (self.constants[name][place].astype(np.float32) for name in self.inputs[1:3])
        hidden = r.shape[1]
        bias = self.constants[self.inputs[3]][place] if self.inputs[3] else np.zeros(2 * gates * hidden, np.float32)
        inner, outer = np.split(bias.astype(np.float32), 2)
        is_apart = kind == "GRU" and bool(self.options.get("linear_before_reset", 0))
        self.own, self.step, self.hidden = own, "once", hidden
        # What both products add can be added once, except where a gate stands between them.
        alone = np.zeros_like(outer)
        if kind == "GRU":
            alone[2 * hidden :] = outer[2 * hidden :]
        self.weights[f"{own}/w"], self.weights[f"{own}/r"] = w.T.copy(), r.T.copy()
        self.weights[f"{own}/b"] = inner + outer - alone
        self.weights[f"{own}/apart"] = alone[2 * hidden :] if kind == "GRU" else alone
        product = self.op("MatMul", [self.inputs[0], f"{own}/w"], "product")
        before = self.op("Add", [product, f"{own}/b"], "before")
        h, c = self._start(5, place), self._start(6, place) if kind == "LSTM" else ""
        states = [""] * steps
        for step in range(steps - 1, -1, -1) if is_reverse else range(steps):
            self.step = f"{step}"
            self.weights[f"{self.name}/{step}"] = np.array(step, np.int64)
            x = self.op("Gather", [before, f"{self.name}/{step}"], "x", axis=0)
            if kind == "LSTM":
                h, c = self._lstm(x, h, c, activations)
            elif kind == "GRU":
                h = self._gru(x, h, activations, is_apart=is_apart)
            else:
                both = self.op("Add", [x, self.op("MatMul", [h, f"{own}/r"], "kept")], "both")
                h = self.op(activations[0], [both], "h")
            states[step] = h
        return states, h, c

    def _start(self, at: int, place: int) -> str:
        """The state before the first step: [b, h]."""
        self.step = f"start-{at}"
        if self.inputs[at]:
            self.weights[f"{self.own}/place"] = np.array(place, np.int64)
            return self.op("Gather", [self.inputs[at], f"{self.own}/place"], "state", axis=0)
        # Zeros for a batch of any size, without an operator on shapes.
        self.weights[f"{self.own}/nothing"] = np.zeros((self.shape[2], self.hidden), np.float32)
        self.weights[f"{self.own}/first"] = np.array(0, np.int64)
        first = self.op("Gather", [self.inputs[0], f"{self.own}/first"], "first", axis=0)
        return self.op("MatMul", [first, f"{self.own}/nothing"], "zeros")

    def _lstm(self, x: str, h: str, c: str, activations: list[str]) -> tuple[str, str]:
        both = self.op("Add", [x, self.op("MatMul", [h, f"{self.own}/r"], "kept")], "both")
        i, o, f, g = (self._gate(both, at, name) for at, name in enumerate(("i", "o", "f", "g")))
        i, o, f = (self.op(activations[0], [gate], f"{name}-on") for gate, name in ((i, "i"), (o, "o"), (f, "f")))
        g = self.op(activations[1], [g], "g-on")
        c = self.op("Add", [self.op("Mul", [f, c], "kept-c"), self.op("Mul", [i, g], "new-c")], "c")
        return self.op("Mul", [o, self.op(activations[2], [c], "c-on")], "h"), c

    def _gru(self, x: str, h: str, activations: list[str], *, is_apart: bool) -> str:
        kept = self.op("MatMul", [h, f"{self.own}/r"], "kept")
        z, r = (
            self.op(
                activations[0],
                [self.op("Add", [self._gate(x, at, f"x-{name}"), self._gate(kept, at, f"h-{name}")], name)],
                f"{name}-on",
            )
            for at, name in enumerate(("z", "r"))
        )
        new = self._gate(x, 2, "x-h")
        if is_apart:
            inner = self.op("Add", [self._gate(kept, 2, "h-h"), f"{self.own}/apart"], "inner")
            reset = self.op("Mul", [r, inner], "reset")
        else:
            if f"{self.own}/rh" not in self.weights:
                self.weights[f"{self.own}/rh"] = self.weights[f"{self.own}/r"][:, 2 * self.hidden :].copy()
            inner = self.op("MatMul", [self.op("Mul", [r, h], "reset-h"), f"{self.own}/rh"], "inner")
            reset = self.op("Add", [inner, f"{self.own}/apart"], "reset")
        new = self.op(activations[1], [self.op("Add", [new, reset], "new")], "new-on")
        # (1 - z) n + z h
        difference = self.op("Sub", [h, new], "difference")
        return self.op("Add", [new, self.op("Mul", [z, difference], "moved")], "h")

    def _gate(self, whole: str, at: int, name: str) -> str:
        """The part of [b, gates * h] that belongs to one gate."""
        for number, value in (("from", at * self.hidden), ("to", (at + 1) * self.hidden)):
            self.weights[f"{self.own}/{number}-{at}"] = np.array([value], np.int64)
        self.weights[f"{self.own}/axis"] = np.array([1], np.int64)
        return self.op("Slice", [whole, f"{self.own}/from-{at}", f"{self.own}/to-{at}", f"{self.own}/axis"], name)

    def _join(self, ways: Sequence[Sequence[str]], output: int) -> None:
        """Give all states as [t, d, b, h]."""
        if not self._is_wanted(output):
            return
        self.step = "all"
        raised = []
        for at, states in enumerate(zip(*ways, strict=True)):
            both = [self._raised(state, f"{way}-{at}") for way, state in enumerate(states)]
            raised.append(self._raised(self.op("Concat", both, f"step-{at}", axis=0), f"time-{at}"))
        self._op_to("Concat", raised, self.node.output[output], axis=0)

    def _end(self, ways: Sequence[str], output: int) -> None:
        """Give what is left at the end as [d, b, h]."""
        if self._is_wanted(output):
            self.step = f"end-{output}"
            raised = [self._raised(state, f"{way}") for way, state in enumerate(ways)]
            self._op_to("Concat", raised, self.node.output[output], axis=0)

    def _is_wanted(self, output: int) -> bool:
        return len(self.node.output) > output and bool(self.node.output[output])

    def _raised(self, value: str, name: str) -> str:
        self.weights[f"{self.name}/in-front"] = np.array([0], np.int64)
        return self.op("Unsqueeze", [value, f"{self.name}/in-front"], f"raised-{name}")

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        """Add an operation, and return the name of what it gives."""
        output = f"{self.own}/{self.step}/{name}"
        self._op_to(kind, inputs, output, **attributes)
        return output

    def _op_to(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        from onnx import helper

        # Errors of tools name the node: it begins with the layer's own name.
        self.nodes.append(helper.make_node(kind, inputs, [output], name=f"{self.name}/{len(self.nodes)}", **attributes))
