"""Processes on this machine.

Each process has a folder: `lock`, `record.json` (what was asked), `pid.json` (which process it is), `exit.json` (how it
ended), `log`. The lock decides, not the pid: the starter takes it before it writes anything and the process inherits
it, so from the decision to start until the process's last breath exactly one holder exists. A starter that is killed
between record and process leaves a free lock and no process; killed after that, it leaves a process that holds the
lock and writes its own `pid.json`. At no moment can there be two processes of one name, or one that nobody knows.
"""

import contextlib
import errno
import fcntl
import os
import queue
import secrets
import select
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from argosy.cluster import child
from argosy.cluster.launcher import ProcessInfo, ProcessSpec, check_name, check_spec
from argosy.cluster.machine import process_memory_bytes
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import child_environment
from argosy.core.errors import ArgosyError, Conflict, Internal, InvalidInput, NotFound, Unavailable, from_dict
from argosy.core.files import write_atomic

MAX_LOG_BYTES = 16_000_000
"""A log that grows beyond this is cut when the launcher next looks at it; its last `KEPT_LOG_BYTES` stay in `log.1`."""
KEPT_LOG_BYTES = 1_000_000
MAX_ENDED = 100
"""Ended processes whose record and log are kept; the oldest go first."""

T = TypeVar("T")

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_BIRTH_S = 10.0  # between taking the lock and `pid.json`; 0.02 s on an idle machine
_LAST_S = 2.0  # for the kernel to take away what was killed


class _Record(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    spec: ProcessSpec
    started: float


class _Identity(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    pid: int
    ticks: int
    boot: str

    def is_alive(self) -> bool:
        return self.ticks > 0 and child.start_ticks(self.pid) == self.ticks and child.boot_id() == self.boot


class _Exit(msgspec.Struct, frozen=True, kw_only=True):
    token: str
    exit_code: int | None = None
    error: dict[str, Any] | None = None


class LocalLauncher:
    """Starts processes on this machine; every launcher over the same `folder` sees the same processes."""

    def __init__(self, folder: Path, clock: Clock | None = None) -> None:
        self.folder = folder
        self._clock = clock or SystemClock()

    def start(self, spec: ProcessSpec) -> ProcessInfo:
        """Start a process in its own session, its output in its log; Conflict if one of that name lives."""
        check_spec(spec)
        try:
            msgspec.json.encode(spec.config)
        except (TypeError, ValueError) as error:
            raise InvalidInput(f"the config of process '{spec.name}' is not plain JSON: {error}") from error
        self._prune()
        with self._claimed(spec.name) as lock:
            return self._spawn(spec, lock)

    def stop(self, name: str, grace_s: float = 5.0) -> None:
        """SIGTERM to the whole process group, SIGKILL after `grace_s`; return when none of it is left."""
        folder = self._place(name)
        record = _read(folder / "record.json", _Record)
        if record is None:
            return
        identity = self._born(folder, record)
        if identity is None:
            return
        if identity.is_alive():
            _signal(identity, signal.SIGTERM)
            if not _wait_for_end(identity, grace_s):
                _signal(identity, signal.SIGKILL)
                _wait_for_end(identity, None)
        _REAPER.reap()
        deadline = self._clock.monotonic() + _LAST_S
        while _kill_left_behind(identity) and self._clock.monotonic() < deadline:
            self._clock.sleep(0.002)

    def list(self, role: str | None = None) -> list[ProcessInfo]:
        """Return all known processes, living and ended, by name."""
        if not self.folder.is_dir():
            return []
        names = sorted(entry.name for entry in self.folder.iterdir() if entry.name[0] != ".")
        return [info for name in names if (info := self._info(name, role)) is not None]

    def get(self, name: str) -> ProcessInfo | None:
        """Return what is known of one process."""
        return self._info(name, None)

    def _info(self, name: str, role: str | None) -> ProcessInfo | None:
        """Return what is known of a process, None for one of another role: a controller asks for some, several times
        a second.
        """
        _REAPER.reap()
        folder = self._place(name)
        record = _read(folder / "record.json", _Record)
        if record is None or (role is not None and record.spec.role != role):
            return None
        _bound_log(folder / "log")
        identity = _identity(folder, record)
        alive = identity.is_alive() if identity else _is_locked(folder / "lock")
        if not alive:
            _REAPER.reap()  # it may have ended since
        ended = None if alive else _ended(folder, record)
        return ProcessInfo(
            name=name,
            role=record.spec.role,
            pid=identity.pid if identity else 0,
            started=record.started,
            alive=alive,
            exit_code=ended.exit_code if ended else None,
            log=folder / "log",
            memory_bytes=process_memory_bytes(identity.pid) if alive and identity else 0,
        )

    def error(self, name: str) -> ArgosyError | None:
        """Return the error by which the process ended, if it ended by one."""
        folder = self._place(name)
        record = _read(folder / "record.json", _Record)
        ended = _ended(folder, record) if record else None
        return from_dict(ended.error) if ended and ended.error else None

    def log_tail(self, name: str, lines: int = 50) -> str:
        """Return the last lines it wrote; NotFound if the name is unknown."""
        folder = self._place(name)
        if not (folder / "record.json").exists():
            known = [info.name for info in self.list()]
            raise NotFound(f"no process is called '{name}'; known are: {', '.join(known) or 'none'}", known=known)
        try:
            with (folder / "log").open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - KEPT_LOG_BYTES))
                text = stream.read().decode("utf-8", "replace")
        except FileNotFoundError:
            return ""
        return "".join(text.splitlines(keepends=True)[-lines:]) if lines > 0 else ""

    def forget(self, name: str) -> None:
        """Drop the record and log of a process that has ended; Conflict if it lives."""
        folder = self._place(name)
        if not folder.exists():
            return
        with self._claimed(name):
            # Renamed first, so that no one sees a part of it; whoever waits for this lock sees that it has moved.
            gone = self.folder / f".{name}.{secrets.token_hex(4)}"
            folder.rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _place(self, name: str) -> Path:
        return self.folder / check_name(name)

    @contextlib.contextmanager
    def _claimed(self, name: str) -> Iterator[int]:
        """Hold the lock on `name`; Conflict if a process of that name lives or another starter is at it."""
        folder = self._place(name)
        lock = _try_claim(folder)
        if lock is None and not self._is_living(folder):
            # Held, but not by the process itself: by something it started, a starter or an onlooker of this moment.
            record = _read(folder / "record.json", _Record)
            identity = _identity(folder, record) if record else None
            if identity is not None:
                _kill_left_behind(identity)
            lock = self._claim_of_ended(folder, _LAST_S if identity is not None else 0.1)
        if lock is None:
            raise Conflict(
                f"process '{name}' is running already", hint="stop it first, or choose another name", name=name
            )
        try:
            yield lock
        finally:
            os.close(lock)

    def _claim_of_ended(self, folder: Path, patience_s: float) -> int | None:
        """Take the lock of a process that has ended, None if it is taken by another one meanwhile.

        Its main thread may be gone while the kernel still takes away the others, which hold the lock too: on a busy
        machine, and at a low priority, that was seen to last longer than a tenth of a second.
        """
        for _ in range(max(1, round(patience_s / 0.1))):
            lock = _try_claim(folder, patience_s=0.1)
            if lock is not None or self._is_living(folder):
                return lock
        return None

    def _is_living(self, folder: Path) -> bool:
        record = _read(folder / "record.json", _Record)
        identity = _identity(folder, record) if record else None
        return identity is not None and identity.is_alive()

    def _born(self, folder: Path, record: _Record) -> _Identity | None:
        """Return which process it is, waiting for one that is just being started; None if it never ran."""
        deadline = self._clock.monotonic() + _BIRTH_S
        while (identity := _identity(folder, record)) is None:
            if not _is_locked(folder / "lock"):
                return _identity(folder, record)
            if self._clock.monotonic() > deadline:
                raise Unavailable(f"process '{folder.name}' has been starting for {_BIRTH_S:g} s; try again")
            self._clock.sleep(0.002)
        return identity

    def _spawn(self, spec: ProcessSpec, lock: int) -> ProcessInfo:
        folder = self._place(spec.name)
        record = _Record(token=secrets.token_hex(8), spec=spec, started=self._clock.now())
        before = _read(folder / "record.json", _Record)
        if before is not None and (ended := _identity(folder, before)) is not None:
            _kill_left_behind(ended)  # a process that was killed could not end what it had started
        for former in ("pid.json", "exit.json"):
            (folder / former).unlink(missing_ok=True)
        log = folder / "log"
        if log.exists():
            log.replace(folder / "log.1")
        write_atomic(folder / "record.json", msgspec.json.encode(record), mode=0o600)
        parent = 0 if spec.detached else os.getpid()
        command = [sys.executable, "-P", "-u", "-m", "argosy.cluster.child", str(folder / "record.json"), str(parent)]
        environment = _environment(spec, record.token)

        def spawn() -> int:
            return _REAPER.spawn(command, environment, folder, lock, record.token)

        pid = spawn() if spec.detached else _from_lasting_thread(spawn)
        return ProcessInfo(
            name=spec.name, role=spec.role, pid=pid, started=record.started, alive=True, exit_code=None, log=log
        )

    def _prune(self) -> None:
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except FileNotFoundError:
            return
        for name in names:
            if name[0] == ".":  # forgotten by a process that was killed over it
                shutil.rmtree(self.folder / name, ignore_errors=True)
        names = [name for name in names if name[0] != "."]
        if len(names) <= MAX_ENDED:
            return
        ended = [info for info in map(self.get, names) if info is not None and not info.alive]
        ended.sort(key=lambda info: info.started)
        for info in ended[: max(0, len(ended) - MAX_ENDED)]:
            with contextlib.suppress(Conflict):
                self.forget(info.name)


class _Reaper:
    """The children of this process: started here, and waited for, so that none stays a zombie."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._children: dict[int, tuple[Path, str]] = {}

    def spawn(self, command: list[str], environment: dict[str, str], folder: Path, lock: int, token: str) -> int:
        """Start a process that inherits the lock, and record which it is."""
        # dup2 onto itself would leave close-on-exec set.
        held = fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, child.LOCK + 1)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with self._lock:
            try:
                pid = os.posix_spawn(
                    command[0],
                    command,
                    environment,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_OPEN, 1, str(folder / "log"), flags, 0o600),
                        (os.POSIX_SPAWN_DUP2, 1, 2),
                        (os.POSIX_SPAWN_DUP2, held, child.LOCK),
                    ],
                    setsid=True,
                    setsigmask=[],
                    setsigdef=[signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD],
                )
            except OSError as error:
                raise Internal(f"process '{folder.name}' could not be started: {error}") from error
            finally:
                os.close(held)
            if child.start_ticks(pid):  # otherwise it has ended already
                with contextlib.suppress(OSError):
                    child.write_identity(str(folder), pid, token)
            self._children[pid] = (folder, token)
        return pid

    def reap(self) -> None:
        """Take note of children that have ended."""
        with self._lock:
            for pid, (folder, token) in list(self._children.items()):
                try:
                    found, status = os.waitpid(pid, os.WNOHANG)
                except ChildProcessError:  # waited for elsewhere, or we are a fork of the starter
                    del self._children[pid]
                    continue
                if found:
                    del self._children[pid]
                    _note_exit(folder, token, os.waitstatus_to_exitcode(status))


_REAPER = _Reaper()


def _note_exit(folder: Path, token: str, exit_code: int) -> None:
    """Record how it ended if it could not do so itself, being killed."""
    known = _read(folder / "exit.json", _Exit)
    record = _read(folder / "record.json", _Record)
    if record is None or record.token != token or (known is not None and known.token == token):
        return
    with contextlib.suppress(OSError):
        child.replace_file(
            str(folder / "exit.json"), msgspec.json.encode(_Exit(token=token, exit_code=exit_code)).decode()
        )


def _environment(spec: ProcessSpec, token: str) -> dict[str, str]:
    threads = dict.fromkeys(_THREADS, str(spec.threads)) if spec.threads else {"OPENBLAS_NUM_THREADS": "1"}
    # Tokenizers would start a thread per core beside these, for some hundredths of a run's time.
    threads["TOKENIZERS_PARALLELISM"] = "false"
    # The token marks everything the process starts, see `_kill_left_behind`.
    return child_environment({**threads, **spec.env, "ARGOSY_PROCESS": token})


_spawner: queue.SimpleQueue[tuple[Callable[[], int], queue.SimpleQueue[int | BaseException]]] | None = None
_spawner_lock = threading.Lock()


def _from_lasting_thread(spawn: Callable[[], int]) -> int:
    """Call `spawn` from a thread that lives as long as this process.

    The kernel sends the parent-death signal when the *thread* that started the child ends (prctl(2)).
    """
    global _spawner
    if threading.current_thread() is threading.main_thread():
        return spawn()
    with _spawner_lock:
        if _spawner is None:
            _spawner = queue.SimpleQueue()
            threading.Thread(target=_serve_spawns, args=(_spawner,), name="argosy-spawner", daemon=True).start()
    answer: queue.SimpleQueue[int | BaseException] = queue.SimpleQueue()
    _spawner.put((spawn, answer))
    found = answer.get()
    if isinstance(found, BaseException):
        raise found
    return found


def _serve_spawns(asked: queue.SimpleQueue[tuple[Callable[[], int], queue.SimpleQueue[int | BaseException]]]) -> None:
    while True:
        spawn, answer = asked.get()
        try:
            answer.put(spawn())
        except BaseException as error:  # noqa: BLE001 - raised again in the thread that asked
            answer.put(error)


def _try_claim(folder: Path, *, patience_s: float = 0.0) -> int | None:
    """Take the lock in `folder` and return its descriptor, or None if somebody else has it."""
    waited = threading.Event()
    for attempt in range(1 + int(patience_s / 0.005)):
        if attempt:
            waited.wait(0.005)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # the folder was forgotten in between
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The folder may have been forgotten between opening and locking; the lock then guards nothing.
            if os.path.samestat(os.fstat(lock), (folder / "lock").stat()):
                return lock
        except OSError:
            pass
        os.close(lock)
    return None


def _is_locked(path: Path) -> bool:
    """Return whether a starter or a process holds the lock.

    Asked by taking a shared one, so that two onlookers don't take each other for a holder.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(descriptor)


def _read(path: Path, kind: type[T]) -> T | None:
    """Read one of the small files; one that is missing or was spoiled counts as missing."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, msgspec.MsgspecError):
        return None


def _identity(folder: Path, record: _Record) -> _Identity | None:
    found = _read(folder / "pid.json", _Identity)
    return found if found is not None and found.token == record.token else None


def _ended(folder: Path, record: _Record) -> _Exit | None:
    found = _read(folder / "exit.json", _Exit)
    return found if found is not None and found.token == record.token else None


def _signal(identity: _Identity, number: signal.Signals) -> None:
    """Signal the process's whole group, if it is still that process."""
    if identity.is_alive():
        with contextlib.suppress(ProcessLookupError):
            os.killpg(identity.pid, number)


def _wait_for_end(identity: _Identity, seconds: float | None) -> bool:
    """Wait until the process has ended, also when it is not our child; return whether it has."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except OSError as error:
        if error.errno == errno.ESRCH:
            return True
        raise
    try:
        if child.start_ticks(identity.pid, zombies=True) != identity.ticks:
            return True
        # Readable when the last thread is gone, a zombie's included: then its descriptors and locks are gone too.
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(None if seconds is None else max(0.0, seconds) * 1000))
    finally:
        os.close(descriptor)


def _kill_left_behind(identity: _Identity) -> int:
    """Kill what the ended process started and left in its session; return how many there were.

    Its session's number can't be given to a new process while members live; the token in their environment makes sure
    that they are what it started.
    """
    killed = 0
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) in (identity.pid, os.getpid()):
            continue
        try:
            stat = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            if int(stat[3]) != identity.pid:
                continue
            marks = Path(entry.path, "environ").read_bytes().split(b"\0")
            if f"ARGOSY_PROCESS={identity.token}".encode() in marks:
                os.kill(int(entry.name), signal.SIGKILL)
                killed += 1
        except (OSError, IndexError):
            continue
    return killed


def _bound_log(log: Path) -> None:
    try:
        size = log.stat().st_size
        if size <= MAX_LOG_BYTES:
            return
        with log.open("rb") as stream:
            stream.seek(size - KEPT_LOG_BYTES)
            kept = stream.read()
        log.with_name("log.1").write_bytes(kept)
        # The process appends, so it goes on at the new end; what it wrote between reading and here is lost.
        os.truncate(log, 0)
    except OSError:
        return
