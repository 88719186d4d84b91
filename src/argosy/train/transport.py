"""How ranks exchange numbers: what a transport promises, and one for ranks that are threads of one process."""

import contextlib
import mmap
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.core.errors import InvalidInput, Unavailable

Numbers = NDArray[Any]
"""A contiguous array of float32, float64 or int64."""

DATATYPES = (np.dtype("float32"), np.dtype("float64"), np.dtype("int64"))


class Transport(Protocol):
    """Exchanges arrays between the ranks of one training.

    Every transport passes tests/conformance/test_transports.py. All ranks call the same methods with the same sizes
    in the same order; a rank that does otherwise is told so (InvalidInput). No call waits for ever: when a rank has
    ended or is frozen, the others get Unavailable with the code `rank_lost`.
    """

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        ...

    @property
    def world_size(self) -> int:
        """How many ranks there are."""
        ...

    def all_reduce(self, values: Numbers) -> None:
        """Replace `values`, in place, by the sum over all ranks; every rank gets the same bits."""
        ...

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Replace `values`, in place, by those of rank `root`."""
        ...

    def close(self, *, failed: bool = False) -> None:
        """Leave. With `failed` the ranks that wait for this one stop waiting at once."""
        ...


class Host(Transport, Protocol):
    """A transport between ranks of one machine, who also share memory, and can go on when one of them is lost.

    Every host passes tests/conformance/test_hosts.py.
    """

    is_fresh: bool
    """Whether this rank came in the place of a lost one and doesn't know yet what the others know."""

    def area(self, size_bytes: int) -> Numbers:
        """Return the memory (uint8) that all ranks share: zeros at first. It outlives each of them.

        There is one; all ask for the same size.
        """
        ...

    def meet(self) -> None:
        """Wait until all ranks are here; Unavailable with the code `rank_lost` as in any exchange."""
        ...

    def await_parts(self, is_late: Callable[[int], bool], substitute: Callable[[int], None]) -> None:
        """Wait until no rank is late. The part of a lost rank is done by the first one that lives: `substitute`."""
        ...

    def lock(self, number: int) -> contextlib.AbstractContextManager[None]:
        """Hold lock `number`, one of many; a rank that ends, in whatever way, holds none any more."""
        ...

    def await_turn(self, is_done: Callable[[], bool], is_late: Callable[[int], bool]) -> None:
        """Wait until `is_done`, for the ranks that are late; Unavailable (`rank_lost`) when one of them is lost."""
        ...

    def regroup(self) -> bool:
        """After `rank_lost`, wait until another has come in its place; False when nobody will.

        Afterwards all ranks, the new one too, stand before the same exchange.
        """
        ...

    def first_with_state(self) -> int:
        """Return the first rank that isn't fresh, -1 if all are."""
        ...

    def adopted(self) -> None:
        """Say that this rank isn't fresh any more."""
        ...


class Solo:
    """The host of a training by one process."""

    rank = 0
    world_size = 1
    is_fresh = False

    def all_reduce(self, values: Numbers) -> None:
        """Do nothing: the sum over one rank."""
        check_numbers(values)

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Do nothing."""
        del root
        check_numbers(values)

    def close(self, *, failed: bool = False) -> None:
        """Do nothing."""

    def area(self, size_bytes: int) -> Numbers:
        """Return memory of this process, on large pages where there are any."""
        memory = mmap.mmap(-1, max(size_bytes, 1), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with contextlib.suppress(OSError, ValueError):
            memory.madvise(mmap.MADV_HUGEPAGE)
        return np.frombuffer(memory, np.uint8)

    def meet(self) -> None:
        """Do nothing."""

    def await_parts(self, is_late: Callable[[int], bool], substitute: Callable[[int], None]) -> None:
        """Do nothing."""

    @contextlib.contextmanager
    def lock(self, number: int) -> Iterator[None]:
        """Do nothing: nobody else could hold it."""
        del number
        yield

    def await_turn(self, is_done: Callable[[], bool], is_late: Callable[[int], bool]) -> None:
        """Do nothing: there is nobody to wait for."""

    def regroup(self) -> bool:
        """Return False: there is nobody else."""
        return False

    def first_with_state(self) -> int:
        """Return this rank."""
        return 0

    def adopted(self) -> None:
        """Do nothing."""


def check_numbers(values: Numbers) -> None:
    """Raise InvalidInput for an array that a transport does not take."""
    if values.dtype not in DATATYPES or not values.flags.c_contiguous:
        raise InvalidInput(
            f"ranks exchange contiguous arrays of {', '.join(map(str, DATATYPES))}, not {values.dtype.name} "
            f"with strides {values.strides}"
        )


def rank_lost(rank: int, why: str) -> Unavailable:
    """Return the error that the other ranks get when `rank` is gone."""
    return Unavailable(
        f"rank {rank} {why}, so this exchange can't end",
        hint="the job starts all ranks again from the last checkpoint",
        code="rank_lost",
        rank=rank,
    )


def ranks_differ(what: dict[int, str]) -> InvalidInput:
    """Return the error of ranks that do different things at the same step."""
    said = ", ".join(f"rank {rank} {doing}" for rank, doing in sorted(what.items()))
    return InvalidInput(
        f"the ranks do different things at the same step: {said}",
        hint="every rank must run the same layers in the same order, whatever its samples are",
        code="ranks_differ",
    )


class MemoryTransport:
    """Ranks that are threads of one process, for tests. Made by `group`."""

    is_fresh = False

    def __init__(self, rank: int, group: "_Group") -> None:
        self.rank = rank
        self.world_size = group.size
        self._group = group

    @staticmethod
    def group(size: int, *, deadline_s: float = 30.0) -> list["MemoryTransport"]:
        """Return one transport for each of `size` ranks."""
        group = _Group(size, deadline_s)
        return [MemoryTransport(rank, group) for rank in range(size)]

    def all_reduce(self, values: Numbers) -> None:
        """Replace `values` by the sum over all ranks."""
        posted = self._exchange("all_reduce", values)
        values[...] = np.sum(posted, axis=0)
        self._group.meet(self.rank)

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Replace `values` by those of rank `root`."""
        posted = self._exchange(f"broadcast from {root}", values)
        values[...] = posted[root]
        self._group.meet(self.rank)

    def area(self, size_bytes: int) -> Numbers:
        """Return the memory that all threads of the group share."""
        return self._group.area(size_bytes)

    def meet(self) -> None:
        """Wait until all ranks are here."""
        self._group.meet(self.rank)

    def await_parts(self, is_late: Callable[[int], bool], substitute: Callable[[int], None]) -> None:
        """Wait until no rank is late; the first that lives stands in for one that is lost."""
        self._group.await_parts(self.rank, is_late, substitute)

    @contextlib.contextmanager
    def lock(self, number: int) -> Iterator[None]:
        """Hold one of the group's locks."""
        with self._group.lock(number):
            yield

    def await_turn(self, is_done: Callable[[], bool], is_late: Callable[[int], bool]) -> None:
        """Wait until it is done; a rank that has left and is late is lost."""
        self._group.await_turn(is_done, is_late)

    def regroup(self) -> bool:
        """Return False: nobody starts threads anew."""
        return False

    def first_with_state(self) -> int:
        """Return the first rank."""
        return 0

    def adopted(self) -> None:
        """Do nothing."""

    def close(self, *, failed: bool = False) -> None:
        """Leave; nobody who waits for this rank goes on waiting."""
        self._group.leave(self.rank, "stopped with an error" if failed else "has left")

    def _exchange(self, doing: str, values: Numbers) -> list[Numbers]:
        check_numbers(values)
        group = self._group
        group.posted[self.rank] = values.copy()
        group.doing[self.rank] = f"{doing} of {values.size} {values.dtype.name}"
        group.meet(self.rank)
        if len(set(group.doing.values())) > 1:
            raise ranks_differ(dict(group.doing))
        return [group.posted[rank] for rank in range(group.size)]


class _Group:
    def __init__(self, size: int, deadline_s: float) -> None:
        self.size = size
        self.posted: dict[int, Numbers] = {}
        self.doing: dict[int, str] = {}
        self._deadline_s = deadline_s
        self._phases = [0] * size
        self._gone: dict[int, str] = {}
        self._changed = threading.Condition()
        self._area: Numbers | None = None
        self._locks: dict[int, threading.Lock] = {}

    def lock(self, number: int) -> threading.Lock:
        with self._changed:
            return self._locks.setdefault(number, threading.Lock())

    def await_turn(self, is_done: Callable[[], bool], is_late: Callable[[int], bool]) -> None:
        ends = time.monotonic() + self._deadline_s
        while not is_done():
            lost = [rank for rank in self._gone if is_late(rank)]
            if lost or time.monotonic() > ends:
                rank = lost[0] if lost else next((r for r in range(self.size) if is_late(r)), 0)
                raise rank_lost(rank, self._gone.get(rank, "did not come in time"))
            time.sleep(1e-4)  # the real clock: this is a wait for other threads

    def area(self, size_bytes: int) -> Numbers:
        with self._changed:
            if self._area is None:
                self._area = np.zeros(size_bytes, np.uint8)
            return self._area

    def await_parts(self, rank: int, is_late: Callable[[int], bool], substitute: Callable[[int], None]) -> None:
        ends = time.monotonic() + self._deadline_s
        while late := [other for other in range(self.size) if is_late(other)]:
            living = [other for other in range(self.size) if other not in self._gone]
            for other in late:
                if other in self._gone and rank == living[0]:
                    substitute(other)
            if time.monotonic() > ends:
                raise rank_lost(late[0], "did not come in time")
            time.sleep(1e-4)  # the real clock: this is a wait for other threads

    def meet(self, rank: int) -> None:
        """Wait until all ranks have come as often as this one."""
        with self._changed:
            self._phases[rank] += 1
            phase = self._phases[rank]
            self._changed.notify_all()
            came = self._changed.wait_for(lambda: not self._late(phase) or self._lost(phase), self._deadline_s)
            lost = self._lost(phase)
            if lost:
                raise rank_lost(lost[0], self._gone[lost[0]])
            if not came:
                raise rank_lost(self._late(phase)[0], "did not come in time")

    def leave(self, rank: int, how: str) -> None:
        with self._changed:
            self._gone.setdefault(rank, how)
            self._changed.notify_all()

    def _late(self, phase: int) -> list[int]:
        return [rank for rank, reached in enumerate(self._phases) if reached < phase]

    def _lost(self, phase: int) -> list[int]:
        return [rank for rank in self._late(phase) if rank in self._gone]
