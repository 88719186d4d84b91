"""Layers that exporters took apart, found again in the nodes: each becomes one node that the tables know.

A group of nodes is replaced only when nothing outside of it takes what passes between them.
"""

import math
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from argosy.formats.onnx_module.linear import is_bias, is_weight
from argosy.formats.onnx_module.reading import Operation


def with_layers(operations: list[Operation], outputs: list[str], constants: dict[str, Tensor]) -> list[Operation]:
    """Return the operations with groups that are one layer as one operation."""
    finder = _Finder(operations, outputs, constants)
    return finder.found()


class _Finder:
    def __init__(self, operations: list[Operation], outputs: list[str], constants: dict[str, Tensor]) -> None:
        self.operations = operations
        self.constants = constants
        self.producer = {name: number for number, op in enumerate(operations) for name in op.outputs}
        self.users: dict[str, list[int]] = {}
        for number, op in enumerate(operations):
            for name in (*op.inputs, *op.captured):
                self.users.setdefault(name, []).append(number)
        for name in outputs:
            self.users.setdefault(name, []).append(-1)

    def found(self) -> list[Operation]:
        """Replace groups by their last operations, the largest kinds of groups first."""
        gone: set[int] = set()
        put: dict[int, Operation] = {}
        kinds: dict[str, tuple[Callable[[int], tuple[Operation, set[int]] | None], ...]] = {
            "Mul": (self._layer_norm, self._gelu, self._silu),
            "Add": (self._layer_norm, self._linear),
        }
        for number in reversed(range(len(self.operations))):
            op = self.operations[number]
            for look in kinds.get(op.kind, ()) if number not in gone else ():
                match = look(number)
                if match is not None and not match[1] & (gone | put.keys()):
                    put[number] = match[0]
                    gone |= match[1]
                    break
        # What led to constants inside of a group stays; it is dropped if nothing else needs it.
        return [put.get(number, op) for number, op in enumerate(self.operations) if number in put or number not in gone]

    # ---- steps through the graph

    def _made_by(self, name: str, kind: str) -> int | None:
        number = self.producer.get(name)
        return number if number is not None and self.operations[number].kind == kind else None

    def _is_inner(self, numbers: set[int], last: int) -> bool:
        whole = numbers | {last}
        return all(
            user in whole for number in numbers for name in self.operations[number].outputs
            for user in self.users.get(name, ())
        )  # fmt: skip

    def _number(self, name: str) -> float | None:
        value = self.constants.get(name)
        return float(value.reshape(())) if value is not None and value.numel() == 1 else None

    def _other(self, number: int, name: str) -> str | None:
        """The other input of an operation of two."""
        inputs = self.operations[number].inputs
        if len(inputs) != 2 or name not in inputs:
            return None
        return inputs[1] if inputs[0] == name else inputs[0]

    def _with_number(self, number: int, *wanted: float) -> str | None:
        """The input of an operation of two whose other input is one of these numbers."""
        op = self.operations[number]
        for name in op.inputs:
            value = self._number(name)
            if value is not None and any(math.isclose(value, want, rel_tol=1e-3) for want in wanted):
                return self._other(number, name)
        return None

    def _pair(self, number: int, kind: str) -> tuple[int, str] | None:
        """The input of an operation of two that `kind` gives, as its number, and the other input."""
        op = self.operations[number]
        for name in op.inputs:
            made = self._made_by(name, kind)
            other = self._other(number, name)
            if made is not None and other is not None:
                return made, other
        return None

    # ---- layers

    def _linear(self, number: int) -> tuple[Operation, set[int]] | None:
        pair = self._pair(number, "MatMul")
        if pair is None:
            return None
        product, bias = pair
        op = self.operations[product]
        weight = self.constants.get(op.inputs[1]) if len(op.inputs) == 2 else None
        if weight is None or not is_weight(weight) or op.inputs[0] in self.constants:
            return None
        if not is_bias(self.constants.get(bias), weight.shape[1]) or not self._is_inner({product}, number):
            return None
        name = op.name if "/" in op.name else self.operations[number].name
        return Operation("@Linear", name, [*op.inputs, bias], self.operations[number].outputs), {product}

    def _silu(self, number: int) -> tuple[Operation, set[int]] | None:
        pair = self._pair(number, "Sigmoid")
        if pair is None or self.operations[pair[0]].inputs != [pair[1]] or not self._is_inner({pair[0]}, number):
            return None
        op = self.operations[number]
        return Operation("Swish", self.operations[pair[0]].name, [pair[1]], op.outputs), {pair[0]}

    def _gelu(self, number: int) -> tuple[Operation, set[int]] | None:
        """Gelu: x * (1 + erf(x / sqrt(2))) * 0.5 and the form with tanh, in the orders that exporters write."""
        for group, inner, x in self._halved(number):
            for kind, look in (("Erf", self._erf), ("Tanh", self._tanh)):
                pair = self._sum_with_one(inner, kind)
                if pair is None:
                    continue
                found = look(pair, x)
                if found is not None:
                    members = group | found | {inner, pair}
                    if self._is_inner(members, number):
                        approximate = {"approximate": "tanh" if kind == "Tanh" else "none"}
                        op = self.operations[number]
                        return replace(op, kind="Gelu", inputs=[x], attributes=approximate, captured=[]), members
        return None

    def _halved(self, number: int) -> list[tuple[set[int], int, str]]:
        """Ways to read a product as 0.5 * x * inner: further members, what gives `inner`, and x."""
        found: list[tuple[set[int], int, str]] = []
        whole = self._with_number(number, 0.5)
        if whole is not None:
            product = self._made_by(whole, "Mul")
            for name in [] if product is None else self.operations[product].inputs:
                inner, other = self._made_by(name, "Add"), self._other(product or 0, name)
                if product is not None and inner is not None and other is not None:
                    found.append(({product}, inner, other))
        for name in self.operations[number].inputs:
            other = self._other(number, name)
            half, inner = self._made_by(name, "Mul"), self._made_by(other or "", "Add")
            x = None if half is None else self._with_number(half, 0.5)
            if half is not None and inner is not None and x is not None:
                found.append(({half}, inner, x))
            outer = None if half is None else self._with_number(half, 0.5)
            sum_ = None if outer is None else self._made_by(outer, "Add")
            if half is not None and sum_ is not None and other is not None:
                found.append(({half}, sum_, other))
        return found

    def _sum_with_one(self, number: int, kind: str) -> int | None:
        name = self._with_number(number, 1.0)
        return None if name is None else self._made_by(name, kind)

    def _erf(self, number: int, x: str) -> set[int] | None:
        scaled = self.producer.get(self.operations[number].inputs[0])
        if scaled is None:
            return None
        op = self.operations[scaled]
        root = math.sqrt(2)
        is_divided = op.kind == "Div" and op.inputs[0] == x and self._with_number(scaled, root) == x
        is_scaled = op.kind == "Mul" and self._with_number(scaled, 1 / root) == x
        return {number, scaled} if is_divided or is_scaled else None

    def _tanh(self, number: int, x: str) -> set[int] | None:
        """tanh(sqrt(2 / pi) * (x + 0.044715 * x^3))."""
        scaled = self._made_by(self.operations[number].inputs[0], "Mul")
        whole = None if scaled is None else self._with_number(scaled, math.sqrt(2 / math.pi))
        total = None if whole is None else self._made_by(whole, "Add")
        if scaled is None or total is None:
            return None
        cubic = self._made_by(self._other(total, x) or "", "Mul")
        cube = None if cubic is None else self.producer.get(self._with_number(cubic, 0.044715) or "")
        if cubic is None or cube is None:
            return None
        op = self.operations[cube]
        members = {number, scaled, total, cubic, cube}
        if op.kind == "Pow" and op.inputs[0] == x and self._number(op.inputs[1]) == 3.0:
            return members
        square = self._made_by(self._other(cube, x) or "", "Mul") if op.kind == "Mul" else None
        if square is not None and self.operations[square].inputs == [x, x]:
            return members | {square}
        return None

    def _layer_norm(self, number: int) -> tuple[Operation, set[int]] | None:
        """(x - mean) / sqrt(mean((x - mean)^2) + e) * scale + bias over the last dimension."""
        op = self.operations[number]
        members: set[int] = set()
        bias: str | None = None
        product = number
        if op.kind == "Add":
            pair = self._pair(number, "Mul")
            if pair is None or not self._is_vector(pair[1]):
                return None
            product, bias = pair
            members.add(product)
        elif self._is_followed_by_bias(number):
            return None
        pair = self._pair(product, "Div")
        if pair is None or not self._is_vector(pair[1]):
            return None
        divided, scale = pair
        found = self._centered(divided)
        if found is None:
            return None
        x, epsilon, more = found
        members |= more | {divided}
        if not self._is_inner(members, number):
            return None
        attributes = {"axis": -1, "epsilon": epsilon}
        inputs = [x, scale, *([bias] if bias is not None else [])]
        return Operation("LayerNormalization", self.operations[divided].name, inputs, op.outputs, attributes), members

    def _is_vector(self, name: str) -> bool:
        value = self.constants.get(name)
        return value is not None and value.dim() == 1 and value.numel() > 1

    def _is_followed_by_bias(self, number: int) -> bool:
        users = self.users.get(self.operations[number].outputs[0], [])
        if len(users) != 1 or users[0] < 0 or self.operations[users[0]].kind != "Add":
            return False
        other = self._other(users[0], self.operations[number].outputs[0])
        return other is not None and self._is_vector(other)

    def _centered(self, divided: int) -> tuple[str, float, set[int]] | None:
        """For d / sqrt(mean(d^2) + e) with d = x - mean(x): x, e, and the operations of both."""
        top, below = self.operations[divided].inputs
        minus, root = self._made_by(top, "Sub"), self._made_by(below, "Sqrt")
        if minus is None or root is None:
            return None
        total = self._made_by(self.operations[root].inputs[0], "Add")
        if total is None:
            return None
        for name in self.operations[total].inputs:
            spread, epsilon = self._made_by(name, "ReduceMean"), self._number(self._other(total, name) or "")
            square = None if spread is None else self.producer.get(self.operations[spread].inputs[0])
            if spread is None or epsilon is None or square is None or not self._is_last(spread):
                continue
            x, center = self.operations[minus].inputs
            mean = self._made_by(center, "ReduceMean")
            if mean is None or self.operations[mean].inputs[0] != x or not self._is_last(mean):
                continue
            again = self._squared(square, x, center)
            if again is not None:
                return x, epsilon, {minus, root, total, spread, square, mean} | again
        return None

    def _squared(self, square: int, x: str, center: str) -> set[int] | None:
        """The operations besides `square` itself if it is (x - center)^2; exporters may subtract once more for it."""
        op = self.operations[square]
        is_power = op.kind == "Pow" and self._number(op.inputs[1]) == 2.0
        if not is_power and not (op.kind == "Mul" and op.inputs[0] == op.inputs[1]):
            return None
        made = self._made_by(op.inputs[0], "Sub")
        if made is None or self.operations[made].inputs != [x, center]:
            return None
        return {made}

    def _is_last(self, number: int) -> bool:
        op = self.operations[number]
        axes = op.get("axes")
        if axes is None and len(op.inputs) == 2 and op.inputs[1] in self.constants:
            axes = self.constants[op.inputs[1]].reshape(-1).tolist()
        return list(axes or []) == [-1] and bool(op.get("keepdims", 1))
