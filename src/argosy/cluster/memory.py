"""A launcher that starts nothing: for tests of whatever uses one."""

import threading
from pathlib import Path

import msgspec

from argosy.cluster.launcher import ProcessInfo, ProcessSpec, check_name, check_spec
from argosy.core.clock import Clock, FakeClock
from argosy.core.errors import ArgosyError, Conflict, InvalidInput, NotFound


class MemoryLauncher:
    """Remembers what was started; processes end when the test says so, by `end`.

    `specs` holds what was asked by name, `started` the names in the order of starts (the same name again after an end),
    `stopped` the names that were stopped while they lived.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.specs: dict[str, ProcessSpec] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self._clock = clock or FakeClock()
        self._infos: dict[str, ProcessInfo] = {}
        self._errors: dict[str, ArgosyError] = {}
        self._logs: dict[str, list[str]] = {}
        self._lock = threading.RLock()

    def start(self, spec: ProcessSpec) -> ProcessInfo:
        """Remember a process as living; Conflict if one of that name lives."""
        check_spec(spec)
        try:
            msgspec.json.encode(spec.config)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the config of process '{spec.name}' is not plain JSON: {error}") from error
        with self._lock:
            known = self._infos.get(spec.name)
            if known is not None and known.alive:
                raise Conflict(f"process '{spec.name}' is running already", name=spec.name)
            self.started.append(spec.name)
            self.specs[spec.name] = spec
            self._errors.pop(spec.name, None)
            self._logs[spec.name] = []
            info = ProcessInfo(
                name=spec.name,
                role=spec.role,
                pid=1000 + len(self.started),
                started=self._clock.now(),
                alive=True,
                exit_code=None,
                log=Path("/nowhere") / spec.name / "log",
            )
            self._infos[spec.name] = info
            return info

    def stop(self, name: str, grace_s: float = 5.0) -> None:  # noqa: ARG002 - nothing lingers here
        """End a process as by SIGTERM."""
        check_name(name)
        with self._lock:
            info = self._infos.get(name)
            if info is not None and info.alive:
                self.stopped.append(name)
                self._infos[name] = msgspec.structs.replace(info, alive=False, exit_code=-15)

    def list(self, role: str | None = None) -> list[ProcessInfo]:
        """Return all known processes, living and ended, by name."""
        with self._lock:
            return [self._infos[name] for name in sorted(self._infos) if role in (None, self._infos[name].role)]

    def get(self, name: str) -> ProcessInfo | None:
        """Return what is known of one process."""
        return self._infos.get(check_name(name))

    def error(self, name: str) -> ArgosyError | None:
        """Return the error by which the process ended, if it ended by one."""
        return self._errors.get(check_name(name))

    def log_tail(self, name: str, lines: int = 50) -> str:
        """Return the last lines given to `write`."""
        if check_name(name) not in self._infos:
            raise NotFound(f"no process is called '{name}'; known are: {', '.join(self._infos) or 'none'}")
        return "".join(self._logs[name][-lines:]) if lines > 0 else ""

    def forget(self, name: str) -> None:
        """Drop what is known of a process that has ended."""
        with self._lock:
            info = self._infos.get(check_name(name))
            if info is not None and info.alive:
                raise Conflict(f"process '{name}' is running already", name=name)
            self._infos.pop(name, None)
            self._errors.pop(name, None)

    def end(self, name: str, exit_code: int | None = -9, error: ArgosyError | None = None) -> None:
        """Let a process end by itself: by default as by kill -9."""
        with self._lock:
            self._infos[name] = msgspec.structs.replace(self._infos[name], alive=False, exit_code=exit_code)
            if error is not None:
                self._errors[name] = error

    def grow(self, name: str, memory_bytes: int) -> None:
        """Let a process have so much memory."""
        with self._lock:
            self._infos[name] = msgspec.structs.replace(self._infos[name], memory_bytes=memory_bytes)

    def write(self, name: str, text: str) -> None:
        """Let a process write to its log."""
        self._logs[name].extend(text.splitlines(keepends=True))
