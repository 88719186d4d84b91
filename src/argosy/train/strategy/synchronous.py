"""Every rank has a part of each batch; all gradients make one step, which is that of the whole batch."""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.errors import Unavailable
from argosy.train.batchnorm import shared_statistics
from argosy.train.between import Between, newest_common, told
from argosy.train.buffers import Buffers
from argosy.train.commons import Commons
from argosy.train.config import TrainConfig
from argosy.train.network.hierarchy import HierarchicalTransport
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import FlatParameters, Layout
from argosy.train.totals import Totals
from argosy.train.transport import Host, Numbers, Solo, Transport


class DataParallel:
    """Synchronous data parallelism. The ranks of one machine hold the parameters in common, and hosts exchange sums.

    Equal to one process on the whole batch up to the order of additions, also with batch norm, an uneven last batch,
    and ranks with different numbers of samples or none. Dropout draws differ from one process's.
    """

    def __init__(self, host: Host, between: HierarchicalTransport | None = None) -> None:
        everyone: Transport = between or host
        self.rank = everyone.rank
        self.world_size = everyone.world_size
        self.partners = range(self.world_size)
        self.is_fresh = host.is_fresh
        self.is_writer = host.rank == 0
        self.transport: Transport | None = everyone if self.world_size > 1 else None
        self.is_padding = False
        self._is_torn = False
        self._host = host
        self._hosts = between
        self._everyone = everyone

    @contextlib.contextmanager
    def attached(self, model: nn.Module, config: TrainConfig) -> Iterator[None]:
        """Give all ranks the state of rank 0, the parameters in common; let batch norm see the samples of all."""
        host = self._host
        layout = Layout(model)
        self._between = None
        if self._hosts is not None:
            self._between = Between(self._hosts, config.sent_as, layout.shapes(), config.seed)
        self._commons = Commons(host, layout, Optimizer(config), clip=config.clip, between=self._between)
        self._buffers = Buffers(model)
        if not host.is_fresh:
            if host.rank == 0:
                self._fill(layout)
            host.meet()
            self._unify([self._commons.values], self._buffers.all())
        with (
            FlatParameters(
                model, layout, self._commons.values, self._commons.gradients, self._commons.marks()
            ) as self._flat,
            shared_statistics(model, self),
        ):
            yield

    def _fill(self, layout: Layout) -> None:
        for name, place in layout.named(self._commons.values).items():
            place.copy_(layout.parameters[name].detach())
        for remembered in self._commons.state.values():
            remembered.zero_()
        self._commons.begin(0)

    def _unify(self, parameters: Sequence[Tensor], buffers: Sequence[Tensor]) -> None:
        """Give all hosts the parameters of rank 0, unless they are the same already, and all ranks its buffers."""
        if self._hosts is not None and not self._are_equal(parameters):
            for tensor in parameters:
                self._broadcast(tensor)
        for buffer in buffers:
            self._broadcast(buffer)

    def _are_equal(self, tensors: Sequence[Tensor]) -> bool:
        """Return whether all ranks have the same bits."""
        found = hashlib.sha256()
        for tensor in tensors:
            found.update(tensor.detach().contiguous().numpy().data)
        table = np.zeros((self.world_size, 4), np.int64)
        table[self.rank] = np.frombuffer(found.digest(), np.int64)
        self._everyone.all_reduce(table)
        return bool((table == table[0]).all())

    def next_work(self, epoch: int, done: int, batches: int) -> tuple[int, int] | None:
        """Return the next batch; every rank has a share of each."""
        del epoch
        return (done, self.rank) if done < batches else None

    def batches_done(self, number: int) -> int:
        """Return the batches up to this one."""
        return number + 1

    def end_epoch(self, loss: float, count: float) -> Totals:
        """Return the sums as they are: each step was that of all ranks."""
        return Totals(loss, count)

    def begin(self) -> None:
        """Begin a step: forget gradients, remember buffers."""
        self._flat.gradients.begin()
        if self.world_size > 1:
            self._buffers.note()

    def begin_pass(self, samples: int) -> None:
        """Note whether this rank only runs along."""
        self.is_padding = samples == 0

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Share rank 0's buffers where the step has changed them, then make the step."""
        self._flat.gradients.end()
        if self.world_size > 1:
            # Batch norm's are equal already. Without this, ranks would drift apart, and a checkpoint, which rank 0
            # writes, would not say what the others hold.
            for buffer in self._buffers.changed():
                self._broadcast(buffer)
        totals = self._commons.apply(step, loss, count, rate)
        self._buffers.keep()
        return totals

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        numbers = np.array(values, dtype=np.float64)
        self._everyone.all_reduce(numbers)
        return [float(number) for number in numbers]

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return the model's `state_dict`; all ranks have the same."""
        found: dict[str, Tensor] = model.state_dict()
        return found

    def checkpoint(self, steps: Sequence[int], read: Callable[[int], bytes]) -> tuple[int, bytes | None]:
        """Return the newest checkpoint that all hosts have, or the newest of one, sent to the others."""
        hosts, number = (1, 0) if self._hosts is None else (self._hosts.hosts, self._hosts.host)
        step, source = newest_common(steps, number, hosts, self._everyone, tells=self.is_writer)
        if self._is_torn and source < 0:
            source = 0  # all have it, but must take the same
        if step < 0 or source < 0 or self._hosts is None:
            return step, None
        data = told(self._hosts, self._hosts.first_of(source), lambda: read(step))
        return step, data

    def takes_part(self, is_due: bool) -> bool:  # noqa: FBT001 - one word, one meaning
        """Return whether this is a rank that writes, and does: it has everything itself.

        Hosts write after the same step, the one after rank 0 has said that a checkpoint is due.
        """
        if self._hosts is None:
            return is_due and self.is_writer
        is_agreed = self._commons.is_wished
        self._commons.wish = is_due and self.rank == 0 and not is_agreed
        return is_agreed and self.is_writer

    def joined(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield `parts`, which are whole."""
        yield from parts.items()

    def fill(self, parts: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> None:
        """Copy `wholes` into `parts`."""
        for name, part in parts.items():
            if not name.startswith(_OWED):
                part.copy_(wholes[name])
        if self._between is not None:
            owed = {name.removeprefix(_OWED): t.numpy() for name, t in wholes.items() if name.startswith(_OWED)}
            self._between.load_state(owed)

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's memory by name; all ranks of a host share it."""
        if self._between is None:
            return self._commons.state
        owed = {f"between.{name}": torch.from_numpy(numbers) for name, numbers in self._between.state().items()}
        return self._commons.state | owed

    @contextlib.contextmanager
    def quiet(self) -> Iterator[None]:
        """Do nothing: between two steps of its own a rank may rely on all others not to make one."""
        yield

    def resumed(self, step: int, epoch: int, batch: int) -> None:
        """Go on after `step` steps."""
        del epoch, batch
        self._commons.begin(step)
        self._host.meet()

    def recover(self, state: Callable[[], bytes], adopt: Callable[[bytes], None]) -> bool:
        """Wait for the new rank and tell it where the others stand; parameters and optimizer it finds in common."""
        host = self._host
        while True:
            try:
                if not host.regroup():
                    return False
                root = host.first_with_state()
                if root < 0:
                    return False
                if not host.is_fresh:
                    self._buffers.undo()
                news = told(host, root, state)
                if host.is_fresh:
                    adopt(news)
                    host.adopted()
                self.is_fresh = False
                host.meet()
            except Unavailable as error:
                if error.code != "rank_lost":
                    raise
            else:
                return True

    def first_not_finite(self) -> str:
        """Return the parameter in which NaN or infinity is first seen, or an empty text."""
        return self._commons.first_not_finite()

    def _broadcast(self, tensor: Tensor) -> None:
        wide = torch.float64 if tensor.is_floating_point() else torch.int64
        copy = tensor.detach().to(tensor.dtype if tensor.dtype in _EXCHANGED else wide, copy=True).contiguous()
        values: Numbers = copy.numpy()
        self._everyone.broadcast(values)
        if self.rank != 0:
            tensor.copy_(copy)

    def _average(self, buffer: Tensor) -> None:
        """Make a buffer of numbers the mean over all ranks, any other that of rank 0."""
        if not buffer.is_floating_point():
            self._broadcast(buffer)
            return
        values = buffer.detach().to(torch.float64).contiguous()
        self._everyone.all_reduce(values.numpy())
        buffer.copy_(values / self.world_size)


class Single(DataParallel):
    """One process has the whole batch: the same without anybody else."""

    def __init__(self, host: Host | None = None, between: HierarchicalTransport | None = None) -> None:
        # What it was given is for its signs of life; the parameters are its own.
        del host, between
        super().__init__(Solo())


_OWED = "optimizer.between."
"""Begins the names of what a codec owes the next sums."""
_EXCHANGED = (torch.float32, torch.float64, torch.int64)
