"""Where two models first differ, by the values inside one run of each.

The models have different operations under different names, so values are matched by what they are: an array of one side
is found on the other if it stands there, in whatever layout.
"""

import itertools
import math
from collections import defaultdict
from pathlib import Path

import msgspec
import numpy as np

from argosy.formats.conversion.arrays import Arrays, read_answers

_MAX_TRACE_BYTES = 64 * 2**20
_MAX_PERMUTED = 5


class Step(msgspec.Struct, frozen=True):
    """One operation of a run: what it took and gave, by the names of values."""

    layer: str
    kind: str
    takes: list[str]
    gives: str


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """The first layer of the original whose result the converted model doesn't have."""

    layer: str
    kind: str
    number: int
    """Its place in the order of the run, from 0."""
    steps: int


def read_trace(folder: Path) -> tuple[list[Step], Arrays]:
    """Return what a job's `trace` wrote."""
    text = (folder / "trace.json").read_bytes()[:_MAX_TRACE_BYTES]
    return msgspec.json.decode(text, type=list[Step]), read_answers(folder / "trace.npz")


def first_difference(steps: list[Step], values: Arrays, others: Arrays, *, tolerance: float) -> Difference | None:
    """Return the first step whose value is not among `others`, and nothing that is made of it is either.

    Converters fuse layers, so a value alone may be missing: a convolution's before its normalization. None where every
    value is found. `values` are those of `steps` by position, as text.
    """
    known = _Known(others)
    is_there: list[bool | None] = []
    for number, _ in enumerate(steps):
        value = values.get(str(number))
        is_there.append(None if value is None or not is_telling(value) else known.has(value, tolerance))
    # A value is reached when it is found itself, or something that is made of it is.
    reached: set[str] = set()
    for step, found in zip(reversed(steps), reversed(is_there), strict=True):
        if found or step.gives in reached:
            reached.update(step.takes)
            reached.add(step.gives)
    for number, (step, found) in enumerate(zip(steps, is_there, strict=True)):
        if found is False and step.gives not in reached:
            return Difference(layer=step.layer or step.gives, kind=step.kind, number=number, steps=len(steps))
    return None


def is_found(value: np.ndarray, others: Arrays, *, tolerance: float) -> bool:
    """Return whether a value is among others, in whatever layout."""
    return _Known(others).has(value, tolerance)


def is_telling(value: np.ndarray | None) -> bool:
    """Return whether finding such a value elsewhere means anything."""
    if value is None or value.dtype.kind != "f" or value.size < 2 or not np.isfinite(value).all():
        return False
    return bool(np.ptp(value) > 0)


class _Known:
    def __init__(self, arrays: Arrays) -> None:
        self._by_size: defaultdict[int, list[np.ndarray]] = defaultdict(list)
        for array in arrays.values():
            if array.dtype.kind == "f":
                self._by_size[array.size].append(array)

    def has(self, value: np.ndarray, tolerance: float) -> bool:
        value = value.astype(np.float64)
        allowed = tolerance * max(1e-6, float(np.abs(value).max()))
        total = float(value.sum())
        for other in self._by_size[value.size]:
            # Sums don't depend on the layout, and tell most arrays apart.
            if not math.isclose(float(other.sum(dtype=np.float64)), total, rel_tol=0, abs_tol=allowed * value.size):
                continue
            if any(float(np.abs(value - one).max()) <= allowed for one in _layouts(other, value.shape)):
                return True
        return False


def _layouts(array: np.ndarray, shape: tuple[int, ...]) -> "itertools.chain[np.ndarray]":
    """Return the array as it is, and with its dimensions in every order, that have the shape."""
    flat = [array.reshape(shape)]
    squeezed, wanted = array.squeeze(), tuple(size for size in shape if size != 1)
    if squeezed.ndim > _MAX_PERMUTED or sorted(squeezed.shape) != sorted(wanted):
        return itertools.chain(flat)
    orders = (
        order
        for order in itertools.permutations(range(squeezed.ndim))
        if tuple(squeezed.shape[at] for at in order) == wanted
    )
    return itertools.chain(flat, (squeezed.transpose(order).reshape(shape) for order in orders))
