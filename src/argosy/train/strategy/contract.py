"""What the loop asks of a strategy."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from argosy.core.plugins import Plugins
from argosy.train.config import TrainConfig
from argosy.train.totals import Totals
from argosy.train.transport import Host

if TYPE_CHECKING:
    from torch import Tensor, nn


class Strategy(Protocol):
    """What ranks do together in each step. The loop doesn't know which strategy it runs.

    Every strategy passes tests/conformance/test_strategies.py. All ranks call the same methods in the same order. In a
    step: `begin`, one or more times `begin_pass`, forward and backward, then `finish`, after which the parameters are
    those of the next step. The strategy owns parameters, gradients and optimizer: where they lie is what strategies
    differ in.
    """

    rank: int
    world_size: int
    is_fresh: bool
    """Whether this rank came in the place of a lost one: it has to `recover` before anything else."""

    def attached(self, model: "nn.Module", config: TrainConfig) -> AbstractContextManager[None]:
        """Take over the parameters of `model` while open; all ranks begin with the state of rank 0."""
        ...

    def begin(self) -> None:
        """Begin a step."""
        ...

    def begin_pass(self, samples: int) -> None:
        """Begin a forward pass with so many samples on this rank; 0 when it runs one for form's sake."""
        ...

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Make step `step` (from 0) of the sum of all ranks' gradients, at learning rate `rate`.

        Every rank has divided its own by the number of samples of all. `loss` and `count` are sums over this rank's
        samples, the answer those over all. Raises NotFinite on all ranks; Unavailable
        (`rank_lost`) only when the step has changed nothing, so that it can be made again.
        """
        ...

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        ...

    def state(self) -> "dict[str, Tensor]":
        """Return what the optimizer remembers, by name: the memory itself, to save from and load into."""
        ...

    def resumed(self, step: int) -> None:
        """Say that parameters and state have been loaded and are those after `step` steps."""
        ...

    def recover(self, state: Callable[[], bytes], adopt: Callable[[bytes], None]) -> bool:
        """After a loss, or as a fresh rank: wait until all ranks are there, and give new ones what `state` says.

        Returns False when the training can't go on without a checkpoint.
        """
        ...

    def first_not_finite(self) -> str:
        """Return the parameter in which NaN or infinity is first seen, or an empty text."""
        ...


STRATEGIES: Plugins[type[Strategy]] = Plugins(
    "argosy.strategies",
    {
        "single": "argosy.train.strategy.synchronous:Single",
        "data-parallel": "argosy.train.strategy.synchronous:DataParallel",
    },
    extras={"single": "train", "data-parallel": "train"},
)


def open_strategy(name: str, host: Host) -> Strategy:
    """Return the strategy called `name` over `host`; NotFound lists the known names."""
    made: Strategy = STRATEGIES.load(name)(host)  # type: ignore[call-arg]
    return made
