"""The process of a job's attempt: a command of `argosy` within the cores it was given, with its own log and lock.

What it runs dies with it, because stages do. SIGTERM means: end after the next checkpoint of the training, or at once
where nothing is trained; whatever is done by then is not done again.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from argosy.cli.output import Output
from argosy.cluster.machine import process_memory_bytes
from argosy.core.config import Config, from_plain, load_settings, private_folder
from argosy.core.errors import InvalidInput, NotFound, Unavailable
from argosy.core.files import FileLock
from argosy.core.plugins import load_object
from argosy.operate.jobs.folders import LOCK, LOG, RESULT, keep_result, keep_usage
from argosy.operate.jobs.scheduler import STOPPED, Usage

_NICE = 10
"""Replicas are to go first where both want the same core."""
_SAMPLE_S = 1.0
_LOOK_S = 0.1


class JobProcess(Config, frozen=True):
    """What the scheduler tells an attempt."""

    id: str
    attempt: int
    folder: str
    command: list[str]
    cwd: str
    cores: list[int]
    gpus: list[int]
    has_gpus: bool


def main(config: dict[str, Any]) -> int:
    """Run one attempt of a job; returns the exit code, and raises what the command raises."""
    job = from_plain(config, JobProcess, where="job")
    folder = private_folder(Path(job.folder))
    _write_to(folder / LOG)
    lock = FileLock(folder / LOCK)
    if not lock.acquire():
        raise Unavailable(f"another attempt of job '{job.id}' is still running", code="job_running", retry_after_s=5.0)
    sys.stdout.write(f"--- attempt {job.attempt}, {time.strftime('%Y-%m-%d %H:%M:%SZ', time.gmtime())}\n")
    _confine(job)
    (folder / RESULT).unlink(missing_ok=True)
    signal.signal(signal.SIGTERM, lambda _number, _frame: _stop_later())
    threading.Thread(target=_sample, args=(folder, job.attempt), name="usage", daemon=True).start()
    try:
        os.chdir(job.cwd)
    except OSError as error:
        raise NotFound(
            f"the folder of job '{job.id}' is gone: '{job.cwd}'", hint="submit it again from where it is"
        ) from error
    sys.path[:0] = [job.cwd]
    return _run(job, folder)


def _run(job: JobProcess, folder: Path) -> int:
    Output.sink = lambda value: keep_result(folder, value)
    found = _app()(args=job.command, standalone_mode=False, prog_name="argosy")
    return found if isinstance(found, int) else 0


def check_words(command: list[str]) -> None:
    """Raise InvalidInput where `argosy` would not take these words; runs nothing."""
    import typer.main

    said = f"'argosy {' '.join(command)}'"
    if set(command) & {"--help", "-h", "--queue"}:
        raise InvalidInput(f"{said} ends at once, so it is no job")
    group: Any = typer.main.get_command(_app())
    try:
        group.commands[command[0]].make_context(command[0], list(command[1:]))
    except Exception as error:
        # Typer brings its own click, and which one depends on its version.
        told = getattr(error, "format_message", None)
        if told is None:
            raise
        raise InvalidInput(f"{said} can't be run: {told()}") from error


def _app() -> Any:
    # By name, because its commands import what asks here.
    return load_object("argosy.cli.app:app")


def _write_to(log: Path) -> None:
    """Write to the job's own log from here on: the launcher's belongs to one attempt, and goes with it."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _confine(job: JobProcess) -> None:
    os.nice(_NICE)
    usable = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(job.cores) & usable or usable)
    if job.has_gpus:
        os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, job.gpus))


# ---- stopping


def _stop_later() -> None:
    """End this attempt from a thread: the command itself may be waiting in whatever way."""
    threading.Thread(target=_stop, name="stop", daemon=True).start()


def _stop() -> None:
    asked = time.time_ns()
    for work in _trainings():
        # A checkpoint counts when its manifest stands, which is written last.
        while work.is_dir() and not _has_newer(work, asked):
            time.sleep(_LOOK_S)
    sys.stdout.write("stopped; it goes on from here later\n")
    sys.stdout.flush()
    os._exit(STOPPED)


def _trainings() -> Iterator[Path]:
    """Return the folders of trainings that this process is at: it holds their locks."""
    for lock in (load_settings().home / "work").glob("train-*.lock"):
        try:
            is_ours = lock.read_text().strip() == str(os.getpid())
        except OSError:
            continue
        if is_ours and FileLock(lock).is_taken():
            yield lock.with_suffix("")


def _has_newer(work: Path, asked_ns: int) -> bool:
    for manifest in work.rglob("step-*.json"):
        try:
            if manifest.stat().st_mtime_ns > asked_ns:
                return True
        except OSError:
            continue
    return False


# ---- what it takes


def _sample(folder: Path, attempt: int) -> None:
    """Keep written down what this process and all below it take, for as long as it lives."""
    peak = 0
    waited = threading.Event()
    while True:
        now = tree_bytes(os.getpid())
        peak = max(peak, now)
        keep_usage(folder, attempt, Usage(peak_bytes=peak, now_bytes=now))
        waited.wait(_SAMPLE_S)


def tree_bytes(pid: int) -> int:
    """Return the memory that a process and all it started take: what they share counts once."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stat = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
            except (OSError, IndexError):
                continue
            children.setdefault(int(stat[1]), []).append(int(entry.name))
    total, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        total += _share_bytes(one)
        waiting += children.get(one, [])
    return total


def _share_bytes(pid: int) -> int:
    """Return a process's part of memory: of pages that several have, its share (proc(5), smaps_rollup)."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return process_memory_bytes(pid)
    lines = (line.split() for line in text.splitlines() if line.startswith(("Pss_Anon:", "Pss_Shmem:", "SwapPss:")))
    return sum(int(fields[1]) * 1024 for fields in lines) or process_memory_bytes(pid)
