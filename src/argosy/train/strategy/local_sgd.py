"""Each rank trains alone for some steps; then all combine what they have changed. Made for slow networks."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.errors import Unavailable
from argosy.train.batchnorm import shared_statistics
from argosy.train.buffers import Buffers
from argosy.train.commons import Commons
from argosy.train.config import TrainConfig
from argosy.train.network.hierarchy import HierarchicalTransport, as_hosts
from argosy.train.network.outer import AVERAGING, DILOCO, LocalRounds
from argosy.train.network.reductions import open_reduction
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import FlatParameters, Layout
from argosy.train.strategy.synchronous import DataParallel
from argosy.train.totals import NotFinite, Totals
from argosy.train.transport import Host, Solo

_OPTIMIZER, _MODEL = "optimizer.", "model."


class LocalSgd(DataParallel):
    """Rounds of `[train.local] interval` steps, at whose ends parameters are averaged, or moved as DiLoCo does.

    On one host each rank trains alone. Over several the ranks of a host make each step together, on parameters that
    they hold in common, and rank 0 of each exchanges what its host has changed.

    A lost rank takes along what it has changed since the last round, so there is no way back but a checkpoint; those
    are made at the ends of rounds and hold what each remembers, so that a training goes on to the same bits.
    """

    def __init__(self, host: Host, between: HierarchicalTransport | None = None) -> None:
        super().__init__(host, between)
        self._group: Host = Solo() if between is None else host
        first = self.rank - self._group.rank
        self.partners = range(first, first + self._group.world_size)
        # Batch norm sees what those see who make a step together.
        self.transport = self._group if self._group.world_size > 1 else None

    @contextlib.contextmanager
    def attached(self, model: nn.Module, config: TrainConfig) -> Iterator[None]:
        """Give all ranks the state of rank 0, each group in memory of its own."""
        host, group, layout = self._host, self._group, Layout(model)
        if host.is_fresh:
            raise Unavailable("a lost rank took its parameters along", code="rank_lost")
        self._commons = Commons(group, layout, Optimizer(config), clip=config.clip)
        self._buffers = Buffers(model)
        self._start(layout)
        self._values = self._commons.values.numpy()
        self._rounds = self._opened(config)
        self._sums = torch.zeros(2, dtype=torch.float64)
        self._is_round_over = self._is_foreign = False
        with (
            FlatParameters(
                model, layout, self._commons.values, self._commons.gradients, self._commons.marks()
            ) as self._flat,
            shared_statistics(model, self),
        ):
            yield

    def _start(self, layout: Layout) -> None:
        parameters = [parameter.detach() for parameter in layout.parameters.values()]
        if self._hosts is None:
            self._unify([], [*parameters, *self._buffers.all()])
        else:
            self._unify(parameters, self._buffers.all())
        if self._group.rank == 0:
            self._fill(layout)
        self._group.meet()

    def _opened(self, config: TrainConfig) -> LocalRounds | None:
        """Return this rank's part in rounds; none for a rank whose host's leader has it."""
        everyone = self._host if self._hosts is None else self._hosts.network
        if everyone is None:
            return None
        return LocalRounds(
            self._values,
            open_reduction(config.sent_as, everyone),
            world_size=everyone.world_size,
            interval=config.local.steps,
            step=DILOCO if config.local.outer == "diloco" else AVERAGING,
            overlap="delayed" if config.local.late else "none",
            delay=config.local.late,
        )

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Make a step with the partners, and combine what all have changed at the end of a round."""
        if not np.isfinite(loss) and self._group.world_size == 1:
            raise NotFinite
        self._flat.gradients.end()
        totals = self._commons.apply(step, loss, count, rate)
        self._is_round_over = self._led(lambda rounds: rounds.step_done(self._values))
        if self._group.rank == 0:
            self._sums += torch.tensor([totals.loss, totals.samples], dtype=torch.float64)
        return totals

    def _led(self, act: Callable[[LocalRounds], bool | None]) -> bool:
        """Have the leader do something with the parameters of its group, while its partners wait."""
        with as_hosts() if self._hosts is not None else contextlib.nullcontext():
            result = bool(act(self._rounds)) if self._rounds is not None else False
        if self._group.world_size > 1:
            self._group.meet()
        return result

    def end_epoch(self, loss: float, count: float) -> Totals:
        """End the round, so that all ranks have the same parameters, and the mean of their buffers."""
        del loss, count  # rank 0's, and part of what it tells others; what is summed is each group's own
        self._led(lambda rounds: rounds.settle(self._values))
        for buffer in self._buffers.all():
            self._average(buffer)
        totals = Totals(*self.total(*self._sums.tolist()))
        self._sums.zero_()
        return totals

    def takes_part(self, is_due: bool) -> bool:  # noqa: FBT001 - one word, one meaning
        """Return whether a checkpoint is due, and a round over. Over several hosts leaders ask each other."""
        if not self._is_round_over:
            return False
        self._is_round_over = False
        asked = np.array([float(is_due and self.rank == 0)])
        everyone = self._host if self._hosts is None else self._hosts.network
        assert everyone is not None, "rounds are over for leaders only"
        everyone.all_reduce(asked)
        return bool(asked[0])

    def state(self) -> dict[str, Tensor]:
        """Return what this rank alone remembers; names begin with its number."""
        found = {**self._commons.state, "sums": self._sums}
        if self._rounds is not None:
            found.update({f"rounds.{name}": torch.from_numpy(values) for name, values in self._rounds.state().items()})
        found.update({f"buffer.{number}": buffer for number, buffer in enumerate(self._buffers.all())})
        return {f"{self.rank}.{name}": tensor for name, tensor in found.items()}

    def joined(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the model as rank 0 has it, and what each rank remembers; hosts keep what is theirs."""
        if self._hosts is not None:
            yield from parts.items()
            return
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

    def checkpoint(self, steps: Sequence[int], read: Callable[[int], bytes]) -> tuple[int, bytes | None]:
        """Return the newest checkpoint that all hosts have, or the newest of one, sent to the others."""
        # What each host remembers goes with the round that all were in: without one of them all begin anew.
        self._is_torn = self._hosts is not None and not self._hosts.is_whole
        step, data = super().checkpoint(steps, read)
        self._is_foreign = data is not None
        return step, data

    @torch.no_grad()
    def fill(self, parts: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> None:
        """Take the model, and what this rank remembers; one of which nothing is known begins a round anew."""
        for name, part in parts.items():
            if name.startswith(_MODEL):
                part.copy_(wholes[name])
        if not any(name.startswith(_OPTIMIZER) for name in parts):
            return
        prefix = f"{_OPTIMIZER}{self.partners[0]}."
        found = {name.removeprefix(prefix): tensor for name, tensor in wholes.items() if name.startswith(prefix)}
        if not found or self._is_foreign:
            # What is common to all must stay so: if one host lacks what it remembers, none goes by what it does.
            if self._rounds is not None:
                self._rounds.begin(self._values)
            if self.rank == 0:
                # Of the host whose checkpoint it is: the loss of the epoch that runs is then that of its samples.
                for name in [name for name in wholes if name.endswith(".sums")][:1]:
                    self._sums.copy_(wholes[name])
            return
        for name, remembered in self._commons.state.items():
            remembered.copy_(found[name])
        for number, buffer in enumerate(self._buffers.all()):
            buffer.copy_(found[f"buffer.{number}"])
        if self._rounds is None:
            return
        self._sums.copy_(found["sums"])
        rounds = {name.removeprefix("rounds."): t.numpy() for name, t in found.items() if name.startswith("rounds.")}
        self._rounds.load_state(rounds)

    def resumed(self, step: int, epoch: int, batch: int) -> None:
        """Go on after `step` steps."""
        del epoch, batch
        if self._group.rank == 0:
            self._commons.begin(step)
        self._group.meet()

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
