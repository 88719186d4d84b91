"""What happened to a rollout's requests, counted in windows for the judge as JUDGE.md sections 1 and 2 say."""

from collections import deque
from collections.abc import Mapping

from argosy.core.clock import Clock
from argosy.serve.control import EndpointRoute, ReplicaPart, Window, latency_bucket
from argosy.serve.router import CANARY

_STABLE_ANSWERS = 500
_STABLE_ENOUGH = 200
# Callers and batches that were counted are remembered to count them once; beyond this nothing more is counted, which
# errs on the side of waiting.
_MAX_CALLERS = 100_000
# A window of a share that is no longer drawn waits so long for its last requests.
_LATE_S = 60.0
# More processes of a canary are not told apart; an endpoint has at most so many replicas of a version.
_MAX_REPLICAS = 64
MAX_WINDOWS = 4096
"""Closed windows kept for a controller that is away: eleven hours of 10 s."""


class _Part:
    """One process's part of an open window."""

    __slots__ = ("bad", "handled")

    def __init__(self) -> None:
        self.handled = 0
        self.bad: dict[str, list[float]] = {}


class _Counts:
    """One open window."""

    def __init__(self, start: float, wall: float, thresholds: tuple[float, float] | None) -> None:
        self.start = start
        self.wall = wall
        self.thresholds = thresholds
        self.requests = [0, 0]
        self.failed = [0, 0]
        self.latency: tuple[dict[int, int], dict[int, int]] = ({}, {})
        self.bad: dict[str, list[float]] = {"errors": [0.0, 0.0]}
        if thresholds is not None:
            self.bad["latency"] = [0.0, 0.0]
        self.replicas: dict[str, _Part] = {}

    def add(self, metric: str, badness: float, is_canary: int, replica: str) -> None:
        """Count something bad, for both versions and for the canary's process that did it."""
        _add(self.bad[metric], badness, is_canary)
        part = self.part(replica) if is_canary else None
        if part is not None:
            _add(part.bad.setdefault(metric, [0.0, 0.0]), badness, 1)

    def part(self, replica: str) -> "_Part | None":
        """Return the part of one of the canary's processes; None for nobody, and for more of them than are kept."""
        if not replica or (replica not in self.replicas and len(self.replicas) >= _MAX_REPLICAS):
            return None
        return self.replicas.setdefault(replica, _Part())

    @property
    def is_empty(self) -> bool:
        return not any(self.requests) and "agreement" not in self.bad and "mirrored_errors" not in self.bad


class Segment:
    """A stretch in which one share was drawn. A request belongs to the segment of its draw, for its whole life."""

    __slots__ = ("counts", "ended", "in_flight", "rollout", "share")

    def __init__(self, rollout: "Rollout", share: float, counts: _Counts) -> None:
        self.rollout = rollout
        self.share = share
        self.counts = counts
        self.in_flight = 0
        self.ended = 0.0


class Rollout:
    """Counts for one rollout of one endpoint."""

    def __init__(self, route: EndpointRoute, share: float, answers: deque[float], clock: Clock) -> None:
        self.route = route
        self.closed: deque[Window] = deque()
        self._answers = answers
        self._clock = clock
        self._index = 0
        self._callers: dict[str, set[str]] = {}
        self._batches: deque[int] = deque(maxlen=1024)
        self._late: list[Segment] = []
        self.last_pair: tuple[bytes, bytes, bytes] | None = None
        """What was last asked of both versions and what they answered, as digests."""
        self.segment = Segment(self, share, self._fresh())

    def set_share(self, share: float) -> None:
        """Draw with another share from now on: that closes the window."""
        if share == self.segment.share:
            return
        self.segment.ended = self._clock.monotonic()
        self._late.append(self.segment)
        self.segment = Segment(self, share, self._fresh())
        self.tick()

    def drawn(self) -> Segment:
        """Return the segment a request that is drawn now belongs to; `finished` must follow."""
        self.segment.in_flight += 1
        return self.segment

    def finished(
        self,
        segment: Segment,
        arm: str,
        latency_s: float | None,
        *,
        failed: bool,
        batch: int,
        caller: str,
        replica: str = "",
    ) -> None:
        """Count a drawn request. `latency_s` is None if its first attempt gave no answer.

        `batch` is the batch that failed as a whole and took it down, or 0; `caller` is empty unless routing is sticky;
        `replica` is who was handed it first, empty if nobody was.
        """
        segment.in_flight -= 1
        counts = segment.counts
        side = 1 if arm == CANARY else 0
        counts.requests[side] += 1
        part = counts.part(replica) if side else None
        if part is not None:
            part.handled += 1
        if failed:
            counts.failed[side] += 1
            if self._is_new(batch) and self._first_time("errors", caller):
                counts.add("errors", 1.0, side, replica)
        if latency_s is None:
            return
        bucket = latency_bucket(latency_s)
        counts.latency[side][bucket] = counts.latency[side].get(bucket, 0) + 1
        if counts.thresholds is not None:
            judged = latency_s / self.route.tolerate_latency if side else latency_s
            slow = sum(0.5 for threshold in counts.thresholds if judged > threshold)
            if slow and self._first_time("latency", caller):
                counts.add("latency", slow, side, replica)

    def dropped(self, segment: Segment) -> None:
        """Forget a drawn request of which nothing can be said: its caller has gone, or is to blame."""
        segment.in_flight -= 1

    def pair(
        self,
        *,
        stable_failed: bool,
        canary_failed: bool,
        agree: bool,
        batch: int = 0,
        replica: str = "",
        is_copy: bool = False,
    ) -> None:
        """Count a request that both versions have had; `batch` failed as a whole and counts once.

        `replica` is who was handed the canary's half, `is_copy` whether that half was the copy. A half that was drawn
        for the canary is counted as handled when its request ends.
        """
        counts = self.segment.counts
        part = counts.part(replica)
        if part is not None and is_copy:
            part.handled += 1
        tables = [counts.bad] if part is None else [counts.bad, part.bad]
        if stable_failed != canary_failed:
            if self._is_new(-batch):
                for bad in tables:
                    _add(bad.setdefault("mirrored_errors", [0.0, 0.0]), 1.0, int(canary_failed))
        elif not stable_failed:
            for bad in tables:
                _add(bad.setdefault("agreement", [0.0, 0.0]), 1.0, int(not agree))

    def varied(self, *, stable: bool, canary: bool) -> None:
        """Count a mirrored request to which exactly one version answered as it had answered another input before."""
        if stable != canary:
            _add(self.segment.counts.bad.setdefault("constant", [0.0, 0.0]), 1.0, int(not canary))

    def tick(self) -> None:
        """Close what is due."""
        now = self._clock.monotonic()
        if now - self.segment.counts.start >= self.route.window_s:
            self._close(self.segment)
            self.segment.counts = self._fresh()
        waiting = []
        for segment in self._late:
            if segment.in_flight and now - segment.ended < _LATE_S:
                waiting.append(segment)
            else:
                self._close(segment)
        self._late = waiting

    def end(self) -> None:
        """Close everything: the rollout is over."""
        for segment in (*self._late, self.segment):
            self._close(segment)
        self._late = []

    def _fresh(self) -> _Counts:
        return _Counts(self._clock.monotonic(), self._clock.now(), thresholds(self._answers))

    def _close(self, segment: Segment) -> None:
        counts = segment.counts
        if counts.is_empty:
            return
        # Wall-clock milliseconds grow over restarts, the first term when windows are shorter than one.
        self._index = max(self._index + 1, int(self._clock.now() * 1000))
        window = Window(
            rollout=self.route.rollout,
            index=self._index,
            start=counts.wall,
            seconds=self._clock.monotonic() - counts.start,
            share=segment.share,
            requests_stable=counts.requests[0],
            requests_canary=counts.requests[1],
            failed_stable=counts.failed[0],
            failed_canary=counts.failed[1],
            bad={metric: (canary, both) for metric, (canary, both) in counts.bad.items()},
            latency_stable=counts.latency[0],
            latency_canary=counts.latency[1],
            replicas={
                name: ReplicaPart(
                    handled=part.handled, bad={metric: (canary, both) for metric, (canary, both) in part.bad.items()}
                )
                for name, part in counts.replicas.items()
            },
        )
        self.closed.append(window)
        # Late requests of a segment that was closed by force go nowhere.
        segment.counts = self._fresh()

    def _is_new(self, batch: int) -> bool:
        if batch and batch in self._batches:
            return False
        if batch:
            self._batches.append(batch)
        return True

    def _first_time(self, metric: str, caller: str) -> bool:
        if not caller:
            return True
        seen = self._callers.setdefault(metric, set())
        if caller in seen or len(seen) >= _MAX_CALLERS:
            return False
        seen.add(caller)
        return True


def thresholds(answers: deque[float]) -> tuple[float, float] | None:
    """Return p50 and p95 of stable's last answers, or None while there are too few to say."""
    if len(answers) < _STABLE_ENOUGH:
        return None
    ordered = sorted(answers)
    return ordered[len(ordered) // 2], ordered[int(len(ordered) * 0.95)]


def recent_answers() -> deque[float]:
    """Return an empty record of a stable version's last latencies, in seconds."""
    return deque(maxlen=_STABLE_ANSWERS)


def _add(counts: list[float], badness: float, is_canary: int) -> None:
    counts[0] += badness if is_canary else 0.0
    counts[1] += badness


class Windows:
    """The rollouts of all endpoints, and their closed windows until a controller has taken them."""

    def __init__(self, clock: Clock) -> None:
        self.dropped = 0
        self._clock = clock
        self._active: dict[str, Rollout] = {}
        self._kept: deque[Window] = deque()

    def follow(self, route: EndpointRoute, share: float, answers: deque[float]) -> Rollout | None:
        """Return the counts for an endpoint's rollout under its present route and share; None when it has none."""
        current = self._active.get(route.name)
        if current is not None and current.route.rollout != route.rollout:
            self.forget(route.name)
            current = None
        if not route.rollout:
            return None
        if current is None:
            current = self._active[route.name] = Rollout(route, share, answers, self._clock)
        current.route = route
        current.set_share(share)
        return current

    def forget(self, endpoint: str) -> None:
        """End the rollout of an endpoint; its closed windows are still kept."""
        found = self._active.pop(endpoint, None)
        if found is not None:
            found.end()
            self._take(found)

    def tick(self) -> None:
        """Close what is due; called many times a second."""
        for rollout in self._active.values():
            rollout.tick()
            if rollout.closed:
                self._take(rollout)

    def closed(self, ack: Mapping[str, int]) -> list[Window]:
        """Forget the windows up to `ack` of each rollout and return the others, oldest first."""
        self._kept = deque(w for w in self._kept if w.index > ack.get(w.rollout, -1))
        return list(self._kept)

    @property
    def waiting(self) -> int:
        """Return how many windows nobody has acknowledged."""
        return len(self._kept)

    def _take(self, rollout: Rollout) -> None:
        self._kept.extend(rollout.closed)
        rollout.closed.clear()
        while len(self._kept) > MAX_WINDOWS:
            self._kept.popleft()
            self.dropped += 1
