"""The processes of a home: where they meet, how the controller is started, and how everything is stopped."""

import contextlib
import os
from pathlib import Path

import msgspec

from argosy.cluster.launcher import Launcher, ProcessSpec, stop_all
from argosy.core.clock import Clock
from argosy.core.config import Config, Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.files import FileLock, create_exclusive
from argosy.operate import commands
from argosy.registry.registry import Registry

NAME = "controller"
SCHEDULER = "scheduler"
"""The process that looks after jobs and updates (`jobs/process.py`)."""
JOB = "job"
"""The role of jobs' processes."""
JOB_GRACE_S = 10.0
"""How long a training may take to its next checkpoint; one that takes longer goes on from its last."""
ENTRY = "argosy.operate.controller_process:main"


class ControllerConfig(Config, frozen=True):
    """The `config` of a controller process: the fields of `Settings` it needs."""

    home: str
    store: str
    runtime: str
    log_level: str = "info"

    def settings(self) -> Settings:
        """Return them as settings; the controller writes to the log in its own name."""
        return Settings(
            home=Path(self.home),
            store=self.store,
            runtime=Path(self.runtime),
            actor=NAME,
            log_level=self.log_level,
        )


def gateway_socket(settings: Settings) -> Path:
    """Return the Unix socket at which replicas, controller and CLI meet the gateway."""
    return settings.runtime / "gateway.sock"


def process_folder(settings: Settings) -> Path:
    """Return the folder of the launcher's records."""
    return settings.runtime / "processes"


def controller_lock(settings: Settings) -> FileLock:
    """Return the lock that the one controller of this home holds."""
    return FileLock(settings.runtime / "controller.lock")


def prediction_key(settings: Settings) -> str:
    """Return the hex secret that tags prediction ids, made on first use; `argosy why` needs the same."""
    path = settings.home / "keys" / "predictions.key"
    with contextlib.suppress(Conflict):
        if not path.exists():
            private_folder(path.parent)
            create_exclusive(path, os.urandom(32).hex().encode(), mode=0o600)
    return path.read_text().strip()


def controller_spec(settings: Settings) -> ProcessSpec:
    """Return what starts this home's controller."""
    config = ControllerConfig(
        home=str(settings.home),
        store=settings.store,
        runtime=str(settings.runtime),
        log_level=settings.log_level,
    )
    return ProcessSpec(name=NAME, role=NAME, entry=ENTRY, config=msgspec.to_builtins(config), threads=1)


def start_controller(settings: Settings, launcher: Launcher) -> bool:
    """Start this home's controller unless it runs; return whether it was started.

    Call it after the wish is in the log: a controller that is just ending looks there once more.
    """
    private_folder(settings.runtime)
    if controller_lock(settings).is_taken():
        return False
    try:
        launcher.start(controller_spec(settings))
    except Conflict:
        return False  # somebody else starts it at this moment
    return True


def stop_everything(
    registry: Registry, launcher: Launcher, settings: Settings, clock: Clock, *, patience_s: float = 15.0
) -> list[str]:
    """Stop all processes of this home and return their names; works with a dead controller and a broken log too.

    The wish goes to the log first, so that nothing comes back. A living controller drains and stops in order; what
    still lives after `patience_s` is stopped from here. An error of the log is raised when all is stopped.
    """
    living = [info.name for info in launcher.list() if info.alive]
    trouble: ArgosyError | None = None
    try:
        commands.stop_all(registry)
    except ArgosyError as error:
        trouble = error
    deadline = clock.monotonic() + patience_s
    lock = controller_lock(settings)
    while trouble is None and lock.is_taken() and clock.monotonic() < deadline:
        clock.sleep(0.05)
    # The controller first, and then the scheduler: they would start again what is stopped.
    launcher.stop(NAME)
    launcher.stop(SCHEDULER)
    # Then jobs, before the stages they wait for: those would seem to them to have failed.
    stop_all(launcher, [info.name for info in launcher.list(JOB) if info.alive], JOB_GRACE_S)
    stop_all(launcher, [info.name for info in launcher.list() if info.alive])
    if trouble is not None:
        raise trouble
    return living
