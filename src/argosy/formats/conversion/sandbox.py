"""Foreign code in a child process: without network, within limits, in a private folder, with nothing of ours in reach.

What comes back is JSON and arrays, which are read as data.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster.machine import memory_bytes
from argosy.core.config import child_environment
from argosy.core.errors import DeadlineExceeded, InvalidInput, from_dict
from argosy.core.files import FileLock

_PREFIX = "argosy-convert-"
_MAX_RESULT_BYTES = 64 * 2**20
TICK_S = 0.5
"""How often whoever waits for a child is told."""
_GIB = 2**30


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One function of a job, `file:name`, and what it is given as plain values."""

    job: str
    config: dict[str, Any]


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a child process may use."""

    seconds: float = 1800.0
    """Wall time."""
    cpu_s: int = 7200
    memory_bytes: int = 0
    """Memory of its own; 0: half of this machine's, and at least 6 GiB where it has that."""
    file_bytes: int = 16 * _GIB
    """Size of one file that it writes."""


class Confined(msgspec.Struct, frozen=True, kw_only=True):
    """What the kernel did for a child."""

    offline: bool = False
    """There was no network; otherwise only Python's own sockets were blocked."""
    sealed: bool = False
    """It could write nowhere but into its private folder."""


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """What came back."""

    done: list[Any] = []
    confined: Confined = Confined()


class _Result(msgspec.Struct):
    done: list[Any]
    error: dict[str, Any] | None
    at: int


@contextlib.contextmanager
def work_folder() -> Iterator[Path]:
    """Make a private folder for one conversion; those that killed conversions left behind are removed first."""
    place = Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):
            if left.is_dir() and left.stat().st_uid == os.getuid() and not FileLock(left / "lock").is_taken():
                shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX)).resolve()
    lock = FileLock(folder / "lock")
    lock.acquire()
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def run(
    calls: Sequence[Call],
    *,
    python: str,
    work: Path,
    limits: Limits | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Ended:
    """Make the calls in one child process of the interpreter `python` and return what they returned.

    `work` is a folder of this user's alone, the only place the child can write to. `tick` is called now and then while
    the child works. Raises the error a call ended by, with `call` in its context: its position; InvalidInput
    (`conversion_ended`) when the process was ended by a limit or a crash, DeadlineExceeded when time is over.
    """
    limits = limits or Limits()
    (work / "tmp").mkdir(exist_ok=True)
    for left in ("result.json", "confined.json"):
        (work / left).unlink(missing_ok=True)
    asked = {
        "python": python,
        "child": str(Path(__file__).parent / "jobs" / "child.py"),
        "parent": os.getpid(),
        "memory_bytes": limits.memory_bytes or max(memory_bytes() // 2, min(6 * _GIB, memory_bytes())),
        "cpu_s": limits.cpu_s,
        "file_bytes": limits.file_bytes,
    }
    (work / "jail.json").write_bytes(msgspec.json.encode(asked))
    (work / "calls.json").write_bytes(msgspec.json.encode({"calls": list(calls)}))
    command = [sys.executable, "-s", "-P", "-m", "argosy.formats.conversion.jail", str(work)]
    with (work / "log").open("wb") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=work,
            env=child_environment({"TMPDIR": str(work / "tmp")}),
        )
    try:
        _wait(process, limits.seconds, tick)
    finally:
        # What it started is in its session; by now nothing of it has work left to do.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return _read(work, process.returncode)


def _wait(process: "subprocess.Popen[bytes]", seconds: float, tick: Callable[[], None]) -> None:
    left_s = seconds
    while left_s > 0:
        try:
            process.wait(min(TICK_S, left_s))
        except subprocess.TimeoutExpired:
            left_s -= TICK_S
            tick()
        else:
            return
    raise DeadlineExceeded(
        f"the conversion did not end within {seconds:.0f} s",
        hint="nothing was written; try a smaller model, or fewer samples",
    )


def _read(work: Path, code: int) -> Ended:
    result = work / "result.json"
    if not result.is_file() or result.is_symlink() or result.stat().st_size > _MAX_RESULT_BYTES:
        raise InvalidInput(
            f"the converter ended without a result: {_last_words(work, code)}",
            hint="nothing was written; the model may be damaged, or need more memory or time than it may take",
            code="conversion_ended",
        )
    try:
        found = msgspec.json.decode(result.read_bytes(), type=_Result)
        confined = msgspec.json.decode((work / "confined.json").read_bytes(), type=Confined)
    except (msgspec.MsgspecError, OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"what the converter left behind can't be read: {error}", code="conversion_ended") from error
    if found.error is not None:
        failed = from_dict(found.error)
        failed.context["call"] = found.at
        raise failed
    return Ended(done=found.done, confined=confined)


def _last_words(work: Path, code: int) -> str:
    ended = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    with contextlib.suppress(OSError):
        lines = (work / "log").read_bytes()[-4000:].decode(errors="replace").splitlines()
        lines = [line.strip() for line in lines if line.strip()]
        return ended + (f", {lines[-1][:300]}" if lines else "")
    return ended
