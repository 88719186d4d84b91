"""Who is served next when several callers wait: shares by weight, first come first served inside a caller's own lane.

Stride scheduling (Waldspurger and Weihl 1995): each lane has a pass that grows by the rows it was served divided by its
weight; the lane with the smallest pass is next. One caller alone, the usual case, is one lane and costs nothing.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from argosy.serve.batcher import Work

# How far behind a lane's oldest request others that fit are looked for, so that a queue of a thousand different shapes
# isn't walked for every batch.
_LOOK_AHEAD = 256


class Lane:
    """The waiting requests of one caller, oldest first, with places of withdrawn ones that are cleared on the way."""

    __slots__ = ("name", "passed", "requests", "stride", "waiting", "weight")

    def __init__(self, name: str, weight: float, stride: float) -> None:
        self.name = name
        self.weight = weight
        self.stride = stride
        """Rows served so far over the weight; the least is served next."""
        self.requests = 0
        self.waiting: deque[Work] = deque()
        self.passed: list[Work] = []
        """Looked at for the batch that is being formed, and left."""

    def next(self, fits: "Callable[[Work], bool]") -> "Work | None":
        """Take out the first request that waits and fits, or return None."""
        waiting, passed = self.waiting, self.passed
        while waiting and len(passed) < _LOOK_AHEAD:
            work = waiting.popleft()
            if work.is_waiting:
                if fits(work):
                    return work
                passed.append(work)
        return None

    def put_back(self) -> None:
        """Put what was passed over back to its place."""
        if self.passed:
            self.waiting.extendleft(reversed(self.passed))
            self.passed.clear()


class Lanes:
    """The lanes of one queue that have something waiting."""

    def __init__(self) -> None:
        self._lanes: dict[str, Lane] = {}
        self._stride = 0.0

    def lane(self, name: str, weight: float) -> Lane:
        """Return the lane of a caller; a new one starts level with the lane that is next, without credit."""
        found = self._lanes.get(name)
        if found is None:
            found = self._lanes[name] = Lane(name, weight, self._stride)
        found.weight = weight
        return found

    def share(self, lane: Lane) -> float:
        """Return the part of everything that is due to a lane now."""
        return lane.weight / sum([other.weight for other in self._lanes.values()])

    def __iter__(self) -> "Iterator[Lane]":
        return iter(self._lanes.values())

    def active(self) -> list[Lane]:
        """Return the lanes in which something waits; the others are forgotten."""
        lanes = self._lanes
        if len(lanes) > 1 or not all(lane.requests for lane in lanes.values()):
            self._lanes = lanes = {name: lane for name, lane in lanes.items() if lane.requests}
        return list(lanes.values())

    def served(self, lane: Lane, rows: int) -> None:
        """Note that a lane was served."""
        self._stride = max(self._stride, lane.stride)
        lane.stride += rows / lane.weight
