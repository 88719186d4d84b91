"""Who is served next when several callers wait: shares by weight, first come first served inside a caller's own lane.

Stride scheduling (Waldspurger and Weihl 1995): each lane has a pass that grows by the rows it was served divided by its
weight; the lane with the smallest pass is next. One caller alone, the usual case, is one lane and costs nothing.
"""

from collections import deque
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

WAITING = "waiting"
# How far behind a lane's oldest request others that fit are looked for, so that a queue of a thousand different shapes
# isn't walked for every batch.
_LOOK_AHEAD = 256


class Waiting(Protocol):
    """What a lane needs of a request."""

    state: str


W = TypeVar("W", bound=Waiting)


class Lane(Generic[W]):
    """The waiting requests of one caller, oldest first, with places of withdrawn ones that are cleared on the way."""

    __slots__ = ("name", "passed", "requests", "stride", "waiting", "weight")

    def __init__(self, name: str, weight: float, stride: float) -> None:
        self.name = name
        self.weight = weight
        self.stride = stride
        """Rows served so far over the weight; the least is served next."""
        self.requests = 0
        self.waiting: deque[W] = deque()
        self.passed: list[W] = []
        """Looked at for the batch that is being formed, and left."""

    def next(self, fits: Callable[[W], bool]) -> W | None:
        """Take out the first request that waits and fits, or return None."""
        waiting, passed = self.waiting, self.passed
        while waiting and len(passed) < _LOOK_AHEAD:
            work = waiting.popleft()
            if work.state == WAITING:
                if fits(work):
                    return work
                passed.append(work)
        return None

    def put_back(self) -> None:
        """Put what was passed over back to its place."""
        if self.passed:
            self.waiting.extendleft(reversed(self.passed))
            self.passed.clear()
