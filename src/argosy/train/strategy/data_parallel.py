"""Every rank has a part of each batch; gradients are summed, so all ranks make the step of the whole batch."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from argosy.train.batchnorm import shared_statistics
from argosy.train.transport import Numbers, Transport


class DataParallel:
    """Synchronous data parallelism over any transport.

    Equal to one process on the whole batch up to the order of additions, also with batch norm, an uneven last batch,
    and ranks with different numbers of samples or none. Dropout draws differ from one process's.
    """

    def __init__(self, transport: Transport) -> None:
        self.transport: Transport | None = transport
        self.is_padding = False
        self.rank = transport.rank
        self.world_size = transport.world_size
        self._transport = transport
        self._buffers: dict[str, tuple[Tensor, int]] = {}

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Give all ranks the state of rank 0 and let batch norm see the samples of all ranks."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self._broadcast(tensor.detach())
        self._buffers = self._own_buffers(model)
        with shared_statistics(model, self):
            yield

    def begin(self, samples: int) -> None:
        """Note whether this rank only runs along."""
        self.is_padding = samples == 0

    def reduce(self, gradients: Tensor) -> None:
        """Sum over all ranks, in place."""
        self._transport.all_reduce(gradients.numpy())

    def updated(self, model: nn.Module) -> None:
        """Give all ranks rank 0's value of those buffers that the step has changed.

        Batch norm's are equal already. Without this, ranks would drift apart, and a checkpoint, which rank 0 writes,
        would not say what the others hold.
        """
        now = self._own_buffers(model)
        for name, (buffer, version) in now.items():
            before = self._buffers.get(name)
            if before is None or before[0] is not buffer or before[1] != version:
                self._broadcast(buffer)
        self._buffers = self._own_buffers(model)

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        numbers = np.array(values, dtype=np.float64)
        self._transport.all_reduce(numbers)
        return [float(number) for number in numbers]

    def _own_buffers(self, model: nn.Module) -> dict[str, tuple[Tensor, int]]:
        """Return the buffers that are not batch norm's, with the counter that torch raises at every change."""
        shared = {id(b) for m in model.modules() if isinstance(m, _BatchNorm) for b in m.buffers(recurse=False)}
        # `_version` is what torch's own checks of in-place changes go by; there is no public name for it.
        return {name: (b, b._version) for name, b in model.named_buffers() if id(b) not in shared}  # noqa: SLF001

    def _broadcast(self, tensor: Tensor) -> None:
        wide = torch.float64 if tensor.is_floating_point() else torch.int64
        copy = tensor.detach().to(tensor.dtype if tensor.dtype in _EXCHANGED else wide, copy=True).contiguous()
        values: Numbers = copy.numpy()
        self._transport.broadcast(values)
        if self.rank != 0:
            tensor.copy_(copy)


_EXCHANGED = (torch.float32, torch.float64, torch.int64)
