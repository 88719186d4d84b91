"""One process has the whole batch."""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn

from argosy.train.batchnorm import shared_statistics
from argosy.train.transport import Transport


class Single:
    """The strategy of a training by one process; it exchanges nothing."""

    rank = 0
    world_size = 1

    def __init__(self, transport: Transport | None = None) -> None:
        del transport
        self.transport: Transport | None = None
        self.is_padding = False

    @contextlib.contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Let batch norm accept a last batch of one sample."""
        with shared_statistics(model, self):
            yield

    def begin(self, samples: int) -> None:
        """Do nothing."""

    def reduce(self, gradients: Tensor) -> None:
        """Do nothing: the gradients are those of the whole batch."""

    def updated(self, model: nn.Module) -> None:
        """Do nothing."""

    def total(self, *values: float) -> list[float]:
        """Return the values."""
        return [float(value) for value in values]
