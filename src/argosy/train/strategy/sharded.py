"""Every rank holds a part of each parameter, gradient and optimizer state, and gathers the whole only to compute with.

The parts are those of PyTorch's FSDP2 (Zhao et al. 2023, with each parameter divided by itself); the idea is the third
stage of ZeRO (Rajbhandari et al. 2020). Parts are exchanged in memory that the ranks share, on GPUs by NCCL.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.errors import Unavailable
from argosy.train.batchnorm import shared_statistics
from argosy.train.buffers import Buffers
from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer, clip_factor
from argosy.train.parameters import Layout
from argosy.train.shards import Shards, group_of
from argosy.train.slots import Slots
from argosy.train.strategy.synchronous import DataParallel
from argosy.train.totals import NotFinite, Totals

_MODEL = "model."


class Sharded(DataParallel):
    """Data parallelism in which parameters, gradients and optimizer state are divided between the ranks.

    Equal to one process on the whole batch up to the order of additions, as `DataParallel`. A lost rank takes its part
    along, so there is no way back but a checkpoint. Models are built whole by every rank before they are divided.
    """

    @contextlib.contextmanager
    def attached(self, model: nn.Module, config: TrainConfig) -> Iterator[None]:
        """Divide the parameters of rank 0 between all; at the end every rank has an ordinary model again."""
        host = self._host
        if host.is_fresh:
            raise Unavailable("a lost rank took its part of the parameters along", code="rank_lost")
        self._layout = Layout(model)
        self._optimizer, self._clip = Optimizer(config), config.clip
        self._buffers = Buffers(model)
        device = next(iter(self._layout.parameters.values())).device
        for tensor in (*model.parameters(), *self._buffers.all()):
            self._broadcast(tensor.detach())
        with group_of(host, device) as mesh:
            self._shards = shards = Shards(model, mesh, Slots(host))
            self._places = _cut(shards.own(name).numel() for name in self._layout.parameters)
            size = self._places[-1].stop
            self._state = {
                name: torch.zeros(size, dtype=self._layout.dtype, device=device) for name in self._optimizer.state_names
            }
            with shared_statistics(model, self):
                yield
            self._state = {}
            shards.close()

    def begin(self) -> None:
        """Begin a step: forget gradients."""
        self._shards.forget_gradients()
        if self.world_size > 1:
            self._buffers.note()

    @torch.no_grad()
    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Share rank 0's buffers where the step has changed them; then make the step on this rank's parts."""
        if self.world_size > 1:
            for buffer in self._buffers.changed():
                self._broadcast(buffer)
        names, shards = list(self._layout.parameters), self._shards
        gradients = {name: shards.gradient(name) for name in names}
        undivided = [name for name in names if shards.is_on_all(name)]
        squares = sum(_squares(gradients[name]) for name in names if name not in undivided)
        numbers = [float(gradients[name]) for name in undivided]
        loss, samples, squares, *numbers = self.total(loss, count, squares, *numbers)
        squares += sum(number**2 for number in numbers)
        for name, number in zip(undivided, numbers, strict=True):
            gradients[name].fill_(number)
        if not (math.isfinite(loss) and math.isfinite(squares)):
            raise NotFinite
        scale = clip_factor(math.sqrt(squares), self._clip) if self._clip else 1.0
        for name, place in zip(names, self._places, strict=True):
            gradient = gradients[name].mul_(scale) if scale != 1.0 else gradients[name]
            state = {key: remembered[place] for key, remembered in self._state.items()}
            if len(gradient):
                self._optimizer.update(shards.own(name).view(-1), gradient, state, rate, step + 1)
        # What a checkpoint must not hold.
        if not math.isfinite(self.total(sum(_squares(shards.own(name)) for name in names))[0]):
            raise NotFinite
        self._buffers.keep()
        return Totals(loss, samples)

    def weights(self, model: nn.Module) -> dict[str, Tensor]:
        """Return this rank's parts of the parameters, and the buffers."""
        del model
        return self._shards.tensors()

    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's memory of this rank's parts."""
        return self._state

    def takes_part(self, is_due: bool) -> bool:  # noqa: FBT001 - one word, one meaning
        """Return what rank 0 finds: all have to give their parts."""
        found = np.array([is_due], np.int64)
        self._host.broadcast(found)
        return bool(found[0])

    def joined(self, parts: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield the tensors that `parts` are parts of, on rank 0, one at a time; the others give theirs."""
        for key, part in parts.items():
            name = key.removeprefix(_MODEL)
            whole = self._shards.join(name, part) if name != key else self._join_flat(part)
            if self.rank == 0:
                yield key, whole

    def fill(self, parts: Mapping[str, Tensor], wholes: Mapping[str, Tensor]) -> None:
        """Copy this rank's part of each of `wholes` to where it lies."""
        for key, part in parts.items():
            name = key.removeprefix(_MODEL)
            if name != key:
                part.copy_(self._shards.part_of(name, wholes[key]))
                continue
            for place, own in zip(self._layout.places, self._places, strict=True):
                whole = self._layout.view(wholes[key], place)
                part[own].copy_(self._shards.part_of(place.name, whole).reshape(-1))

    def resumed(self, step: int, epoch: int, batch: int) -> None:
        """Wait until all have loaded their parts."""
        del step, epoch, batch
        self._host.meet()

    def recover(self, state: Callable[[], bytes], adopt: Callable[[bytes], None]) -> bool:
        """Return False: nobody has the part of a lost rank."""
        del state, adopt
        return False

    def first_not_finite(self) -> str:
        """Return the parameter in which NaN or infinity is first seen on any rank, or an empty text."""
        names = list(self._layout.parameters)
        found = [self._shards.own(name) for name in names] + [self._shards.gradient(name) for name in names]
        flags = self.total(*(float(not bool(tensor.isfinite().all())) for tensor in found))
        return next((name for name, flag in zip(names * 2, flags, strict=True) if flag), "")

    def _join_flat(self, part: Tensor) -> Tensor:
        """Return optimizer state as other strategies keep it; it is whole on rank 0 only."""
        layout = self._layout
        flat = torch.zeros(layout.size if self.rank == 0 else 0, dtype=part.dtype)
        for place, own in zip(layout.places, self._places, strict=True):
            whole = self._shards.join(place.name, part[own])
            if self.rank == 0:
                layout.view(flat, place).copy_(whole)
        return flat


def _cut(sizes: Iterator[int]) -> list[slice]:
    """Return where pieces of these sizes lie one after the other."""
    found, start = [], 0
    for size in sizes:
        found.append(slice(start, start + size))
        start += size
    return found


def _squares(tensor: Tensor) -> float:
    """Return the sum of squares; it is finite when all values are."""
    flat = tensor.reshape(-1)
    found = float(torch.dot(flat, flat))
    # Squares of finite numbers may overflow where the numbers themselves are kept.
    return found if math.isfinite(found) else float(flat.double().square().sum())
