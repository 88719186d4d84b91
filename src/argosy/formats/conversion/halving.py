"""The first layer that differs where only one of two models shows the values inside: by pieces of the other.

The original is cut off behind a layer, the piece converted and run like the whole, and its answer compared with the
value inside the original. Among the layers that lead to a wrong answer the middle one is tried first, so that a model
of a thousand layers takes some ten conversions.
"""

from collections.abc import Callable, Sequence

from argosy.formats.conversion.arrays import Arrays
from argosy.formats.conversion.locate import Difference, Step, is_found, is_telling


def first_wrong(
    steps: Sequence[Step], values: Arrays, piece: Callable[[int], Arrays], *, tolerance: float
) -> Difference | None:
    """Return the first step whose piece answers otherwise, while all that it is made of is right.

    `values` are those of `steps` by position, as text. `piece` converts the original up to a step, and returns what
    that answers; what it raises goes through. None where every output comes out right from a piece of its own.
    """
    found = _Halving(steps, values, piece, tolerance).run()
    if found is None:
        return None
    step = steps[found]
    return Difference(layer=step.layer or step.gives, kind=step.kind, number=found, steps=len(steps))


class _Halving:
    def __init__(self, steps: Sequence[Step], values: Arrays, piece: Callable[[int], Arrays], tolerance: float) -> None:
        self.steps, self.values, self.piece, self.tolerance = steps, values, piece, tolerance
        self.producer = {step.gives: number for number, step in enumerate(steps)}
        self.known: dict[int, bool] = {}
        from_inputs: set[int] = set()
        for number, step in enumerate(steps):
            if any(name not in self.producer or self.producer[name] in from_inputs for name in step.takes):
                from_inputs.add(number)
        # A piece that takes no input is no model.
        self.told = {n for n in from_inputs if is_telling(values.get(str(n)))}

    def run(self) -> int | None:
        taken = {name for step in self.steps for name in step.takes}
        ends = [n for n in sorted(self.told) if self.steps[n].gives not in taken]
        wrong = next((number for number in ends if not self.is_right(number)), None)
        while wrong is not None:
            earlier = self.earlier(wrong)
            if earlier is None:
                return wrong
            wrong = earlier
        return None

    def is_right(self, number: int) -> bool:
        if number not in self.known:
            answer = self.piece(number)
            self.known[number] = is_found(self.values[str(number)], answer, tolerance=self.tolerance)
        return self.known[number]

    def earlier(self, wrong: int) -> int | None:
        """Return a step that leads to a wrong one and is wrong itself; None where all that lead to it are right."""
        # What leads to a step that is right, is right.
        right = {number for number, is_right in self.known.items() if is_right}
        before = sorted(self._before(wrong) - right.union(*map(self._before, right)))
        low, high = -1, len(before)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.is_right(before[middle]) else (low, middle)
        if high < len(before):
            return before[high]
        # Halving follows one branch; what the step takes may come from others.
        return next((number for number in sorted(self._sources(wrong)) if not self.is_right(number)), None)

    def _before(self, number: int) -> set[int]:
        found: set[int] = set()
        todo = [number]
        while todo:
            for name in self.steps[todo.pop()].takes:
                made = self.producer.get(name)
                if made is not None and made not in found:
                    found.add(made)
                    todo.append(made)
        return found & self.told

    def _sources(self, number: int) -> set[int]:
        """The nearest steps that tell something on every way back."""
        found: set[int] = set()
        seen: set[int] = set()
        todo = [number]
        while todo:
            for name in self.steps[todo.pop()].takes:
                made = self.producer.get(name)
                if made is None or made in seen:
                    continue
                seen.add(made)
                if made in self.told:
                    found.add(made)
                else:
                    todo.append(made)
        return found
