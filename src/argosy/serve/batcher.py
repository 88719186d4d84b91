"""One bounded queue per version. No timer: an idle replica is handed at once what has queued, up to its useful batch.

A request's whole life here: `submit` puts it in, `dispatch` takes it out with others that can share a run, and exactly
one of `answered` and `failed` is called on it, unless it was withdrawn before.
"""

import math
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import msgspec

from argosy.core.errors import Unavailable
from argosy.core.tensors import Signature
from argosy.serve.lanes import WAITING, Lane
from argosy.serve.requests import Inputs
from argosy.serve.wire import Tensor

RUNNING, OVER = "running", "over"
# Requests of more bytes than this don't gain from sharing a run, and a frame has a bound.
_MAX_BATCH_BYTES = 64 << 20
_KEPT_BYTES = 64 << 10
"""A withdrawn request with more is let go at once."""
_LEAST_WAITING = 64
"""So many requests may wait however slow the version is: that many clients that wait for their answers are no flood."""
_MOST_WAITING = 0.33
"""So much of its time may a request be expected to wait. What is accepted at the edge of its deadline is answered just
too late as soon as the pace falters: measured at five times the capacity, a third of all runs was for nothing. And who
gives little time wants an answer about as soon as at other times: at a half, those of five times the capacity took 2.3
times as long as at the capacity."""
_NEW_PACE = 0.2
"""Weight of a run in the average of what a request takes: some ten runs back."""


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

    __slots__ = ("batch", "deadline", "due", "inputs", "is_alone", "key", "lane", "queued", "state", "weight")

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.state = WAITING
        self.is_alone = False
        """Must not share a run, because it was in a batch that took a replica down."""
        self.queued = 0.0
        self.due = self.deadline = float("inf")
        """Monotonic seconds: this attempt is of no use after `due`, nor is any other after `deadline`."""
        self.key = ""
        """Who asks, for fair shares of a busy queue; with which `weight`."""
        self.weight = 1.0
        self.lane: Lane[Work] | None = None
        self.batch: Batch | None = None
        """The batch it runs in, or last ran in."""

    def answered(self, outputs: Sequence[Tensor]) -> None:
        """Take the outputs, views of received bytes."""
        raise NotImplementedError

    def failed(self, trouble: Trouble) -> None:
        """Take the news that this attempt failed."""
        raise NotImplementedError

    def expire(self, now: float) -> None:
        """Take the news that `due` has passed."""
        raise NotImplementedError


class Batch:
    """Requests that run together."""

    __slots__ = ("id", "replica", "works")

    def __init__(self, number: int, works: list[Work], replica: str = "") -> None:
        self.id = number
        self.works = works
        self.replica = replica
        """Who was handed it."""
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
    max_bytes: int
    padding: float
    spare: float
    """How it wants to be fed: see `wire.Hello`."""

    def run(self, works: list[Work], now: float) -> None:
        """Start on a batch; the replica is idle, and no longer."""
        ...


class _Forming:
    """A batch that is being put together, and what may still join it."""

    __slots__ = (
        "key", "longest", "max_bytes", "max_rows", "now", "padding", "rows", "size_bytes", "spare", "total", "works"
    )  # fmt: skip

    def __init__(self, replica: Runs, now: float) -> None:
        self.max_rows = replica.max_batch
        self.max_bytes = replica.max_bytes or _MAX_BATCH_BYTES
        self.padding = replica.padding
        self.spare = replica.spare
        self.now = now
        self.works: list[Work] = []
        self.key: tuple[tuple[int, ...], ...] | None = None
        self.rows = self.size_bytes = self.longest = self.total = 0

    def fits(self, work: Work) -> bool:
        """Return whether a request may share the run of those that were taken."""
        inputs = work.inputs
        if work.due <= self.now:
            return False
        if not self.works:
            return True
        if (
            self.key is None
            or inputs.key != self.key
            or work.is_alone
            or self.rows + inputs.rows > self.max_rows
            or self.size_bytes + inputs.size_bytes > _MAX_BATCH_BYTES
        ):
            return False
        if not inputs.length:
            return self.size_bytes + inputs.size_bytes <= self.max_bytes
        # Every text is padded to the longest; that may cost so much and no more.
        longest = max(self.longest, inputs.length)
        padded = longest * (self.rows + inputs.rows)
        total = self.total + inputs.length * inputs.rows
        return padded <= self.max_bytes and (
            padded <= self.padding * total or padded - total <= self.spare * len(self.works)
        )

    def add(self, work: Work) -> None:
        """Take a request that fits."""
        inputs = work.inputs
        if not self.works:
            self.key = None if work.is_alone else inputs.key
        self.works.append(work)
        self.rows += inputs.rows
        self.size_bytes += inputs.size_bytes
        if inputs.length:
            self.longest = max(self.longest, inputs.length)
            self.total += inputs.length * inputs.rows

    @property
    def is_closed(self) -> bool:
        """Whether nothing can join any more."""
        return self.rows >= self.max_rows or (bool(self.works) and self.key is None)


class VersionQueue:
    """The queue of one version. Bounded in requests and bytes; both count only requests that are still wanted.

    How many may wait follows the version's pace (Little's law): as many as are answered in `wait_s`, so that what is
    accepted is answered soon, however much more is asked; `max_requests` at most.
    """

    def __init__(
        self, digest: str, signature: Signature, *, max_requests: int, max_bytes: int, wait_s: float = 0.5
    ) -> None:
        self.digest = digest
        self.signature = signature
        self.idle: deque[Runs] = deque()
        """Replicas that may be handed work now. The first is the one that ended a run last: it has the model's weights
        in its core's caches."""
        self.replicas = 1
        """How many replicas take from this queue."""
        self.solo: Runs | None = None
        """The one of them that is quickest where it has the machine to itself."""
        self.requests = 0
        self.size_bytes = 0
        self.pace_s = 0.0
        """Seconds of a replica that a request takes, on average over the last runs."""
        self.rows = 0.0
        """Rows of a request, on average over the last runs; 0 before the first."""
        self.is_due = False
        """Whether `dispatch` is going to be called at the end of this turn."""
        self.limit = max_requests
        """How many requests may wait now."""
        self.is_elastic = False
        """More replicas are on the way, or will be if it grows: as many may wait as have the time, `max_requests` at
        most. Otherwise what a burst brings would be refused before the controller has even seen it."""
        self.load_s = 0.0
        """Seconds that requests have spent here, waiting or running, summed up as far as `Pool.measure` has looked."""
        self._max_requests = max_requests
        self._max_bytes = max_bytes
        self._wait_s = wait_s
        self._lanes: dict[str, Lane[Work]] = {}
        self._stride = 0.0
        self._each_s = 0.0
        """How long each request that waits makes the next one wait."""

    def ran(self, requests: int, seconds: float, rows: int = 0) -> None:
        """Learn from a run of `requests`, with so many `rows` in all, that took a replica so long."""
        pace_s = seconds / requests
        if rows:
            each = rows / requests
            self.rows = each if not self.rows else (1 - _NEW_PACE) * self.rows + _NEW_PACE * each
        self.pace_s = pace_s if not self.pace_s else (1 - _NEW_PACE) * self.pace_s + _NEW_PACE * pace_s
        self._each_s = self.pace_s / max(1, self.replicas)
        soon = self._wait_s / self._each_s if self._each_s else math.inf
        self.limit = int(min(self._max_requests, max(_LEAST_WAITING, soon)))

    def check_room(self, work: Work, now: float) -> None:
        """Raise Unavailable if the queue is full, or too long for this request's deadline."""
        waiting = self.requests
        limit = self._max_requests if self.is_elastic else self.limit
        # Who has less than a fair share of the places gets one all the same: a flood crowds out only itself.
        is_full = waiting >= limit and self._has_its_share(work, limit)
        if is_full or self.size_bytes + work.inputs.size_bytes > self._max_bytes:
            raise Unavailable(
                f"{waiting} requests ({self.size_bytes} bytes) are waiting; {limit} "
                f"({self._max_bytes} bytes) may, at the present pace",
                hint="retry after the time in Retry-After, or add replicas",
                code="queue_full",
                retry_after_s=max(1.0, waiting * self._each_s),
            )
        if waiting * self._each_s > _MOST_WAITING * (work.deadline - now):
            raise Unavailable(
                f"{waiting} requests are waiting, so this one could hardly be answered within its "
                f"{work.deadline - now:.3g} s",
                hint="retry after the time in Retry-After, give more time in argosy-timeout, or add replicas",
                code="too_late",
                retry_after_s=max(1.0, waiting * self._each_s),
            )

    def _has_its_share(self, work: Work, limit: int) -> bool:
        own = self._lanes.get(work.key)
        if own is None or not own.requests:
            return False
        return own.requests >= limit * own.weight / sum([lane.weight for lane in self._active()])

    @property
    def oldest(self) -> float:
        """When the request that has waited longest was queued, monotonic; infinity when none waits."""
        found = math.inf
        for lane in self._lanes.values():
            # What waits is in order but for replays; places of withdrawn requests are skipped.
            found = min(found, next((work.queued for work in lane.waiting if work.state == WAITING), math.inf))
        return found

    def submit(self, work: Work, now: float) -> None:
        """Put a request at the end; Unavailable (`queue_full`, `too_late`) without room. `dispatch` must follow."""
        if self.requests:
            self.check_room(work, now)
        self._add(work, now).waiting.append(work)

    def resubmit(self, work: Work, now: float) -> None:
        """Put a request whose replica failed at the front. It was accepted before, so it is not refused for room."""
        self._add(work, now).waiting.appendleft(work)

    def _add(self, work: Work, now: float) -> Lane[Work]:
        lane = self._lanes.get(work.key)
        if lane is None:
            # A new lane starts level with the one that is next, without credit for the time it was away.
            lane = self._lanes[work.key] = Lane(work.key, work.weight, self._stride)
        work.lane = lane
        work.state = WAITING
        work.queued = now
        lane.requests += 1
        self.requests += 1
        self.size_bytes += work.inputs.size_bytes
        return lane

    def _remove(self, work: Work, state: str) -> None:
        work.state = state
        self.requests -= 1
        self.size_bytes -= work.inputs.size_bytes
        if work.lane is not None:
            work.lane.requests -= 1

    def _active(self) -> list[Lane[Work]]:
        """Return the lanes in which something waits; forget the others."""
        lanes = list(self._lanes.values())
        if len(lanes) > 1:
            lanes = [lane for lane in lanes if lane.requests]
            self._lanes = {lane.name: lane for lane in lanes}
        return lanes

    def withdraw(self, work: Work) -> None:
        """Take a request out that nobody waits for any more; a running one is let finish, its answer dropped."""
        if work.state != WAITING or work.lane is None:
            work.state = OVER
            return
        self._remove(work, OVER)
        # Its place in the lane is cleared when it comes up, or when such places outnumber the living; at once if it
        # holds much.
        lane = work.lane
        if len(lane.waiting) > 64 + 2 * lane.requests or work.inputs.size_bytes > _KEPT_BYTES:
            lane.waiting = deque(w for w in lane.waiting if w.state == WAITING)

    def take_back(self, work: Work) -> None:
        """Take a waiting request out so that it can go into another queue; unlike `withdraw`, its place goes too."""
        if work.lane is not None:
            work.lane.waiting.remove(work)
        self._remove(work, WAITING)

    def take_all(self) -> list[Work]:
        """Take out everything that waits, oldest first."""
        works = [work for lane in self._lanes.values() for work in lane.waiting if work.state == WAITING]
        for lane in self._lanes.values():
            lane.waiting.clear()
        for work in works:
            self._remove(work, WAITING)
        return sorted(works, key=lambda work: work.queued)

    def dispatch(self, now: float) -> None:
        """Hand what waits to idle replicas, spread evenly when several are idle."""
        while self.requests and self.idle:
            self._expire(now)
            if not self.requests or not self.idle:
                return
            if self.solo is not None and len(self.idle) == self.replicas and self.solo in self.idle:
                self.idle.remove(self.solo)
                self.idle.appendleft(self.solo)
            fair = -(-self.requests // len(self.idle))
            works = self._take(self.idle[0], fair, now)
            if not works:
                return
            self.idle.popleft().run(works, now)

    def _expire(self, now: float) -> None:
        """Tell requests at the front whose time is over, before anything is run for them."""
        for lane in self._active():
            waiting = lane.waiting
            while waiting and (waiting[0].state != WAITING or waiting[0].due <= now):
                work = waiting[0]
                if work.state == WAITING:
                    work.expire(now)
                    if work.state == WAITING and work.lane is lane and waiting and waiting[0] is work:
                        break  # it waits on, until its deadline
                elif waiting and waiting[0] is work:
                    waiting.popleft()

    def _take(self, replica: Runs, max_requests: int, now: float) -> list[Work]:
        """Take the oldest request of whose turn it is, and others that may share its run."""
        forming = _Forming(replica, now)
        works = forming.works
        lanes = self._active()
        if len(lanes) == 1:
            self._fill(forming, lanes[0], max_requests)
            lanes[0].put_back()
            return works
        touched = list(lanes)
        while lanes and len(works) < max_requests and not forming.is_closed:
            lane = min(lanes, key=_by_stride)
            work = lane.next(forming.fits)
            if work is None:
                lanes.remove(lane)
                continue
            forming.add(work)
            self._remove(work, RUNNING)
            self._stride = max(self._stride, lane.stride)
            lane.stride += work.inputs.rows / lane.weight
        for lane in touched:
            lane.put_back()
        return works

    def _fill(self, forming: _Forming, lane: Lane[Work], max_requests: int) -> None:
        """Take what fits from the only lane."""
        works = forming.works
        while len(works) < max_requests and not forming.is_closed:
            work = lane.next(forming.fits)
            if work is None:
                return
            forming.add(work)
            self._remove(work, RUNNING)


def _by_stride(lane: Lane[Work]) -> float:
    return lane.stride
