"""Hedging: a request that takes long is also given to another replica, and the first answer counts.

Dean and Barroso, "The tail at scale" (2013): worth it where a replica is sometimes slow for reasons of its own. It is
off unless an endpoint asks for it, needs an idle replica, and draws on the same budget as second attempts.
"""

from collections.abc import Sequence
from typing import Protocol

from argosy.serve.batcher import OVER, RUNNING, Trouble, VersionQueue, Work
from argosy.serve.requests import Inputs
from argosy.serve.wire import Tensor


class Hedged(Protocol):
    """What is needed of a request that may get a second copy."""

    state: str
    attempts: int
    inputs: Inputs
    due: float
    key: str
    weight: float
    hedge: "Hedge | None"

    def start_hedge(self, now: float) -> None:
        """Start the copy, if a replica is idle and the budget allows it."""
        ...

    def hedge_won(self, outputs: Sequence[Tensor]) -> None:
        """Answer with what the copy gave."""
        ...


class HedgeTimer:
    """Waits beside a request, and gives it a second chance if it still runs then."""

    __slots__ = ("call", "due")

    def __init__(self, call: Hedged, due: float) -> None:
        self.call = call
        self.due = due

    def expire(self, now: float) -> None:
        """Start a copy, where a replica is idle and the budget allows it."""
        call = self.call
        if call.state == RUNNING and call.hedge is None and call.attempts == 1:
            call.start_hedge(now)


class Hedge(Work):
    """The second copy of a request."""

    __slots__ = ("call", "queue")

    def __init__(self, call: Hedged, queue: VersionQueue) -> None:
        super().__init__(call.inputs)
        self.call: Hedged | None = call
        self.queue = queue
        self.is_alone = True
        self.due = self.deadline = call.due
        self.key, self.weight = call.key, call.weight

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Answer the request, if the first copy hasn't."""
        self.state = OVER
        call, self.call = self.call, None
        if call is not None:
            call.hedge_won(outputs)

    def failed(self, trouble: Trouble) -> None:
        """Leave the request to its first copy."""
        del trouble
        self.drop()

    def expire(self, now: float) -> None:
        """Leave the request to its first copy."""
        del now
        self.drop()

    def drop(self) -> None:
        """Forget it: the request is answered or moved on."""
        call, self.call = self.call, None
        if call is not None:
            call.hedge = None
        if self.state != OVER:
            self.queue.withdraw(self)
            if self.batch is not None:
                self.batch.let_go(self)
