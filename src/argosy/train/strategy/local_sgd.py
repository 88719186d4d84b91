"""Each rank trains alone for some steps; then all combine what they have changed. Made for slow networks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.errors import Unavailable
from argosy.train.batchnorm import shared_statistics
from argosy.train.buffers import Buffers
from argosy.train.commons import Commons
from argosy.train.config import TrainConfig
from argosy.train.network.codec import CODECS
from argosy.train.network.outer import AVERAGING, DILOCO, LocalRounds
from argosy.train.network.reductions import CodedReduction, PlainReduction
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import FlatParameters, Layout
from argosy.train.strategy.synchronous import DataParallel
from argosy.train.totals import NotFinite, Totals
from argosy.train.transport import Solo

_OPTIMIZER, _MODEL = "optimizer.", "model."


class LocalSgd(DataParallel):
    """Rounds of `[train.local] interval` steps, at whose ends parameters are averaged, or moved as DiLoCo does.

    A lost rank takes along what it has changed since the last round, so there is no way back but a checkpoint; those
    are made at the ends of rounds and hold what each rank remembers, so that a training goes on to the same bits.
    """

    is_synchronous = False

    @contextlib.contextmanager
    def attached(self, model: nn.Module, config: TrainConfig) -> Iterator[None]:
        """Give all ranks the state of rank 0, each in memory of its own."""
        host, layout = self._host, Layout(model)
        if host.is_fresh:
            raise Unavailable("a lost rank took its parameters along", code="rank_lost")
        # Batch norm sees what its own rank sees.
        self.transport = None
        self._commons = Commons(Solo(), layout, Optimizer(config), clip=config.clip)
        self._buffers = Buffers(model)
        for tensor in (*layout.parameters.values(), *self._buffers.all()):
            self._broadcast(tensor.detach())
        for name, place in layout.named(self._commons.values).items():
            place.copy_(layout.parameters[name].detach())
        settings = config.local
        reduction = (
            PlainReduction(host)
            if settings.compression == "none"
            else CodedReduction(host, CODECS.load(settings.compression)())
        )
        self._values = self._commons.values.numpy()
        self._rounds = LocalRounds(
            self._values,
            reduction,
            world_size=host.world_size,
            interval=settings.interval,
            step=DILOCO if settings.outer == "diloco" else AVERAGING,
        )
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._is_round_over = False
        with (
            FlatParameters(model, layout, self._commons.values, self._commons.gradients) as self._flat,
            shared_statistics(model, self),
        ):
            yield

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Make this rank's own step, and combine all ranks' at the end of a round."""
        if not np.isfinite(loss):
            raise NotFinite
        if count:
            self._flat.gradients.end()
            self._commons.apply(step, loss, count, rate)
        else:
            self._commons.begin(step + 1)
        self._sums += torch.tensor([loss, count], dtype=torch.float64)
        self._is_round_over = self._rounds.step_done(self._values)
        return Totals(loss, count)

    def end_epoch(self, loss: float, count: float) -> Totals:
        """End the round, so that all ranks have the same parameters, and the mean of their buffers."""
        del loss, count  # rank 0's, and part of what it tells others; what is summed is each rank's own
        self._rounds.settle(self._values)
        for buffer in self._buffers.all():
            self._average(buffer)
        totals = Totals(*self.total(*self._sums.tolist()))
        self._sums.zero_()
        return totals

    def takes_part(self, is_due: bool) -> bool:  # noqa: FBT001 - one word, one meaning
        """Return whether a checkpoint is due, and a round over."""
        if not self._is_round_over:
            return False
        self._is_round_over = False
        return bool(self.total(float(is_due and self.rank == 0))[0])

    def state(self) -> dict[str, Tensor]:
        """Return what this rank alone remembers; names begin with its number."""
        found = {**self._commons.state, "sums": self._sums}
        found.update({f"rounds.{name}": torch.from_numpy(values) for name, values in self._rounds.state().items()})
        found.update({f"buffer.{number}": buffer for number, buffer in enumerate(self._buffers.all())})
        return {f"{self.rank}.{name}": tensor for name, tensor in found.items()}

    def joined(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the model as rank 0 has it, and what each rank remembers."""
        for name, part in parts.items():
            if not name.startswith(_OPTIMIZER) and self.rank == 0:
                yield name, part
        own = [(name.removeprefix(f"{_OPTIMIZER}{self.rank}."), part) for name, part in parts.items() if "." in name]
        own = [(name, part) for name, part in own if not name.startswith((_MODEL, _OPTIMIZER))]
        for name, part in own:
            for rank in range(self.world_size):
                copy = part.detach().clone().contiguous()
                self._send(copy, rank)
                if self.rank == 0:
                    yield f"{_OPTIMIZER}{rank}.{name}", copy

    @torch.no_grad()
    def fill(self, parts: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> None:
        """Take the model, and what this rank remembers; in another number of ranks each begins a round anew."""
        for name, part in parts.items():
            if name.startswith(_MODEL):
                part.copy_(wholes[name])
        prefix = f"{_OPTIMIZER}{self.rank}."
        found = {name.removeprefix(prefix): tensor for name, tensor in wholes.items() if name.startswith(prefix)}
        if not found:
            return
        for name, remembered in self._commons.state.items():
            remembered.copy_(found[name])
        self._sums.copy_(found["sums"])
        for number, buffer in enumerate(self._buffers.all()):
            buffer.copy_(found[f"buffer.{number}"])
        rounds = {name.removeprefix("rounds."): t.numpy() for name, t in found.items() if name.startswith("rounds.")}
        self._rounds.load_state(rounds)

    def recover(self, state: Callable[[], bytes], adopt: Callable[[bytes], None]) -> bool:
        """Return False: only a checkpoint has what was lost."""
        del state, adopt
        return False

    def _send(self, tensor: Tensor, root: int) -> None:
        """Replace a tensor by that of rank `root`."""
        if tensor.dtype in (torch.float32, torch.float64, torch.int64):
            self._host.broadcast(tensor.numpy(), root)
            return
        wide = tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64)
        self._host.broadcast(wide.numpy(), root)
        tensor.copy_(wide)
