"""How ranks exchange numbers: what a transport promises, and one for ranks that are threads of one process."""

import threading
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.core.errors import InvalidInput, Unavailable

Numbers = NDArray[Any]
"""A contiguous array of float32, float64 or int64."""

DATATYPES = ("float32", "float64", "int64")


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


def check_numbers(values: Numbers) -> None:
    """Raise InvalidInput for an array that a transport does not take."""
    if values.dtype.name not in DATATYPES or not values.flags.c_contiguous:
        raise InvalidInput(
            f"ranks exchange contiguous arrays of {', '.join(DATATYPES)}, not {values.dtype.name} "
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

    def close(self, *, failed: bool = False) -> None:
        """Leave; nobody who waits for this rank goes on waiting."""
        if failed:
            self._group.lost = self.rank
        elif self._group.lost < 0:
            self._group.left = self.rank
        self._group.barrier.abort()

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
        self.barrier = threading.Barrier(size, timeout=deadline_s)
        self.posted: dict[int, Numbers] = {}
        self.doing: dict[int, str] = {}
        self.lost = -1
        self.left = -1

    def meet(self, rank: int) -> None:
        try:
            self.barrier.wait()
        except threading.BrokenBarrierError as error:
            if self.lost >= 0:
                raise rank_lost(self.lost, "stopped with an error") from error
            if self.left >= 0:
                raise rank_lost(self.left, "has left") from error
            raise rank_lost((rank + 1) % self.size, "did not come in time") from error
