"""One bounded queue per version. No timer: an idle replica is handed at once what has queued, up to its useful batch.

A request's whole life here: `submit` puts it in, `dispatch` takes it out with others that can share a run, and exactly
one of `answered` and `failed` is called on it, unless it was withdrawn before.
"""

from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from argosy.core.errors import Unavailable
from argosy.core.tensors import Signature
from argosy.serve.requests import Inputs
from argosy.serve.wire import Tensor

WAITING, RUNNING, OVER = "waiting", "running", "over"
# How far behind the oldest request others of the same shape are looked for, so that a queue of a thousand different
# shapes isn't walked for every batch.
_LOOK_AHEAD = 256
# Requests of more bytes than this don't gain from sharing a run, and a frame has a bound.
_MAX_BATCH_BYTES = 64 << 20


class Trouble(msgspec.Struct, frozen=True):
    """Why a version did not answer a request."""

    code: str
    message: str
    batch: int = 0
    """The batch that failed as a whole, to be counted once; 0 when the request failed by itself."""
    is_replayable: bool = False
    """The replica failed, not the version: another replica may well answer."""
    is_callers: bool = False
    """The version's preparation refused the input: the caller's mistake, unless another version takes it."""


class Work:
    """One request in a queue. What it does with its result, the class that inherits says."""

    __slots__ = ("batch", "inputs", "is_alone", "queued", "state")

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.state = WAITING
        self.is_alone = False
        """Must not share a run, because it was in a batch that took a replica down."""
        self.queued = 0.0
        self.batch: Batch | None = None
        """The batch it runs in, or last ran in."""

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Take the outputs, views of received bytes."""
        raise NotImplementedError

    def failed(self, trouble: Trouble) -> None:
        """Take the news that this attempt failed."""
        raise NotImplementedError


class Batch:
    """Requests that run together."""

    __slots__ = ("id", "works")

    def __init__(self, number: int, works: list[Work]) -> None:
        self.id = number
        self.works = works
        for work in works:
            work.batch = self

    def let_go(self, work: Work) -> None:
        """Drop the answer for one request, which is going to be tried elsewhere while this run still lasts."""
        if work in self.works:
            stand_in = Work(work.inputs)
            stand_in.state = OVER
            self.works[self.works.index(work)] = stand_in

    def give_up(self, trouble: Trouble) -> None:
        """Tell every request that is still wanted, and let go of them."""
        works, self.works = self.works, []
        # Backwards, because whoever takes them back puts each at the front of its queue.
        for work in reversed(works):
            if work.state == RUNNING:
                work.is_alone = trouble.is_replayable
                work.failed(trouble)


class Runs(Protocol):
    """What the queue needs of a replica."""

    max_batch: int

    def run(self, works: list[Work]) -> None:
        """Start on a batch; the replica is idle, and no longer."""
        ...


class VersionQueue:
    """The queue of one version. Bounded in requests and bytes; both count only requests that are still wanted."""

    def __init__(self, digest: str, signature: Signature, *, max_requests: int, max_bytes: int) -> None:
        self.digest = digest
        self.signature = signature
        self.idle: deque[Runs] = deque()
        """Replicas that may be handed work now, the longest idle first."""
        self.requests = 0
        self.size_bytes = 0
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._waiting: deque[Work] = deque()

    def check_room(self, inputs: Inputs) -> None:
        """Raise Unavailable if the queue is full."""
        if self.requests >= self._max_requests or self.size_bytes + inputs.size_bytes > self._max_bytes:
            raise Unavailable(
                f"{self.requests} requests ({self.size_bytes} bytes) are waiting; at most {self._max_requests} "
                f"({self._max_bytes} bytes) may",
                hint="retry after the time in Retry-After, or add replicas",
                code="queue_full",
                retry_after_s=1.0,
            )

    def submit(self, work: Work, now: float) -> None:
        """Put a request at the end; Unavailable (`queue_full`) when there is no room. `dispatch` must follow."""
        self.check_room(work.inputs)
        self._add(work, now)
        self._waiting.append(work)

    def resubmit(self, work: Work, now: float) -> None:
        """Put a request whose replica failed at the front. It was accepted before, so it is not refused for room."""
        self._add(work, now)
        self._waiting.appendleft(work)

    def _add(self, work: Work, now: float) -> None:
        work.state = WAITING
        work.queued = now
        self.requests += 1
        self.size_bytes += work.inputs.size_bytes

    def _remove(self, work: Work, state: str) -> None:
        work.state = state
        self.requests -= 1
        self.size_bytes -= work.inputs.size_bytes

    def withdraw(self, work: Work) -> None:
        """Take a request out that nobody waits for any more; a running one is let finish, its answer dropped."""
        if work.state != WAITING:
            work.state = OVER
            return
        self._remove(work, OVER)
        # Its place in the deque is cleared when it comes up, or when such places outnumber the living.
        if len(self._waiting) > 64 + 2 * self.requests:
            self._waiting = deque(w for w in self._waiting if w.state == WAITING)

    def take_back(self, work: Work) -> None:
        """Take a waiting request out so that it can go into another queue; unlike `withdraw`, its place goes too."""
        self._waiting.remove(work)
        self._remove(work, WAITING)

    def take_all(self) -> list[Work]:
        """Take out everything that waits, oldest first."""
        works = [work for work in self._waiting if work.state == WAITING]
        self._waiting.clear()
        for work in works:
            self._remove(work, WAITING)
        return works

    def dispatch(self) -> None:
        """Hand what waits to idle replicas, spread evenly when several are idle."""
        while self.requests and self.idle:
            fair = -(-self.requests // len(self.idle))
            replica = self.idle.popleft()
            replica.run(self._take(replica.max_batch, fair))

    def _take(self, max_rows: int, max_requests: int) -> list[Work]:
        """Take the oldest request and others that may share its run, oldest first."""
        works: list[Work] = []
        passed: list[Work] = []
        rows = size_bytes = 0
        while self._waiting and len(works) < max_requests and len(passed) < _LOOK_AHEAD:
            work = self._waiting.popleft()
            if work.state != WAITING:
                continue
            too_large = size_bytes + work.inputs.size_bytes > _MAX_BATCH_BYTES
            if works and (too_large or not self._fits(work, works[0], rows, max_rows)):
                passed.append(work)
                if rows >= max_rows or works[0].is_alone or works[0].inputs.key is None:
                    break
                continue
            works.append(work)
            rows += work.inputs.rows
            size_bytes += work.inputs.size_bytes
            self._remove(work, RUNNING)
        self._waiting.extendleft(reversed(passed))
        return works

    @staticmethod
    def _fits(work: Work, first: Work, rows: int, max_rows: int) -> bool:
        return (
            rows + work.inputs.rows <= max_rows
            and not (work.is_alone or first.is_alone)
            and first.inputs.key is not None
            and work.inputs.key == first.inputs.key
        )
