"""Looks once a second, for all browsers together, and keeps what was seen."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError
from argosy.operate.desired import Desired
from argosy.operate.folding import LogLike
from argosy.operate.replay import entries_of
from argosy.operate.view import SystemView
from argosy.registry.registry import Registry
from argosy.registry.versions import Version
from argosy.serve.control import Window
from argosy.web.history import EvidenceHistory, History
from argosy.web.runs import Live, RunRow, read_runs

LOOK_EVERY_S = 1.0
_READ_EVERY = 5
"""What changes slowly is read at every fifth look, and only if the log has grown."""
MOST_ENTRIES = 200
MOST_VERSIONS = 500
_MOST_EVIDENCE = 64

_log = structlog.get_logger()


class Looks(Protocol):
    """The part of `operate.view.Observer` that is used here."""

    desired: Desired
    windows: list[Window]

    def look(self) -> SystemView:
        """Return what is there now."""
        ...


class JobRow(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the page shows it."""

    id: str
    title: str
    state: str
    """waiting, running, stopping, or how it ended."""
    reason: str
    priority: int
    needs: str
    """Cores, memory and devices in a few words."""
    submitted: float
    seconds: float
    """How long it has run."""
    endpoint: str = ""
    """The endpoint that it updates; empty for others."""


JobSource = Callable[[LogLike], Sequence[JobRow]]
"""Where jobs come from. Without any, and while there are none, the page has no such section."""


Stages = Callable[[], Sequence[Live]]
"""What runs now."""


def no_jobs(log: LogLike) -> Sequence[JobRow]:
    """Know of no jobs."""
    del log
    return ()


class Entry(msgspec.Struct, frozen=True):
    """One entry of the log without its data."""

    seq: int
    time: float
    actor: str
    kind: str
    subject: str


class Scene(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that was seen at one look."""

    number: int
    """Counts looks."""
    view: SystemView | None
    trouble: str = ""
    """Why nothing could be seen."""
    read: int = 0
    """Counts changes of what follows."""
    versions: tuple[Version, ...] = ()
    entries: tuple[Entry, ...] = ()
    runs: tuple[RunRow, ...] = ()
    live: tuple[Live, ...] = ()
    jobs: tuple[JobRow, ...] = ()


class Feed:
    """Call `run` once; read `scene`, `history` and `evidence` between two awaits."""

    def __init__(
        self, registry: Registry, observer: Looks, clock: Clock, stages: Stages, jobs: JobSource = no_jobs
    ) -> None:
        self.registry = registry
        self._stages = stages
        self._observer = observer
        self._clock = clock
        self._jobs = jobs
        self._head = -1
        self._names: dict[str, int] = {}
        self.history = History()
        self.evidence: dict[str, EvidenceHistory] = {}
        """By endpoint: that of the rollout under way, or of the last that was seen."""
        self.scene = Scene(number=0, view=None)

    async def run(self) -> None:
        """Look until cancelled. What fails is said on the page, and tried again."""
        while True:
            began = self._clock.monotonic()
            scene = await asyncio.to_thread(self.look)
            self.take(scene)
            await asyncio.sleep(max(0.2, LOOK_EVERY_S - (self._clock.monotonic() - began)))

    def look(self) -> Scene:
        """Return what is there now; only this is done in a thread of its own."""
        former = self.scene
        number = former.number + 1
        try:
            view = self._observer.look()
            self._follow_evidence()
            seen = msgspec.structs.replace(former, number=number, view=view, trouble="")
            if number % _READ_EVERY == 1:
                seen = self._read(seen)
        except ArgosyError as error:
            return msgspec.structs.replace(former, number=number, trouble=error.message)
        except Exception as error:  # noqa: BLE001 - the outermost loop of the page, which must go on looking
            _log.exception("page_look_failed")
            return msgspec.structs.replace(former, number=number, trouble=f"{type(error).__name__}: {error}")
        return seen

    def take(self, scene: Scene) -> None:
        """Keep what was seen."""
        self.scene = scene
        if scene.view is not None and not scene.trouble:
            self.history.take(scene.view)

    def _follow_evidence(self) -> None:
        endpoints = self._observer.desired.endpoints
        for name, endpoint in endpoints.items():
            rollout = endpoint.rollout
            known = self.evidence.get(name)
            if rollout is None:
                last = endpoint.last
                is_known = known is not None and last is not None and known.rollout == last.rollout and known.is_over
                if last is not None and not is_known and len(endpoints) <= _MOST_EVIDENCE:
                    # From the log: its last windows came with the entry that ended it, and nobody may have looked.
                    self.evidence[name] = EvidenceHistory.of_ended(entries_of(self.registry.log, last.rollout))
                continue
            if known is None or known.rollout != rollout.id:
                known = self.evidence[name] = EvidenceHistory(rollout)
            known.follow(rollout, self._observer.windows)
        while len(self.evidence) > _MOST_EVIDENCE:
            del self.evidence[next(iter(self.evidence))]

    def _read(self, scene: Scene) -> Scene:
        log = self.registry.log
        live = tuple(self._stages())
        jobs = tuple(self._jobs(log))
        if (live, jobs) != (scene.live, scene.jobs):
            scene = msgspec.structs.replace(scene, live=live, jobs=jobs, read=scene.read + 1)
        if log.head == self._head:
            return scene
        found = list(log.entries(after=max(0, log.head - MOST_ENTRIES)))
        self._head = log.head
        return msgspec.structs.replace(
            scene,
            read=scene.read + 1,
            versions=tuple(self.registry.versions.list()[-MOST_VERSIONS:][::-1]),
            entries=tuple(Entry(e.seq, e.time, e.actor, e.kind, e.subject) for e in reversed(found)),
            runs=tuple(read_runs(log)),
        )

    def plain_runs(self) -> list[dict[str, Any]]:
        """Return runs and what runs now as plain values."""
        return [*map(msgspec.to_builtins, self.scene.live), *map(msgspec.to_builtins, self.scene.runs)]
