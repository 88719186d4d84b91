"""What the loop asks of a strategy."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from argosy.core.plugins import Plugins
from argosy.train.config import TrainConfig
from argosy.train.network.hierarchy import HierarchicalTransport
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

    is_writer: bool
    """Whether this rank writes the checkpoints of its host."""

    partners: range
    """The ranks that make every step together with this one: gradients are divided by the samples of all of them."""

    def attached(self, model: "nn.Module", config: TrainConfig) -> AbstractContextManager[None]:
        """Take over the parameters of `model` while open; all ranks begin with the state of rank 0."""
        ...

    def next_work(self, epoch: int, done: int, batches: int) -> tuple[int, int] | None:
        """Return the next batch of the epoch, after `done` of `batches`, and which share of it is this rank's.

        None when there is nothing left for it.
        """
        ...

    def batches_done(self, number: int) -> int:
        """Return how many batches of the epoch are done for good, after this rank's step of batch `number`."""
        ...

    def end_epoch(self, loss: float, count: float) -> Totals:
        """Let all ranks have the same parameters; return the sums of an epoch over all, of what `finish` gave to each.

        May be called again after a loss.
        """
        ...

    def begin(self) -> None:
        """Begin a step."""
        ...

    def begin_pass(self, samples: int) -> None:
        """Begin a forward pass with so many samples on this rank; 0 when it runs one for form's sake."""
        ...

    def finish(self, step: int, loss: float, count: int, rate: float) -> Totals:
        """Make step `step` (from 0) of the sum of all ranks' gradients, at learning rate `rate`.

        Every rank has divided its own by the number of samples of all, or of itself where ranks don't make steps
        together. `loss` and `count` are sums over this rank's samples, the answer those over all who made the step.
        Raises NotFinite on all of them; Unavailable (`rank_lost`) only when the step has changed nothing, so that it
        can be made again.
        """
        ...

    def total(self, *values: float) -> list[float]:
        """Return the sum of each value over all ranks."""
        ...

    def weights(self, model: "nn.Module") -> "dict[str, Tensor]":
        """Return this rank's part of the attached model's `state_dict`: the memory itself."""
        ...

    def state(self) -> "dict[str, Tensor]":
        """Return this rank's part of what the optimizer remembers, by name: the memory itself."""
        ...

    def checkpoint(self, steps: Sequence[int], read: Callable[[int], bytes]) -> tuple[int, bytes | None]:
        """Return the step of the checkpoint that all go on from, -1 for none; all ranks call it.

        `steps` are those that this rank's host has, newest first. Bytes are given to hosts that haven't got it: those
        that `read` gives on one that has.
        """
        ...

    def takes_part(self, is_due: bool) -> bool:  # noqa: FBT001 - one word, one meaning
        """Return whether this rank has to do something for a checkpoint; rank 0 says whether one is due.

        All ranks call it between two steps.
        """
        ...

    def joined(self, parts: "Mapping[str, Tensor]") -> "Iterator[tuple[str, Tensor]]":
        """Yield the whole tensors of which ranks have `parts`, one at a time, on rank 0; others only take part.

        Names are those of `weights` and `state` with `model.` and `optimizer.` before them. What comes out is the same
        with any strategy and any number of ranks. With several hosts each has a rank 0 that writes what its host has.
        """
        ...

    def fill(self, parts: "Mapping[str, Tensor]", wholes: "Mapping[str, Tensor]") -> None:
        """Copy into `parts`, named as for `joined`, what this rank has of `wholes`."""
        ...

    def resumed(self, step: int, epoch: int, batch: int) -> None:
        """Say that parameters and state have been loaded: those after `step` steps, `batch` batches of `epoch`."""
        ...

    def quiet(self) -> AbstractContextManager[None]:
        """While it is open, parameters and state belong together, whatever other ranks do: for a checkpoint."""
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
        "parameter-server": "argosy.train.strategy.parameter_server:ParameterServer",
        "sharded": "argosy.train.strategy.sharded:Sharded",
        "local-sgd": "argosy.train.strategy.local_sgd:LocalSgd",
    },
    extras=dict.fromkeys(("single", "data-parallel", "parameter-server", "sharded", "local-sgd"), "train"),
)


def open_strategy(name: str, host: Host, between: HierarchicalTransport | None = None) -> Strategy:
    """Return the strategy called `name` over the ranks of `host`, and those of other hosts if there are any.

    NotFound lists the known names.
    """
    made: Strategy = STRATEGIES.load(name)(host, between)  # type: ignore[call-arg]
    return made
