"""Parameters lie in shards that serve all workers; how far these may drift apart is `max_staleness`."""

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from argosy.train.batchnorm import shared_statistics
from argosy.train.buffers import Buffers
from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import FlatParameters, Layout
from argosy.train.served import Served
from argosy.train.strategy.synchronous import DataParallel
from argosy.train.totals import NotFinite, Totals


class ParameterServer(DataParallel):
    """A parameter server between the ranks of one machine: one shard per rank, in memory that all share.

    With `max_staleness = 0` all make each step together, and every rank serves its shard: that is data parallel. Else a
    worker takes whatever share of a batch is next, computes with its own copy of the parameters, and pushes when it has
    finished; a slow worker then simply does less. A share is a step of its own at 1/workers of the rate, so a round of
    all of them moves the parameters as far as one step together.
    """

    _served: Served | None = None
    _ahead: int | None = None

    @contextlib.contextmanager
    def attached(self, model: nn.Module, config: TrainConfig) -> Iterator[None]:
        """Give all ranks the state of rank 0, and each a copy of its own if they may drift apart."""
        if config.max_staleness == 0:
            with super().attached(model, config):
                yield
            return
        self.partners = range(self.rank, self.rank + 1)
        # Batch norm sees what its own worker sees, for nobody waits for the others' samples.
        self.transport = None
        self._ahead = None if config.max_staleness == "none" else int(config.max_staleness)
        host, layout = self._host, Layout(model)
        self._served = served = Served(host, layout, Optimizer(config), clip=config.clip)
        self._buffers = Buffers(model)
        self._cache = torch.empty_like(served.values)
        if not host.is_fresh:
            if host.rank == 0:
                for name, place in layout.named(served.values).items():
                    place.copy_(layout.parameters[name].detach())
                served.start(0, 0, 0)
            host.meet()
            for buffer in self._buffers.all():
                self._broadcast(buffer)
            served.pull(self._cache)
        with (
            FlatParameters(model, layout, self._cache, served.gradients, served.marks()) as self._flat,
            shared_statistics(model, self),
        ):
            yield

    def next_work(self, epoch: int, done: int, batches: int) -> tuple[int, int] | None:
        """Return the next share of a batch that nobody has taken."""
        if self._served is None:
            return super().next_work(epoch, done, batches)
        ranks = self.world_size
        piece = self._served.claim(epoch, done * ranks, batches * ranks, self._ahead)
        return None if piece is None else divmod(piece, ranks)

    def batches_done(self, number: int) -> int:
        """Return the batches of which all shares are done."""
        return super().batches_done(number) if self._served is None else self._served.oldest() // self.world_size

    def begin(self) -> None:
        """Begin a step."""
        if self._served is None:
            super().begin()
        else:
            self._flat.gradients.begin()

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Push this worker's gradients and pull the parameters; return its own sums."""
        if self._served is None:
            return super().finish(step, loss, count, rate)
        if not np.isfinite(loss):
            raise NotFinite
        self._flat.gradients.end()
        self._served.push(rate / self.world_size, self._cache)
        return Totals(loss, count)

    def end_epoch(self, loss: float, count: float) -> Totals:
        """Wait for all workers, and let all have the same parameters and the mean of their buffers."""
        if self._served is None:
            return super().end_epoch(loss, count)
        totals = Totals(*self.total(loss, count))
        for buffer in self._buffers.all():
            self._average(buffer)
        self._served.pull(self._cache)
        return totals

    def state(self) -> dict[str, Tensor]:
        """Return the server's optimizer memory by name."""
        return super().state() if self._served is None else self._served.state

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Hold all shards, and pull."""
        if self._served is None:
            yield
            return
        with contextlib.ExitStack() as held:
            self._served.hold(held)
            self._cache.copy_(self._served.values)
            yield

    def resumed(self, step: int, epoch: int, batch: int) -> None:
        """Go on with the parameters that were loaded."""
        if self._served is None:
            super().resumed(step, epoch, batch)
            return
        if self.rank == 0:
            self._served.values.copy_(self._cache)
            self._served.start(step * self.world_size, epoch, batch * self.world_size)
        self._host.meet()

    def recover(self, state: Callable[[], bytes], adopt: Callable[[bytes], None]) -> bool:
        """Wait for the new rank, which takes over what the one before it had begun."""
        was_fresh = self._host.is_fresh
        found = super().recover(state, adopt)
        if found and was_fresh and self._served is not None:
            self._served.take_over(self._cache)
        return found

    def first_not_finite(self) -> str:
        """Return the parameter in which NaN or infinity is first seen, or an empty text."""
        return super().first_not_finite() if self._served is None else self._served.first_not_finite()
