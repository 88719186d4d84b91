"""The highest entry this home has seen, so that a log that was cut off or replaced is noticed."""

import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import NamedTuple

_RECORD = re.compile(rb"(\d{20}) (sha256:[0-9a-f]{64}) (sha256:[0-9a-f]{64})\n")
_RECORD_BYTES = 165


class Head(NamedTuple):
    """An entry's number and hash, and the hash of the log's first entry."""

    seq: int
    hash: str
    genesis: str


class RememberedHead:
    """One record in one file, kept outside of everything that may be deleted.

    The record has a fixed size below a disk sector and is overwritten in place under a lock: no kill leaves half of
    it, and remembering costs no fsync. A power cut may forget the last entries, never invent one. Where the home
    can't be written, this process remembers for itself.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._own: Head | None = None

    def read(self) -> Head | None:
        """Return the highest head any process of this home has seen."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return self._own
        try:
            return _higher(_parse(os.read(descriptor, _RECORD_BYTES)), self._own)
        finally:
            os.close(descriptor)

    def remember(self, head: Head) -> None:
        """Remember `head`, unless a higher one is known already."""
        self._own = _higher(head, self._own)
        with contextlib.suppress(OSError):  # a home that can't be written, or a full disk: the log itself is whole
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                known = _parse(os.pread(descriptor, _RECORD_BYTES, 0))
                if known is None or known.seq < head.seq:
                    os.pwrite(descriptor, f"{head.seq:020d} {head.hash} {head.genesis}\n".encode(), 0)
            finally:
                os.close(descriptor)


def _parse(record: bytes) -> Head | None:
    found = _RECORD.fullmatch(record)
    return Head(int(found[1]), found[2].decode(), found[3].decode()) if found else None


def _higher(one: Head | None, other: Head | None) -> Head | None:
    return max((head for head in (one, other) if head is not None), key=lambda head: head.seq, default=None)
