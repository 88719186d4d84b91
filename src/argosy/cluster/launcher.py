"""What a launcher is: it starts processes somewhere, and knows which of them still live."""

import re
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import msgspec

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.plugins import Plugins

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,119}")
_ENTRY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


class ProcessSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One process to start."""

    name: str
    """Unique among the living processes of one launcher: letters, digits, `.`, `_`, `-`; at most 120."""
    role: str
    """What it is for, to list by: replica, gateway, controller, rank, stage."""
    entry: str
    """`module:function`, called with `config`; what it returns is the exit code (None is 0)."""
    config: dict[str, Any] = {}
    """Plain JSON values; reaches the process through a file only this user can read, never through its arguments."""
    threads: int = 0
    """Threads of the numeric libraries; 0 leaves their default, but for OpenBLAS, which gets 1: its pool costs
    0.2 CPU seconds at import."""
    detached: bool = True
    """Whether it outlives the process that starts it; otherwise it is killed together with that one."""
    env: dict[str, str] = {}
    """Changes to the environment."""


class ProcessInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One process that was started, living or not."""

    name: str
    role: str
    pid: int
    """0 while it is so young that its id is not known yet, and for one that never ran."""
    started: float
    """Seconds since 1970, by the starter's clock."""
    alive: bool
    exit_code: int | None
    """None while alive, and when nobody saw how it ended; minus the signal's number when a signal ended it."""
    log: Path
    memory_bytes: int = 0
    """Memory of its own that it has now; 0 when that is not known."""


class Launcher(Protocol):
    """Starts processes and finds them again, also after its own process was killed.

    Every launcher passes tests/conformance/test_launchers.py. All methods may be called from several threads and,
    for launchers over the same place, from several processes.
    """

    def start(self, spec: ProcessSpec) -> ProcessInfo:
        """Start a process and return at once; Conflict if one of that name lives, also when two start it together."""
        ...

    def stop(self, name: str, grace_s: float = 5.0) -> None:
        """Ask the process and all it started to end, kill them after `grace_s`; return when none is left.

        Harmless when it has ended or is unknown.
        """
        ...

    def list(self, role: str | None = None) -> list[ProcessInfo]:
        """Return all known processes, living and ended, by name."""
        ...

    def get(self, name: str) -> ProcessInfo | None:
        """Return what is known of one process."""
        ...

    def error(self, name: str) -> ArgosyError | None:
        """Return the error by which the process ended, if it ended by one."""
        ...

    def log_tail(self, name: str, lines: int = 50) -> str:
        """Return the last lines it wrote; NotFound if the name is unknown."""
        ...

    def forget(self, name: str) -> None:
        """Drop the record and log of a process that has ended; Conflict if it lives."""
        ...


LAUNCHERS: Plugins[type[Launcher]] = Plugins("argosy.launchers", {"local": "argosy.cluster.local:LocalLauncher"})


def check_spec(spec: ProcessSpec) -> None:
    """Raise InvalidInput for a spec that no launcher could start."""
    check_name(spec.name)
    if not _ENTRY.fullmatch(spec.entry):
        raise InvalidInput(f"{spec.entry!r} is not an entry of the form 'module:function'")
    if spec.threads < 0:
        raise InvalidInput(f"process '{spec.name}' was asked to have {spec.threads} threads; give 0 or more")


def check_name(name: str) -> str:
    """Return `name` if it can name a process and a folder; raise InvalidInput otherwise."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise InvalidInput(f"{name!r} cannot name a process; use letters, digits, '.', '_', '-', at most 120")
    return name


def stop_all(launcher: Launcher, names: Iterable[str], grace_s: float = 5.0) -> None:
    """Stop several processes at once, so that their times of grace run together."""
    threads = [threading.Thread(target=launcher.stop, args=(name, grace_s)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
