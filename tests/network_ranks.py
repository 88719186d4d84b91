"""What the tests of the network share: ranks in threads that talk over TCP on this machine."""

import threading

from argosy.train.network.hierarchy import HierarchicalTransport
from argosy.train.network.rendezvous import Rendezvous
from argosy.train.network.transport import TcpTransport
from argosy.train.transport import MemoryTransport

TOKEN = "a token that nobody guesses, of 43 letters."
QUICK = {"join_s": 30.0, "silence_s": 5.0, "beat_s": 0.05}


def tcp_ranks(size, **options):
    """Return one transport for each of `size` ranks; the rendezvous is closed again."""
    rendezvous = Rendezvous(size, token=TOKEN)
    try:
        return joined(rendezvous, size, **options)
    finally:
        rendezvous.close()


def ranks_on_hosts(sizes, deadline_s=30.0):
    """Return one transport for each rank of hosts with that many ranks each; the ranks of a host share memory."""
    leaders = tcp_ranks(len(sizes), deadline_s=deadline_s)
    return [
        HierarchicalTransport(local, leader if local.rank == 0 else None, sizes, host)
        for host, (size, leader) in enumerate(zip(sizes, leaders, strict=True))
        for local in MemoryTransport.group(size, deadline_s=deadline_s)
    ]


def joined(rendezvous, size, **options):
    """Let all ranks join; return their transports, or raise the first error."""
    found, errors = {}, {}

    def join(rank):
        try:
            found[rank] = TcpTransport.join(rendezvous.address, rank, size, token=TOKEN, **(QUICK | options))
        except BaseException as error:  # noqa: BLE001 - raised below
            errors[rank] = error

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60.0)
        assert not thread.is_alive(), "a rank hangs while joining"
    for rank in sorted(errors):
        raise errors[rank]
    return [found[rank] for rank in range(size)]
