"""Ranks on one machine exchange numbers in shared memory.

The memory is a `memfd` of the job's process, which the ranks open through `/proc/<pid>/fd`. It has no name anywhere,
so nothing is left behind in whatever way the processes end, and it isn't bound by the size of /dev/shm. A second one,
the area, is for what ranks hold in common for as long as the training lasts; it outlives each of them.

Protocol. Every exchange is one or two phases, numbered from 1. A rank writes its slot of the phase's parity, then
posts the phase; it reads other slots only when all have posted that phase. Two slots per rank, used in turn, are
enough: a rank writes the slot of phase p again for phase p + 2, that is after all posted p + 1, and whoever has
posted p + 1 has finished reading p. So small exchanges cost one meeting, and large ones (each rank sums its part, then
all copy the parts) two.

Loss. A rank that ended has posted its last phase for good, so all others pass that one and stop at the next: they stand
at the same place of the program, and know it. When the job has started another process in its stead, it raises the
generation, and `regroup` brings everybody to the first phase of that generation. Until all who lived on are there,
the words of the lost rank stay as they were, for those who come late.
"""

import contextlib
import fcntl
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import DeadlineExceeded, Internal, Unavailable
from argosy.train.transport import DATATYPES, Numbers, check_numbers, rank_lost, ranks_differ

_LINE = 8
"""Words of 64 bits per rank in the header: one cache line, so that ranks don't slow each other down."""
_PHASE, _OPERATION, _BEAT, _STATE = 0, 1, 3, 4  # _OPERATION and the word after it, one per parity
_READY, _FRESH = 5, 6
_JOINING, _RUNNING, _LEFT, _FAILED = range(4)
_GENERATION, _IS_REPLACED, _AREA = 2, 3, 4
"""Words of the whole training, in front of those of the ranks; the first two are its sizes."""
_PHASES = 1 << 32
"""Phases per generation."""
_MEETING = 1023
"""The kind of exchange that carries nothing."""
_HEADER_BYTES = 64 * 1024
SLOT_BYTES = 1 << 20
"""Bytes exchanged per phase and rank; a slot of each of two ranks fits in a second-level cache."""
_SMALL_BYTES = 32 * 1024
"""Up to here every rank sums everything itself: a second meeting would cost more than the sums."""
_SET_LOCK, _WAIT_FOR_LOCK = 37, 38
"""F_OFD_SETLK and F_OFD_SETLKW of fcntl(2), which Python doesn't name before 3.14."""
_HUGE_BYTES = 2 << 20
"""From here on the system is asked for pages of 2 MiB: it then finds memory faster."""
_SUM = 0
"""The kind of exchange that sums; 1 + root is the one that broadcasts."""
_SPINS = 200
"""Turns in which a waiting rank only yields its core, about 0.1 ms; then it sleeps."""


class Segment:
    """The memory that the ranks of one training share, and each rank's signs of life."""

    def __init__(self, descriptor: int, world_size: int, slot_bytes: int) -> None:
        self.world_size = world_size
        self.slot_bytes = slot_bytes
        self._descriptor = descriptor
        self._map = mmap.mmap(descriptor, _size(world_size, slot_bytes))
        self.header = memoryview(self._map).cast("q")
        data = np.frombuffer(self._map, np.uint8, 2 * world_size * slot_bytes, _HEADER_BYTES)
        self.slots = data.reshape(2, world_size, slot_bytes)
        self._area = -1

    @classmethod
    def create(cls, world_size: int, *, slot_bytes: int = SLOT_BYTES) -> "Segment":
        """Make new memory for `world_size` ranks; it lives as long as a process has it open."""
        descriptor = os.memfd_create("argosy-ranks")
        os.ftruncate(descriptor, _size(world_size, slot_bytes))
        segment = cls(descriptor, world_size, slot_bytes)
        segment._area = os.memfd_create("argosy-area")
        for place, value in enumerate([world_size, slot_bytes, 0, 0, segment._area]):
            segment.header[place] = value
        return segment

    @classmethod
    def open(cls, path: str) -> "Segment":
        """Open the memory that another process of this machine has created."""
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        with mmap.mmap(descriptor, mmap.PAGESIZE) as start:
            world_size, slot_bytes = memoryview(start).cast("q")[:2].tolist()
        segment = cls(descriptor, world_size, slot_bytes)
        segment._area = os.open(Path(path).with_name(str(segment.header[_AREA])), os.O_RDWR | os.O_CLOEXEC)
        return segment

    @property
    def path(self) -> str:
        """Where other processes of the same user can open it while this process lives."""
        return f"/proc/{os.getpid()}/fd/{self._descriptor}"

    def area(self, size_bytes: int) -> Numbers:
        """Return `size_bytes` of memory that all processes with this segment share: zeros, unless someone wrote there.

        All ask for the same size.
        """
        with mapped_error(size_bytes):
            os.ftruncate(self._area, size_bytes)
            memory = mmap.mmap(self._area, size_bytes)
        if size_bytes >= _HUGE_BYTES:
            with contextlib.suppress(OSError):  # a kernel without large pages is only slower
                memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, np.uint8)

    def lock(self, number: int) -> None:
        """Wait for the lock on byte `number`: one of this opening of the file, so that threads have theirs, too."""
        fcntl.fcntl(self._descriptor, _WAIT_FOR_LOCK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, number, 1, 0))

    def unlock(self, number: int) -> None:
        """Give a lock back."""
        fcntl.fcntl(self._descriptor, _SET_LOCK, struct.pack("hhqqi", fcntl.F_UNLCK, os.SEEK_SET, number, 1, 0))

    def lose(self, rank: int) -> None:
        """Say that `rank` has ended, by whoever saw it end."""
        self.header[self.word(rank, _STATE)] = _FAILED

    def begin_generation(self) -> int:
        """Begin a new generation, for which lost ranks are started anew; return its number."""
        self.header[_GENERATION] += 1
        return self.header[_GENERATION]

    @property
    def is_replacing(self) -> bool:
        """Whether a job watches the ranks and starts lost ones anew. Then it alone says who is lost."""
        return bool(self.header[_IS_REPLACED])

    @is_replacing.setter
    def is_replacing(self, is_replacing: bool) -> None:
        self.header[_IS_REPLACED] = int(is_replacing)

    def word(self, rank: int, index: int) -> int:
        """Return the place of a rank's word in the header."""
        return (1 + rank) * _LINE + index

    def silent_s(self, rank: int, clock: Clock) -> float:
        """Return for how long `rank` has shown no life; -1 before it has joined and after it has left."""
        if self.header[self.word(rank, _STATE)] != _RUNNING:
            return -1.0
        return clock.monotonic() - self.header[self.word(rank, _BEAT)] / 1e9

    def is_joined(self) -> bool:
        """Return whether every rank has come up."""
        return _JOINING not in self._states()

    def is_left(self) -> bool:
        """Return whether every rank has left, none of them as failed."""
        return set(self._states()) == {_LEFT}

    def _states(self) -> list[int]:
        return [self.header[self.word(rank, _STATE)] for rank in range(self.world_size)]

    def close(self) -> None:
        """Give up this process's hold on the memory."""
        for descriptor in (self._descriptor, self._area):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._descriptor = self._area = -1


@contextlib.contextmanager
def mapped_error(size_bytes: int) -> Iterator[None]:
    """Turn a refusal of memory into an error that says how much was asked for."""
    try:
        yield
    except (OSError, ValueError) as error:
        raise Unavailable(
            f"this machine has not the {size_bytes / 2**20:.0f} MiB that training this model needs in shared memory",
            hint="use fewer workers or a smaller model, or a machine with more memory",
            code="out_of_memory",
        ) from error


def _size(world_size: int, slot_bytes: int) -> int:
    if world_size > _HEADER_BYTES // (8 * _LINE) - 1:
        raise Internal(f"{world_size} ranks don't fit into the header of shared memory")
    return _HEADER_BYTES + 2 * world_size * slot_bytes


class SharedMemoryTransport:
    """The transport between ranks that are processes of one machine. Made by `join`."""

    def __init__(
        self,
        segment: Segment,
        rank: int,
        clock: Clock,
        *,
        silence_s: float,
        deadline_s: float,
        beat_s: float,
        join_s: float,
    ) -> None:
        self.rank = rank
        self.world_size = segment.world_size
        self._segment = segment
        self._header = segment.header
        self._clock = clock
        self._silence_s = silence_s
        self._deadline_s = deadline_s
        self._join_s = join_s
        self._generation = segment.header[_GENERATION]
        self._phase = 0
        self.is_fresh = self._generation > 0
        """Whether this rank came in the place of a lost one and knows nothing yet."""
        self._posts = [segment.word(r, _PHASE) for r in range(self.world_size) if r != rank]
        self._fence = threading.Lock()
        self._closed = threading.Event()
        self._beat()
        self._heart = threading.Thread(target=self._beat_until_closed, args=(beat_s,), daemon=True)
        self._heart.start()

    @classmethod
    def join(
        cls,
        segment: Segment | str | Path,
        rank: int,
        *,
        clock: Clock | None = None,
        join_s: float = 120.0,
        silence_s: float = 10.0,
        deadline_s: float = 600.0,
        beat_s: float = 0.25,
    ) -> "SharedMemoryTransport":
        """Become `rank` and wait up to `join_s` until all ranks are there.

        A rank that gives no sign of life for `silence_s` is lost to the others (signs come from a thread of its own
        every `beat_s`, however long its steps take); one that lives but does not come to an exchange within
        `deadline_s` is, too.
        """
        found = segment if isinstance(segment, Segment) else Segment.open(str(segment))
        self = cls(
            found,
            rank,
            clock or SystemClock(),
            silence_s=silence_s,
            deadline_s=deadline_s,
            beat_s=beat_s,
            join_s=join_s,
        )
        if self.is_fresh:
            self._header[found.word(rank, _FRESH)] = 1
            return self
        self._header[found.word(rank, _STATE)] = _RUNNING
        try:
            self._wait(found.is_joined, join_s, "join", lambda other: self._state(other) == _JOINING)
        except BaseException:
            self.close(failed=True)
            raise
        return self

    def all_reduce(self, values: Numbers) -> None:
        """Replace `values`, in place, by the sum over all ranks, added in the order of ranks."""
        check_numbers(values)
        reduce = self._reduce_small if values.nbytes <= _SMALL_BYTES else self._reduce_large
        operation = _operation(values, _SUM)
        for piece in self._pieces(values):
            reduce(piece, operation)

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Replace `values`, in place, by those of rank `root`."""
        check_numbers(values)
        operation = _operation(values, 1 + root)
        for piece in self._pieces(values):
            slots = self._slots(piece)
            if self.rank == root:
                slots[root][...] = piece
            self._meet(operation)
            piece[...] = slots[root]

    def area(self, size_bytes: int) -> Numbers:
        """Return memory that all ranks share and that outlives each of them."""
        return self._segment.area(size_bytes)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self._meet(_operation(np.empty(0, np.int64), _MEETING))

    def await_parts(self, is_late: Callable[[int], bool], substitute: Callable[[int], None]) -> None:
        """Wait until no rank is late with its part; the first that lives does the part of one that is lost."""
        ranks = range(self.world_size)
        self._wait(lambda: not any(map(is_late, ranks)), self._deadline_s, "finish a step", is_late, substitute)

    @contextlib.contextmanager
    def lock(self, number: int) -> Iterator[None]:
        """Hold one byte of the memory's file. The system takes it from a process that ends."""
        self._segment.lock(number)
        try:
            yield
        finally:
            self._segment.unlock(number)

    def await_turn(self, is_done: Callable[[], bool], is_late: Callable[[int], bool]) -> None:
        """Wait until it is done; a rank that is gone and late is lost."""
        self._wait(is_done, self._deadline_s, "do their part", is_late)

    def regroup(self) -> bool:
        """After a loss, wait until all ranks are there again and stand at the beginning of a new generation.

        Returns False when nobody will come in the place of the lost. Raises Unavailable when they don't come in time.
        """
        header, segment = self._header, self._segment
        mine = [segment.word(self.rank, index) for index in (_PHASE, _READY, _STATE)]
        while segment.is_replacing:
            generation = header[_GENERATION]
            if generation > self._generation or self.is_fresh:
                if self.is_fresh:
                    self._await_ready(generation, lambda rank: not self._is_fresh(rank))
                header[mine[0]], header[mine[2]] = generation * _PHASES, _RUNNING
                with self._fence:
                    header[mine[1]] = generation
                self._await_ready(generation, lambda _: True)
                if header[_GENERATION] == generation:
                    self._generation, self._phase = generation, generation * _PHASES
                    return True
                continue
            self._wait(
                lambda: header[_GENERATION] > self._generation or not segment.is_replacing, self._join_s, "come again"
            )
        return False

    def first_with_state(self) -> int:
        """Return the first rank that is not fresh, or -1."""
        return next((rank for rank in range(self.world_size) if not self._is_fresh(rank)), -1)

    def adopted(self) -> None:
        """Say that this rank, once fresh, now knows what all know."""
        self._header[self._segment.word(self.rank, _FRESH)] = 0
        self.is_fresh = False

    def _await_ready(self, generation: int, counts: Callable[[int], bool]) -> None:
        header, segment = self._header, self._segment
        others = [rank for rank in range(self.world_size) if rank != self.rank]

        def is_done() -> bool:
            return header[_GENERATION] != generation or all(
                header[segment.word(rank, _READY)] >= generation for rank in others if counts(rank)
            )

        self._wait(is_done, self._join_s, "come again")

    def _is_fresh(self, rank: int) -> bool:
        return bool(self._header[self._segment.word(rank, _FRESH)])

    def _state(self, rank: int) -> int:
        return self._header[self._segment.word(rank, _STATE)]

    def _pieces(self, values: Numbers) -> list[Numbers]:
        flat = values.reshape(-1)
        per_phase = self._segment.slot_bytes // flat.itemsize
        return [flat[start : start + per_phase] for start in range(0, max(1, flat.size), per_phase)]

    def _reduce_small(self, piece: Numbers, operation: int) -> None:
        slots = self._slots(piece)
        slots[self.rank][...] = piece
        self._meet(operation)
        self._sum(slots, piece)

    def _reduce_large(self, piece: Numbers, operation: int) -> None:
        slots = self._slots(piece)
        slots[self.rank][...] = piece
        self._meet(operation)
        cuts = [piece.size * rank // self.world_size for rank in range(self.world_size + 1)]
        sums = self._slots(piece)
        mine = slice(cuts[self.rank], cuts[self.rank + 1])
        self._sum(slots[:, mine], sums[self.rank, mine])
        self._meet(operation)
        for rank in range(self.world_size):
            part = slice(cuts[rank], cuts[rank + 1])
            piece[part] = sums[rank, part]

    def _slots(self, piece: Numbers) -> Numbers:
        """Return the slots of the next phase, one row per rank, as wide as `piece`."""
        parity = (self._phase + 1) % 2
        rows: Numbers = self._segment.slots[parity, :, : piece.nbytes].view(piece.dtype)
        return rows

    def _sum(self, rows: Numbers, total: Numbers) -> None:
        if self.world_size == 1:
            total[...] = rows[0]
            return
        np.add(rows[0], rows[1], out=total)
        for row in rows[2:]:
            np.add(total, row, out=total)

    def _meet(self, operation: int) -> None:
        """Post the next phase, wait until all ranks have posted it, and make sure that all mean the same."""
        self._phase += 1
        phase, header, segment = self._phase, self._header, self._segment
        word = _OPERATION + phase % 2
        header[segment.word(self.rank, word)] = operation
        # Stores before the post must be seen before it. x86 keeps their order anyway; for other processors the lock
        # is the one fence that Python offers. The second one is for the reads that follow.
        with self._fence:
            header[segment.word(self.rank, _PHASE)] = phase
        self._wait(
            lambda: all(header[post] >= phase for post in self._posts),
            self._deadline_s,
            "exchange",
            lambda rank: header[segment.word(rank, _PHASE)] < phase,
        )
        with self._fence:
            found = [header[segment.word(r, word)] for r in range(self.world_size)]
        if any(other != operation for other in found):
            self.close(failed=True)
            raise ranks_differ({rank: _described(other) for rank, other in enumerate(found)})

    def _wait(
        self,
        is_done: Callable[[], bool],
        deadline_s: float,
        doing: str,
        is_late: Callable[[int], bool] | None = None,
        substitute: Callable[[int], None] | None = None,
    ) -> None:
        for _ in range(_SPINS):
            if is_done():
                return
            os.sched_yield()
        started = checked = self._clock.monotonic()
        pause = 2e-5
        while not is_done():
            # The real clock: this is a wait for another process, which no fake clock moves.
            time.sleep(pause)
            pause = min(pause * 1.5, 1e-3)
            now = self._clock.monotonic()
            if is_late is not None and now - checked > 0.02:
                checked = now
                self._check_peers(is_late, substitute)
            if now - started > deadline_s:
                raise DeadlineExceeded(
                    f"rank {self.rank} waited {deadline_s:g} s for the other ranks to {doing}", code="rank_lost"
                )

    def _check_peers(self, is_late: Callable[[int], bool], substitute: Callable[[int], None] | None) -> None:
        for rank in range(self.world_size):
            # Only those that keep this one waiting: whoever ends after its part was no loss to it. And ask that again
            # after having seen it gone, as it may have done its part in between.
            if rank == self.rank or not is_late(rank):
                continue
            state, silent_s = self._state(rank), self._segment.silent_s(rank, self._clock)
            is_gone = state in (_LEFT, _FAILED)
            is_silent = silent_s > self._silence_s and not self._segment.is_replacing
            if not (is_gone or is_silent) or not is_late(rank):
                continue
            if is_gone and substitute is not None:
                if self.rank == min(r for r in range(self.world_size) if self._state(r) == _RUNNING):
                    substitute(rank)
            elif not is_gone:
                raise rank_lost(rank, f"gave no sign of life for {silent_s:.1f} s")
            else:
                raise rank_lost(rank, "stopped with an error" if state == _FAILED else "has left")

    def _beat(self) -> None:
        self._header[self._segment.word(self.rank, _BEAT)] = int(self._clock.monotonic() * 1e9)

    def _beat_until_closed(self, beat_s: float) -> None:
        while not self._closed.wait(beat_s):
            self._beat()

    def close(self, *, failed: bool = False) -> None:
        """Leave; the first call decides whether as failed."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._header[self._segment.word(self.rank, _STATE)] = _FAILED if failed else _LEFT
        self._heart.join()


def _operation(values: Numbers, kind: int) -> int:
    return (values.nbytes * 4 + DATATYPES.index(values.dtype)) * 1024 + kind


def _described(operation: int) -> str:
    payload, kind = divmod(operation, 1024)
    size_bytes, datatype = divmod(payload, 4)
    if kind == _MEETING:
        return "waits for all"
    name = DATATYPES[datatype]
    size = size_bytes // name.itemsize
    return f"sums {size} {name}" if kind == _SUM else f"takes {size} {name} from rank {kind - 1}"
