"""What a training over several hosts adds to that of one: sums over hosts, and whether all have what they need.

On each host ranks sum in shared memory, and rank 0 of it, its leader, exchanges the sum with the other leaders.
"""

from collections.abc import Callable, Sequence

import numpy as np

from argosy.train.network.codec import Floats
from argosy.train.network.hierarchy import HierarchicalTransport, as_hosts
from argosy.train.network.reductions import Reduction, State, open_reduction
from argosy.train.transport import Numbers, Transport

_KEPT = 4
"""Checkpoints that a host tells the others of."""


class Between:
    """The gradients' way over the network; made by every rank, used by leaders."""

    def __init__(
        self, transport: HierarchicalTransport, compression: str, shapes: Sequence[tuple[int, ...]], seed: int
    ) -> None:
        network = transport.network
        self.is_leader = network is not None
        self._network = network
        self._is_coded = compression != "none"
        self._reduction: Reduction | None = None
        if network is not None:
            self._reduction = open_reduction(compression, network, shapes, seed=seed)

    def totals(self, numbers: Numbers, gradients: Numbers) -> None:
        """Sum `numbers` over hosts, in place; the first becomes NaN for all if one host's gradients can't be sent."""
        assert self._network is not None
        if self._is_coded and not _is_finite(gradients):
            numbers[0] = np.nan
        with as_hosts():
            self._network.all_reduce(numbers)

    def sum(self, gradients: Numbers) -> None:
        """Sum the gradients of all hosts, in place."""
        assert self._reduction is not None
        with as_hosts():
            self._reduction.sum(gradients)

    def state(self) -> State:
        """Return what a codec owes the next sums; it differs from host to host."""
        return {} if self._reduction is None else self._reduction.state()

    def load_state(self, state: State) -> None:
        """Go on from a `state`."""
        if self._reduction is not None and state:
            self._reduction.load_state(state)


def _is_finite(numbers: Floats) -> bool:
    # Squares of finite numbers may overflow; then each is looked at.
    return bool(np.isfinite(np.dot(numbers, numbers))) or bool(np.isfinite(numbers).all())


def newest_common(steps: Sequence[int], host: int, hosts: int, everyone: Transport, *, tells: bool) -> tuple[int, int]:
    """Return the newest checkpoint that all hosts have, or else the newest of one, and the host to get it from.

    The host is -1 if all have it; the step -1 if there is none. `steps` are those of this host, newest first; one rank
    of each host `tells` them, and all take part.
    """
    table = np.zeros((hosts, _KEPT), np.int64)
    if tells:
        known = list(steps)[:_KEPT]
        table[host, : len(known)] = np.array(known, np.int64) + 1
    everyone.all_reduce(table)
    found = [{step - 1 for step in row if step} for row in table.tolist()]
    common = set.intersection(*found)
    if common:
        return max(common), -1
    newest = [max(each, default=-1) for each in found]
    return (max(newest), newest.index(max(newest))) if max(newest) >= 0 else (-1, -1)


def told(transport: Transport, root: int, say: Callable[[], bytes]) -> bytes:
    """Return what rank `root` says, on all ranks of `transport`."""
    data = say() if transport.rank == root else b""
    size = np.array([len(data)], np.int64)
    transport.broadcast(size, root)
    words = np.zeros(-(-int(size[0]) // 8), np.int64)
    words.view(np.uint8)[: len(data)] = np.frombuffer(data, np.uint8)
    transport.broadcast(words, root)
    return words.tobytes()[: int(size[0])]
