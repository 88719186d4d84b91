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
        self._own_buffers: list[tuple[nn.Module, str]] = []
        self._seen: list[tuple[Tensor, int]] = []

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Give all ranks the state of rank 0 and let batch norm see the samples of all ranks."""
        for tensor in [*model.parameters(), *model.buffers()]:
            self._broadcast(tensor.detach())
        self._own_buffers = [
            (module, name)
            for module in model.modules()
            if not isinstance(module, _BatchNorm)
            for name, _ in module.named_buffers(recurse=False)
        ]
        self._seen = self._look()
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
        del model
        for (buffer, version), (before, version_before) in zip(self._look(), self._seen, strict=True):
            if buffer is not before or version != version_before:
                self._broadcast(buffer)
        self._seen = self._look()

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        numbers = np.array(values, dtype=np.float64)
        self._transport.all_reduce(numbers)
        return [float(number) for number in numbers]

    def _look(self) -> list[tuple[Tensor, int]]:
        """Return the buffers that are not batch norm's, with the counter that torch raises at every change."""
        found = [module.get_buffer(name) for module, name in self._own_buffers]
        # torch's own checks of in-place changes go by `_version`; there is no public name for it.
        return [(buffer, buffer._version) for buffer in found]  # noqa: SLF001

    def _broadcast(self, tensor: Tensor) -> None:
        wide = torch.float64 if tensor.is_floating_point() else torch.int64
        copy = tensor.detach().to(tensor.dtype if tensor.dtype in _EXCHANGED else wide, copy=True).contiguous()
        values: Numbers = copy.numpy()
        self._transport.broadcast(values)
        if self.rank != 0:
            tensor.copy_(copy)


_EXCHANGED = (torch.float32, torch.float64, torch.int64)
