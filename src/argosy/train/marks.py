"""Which chunks of the flat tensor a step can change: an embedding's sparse gradient has few rows, and the rest stays.

Where an optimizer leaves an element alone whose gradient is 0, a chunk without a gradient needs no step: so a push of a
few rows costs as much as these, however large the table is, and the result is that of the whole to the last bit.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Bytes = NDArray[Any]
"""One byte per chunk, of one rank; shared with the others."""


class Marks:
    """Of one rank's gradients: the chunks that hold some. Everything beside `sparse` stretches always counts."""

    def __init__(self, marks: Bytes, chunk: int, gradients: Tensor, sparse: list[tuple[int, int]]) -> None:
        """`sparse`: where parameters with sparse gradients begin and end in the flat `gradients`."""
        self._marks = marks
        self._chunk = chunk
        self._gradients = gradients
        self._sparse = sparse
        self._always = np.ones_like(marks)
        for start, stop in sparse:
            # A chunk that belongs to others, too, counts always.
            self._always[-(-start // chunk) : stop // chunk] = 0

    def begin(self) -> None:
        """Make all sparse gradients 0, and forget where they were; those of a process before this one, too."""
        chunk = self._chunk
        for start, stop in self._sparse:
            first = start // chunk
            for number in np.flatnonzero(self._marks[first : -(-stop // chunk)]) + first:
                self._gradients[max(start, number * chunk) : min(stop, (number + 1) * chunk)].zero_()
        self._marks[:] = self._always

    def rows(self, start: int, width: int, rows: NDArray[np.int64]) -> None:
        """Say that these rows of a table, which begins at `start` and has so many columns, will get gradients."""
        begins = start + rows * width
        first, last = begins // self._chunk, (begins + width - 1) // self._chunk
        for further in range(int((last - first).max(initial=0)) + 1):
            self._marks[np.minimum(first + further, last)] = 1

    def whole(self, start: int, stop: int) -> None:
        """Say that all of a stretch will get gradients."""
        self._marks[start // self._chunk : -(-stop // self._chunk)] = 1
