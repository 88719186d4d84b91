"""Starts the scheduler of a home, and keeps it running beside a controller. Never a reason for serving to suffer."""

from collections.abc import Callable

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.files import FileLock
from argosy.operate.folding import LogLike
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.folders import place_of
from argosy.operate.jobs.scheduler import Report
from argosy.operate.processes import SCHEDULER, ControllerConfig

ENTRY = "argosy.operate.jobs.process:main"
_EVERY_S = 2.0
_MOST_EVERY_S = 60.0


def scheduler_lock(settings: Settings) -> FileLock:
    """Return the lock that the one scheduler of this home holds."""
    return FileLock(settings.runtime / "scheduler.lock")


def start_scheduler(settings: Settings, launcher: Launcher) -> bool:
    """Start this home's scheduler unless it runs; return whether it was started.

    Call it after the wish is in the log: a scheduler that is just ending looks there once more.
    """
    private_folder(settings.runtime)
    if scheduler_lock(settings).is_taken():
        return False
    config = ControllerConfig(
        home=str(settings.home),
        store=settings.store,
        runtime=str(settings.runtime),
        log_level=settings.log_level,
    )
    spec = ProcessSpec(name=SCHEDULER, role=SCHEDULER, entry=ENTRY, config=msgspec.to_builtins(config), threads=1)
    try:
        launcher.start(spec)
    except Conflict:
        return False  # somebody else starts it at this moment
    return True


def make_keeper(
    settings: Settings, log: LogLike, launcher: Launcher, clock: Clock, report: Report
) -> Callable[[], None]:
    """Return what a controller calls at each of its looks: it starts the scheduler when there is work and none runs.

    A scheduler that does not stay up is started less and less often.
    """
    jobs = Jobs()
    place: list[str] = []
    state = {"next": 0.0, "every": _EVERY_S, "started": 0.0}

    def look(now: float) -> None:
        jobs.catch_up(log)
        if not place:
            place.append(place_of(settings.home))
        if not jobs.is_wanted(place[0]) or scheduler_lock(settings).is_taken():
            if now - state["started"] > _MOST_EVERY_S:
                state["every"] = _EVERY_S
            return
        if start_scheduler(settings, launcher):
            report("scheduler_started")
            state["started"] = now
            state["every"] = min(_MOST_EVERY_S, state["every"] * 2)

    def keep() -> None:
        now = clock.monotonic()
        if now < state["next"]:
            return
        try:
            look(now)
        except (ArgosyError, OSError) as error:
            report("scheduler_not_started", error=str(error))
        state["next"] = now + state["every"]

    return keep
