"""Metrics of the user's own in a rollout: read beside the controller, judged as part of the gateway's windows.

A reading is one number for each of the two versions, a mean over the requests of some seconds. A process of its own
makes it (`metric_process`); the controller only takes it from a file, gives it to one window as badness, and refuses to
promote while a metric can't be read.
"""

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.config import Config
from argosy.core.errors import ArgosyError
from argosy.core.units import format_time, parse_time
from argosy.operate import desired as d
from argosy.operate.config import OwnMetric
from argosy.operate.desired import Rollout
from argosy.serve.control import Window

ROLE = "metrics"
ENTRY = "argosy.operate.metric_process:main"
KEPT_READINGS = 32
"""How many readings of a metric the file holds; a controller looks several times a second."""
MEMORY_BYTES = 1 << 30
_PATIENCE = 3.0
_LEAST_PATIENCE_S = 5.0
_RESTART_S = 5.0


class Reading(Config, frozen=True):
    """One number for each version."""

    end: float
    """Wall clock, seconds."""
    current: float
    new: float


class MetricState(Config, frozen=True):
    """How reading one metric goes."""

    readings: tuple[Reading, ...] = ()
    read: int = 0
    """Readings so far."""
    ignored: int = 0
    """Readings that were no finite number, such as a mean over no request."""
    trouble: str = ""
    """Why the last reading failed."""


class MetricFile(Config, frozen=True):
    """What the process that reads writes down after every reading."""

    count: int
    metrics: dict[str, MetricState]


class ReaderConfig(Config, frozen=True):
    """The `config` of the process that reads."""

    rollout: str
    endpoint: str
    current: str
    new: str
    window_s: float
    metrics: dict[str, OwnMetric]
    sources: dict[str, str]
    """Source of each metric's Python file, by digest."""
    out: str
    """The file it writes."""


class Readings(Protocol):
    """Where the controller gets readings from."""

    def follow(self, rollouts: Iterable[Rollout]) -> None:
        """Read for these rollouts and no others."""
        ...

    def complete(self, rollout: Rollout, window: Window) -> Window:
        """Return a window with what was read of its time; a reading goes into one window only."""
        ...

    def trouble(self, rollout: str) -> str:
        """Return which metric can't be read now and why; empty when all can."""
        ...

    def state(self, rollout: str) -> dict[str, dict[str, object]]:
        """Return for each metric `read`, `ignored` and `trouble`, as plain values for the log."""
        ...


class NoReadings:
    """For whoever has rollouts without metrics of their own."""

    def follow(self, rollouts: Iterable[Rollout]) -> None:
        """Read nothing."""

    def complete(self, rollout: Rollout, window: Window) -> Window:
        """Add nothing."""
        del rollout
        return window

    def trouble(self, rollout: str) -> str:
        """Find no trouble."""
        del rollout
        return ""

    def state(self, rollout: str) -> dict[str, dict[str, object]]:
        """Know nothing."""
        del rollout
        return {}


class SourceOf(Protocol):
    """Gets a file of the registry by its digest."""

    def __call__(self, digest: str) -> bytes:
        """Return its bytes; ArgosyError."""
        ...


class _Followed(msgspec.Struct):
    rollout: Rollout
    process: str = ""
    next_start: float = 0.0
    starts: int = 0
    error: str = ""
    file: MetricFile | None = None
    seen_at: dict[str, float] = {}
    """When each metric was last read as a finite number."""
    changed_at: float = 0.0
    taken: dict[str, float] = {}
    """The end of the last reading of each metric that went into a window."""


class ProcessReadings:
    """Reads by one process for each rollout that has metrics of its own."""

    def __init__(self, launcher: Launcher, clock: Clock, folder: Path, source_of: SourceOf) -> None:
        self._launcher = launcher
        self._clock = clock
        self._folder = folder
        self._source_of = source_of
        self._followed: dict[str, _Followed] = {}

    def follow(self, rollouts: Iterable[Rollout]) -> None:
        """Start, watch and stop the processes that read."""
        wanted = {r.id: r for r in rollouts if r.config.metrics and r.phase not in (d.PENDING, d.ROLLING_BACK)}
        for id_ in [id_ for id_ in self._followed if id_ not in wanted]:
            found = self._followed.pop(id_)
            self._end(found)
            self._path(id_).unlink(missing_ok=True)
        for id_, rollout in wanted.items():
            found = self._followed.setdefault(id_, _Followed(rollout, changed_at=self._clock.monotonic()))
            found.rollout = rollout
            self._look(found)
            self._ensure(found)

    def complete(self, rollout: Rollout, window: Window) -> Window:
        """Give a window the readings that lie closest to it in time."""
        found = self._followed.get(rollout.id)
        if found is None or found.file is None:
            return window
        bad = dict(window.bad)
        for name, own in rollout.config.metrics.items():
            state = found.file.metrics.get(name, MetricState())
            every_s = seconds_between(own, rollout.config.window_s)
            taken, end = found.taken.get(name, 0.0), window.start + window.seconds
            near = [r for r in state.readings if r.end > taken and abs(r.end - end) <= 2 * every_s]
            if not near or not window.requests_canary or not window.requests_stable:
                continue
            nearest = min(near, key=lambda reading: abs(reading.end - end))
            found.taken[name] = nearest.end
            bad[name] = _badness(own, nearest, window)
        return msgspec.structs.replace(window, bad=bad)

    def trouble(self, rollout: str) -> str:
        """Return which metrics can't be read now, and why."""
        found = self._followed.get(rollout)
        if found is None:
            return "its own metrics are not read yet"
        return "; ".join(text for name in found.rollout.config.metrics if (text := self._why_not(found, name)))

    def state(self, rollout: str) -> dict[str, dict[str, object]]:
        """Return how reading goes."""
        found = self._followed.get(rollout)
        if found is None:
            return {}
        known = found.file.metrics if found.file else {}
        return {
            name: {
                "read": known.get(name, MetricState()).read,
                "ignored": known.get(name, MetricState()).ignored,
                "trouble": self._why_not(found, name),
            }
            for name in found.rollout.config.metrics
        }

    def _why_not(self, found: _Followed, name: str) -> str:
        own = found.rollout.config.metrics[name]
        state = found.file.metrics.get(name, MetricState()) if found.file else MetricState()
        if state.trouble:
            return f"metric '{name}' cannot be read: {state.trouble}"
        if name not in found.seen_at:
            return f"metric '{name}' was not read yet{f': {found.error}' if found.error else ''}"
        if self._clock.monotonic() - found.seen_at[name] > _patience_s(
            seconds_between(own, found.rollout.config.window_s)
        ):
            return f"metric '{name}' gave no finite number any more{f': {found.error}' if found.error else ''}"
        return ""

    def _look(self, found: _Followed) -> None:
        try:
            file = msgspec.json.decode(self._path(found.rollout.id).read_bytes(), type=MetricFile)
        except (OSError, msgspec.MsgspecError):
            return
        now = self._clock.monotonic()
        if found.file is None or file.count != found.file.count:
            found.changed_at = now
            for name, state in file.metrics.items():
                known = found.file.metrics.get(name) if found.file else None
                if state.read > (known.read if known else 0):
                    found.seen_at[name] = now
            found.file = file

    def _ensure(self, found: _Followed) -> None:
        """Start the process if it is dead, or silent for so long that it must hang."""
        now = self._clock.monotonic()
        info = self._launcher.get(found.process) if found.process else None
        config = found.rollout.config
        longest_s = max(seconds_between(own, config.window_s) for own in config.metrics.values())
        if info is not None and info.alive:
            if now - found.changed_at <= 2 * _patience_s(longest_s) + _RESTART_S:
                return
            found.error = f"the process that reads was silent for {format_time(now - found.changed_at)}"
        elif info is not None:
            error = self._launcher.error(found.process)
            said = self._launcher.log_tail(found.process, 1).strip()[-300:]
            found.error = error.message if error else f"the process that reads ended: {said}"
        if now < found.next_start:
            return
        self._end(found)
        self._start(found, now)

    def _start(self, found: _Followed, now: float) -> None:
        rollout = found.rollout
        found.starts += 1
        found.next_start = now + _RESTART_S * min(found.starts, 12)
        found.changed_at = now
        # What a former process wrote may have been judged already.
        path = self._path(rollout.id)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        path.unlink(missing_ok=True)
        found.file = None
        found.taken = {}
        name = f"{ROLE}-{rollout.id}-{found.starts}-{int(self._clock.now() * 1000)}"
        try:
            digests = {own.code for own in rollout.config.metrics.values() if own.code}
            config = ReaderConfig(
                rollout=rollout.id,
                endpoint=rollout.endpoint,
                current=rollout.base.ref if rollout.base else "",
                new=rollout.to.ref,
                window_s=rollout.config.window_s,
                metrics=rollout.config.metrics,
                sources={digest: self._source_of(digest).decode() for digest in digests},
                out=str(path),
            )
            plain = msgspec.to_builtins(config)
            self._launcher.start(
                ProcessSpec(name=name, role=ROLE, entry=ENTRY, config=plain, threads=1, detached=False)
            )
            found.process = name
        except (ArgosyError, UnicodeDecodeError) as error:
            found.error = str(error)

    def _end(self, found: _Followed) -> None:
        if found.process:
            with contextlib.suppress(ArgosyError):
                self._launcher.stop(found.process, 0.2)
                self._launcher.forget(found.process)
        found.process = ""

    def _path(self, rollout: str) -> Path:
        return self._folder / f"{rollout}.json"


def seconds_between(own: OwnMetric, window_s: float) -> float:
    """Return how many seconds lie between two readings of a metric."""
    return max(window_s, parse_time(own.every) if own.every else 0.0)


def _patience_s(every_s: float) -> float:
    return max(_LEAST_PATIENCE_S, _PATIENCE * every_s)


def _badness(own: OwnMetric, reading: Reading, window: Window) -> tuple[float, float]:
    """Return the sums of badness over a window's requests, from the mean of each version."""
    new = window.requests_canary * own.badness(reading.new)
    return new, new + window.requests_stable * own.badness(reading.current)
