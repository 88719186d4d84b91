"""A copy of a request for a version that fails, to see when it works again. Nobody waits for its answer."""

from collections.abc import Sequence

from argosy.serve.batcher import OVER, Trouble, VersionQueue, Work
from argosy.serve.deadlines import Wheel
from argosy.serve.health import Health
from argosy.serve.requests import Inputs
from argosy.serve.wire import Tensor


class Probe(Work):
    """One copy; never tried again."""

    __slots__ = ("health", "queue", "wheel")

    def __init__(self, wheel: Wheel, queue: VersionQueue, inputs: Inputs, due: float, health: Health) -> None:
        super().__init__(inputs)
        self.wheel = wheel
        self.queue = queue
        self.due = self.deadline = due
        self.is_alone = True
        """What it does to a run must hit nobody else."""
        self.health = health

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Count a good answer."""
        del outputs
        self._put(is_good=True)

    def failed(self, trouble: Trouble) -> None:
        """Count a failure, unless the input was wrong."""
        self._put(is_good=trouble.is_callers)

    def expire(self, now: float) -> None:
        """Count the lateness as a failure."""
        del now
        self.queue.withdraw(self)
        self._put(is_good=False)

    def _put(self, *, is_good: bool) -> None:
        self.state = OVER
        self.wheel.remove(self)
        self.health.probed(is_good=is_good)
