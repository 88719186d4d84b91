"""Several ranks on each of several hosts: they sum on their host first, and one of each host speaks with the others."""

import contextlib
import itertools
from collections.abc import Iterator, Sequence

from argosy.core.errors import ArgosyError
from argosy.train.network.codec import Codec, Floats
from argosy.train.network.transport import Pending, TcpTransport
from argosy.train.transport import Numbers, Transport

_LEADER = 0
"""The rank of a host that speaks for it."""


class HierarchicalTransport:
    """A transport over hosts with any number of ranks each. Ranks are numbered host by host, in the hosts' order.

    An array crosses the network once for each host, however many ranks it has. Sums are added on each host in the order
    of its ranks, then in the order of hosts: the same bits on all ranks, but not those of a sum in the order of ranks.
    """

    def __init__(self, local: Transport, network: TcpTransport | None, sizes: Sequence[int], host: int) -> None:
        """`local`: between the ranks of this host. `network`: between hosts; given on rank 0 of each, None on others.

        `sizes`: how many ranks each host has. `host`: which of them this is.
        """
        self.local = local
        self.network = network
        self.host = host
        self.is_whole = True
        """Whether all hosts of the training take part."""
        self._first = [0, *itertools.accumulate(sizes)]
        self.rank = self._first[host] + local.rank
        self.world_size = self._first[-1]

    @property
    def hosts(self) -> int:
        """How many hosts there are."""
        return len(self._first) - 1

    def first_of(self, host: int) -> int:
        """Return the first rank of a host, its leader."""
        return self._first[host]

    def all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> None:
        """Replace `values`, in place, by the sum over all ranks of all hosts.

        A codec, and its error, are for what crosses the network: the host's sum, of which rank 0 of each host keeps
        what was lost. Other ranks' errors stay as they are.
        """
        self.local.all_reduce(values)
        if self.network:
            with as_hosts():
                self.network.all_reduce(values, codec=codec, error=error)
        self.local.broadcast(values, _LEADER)

    def start_all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> Pending:
        """Sum on this host, begin to sum over hosts, and return; `wait` hands the sum to all ranks of the host.

        So all ranks call `wait`, and at the same place among their exchanges.
        """
        self.local.all_reduce(values)
        inner = self.network.start_all_reduce(values, codec=codec, error=error) if self.network else None
        return _HostsPending(inner, self.local, values)

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Replace `values`, in place, by those of rank `root`."""
        host = next(host for host in range(self.hosts) if root < self._first[host + 1])
        if host == self.host:
            self.local.broadcast(values, root - self._first[host])
        self._between_hosts("broadcast", values, host)
        if host != self.host:
            self.local.broadcast(values, _LEADER)

    def close(self, *, failed: bool = False) -> None:
        """Leave, on this host and between hosts."""
        # The network first: hosts that wait for this one are told by it, not by a rank that missed its own leader.
        if self.network:
            self.network.close(failed=failed)
        self.local.close(failed=failed)

    def _between_hosts(self, exchange: str, values: Numbers, *more: int) -> None:
        if self.network:
            with as_hosts():
                getattr(self.network, exchange)(values, *more)


class _HostsPending(Pending):
    """An exchange between hosts in the background, of which most ranks know nothing until its leader has waited."""

    def __init__(self, inner: Pending | None, local: Transport, values: Numbers) -> None:
        super().__init__()
        self._inner = inner
        self._local = local
        self._values = values
        self._is_handed_out = False

    def is_done(self) -> bool:
        """Return whether the leader's exchange has ended; on other ranks, whether `wait` was called."""
        return self._inner.is_done() if self._inner else self._is_handed_out

    def wait(self) -> None:
        """Wait for the exchange, and hand the sum to all ranks of this host."""
        if self._is_handed_out:
            return
        if self._inner:
            with as_hosts():
                self._inner.wait()
        self._local.broadcast(self._values, _LEADER)
        self._is_handed_out = True


@contextlib.contextmanager
def as_hosts() -> Iterator[None]:
    """Let errors of the network speak of hosts: their numbers are not those of ranks here."""
    try:
        yield
    except ArgosyError as error:
        error.message = error.message.replace("rank ", "host ").replace("ranks ", "hosts ")
        error.args = (error.message,)
        if "rank" in error.context:
            error.context["host"] = error.context.pop("rank")
        raise
