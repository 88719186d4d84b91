"""The scheduler's process: one for each home, there while it has jobs or updates to look after.

A process of its own and no part of the controller: it waits for checkpoints, reads data files and starts what may
fail, and none of that may hold up a rollout or a gateway.
"""

import datetime as dt
import signal
import sys
from collections.abc import Callable
from typing import Any

import msgspec

from argosy.core.clock import Clock, SystemClock
from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, IntegrityError
from argosy.core.files import FileLock
from argosy.core.machine import free_memory
from argosy.operate.jobs.capacity import machine_resources
from argosy.operate.jobs.folders import JobFolders, place_of
from argosy.operate.jobs.keeper import scheduler_lock
from argosy.operate.jobs.needs import needs_like
from argosy.operate.jobs.scheduler import IDLE_S, Parts, Report, Scheduler
from argosy.operate.jobs.updater import Updater
from argosy.operate.processes import SCHEDULER, ControllerConfig, process_folder

PATIENCE_S = 5.0
"""How long a scheduler without work stays: jobs tend to come one after the other."""
RETRY_S = 2.0


def main(config: dict[str, Any]) -> int:
    """Run the scheduler of a home until there is nothing to do."""
    settings = msgspec.convert(config, ControllerConfig).settings()
    settings = msgspec.structs.replace(settings, actor=SCHEDULER)
    private_folder(settings.runtime)
    lock = scheduler_lock(settings)
    if not lock.acquire():
        return 0
    clock = SystemClock()
    report = reporter(clock)
    is_stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: is_stopping.append(number))
    return run(build_scheduler(settings, clock, report), lock, clock, report, lambda: bool(is_stopping))


def run(scheduler: Scheduler, lock: FileLock, clock: Clock, report: Report, is_stopping: Callable[[], bool]) -> int:
    """Tick until stopped or done. The only place that catches everything: one bad look must not end it."""
    idle_since: float | None = None
    while not is_stopping():
        try:
            wait = scheduler.tick()
            is_idle = scheduler.is_done
        except IntegrityError:
            raise
        except Exception as error:  # noqa: BLE001 - the outermost loop
            report("scheduler_trouble", error=str(error), type=type(error).__name__)
            wait, is_idle = RETRY_S, False
        if not is_idle:
            idle_since = None
        elif idle_since is None:
            idle_since = clock.monotonic()
        elif clock.monotonic() - idle_since > PATIENCE_S:
            if not _is_needed_after_all(scheduler, lock):
                report("scheduler_done")
                return 0
            idle_since = None
        clock.sleep(min(wait, IDLE_S) if not is_idle else 0.25)
    lock.release()
    return 0


def _is_needed_after_all(scheduler: Scheduler, lock: FileLock) -> bool:
    """Give the lock back, and look at the log once more: whoever submits writes first and looks at the lock then."""
    lock.release()
    try:
        return scheduler.is_wanted_now() and lock.acquire()
    except ArgosyError:
        return False


def build_scheduler(settings: Settings, clock: Clock, report: Report) -> Scheduler:
    """Wire a scheduler to this machine."""
    from argosy.cluster.local import LocalLauncher
    from argosy.registry.registry import open_registry

    registry = open_registry(settings, clock)
    place, machine = place_of(settings.home), machine_resources()
    updater = Updater(
        registry,
        clock,
        place=place,
        machine=machine,
        needs=lambda jobs, title: needs_like(jobs, title, machine),
        put=registry.blobs.put,
        report=report,
    )
    return Scheduler(
        Parts(
            log=registry.log,
            launcher=LocalLauncher(process_folder(settings), clock),
            clock=clock,
            files=JobFolders(settings.home),
            place=place,
            machine=machine,
            free_memory=free_memory,
            report=report,
            environment={
                "ARGOSY_HOME": str(settings.home),
                "ARGOSY_STORE": settings.store,
                "ARGOSY_RUNTIME": str(settings.runtime),
                "ARGOSY_LOG_LEVEL": settings.log_level,
            },
            updates=updater.move,
        )
    )


def reporter(clock: Clock) -> Report:
    """Return a writer of the log lines that structlog would write, without its imports, as the controller has one."""

    def report(event: str, **fields: Any) -> None:
        when = dt.datetime.fromtimestamp(clock.now(), dt.UTC).isoformat().replace("+00:00", "Z")
        line = {"process": SCHEDULER, **fields, "event": event, "level": "info", "timestamp": when}
        sys.stderr.write(msgspec.json.encode(line).decode() + "\n")
        sys.stderr.flush()

    return report
