"""The folder of each job: what it wrote, what it took, what it made. `home/jobs/j12/`."""

import contextlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.config import private_folder
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.files import create_exclusive, write_atomic
from argosy.operate.jobs.scheduler import Usage

LOG, RESULT, LOCK = "log", "result.json", "lock"
MAX_LOG_BYTES = 16_000_000
"""A log that grows beyond this is cut; its last `KEPT_LOG_BYTES` stay in `log.1`."""
KEPT_LOG_BYTES = 1_000_000
_PLACE = "place"


class JobFolders:
    """The folders of one home's jobs."""

    def __init__(self, home: Path) -> None:
        self._folder = home / "jobs"

    def path(self, id_: str) -> str:
        """Return the job's own folder."""
        return str(self._folder / id_)

    def usage(self, id_: str, attempt: int) -> Usage:
        """Return what an attempt took so far."""
        try:
            return msgspec.json.decode((self._folder / id_ / usage_name(attempt)).read_bytes(), type=Usage)
        except (OSError, msgspec.MsgspecError):
            return Usage()

    def result(self, id_: str) -> dict[str, Any]:
        """Return what a job made; empty when it left nothing."""
        try:
            found = msgspec.json.decode((self._folder / id_ / RESULT).read_bytes())
        except (OSError, msgspec.MsgspecError):
            return {}
        return found if isinstance(found, dict) else {}

    def forget(self, known: Iterable[str]) -> None:
        """Drop the folders of all other jobs, and cut logs that have grown too long."""
        kept = set(known)
        with contextlib.suppress(OSError):
            for entry in self._folder.iterdir():
                if entry.is_dir() and entry.name not in kept:
                    shutil.rmtree(entry, ignore_errors=True)
                elif entry.is_dir():
                    _bound(entry / LOG)

    def log_path(self, id_: str) -> Path:
        """Return where a job writes what it has to say, all attempts one after the other."""
        return self._folder / id_ / LOG

    def tail(self, id_: str, lines: int) -> str:
        """Return the last lines a job wrote; empty when it has written none."""
        try:
            with self.log_path(id_).open("rb") as stream:
                stream.seek(max(0, os.fstat(stream.fileno()).st_size - KEPT_LOG_BYTES))
                text = stream.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "".join(text.splitlines(keepends=True)[-lines:]) if lines > 0 else ""


def usage_name(attempt: int) -> str:
    """Return the name of the file in which an attempt says what it takes."""
    return f"usage-{attempt}.json"


def place_of(home: Path) -> str:
    """Return the word by which this home knows its own jobs, where several share a log. Made on first use."""
    path = home / "jobs" / _PLACE
    with contextlib.suppress(Conflict):
        if not path.exists():
            private_folder(path.parent)
            create_exclusive(path, os.urandom(6).hex().encode(), mode=0o600)
    return path.read_text().strip()


def keep_result(folder: Path, result: dict[str, Any]) -> None:
    """Write down what a job made. Raises Unavailable when the disk is full."""
    write_atomic(folder / RESULT, msgspec.json.encode(result), mode=0o600)


def keep_usage(folder: Path, attempt: int, usage: Usage) -> None:
    """Write down what an attempt takes; not durable, and no reason to fail."""
    staged = folder / f"{usage_name(attempt)}.tmp"
    with contextlib.suppress(OSError, ArgosyError):
        staged.write_bytes(msgspec.json.encode(usage))
        staged.replace(folder / usage_name(attempt))


def _bound(log: Path) -> None:
    with contextlib.suppress(OSError):
        size = log.stat().st_size
        if size > MAX_LOG_BYTES:
            with log.open("rb") as stream:
                stream.seek(size - KEPT_LOG_BYTES)
                kept = stream.read()
            log.with_name("log.1").write_bytes(kept)
            os.truncate(log, 0)
