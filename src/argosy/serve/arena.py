"""Memory that the gateway shares with one replica, for batches too large to be worth sending through a socket.

The gateway makes it (`memfd_create`: no name anybody could open, gone with its last user) and writes a batch's tensors
there; the replica maps it by way of the gateway's descriptor, computes on the very bytes, and writes large answers to
the same place. One batch is under way per replica, so nobody ever writes where the other still reads.

A batch of four 224x224 images is 2.4 MB: through the socket it is copied twice and takes tens of system calls on both
sides.
"""

import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

LEAST_BYTES = 64 << 10
"""Smaller bodies go through the socket: there a copy costs less than the pages it would touch here."""
MOST_BYTES = 256 << 20
_PAGE = 1 << 20


class Place(NamedTuple):
    """Where shared memory is found: descriptor `fd` of process `pid`, `capacity` bytes long."""

    pid: int
    fd: int
    capacity: int


class Arena:
    """Shared memory on the gateway's side."""

    def __init__(self, size: int) -> None:
        """Make one that holds at least `size` bytes; OSError without memory."""
        capacity = -(-size // _PAGE) * _PAGE
        self._fd = os.memfd_create("argosy-batch", os.MFD_CLOEXEC)
        try:
            os.ftruncate(self._fd, capacity)
            self._memory = mmap.mmap(self._fd, capacity)
        except OSError:
            os.close(self._fd)
            raise
        self.place = Place(os.getpid(), self._fd, capacity)

    def write(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Put a batch's tensors there, one behind the other."""
        write_pieces(memoryview(self._memory), pieces)

    def read(self, size: int) -> memoryview:
        """Return a copy of what the replica has put there."""
        return memoryview(self._memory[:size])

    def close(self) -> None:
        """Let go of it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._memory.close()


class Window:
    """Shared memory on the replica's side: follows the gateway from one arena to a larger one."""

    def __init__(self) -> None:
        self._place: Place | None = None
        self._memory: mmap.mmap | None = None

    def view(self, place: Place) -> memoryview:
        """Return the memory at `place`; OSError if it can't be reached from here."""
        if self._memory is None or place != self._place:
            fd = os.open(f"/proc/{place.pid}/fd/{place.fd}", os.O_RDWR | os.O_CLOEXEC)
            try:
                # A former mapping goes when the last array on it does.
                self._memory = mmap.mmap(fd, place.capacity)
            finally:
                os.close(fd)
            self._place = place
        return memoryview(self._memory)

    def forget(self) -> None:
        """Let go of it: the gateway that made it has gone, and its numbers may come to mean something else."""
        self._place = self._memory = None


def write_pieces(memory: memoryview, pieces: Sequence[bytes | memoryview]) -> None:
    """Copy pieces into memory, one behind the other."""
    at = 0
    for piece in pieces:
        memory[at : at + len(piece)] = piece
        at += len(piece)
