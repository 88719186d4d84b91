"""What a live page remembers: the numbers of each version over time, bounded, and how evidence of a rollout grew.

Counters of a gateway only rise, and begin again at zero when it is restarted. What lies between two looks becomes a
rate; a look that found nothing is a gap, never a zero.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from argosy.operate.desired import Rollout
from argosy.operate.folding import LogEntry
from argosy.operate.judging import WindowJudge
from argosy.operate.replay import rollout_of, windows_of
from argosy.operate.view import EndpointView, SystemView, VersionView
from argosy.serve.control import Window

KEPT = 3600
"""Looks that are remembered: an hour at one per second."""
MOST_LINES = 8
"""Versions of one endpoint that are remembered at a time."""
MOST_ENDPOINTS = 256
MOST_EVIDENCE = 600
"""Points of one rollout's evidence; with more, every second one is dropped, and from then on so are those that come."""


class Point(NamedTuple):
    """One version of one endpoint between two looks; None where it is not known."""

    time: float
    per_s: float | None
    """Requests per second."""
    failed: float | None
    """Share of the requests that were answered with a 5xx."""
    p50_ms: float | None
    p95_ms: float | None


class Line:
    """One version of one endpoint."""

    def __init__(self) -> None:
        self.role = ""
        self.points: deque[Point] = deque(maxlen=KEPT)
        self._former: tuple[float, int, int] | None = None

    def take(self, time: float, version: VersionView | None) -> None:
        """Take one look; None: it was not to be seen."""
        if version is None:
            self._former = None
            self.points.append(Point(time, None, None, None, None))
            return
        self.role = version.role
        former, self._former = self._former, (time, version.requests, version.failed)
        per_s = failed = None
        if former is not None and time > former[0] and version.requests >= former[1]:
            asked = version.requests - former[1]
            per_s = asked / (time - former[0])
            failed = max(0, version.failed - former[2]) / asked if asked else None
        self.points.append(Point(time, per_s, failed, version.p50_ms or None, version.p95_ms or None))

    def recent(self, seconds: float) -> tuple[float | None, float | None]:
        """Return requests per second and the share that failed over the last `seconds`; None while not known."""
        last = self.points[-1].time if self.points else 0.0
        found = [p for p in self.points if p.time > last - seconds and p.per_s is not None]
        if not found:
            return None, None
        rate = sum(p.per_s or 0.0 for p in found) / len(found)
        asked = sum(p.per_s or 0.0 for p in found)
        failed = sum((p.per_s or 0.0) * (p.failed or 0.0) for p in found)
        return rate, failed / asked if asked else None


class History:
    """All lines of all endpoints."""

    def __init__(self) -> None:
        self.lines: dict[str, dict[str, Line]] = {}

    def take(self, view: SystemView) -> None:
        """Take in one look at everything."""
        known = {endpoint.name for endpoint in view.endpoints[:MOST_ENDPOINTS]}
        self.lines = {name: lines for name, lines in self.lines.items() if name in known}
        for endpoint in view.endpoints[:MOST_ENDPOINTS]:
            self._take(endpoint, view)

    def _take(self, endpoint: EndpointView, view: SystemView) -> None:
        lines = self.lines.setdefault(endpoint.name, {})
        seen = {v.ref: v for v in endpoint.versions} if view.gateway == "running" else {}
        for ref in seen:
            lines.setdefault(ref, Line())
        for ref, line in list(lines.items()):
            line.take(view.time, seen.get(ref))
            if all(point.p95_ms is None and point.per_s is None for point in line.points) and ref not in seen:
                del lines[ref]
        while len(lines) > MOST_LINES:
            del lines[next(ref for ref in lines if ref not in seen or len(seen) > MOST_LINES)]

    def line(self, endpoint: str, ref: str) -> Line:
        """Return the line of a version, an empty one if nothing was seen of it."""
        return self.lines.get(endpoint, {}).get(ref) or Line()


def thinned(points: Sequence[Point], since: float, most: int) -> list[Point]:
    """Return at most `most` points after `since`: neighbours are put together, gaps stay gaps.

    Of latencies and failures the worst is kept, so that a spike of one second is seen on an hour's chart; of rates the
    mean, so that the area under the line is what was asked.
    """
    found = [point for point in points if point.time >= since]
    size = -(-len(found) // most) if found else 1
    return [_together(found[n : n + size]) for n in range(0, len(found), size)]


def _together(points: Sequence[Point]) -> Point:
    if len(points) == 1:
        return points[0]
    rates = [p.per_s for p in points if p.per_s is not None]
    return Point(
        points[-1].time,
        sum(rates) / len(rates) if rates else None,
        max((p.failed for p in points if p.failed is not None), default=None),
        max((p.p50_ms for p in points if p.p50_ms is not None), default=None),
        max((p.p95_ms for p in points if p.p95_ms is not None), default=None),
    )


class EvidencePoint(NamedTuple):
    """What the judge knew after one window: for each metric, evidence against and for the new version."""

    seconds: float
    """Since the first window began."""
    total: float
    against: dict[str, float]
    """Weighted, as the verdict weighs them: their sum is `total`."""
    good: dict[str, float]
    """That it is not twice as bad: 20 of each promotes."""


class EvidenceHistory:
    """The evidence of one rollout from its first window on, also when nobody was looking: windows are replayed."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout.id
        self.is_over = False
        self.threshold = 1 / rollout.config.false_alarm
        self.points: list[EvidencePoint] = []
        self._judge = WindowJudge(rollout)
        self._began: float | None = None
        self._last = -1
        self._read = 0
        self._every = 1
        self._taken = 0

    @classmethod
    def of_ended(cls, entries: Sequence[LogEntry]) -> "EvidenceHistory":
        """Return the whole evidence of a rollout that has ended, from its entries, oldest first."""
        found = cls(rollout_of(entries[0]))
        for entry in entries[1:]:
            for window in windows_of(entry):
                found._take(window)
        found.is_over = True
        return found

    def follow(self, rollout: Rollout, waiting: Sequence[Window] = ()) -> None:
        """Take in windows that are new: those in the log, then those that the gateway still holds."""
        for plain in rollout.windows[self._read :]:
            self._take(msgspec.convert(plain, Window, str_keys=True))
        self._read = len(rollout.windows)
        for window in waiting:
            if window.rollout == self.rollout:
                self._take(window)

    def _take(self, window: Window) -> None:
        if window.index <= self._last:
            return
        self._last = window.index
        self._began = window.start if self._began is None else self._began
        self._judge.take(window)
        self._taken += 1
        if self._taken % self._every:
            return
        verdict = self._judge.verdict()
        metrics = verdict["metrics"]
        self.points.append(
            EvidencePoint(
                max(0.0, window.start + window.seconds - self._began),
                float(verdict["total"]),
                {name: found["weight"] * found["evidence"] for name, found in metrics.items()},
                {name: found["assurance"] for name, found in metrics.items()},
            )
        )
        if len(self.points) > MOST_EVIDENCE:
            self.points = self.points[1::2]
            self._every *= 2
