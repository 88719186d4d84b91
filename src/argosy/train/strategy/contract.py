"""What the loop asks of a strategy."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from argosy.core.plugins import Plugins
from argosy.train.transport import Transport

if TYPE_CHECKING:
    from torch import Tensor, nn


class Strategy(Protocol):
    """What ranks do together in each step. The loop doesn't know which strategy it runs.

    Every strategy passes tests/conformance/test_strategies.py. All ranks call the same methods in the same order.
    In a step: `begin`, forward, backward, `reduce`, the optimizer, `updated`. A parameter server or local SGD has
    its exchange in `updated` where data parallel has it in `reduce`.
    """

    rank: int
    world_size: int

    def attached(self, model: "nn.Module") -> AbstractContextManager[None]:
        """Make `model` fit for this strategy while open; all ranks begin with the state of rank 0."""
        ...

    def begin(self, samples: int) -> None:
        """Say how many samples this rank has in the step that begins; 0 when it runs one for form's sake."""
        ...

    def reduce(self, gradients: "Tensor") -> None:
        """Make `gradients`, sums over this rank's samples, sums over the samples of all ranks, in place."""
        ...

    def updated(self, model: "nn.Module") -> None:
        """Do what the strategy does after the optimizer has changed the parameters."""
        ...

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        ...


STRATEGIES: Plugins[type[Strategy]] = Plugins(
    "argosy.strategies",
    {
        "single": "argosy.train.strategy.single:Single",
        "data-parallel": "argosy.train.strategy.data_parallel:DataParallel",
    },
    extras={"single": "train", "data-parallel": "train"},
)


def open_strategy(name: str, transport: Transport) -> Strategy:
    """Return the strategy called `name` over `transport`; NotFound lists the known names."""
    made: Strategy = STRATEGIES.load(name)(transport)  # type: ignore[call-arg]
    return made
