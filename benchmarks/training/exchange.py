"""An all-reduce between two ranks of one machine, done in several ways in turns, by the same two processes.

Runs in Argosy's environment: python exchange.py OUT MEGABYTES ROUNDS
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from argosy.train.config import TrainConfig
from argosy.train.shared_memory import Segment, SharedMemoryTransport

OUT, MEGABYTES, ROUNDS = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
RANKS = 2
WARM_UP = 2
REPEATS = 3
"""Times that each way is done in a turn."""


def main() -> None:
    """Start both ranks on one memory and wait for them; leave the times."""
    segments = [Segment.create(RANKS) for _ in range(2)]
    command = [sys.executable, *sys.argv, *(segment.path for segment in segments)]
    ranks = [subprocess.Popen([*command, str(rank)]) for rank in range(RANKS)]
    failed = max(rank.wait() for rank in ranks)
    for segment in segments:
        segment.close()
    sys.exit(failed)


class Ways:
    """The ways, each a function that does it once. All numbers lie in memory before anything is timed.

    They are zeros, so that sums of sums stay what they are.
    """

    def __init__(self, host: SharedMemoryTransport, beside: SharedMemoryTransport) -> None:
        import torch
        import torch.distributed as dist
        from torch import nn

        from argosy.train.commons import CHUNK, Commons
        from argosy.train.optimizers import Optimizer
        from argosy.train.parameters import Layout

        torch.set_num_threads(1)
        dist.init_process_group("gloo", init_method=f"file://{OUT}/meeting", rank=host.rank, world_size=RANKS)
        count = MEGABYTES * 1_000_000 // 4
        self._host, self._beside, self._chunk, self._count = host, beside, CHUNK, count
        self._cuts = [count * rank // RANKS for rank in range(RANKS + 1)]
        self._commons = Commons(host, Layout(nn.Linear(count, 1, bias=False)), Optimizer(TrainConfig(optimizer="sgd")))
        self._own, self._other = torch.empty(count).fill_(0.0), torch.empty(count).fill_(0.0)
        self._rows = torch.from_numpy(beside.area(RANKS * count * 4)).view(torch.float32).view(RANKS, count)
        self._rows[host.rank].fill_(0.0)
        self._commons.gradients.fill_(0.0)
        self._reduce, self._barrier, self._add = dist.all_reduce, dist.barrier, torch.add
        self._step = 0
        if host.rank == 0:
            self._commons.values.fill_(0.0)
            self._commons.begin(0)
        host.meet()

    def barrier(self) -> None:
        """Begin together, by neither of the ways."""
        self._barrier()

    def memcpy(self) -> None:
        """Copy as many bytes, both ranks at once: the limit."""
        self._other.copy_(self._own)

    def gloo(self) -> None:
        """Sum with torch.distributed over the loopback address."""
        self._reduce(self._own)

    def transport(self) -> None:
        """Sum arrays of each rank's own with Argosy's transport, which copies through memory that both share."""
        self._host.all_reduce(self._own.numpy())

    def shared(self) -> None:
        """Sum as Argosy's ranks of one machine do, without an optimizer: each sums its part where all read it."""
        self._beside.meet()
        first, second = self._rows
        for start in range(self._cuts[self._host.rank], self._cuts[self._host.rank + 1], self._chunk):
            part = slice(start, min(start + self._chunk, self._cuts[self._host.rank + 1]))
            self._add(first[part], second[part], out=first[part])
        self._beside.meet()

    def step(self) -> None:
        """Make a whole step of Argosy's: from gradients in shared memory to parameters there, by SGD."""
        self._commons.apply(self._step, 1.0, 1.0, 1e-9)
        self._step += 1


def be_rank(segments: list[str], rank: int) -> None:
    """Do all ways in turns, forwards and backwards, and leave the seconds of each."""
    hosts = [SharedMemoryTransport.join(segment, rank) for segment in segments]
    ways = Ways(*hosts)
    todo: dict[str, Callable[[], None]] = {
        "memcpy": ways.memcpy,
        "shared": ways.shared,
        "step": ways.step,
        "transport": ways.transport,
        "gloo": ways.gloo,
    }
    seconds: dict[str, list[float]] = {name: [] for name in todo}
    for turn in range(WARM_UP + ROUNDS):
        for name in list(todo)[:: 1 if turn % 2 == 0 else -1]:
            for _ in range(REPEATS):
                ways.barrier()
                begun = time.perf_counter()
                todo[name]()
                if turn >= WARM_UP:
                    seconds[name].append(time.perf_counter() - begun)
    (OUT / f"rank-{rank}.json").write_text(json.dumps(seconds))
    for host in hosts:
        host.close()


if __name__ == "__main__":
    if len(sys.argv) > 4:
        be_rank(sys.argv[4:6], int(sys.argv[6]))
    else:
        main()
