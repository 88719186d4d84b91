"""Processes that somebody wants beside the controller, such as the monitor: kept running, whoever killed them.

A wish is a file with what starts the process. It outlives the controller, and goes when the wish does.
"""

from collections.abc import Callable
from pathlib import Path

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec, check_name
from argosy.core.clock import Clock
from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.files import write_atomic

EVERY_S = 2.0
MOST_BACKOFF_S = 60.0

Report = Callable[..., None]


def folder_of(settings: Settings) -> Path:
    """Return where the wishes are."""
    return settings.runtime / "companions"


def keep_running(settings: Settings, spec: ProcessSpec) -> None:
    """Wish that a process runs; it may run already."""
    folder = folder_of(settings)
    private_folder(folder)
    write_atomic(folder / f"{check_name(spec.name)}.json", msgspec.json.encode(spec), mode=0o600)


def let_go(settings: Settings, name: str) -> None:
    """Take the wish back; the process is left to whoever stops it. Harmless when there is none."""
    (folder_of(settings) / f"{check_name(name)}.json").unlink(missing_ok=True)


class Companions:
    """What a controller calls at each of its looks. One that does not stay up is started less and less often."""

    def __init__(self, settings: Settings, launcher: Launcher, clock: Clock, report: Report) -> None:
        self._folder = folder_of(settings)
        self._launcher = launcher
        self._clock = clock
        self._report = report
        self._next = 0.0
        self._back_off: dict[str, tuple[float, float]] = {}
        """For each that was started: from when on it may be again, and the wait after that."""

    def keep(self) -> None:
        """Start what is wished and does not run."""
        now = self._clock.monotonic()
        if now < self._next:
            return
        self._next = now + EVERY_S
        try:
            for path in sorted(self._folder.glob("*.json")):
                self._look(msgspec.json.decode(path.read_bytes(), type=ProcessSpec), now)
        except (ArgosyError, OSError, msgspec.MsgspecError) as error:
            self._report("companion_not_started", error=str(error))

    def _look(self, spec: ProcessSpec, now: float) -> None:
        info = self._launcher.get(spec.name)
        since, wait = self._back_off.get(spec.name, (0.0, EVERY_S))
        if info is not None and info.alive:
            if now - since > MOST_BACKOFF_S:
                self._back_off.pop(spec.name, None)
            return
        if now < since:
            return
        self._back_off[spec.name] = (now + wait, min(MOST_BACKOFF_S, 2 * wait))
        try:
            self._launcher.start(spec)
        except Conflict:
            return  # a command starts it at this moment
        self._report("companion_started", name=spec.name)
