"""Local SGD: each rank trains alone for some steps, then all combine what they have changed.

What a rank has changed in a round is its *delta*: where it began minus where it is. The mean of all deltas is a
gradient for the *outer* step, which moves the parameters that all ranks have in common. With rate 1 and no momentum
that is plain averaging of the parameters (McMahan et al. 2017, "Communication-efficient learning of deep networks from
decentralized data"; Stich 2019, "Local SGD converges fast and communicates little"); with Nesterov's momentum it is
DiLoCo (Douillard et al. 2023, "DiLoCo: distributed low-communication training of language models").
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

from argosy.core.errors import InvalidInput
from argosy.train.network.links import Link, all_reduce_s
from argosy.train.network.reductions import Reduction, State
from argosy.train.network.transport import Pending

Flat = NDArray[Any]
"""A flat, contiguous array of float32 or float64."""
Overlap = Literal["none", "delayed", "eager"]


class OuterStep(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The outer optimizer's settings. The defaults are DiLoCo's, from its section 3.1 and figure 6."""

    rate: float = 0.7
    momentum: float = 0.9

    def __post_init__(self) -> None:
        """Refuse what diverges."""
        if not self.rate > 0 or not 0 <= self.momentum < 1:
            raise InvalidInput(
                f"an outer step of rate {self.rate:g} with momentum {self.momentum:g} makes no sense",
                hint="give a rate above 0 and a momentum from 0 up to, not including, 1",
                code="bad_outer_step",
            )


AVERAGING = OuterStep(rate=1.0, momentum=0.0)
"""Replaces the parameters of all by their mean."""
DILOCO = OuterStep()


class _Moved:
    """Numbers moved by outer steps, with the momentum."""

    def __init__(self, numbers: Flat, step: OuterStep) -> None:
        self.numbers = numbers
        self.momentum = np.zeros_like(numbers)
        self._step = step

    def move(self, gradient: Flat) -> None:
        """Step against `gradient`, which is spoilt: Nesterov's momentum as in Sutskever et al. 2013, section 2."""
        rate, momentum = self._step.rate, self._step.momentum
        if momentum:
            np.multiply(self.momentum, momentum, out=self.momentum)
            np.add(self.momentum, gradient, out=self.momentum)
            gradient += momentum * self.momentum
        if rate != 1.0:
            gradient *= rate
        self.numbers -= gradient


class LocalRounds:
    """One rank's part in local SGD. Call `step_done` after every inner step; it says when a round ends.

    `overlap` says when ranks use each other's deltas of a round:

    - `none`: at its end, for which all wait.
    - `delayed`: `delay` steps into the next round; meanwhile training goes on, and what it changes is kept on top.
      The exchange runs behind the computation. Sources: Douillard et al. 2025, "Streaming DiLoCo with overlapping
      communication", section 2.3, for the overlap; Zhou et al. 2020, "DaSGD: squeezing SGD parallelization performance
      in distributed training using delayed averaging", algorithm 1, for keeping all that was changed meanwhile.
    - `eager`: at the end of the next round; a rank's own delta counts at once. Source: Kale, Douillard, Donchev 2025,
      "Eager updates for overlapped communication and computation in DiLoCo", section 3.2.

    All ranks hold the same common parameters, bit for bit; each trains on its own copy.
    """

    def __init__(
        self,
        parameters: Flat,
        reduction: Reduction,
        *,
        world_size: int,
        interval: int,
        step: OuterStep = DILOCO,
        overlap: Overlap = "none",
        delay: int = 0,
    ) -> None:
        """`parameters`, the same on all ranks, are copied. `interval`: inner steps in a round.

        `delay`: for `delayed`, the steps after a round until its deltas are used, up to `interval` (0: that many).
        """
        if interval < 1 or not 0 <= delay <= interval:
            raise InvalidInput(
                f"rounds of {interval} steps, used {delay} steps later, make no sense",
                hint="give an interval of 1 or more, and a delay up to the interval",
                code="bad_interval",
            )
        self.interval = interval
        self._reduction = reduction
        self._world_size = world_size
        self._overlap = overlap
        self._delay = (delay or interval) if overlap == "delayed" else interval
        self._common = _Moved(parameters.copy(), step)
        self._done = 0  # inner steps of this round
        self._pending: Pending | None = None
        self._deltas = np.empty_like(parameters)  # this rank's on the way out, the sum of all on the way back
        self._has_deltas = False
        self._sent = np.empty_like(parameters) if overlap == "delayed" else None
        self._own = _Own(parameters, step) if overlap == "eager" else None

    @property
    def common(self) -> Flat:
        """The parameters that all ranks have in common, as of the last outer step: what should be evaluated or kept."""
        return self._common.numbers

    def step_done(self, parameters: Flat) -> bool:
        """Note an inner step that gave `parameters`; change them, in place, when a round ends or deltas are due.

        Returns whether a round ended.
        """
        self._done += 1
        is_end = self._done >= self.interval
        if self._overlap == "delayed" and self._has_deltas and self._done >= self._delay:
            self._use_late(parameters)
        if is_end:
            self._done = 0
            self._end_round(parameters)
        return is_end

    def settle(self, parameters: Flat) -> None:
        """End the round here and now and wait for everything: then all ranks hold the common parameters.

        For the end of the training, or when ranks must agree at once. All ranks call it after the same step.
        """
        if self._has_deltas and self._overlap == "delayed":
            self._use_late(parameters)
        elif self._has_deltas:
            self._move_common()
        begun = self._own.begun if self._own else self.common
        np.subtract(begun, parameters, out=self._deltas)
        self._reduction.sum(self._deltas)
        self._move_common()
        if self._own:
            self._own.forget(self.common)
        self._done = 0
        parameters[...] = self.common

    def state(self) -> State:
        """Return copies of everything the next calls depend on, for this rank. Waits for what is under way."""
        self._await()
        found: State = {
            "common": self.common.copy(),
            "momentum": self._common.momentum.copy(),
            "steps": np.array([self._done, int(self._has_deltas)], np.int64),
        }
        if self._has_deltas:
            found["deltas"] = self._deltas.copy()
        if self._sent is not None and self._has_deltas:
            found["sent"] = self._sent.copy()
        if self._own:
            found |= self._own.state()
        return found | {f"reduction.{name}": value for name, value in self._reduction.state().items()}

    def load_state(self, state: Mapping[str, Flat]) -> None:
        """Go on from a `state` of the same rank and settings."""
        self._await()
        if state["common"].shape != self.common.shape:
            raise InvalidInput(
                f"the state has {state['common'].size} parameters, this model {self.common.size}", code="other_model"
            )
        self._common.numbers[...] = state["common"]
        self._common.momentum[...] = state["momentum"]
        self._done, has_deltas = (int(number) for number in state["steps"])
        self._has_deltas = bool(has_deltas)
        if self._has_deltas:
            self._deltas[...] = state["deltas"]
        if self._sent is not None and "sent" in state:
            self._sent[...] = state["sent"]
        if self._own:
            self._own.load_state(state)
        prefix = "reduction."
        self._reduction.load_state({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def begin(self, parameters: Flat) -> None:
        """Begin anew, with nothing remembered, at `parameters`, the same on all ranks."""
        self._await()
        self._common.numbers[...] = parameters
        self._common.momentum[...] = 0.0
        self._done, self._has_deltas = 0, False
        if self._own:
            self._own.forget(self.common)

    def _end_round(self, parameters: Flat) -> None:
        if self._overlap == "eager":
            self._end_eagerly(parameters)
            return
        np.subtract(self.common, parameters, out=self._deltas)
        if self._overlap == "delayed":
            assert self._sent is not None
            self._sent[...] = parameters
            self._send()
            return
        self._reduction.sum(self._deltas)
        self._move_common()
        parameters[...] = self.common

    def _end_eagerly(self, parameters: Flat) -> None:
        own = self._own
        assert own is not None
        if self._has_deltas:
            self._await()
            self._move_common()
        np.subtract(own.begun, parameters, out=self._deltas)
        own.move(self._deltas, self._world_size)
        self._send()
        np.add(self.common, own.offset, out=parameters)
        own.begun[...] = parameters

    def _send(self) -> None:
        self._has_deltas = True
        self._pending = self._reduction.start(self._deltas)

    def _use_late(self, parameters: Flat) -> None:
        """Move the common parameters by the deltas of the round before; put on top what has changed since."""
        assert self._sent is not None
        self._await()
        parameters -= self._sent
        self._move_common()
        parameters += self.common

    def _await(self) -> None:
        if self._pending is not None:
            self._pending.wait()
            self._pending = None

    def _move_common(self) -> None:
        self._await()
        self._deltas /= self._world_size
        self._common.move(self._deltas)
        self._has_deltas = False


class _Own:
    """What a rank is ahead of the common parameters in eager rounds, because it has used its own deltas already.

    The outer step is linear in its gradients. So parameters that are moved by the late mean of all deltas, plus one
    n-th of the newest own delta, minus one n-th of the one before (equation 2 of "Eager updates"), are the sum of
    common parameters, moved by the first, and an own offset, moved by the rest. The common ones stay equal everywhere.
    """

    def __init__(self, parameters: Flat, step: OuterStep) -> None:
        self.begun = parameters.copy()
        self._ahead = _Moved(np.zeros_like(parameters), step)
        self._former = np.zeros_like(parameters)

    @property
    def offset(self) -> Flat:
        """What to add to the common parameters."""
        return self._ahead.numbers

    def move(self, deltas: Flat, world_size: int) -> None:
        """Count this rank's new deltas, and no longer those before: they are in the common parameters now."""
        change = deltas - self._former
        change /= world_size
        self._ahead.move(change)
        self._former[...] = deltas

    def forget(self, common: Flat) -> None:
        """Begin anew at the common parameters."""
        self.begun[...] = common
        for numbers in (self._ahead.numbers, self._ahead.momentum, self._former):
            numbers[...] = 0.0

    def state(self) -> State:
        """Return copies by name."""
        return {name: numbers.copy() for name, numbers in self._by_name().items()}

    def load_state(self, state: Mapping[str, Flat]) -> None:
        """Take everything from a `state`."""
        for name, numbers in self._by_name().items():
            numbers[...] = state[name]

    def _by_name(self) -> dict[str, Flat]:
        return {
            "own.begun": self.begun,
            "own.offset": self._ahead.numbers,
            "own.momentum": self._ahead.momentum,
            "own.former": self._former,
        }


def choose_interval(
    step_s: float, wire_bytes: float, link: Link, *, world_size: int = 2, share: float = 0.05, most: int = 1000
) -> int:
    """Return the fewest inner steps per round for which exchanging takes at most `share` of the time of computing.

    `step_s`: of one inner step. `wire_bytes`: of one array of deltas as it is on the wire. At most `most`: with rare
    exchanges ranks drift apart, and DiLoCo lost accuracy from 1000 steps on (its figure 5).
    """
    if not step_s > 0 or not 0 < share <= 1:
        raise InvalidInput(f"steps of {step_s:g} s and a share of {share:g} make no sense", code="bad_interval")
    steps = all_reduce_s(link, wire_bytes, world_size) / (share * step_s)
    return max(1, min(most, math.ceil(steps)))


def choose_delay(step_s: float, wire_bytes: float, link: Link, *, world_size: int = 2, slack: float = 1.5) -> int:
    """Return after how many inner steps deltas that are exchanged meanwhile have come, with some time to spare.

    The sooner they are used the better: the test of convergence shows what a delay costs.
    """
    return max(1, math.ceil(slack * all_reduce_s(link, wire_bytes, world_size) / step_s))
