"""Optimizers over one flat tensor.

Not torch.optim: its first use imports the compiler, 1.4 CPU seconds in every rank (measured with torch 2.13), more
than a small training takes. Tests hold each rule against torch.optim to 1e-12.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from argosy.train.config import TrainConfig

State = dict[str, Tensor]
"""What an optimizer remembers, by name; each is as long as the parameters."""


class Optimizer:
    """One rule with its settings, applied to any range of the flat parameters. It holds no state itself."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.state_names, self._rule = RULES[config.optimizer]
        """What the rule remembers; each is as long as the parameters and begins with zeros."""

    @property
    def is_idle_at_zero(self) -> bool:
        """Whether an element whose gradient is 0 stays what it is, and what is remembered of it."""
        plain = self._config.optimizer in {"gd", "sgd", "adagrad"}
        return plain and not self._config.weight_decay and not self._config.l1

    @torch.no_grad()
    def update(self, values: Tensor, gradient: Tensor, state: State, rate: float, number: int) -> None:
        """Make step `number` (from 1) on a range, in place; `gradient` may be changed by regularization.

        Every element depends on its own alone, so ranges may be done in any order and by anyone, to the same bits.
        """
        if self._config.l1:
            gradient.add_(values.sign(), alpha=self._config.l1)
        self._rule(Step(values, gradient, list(state.values()), rate, number, self._config))


class Step(NamedTuple):
    """What a rule works on: it changes `values` and `state` in place."""

    values: Tensor
    gradient: Tensor
    state: list[Tensor]
    rate: float
    number: int
    """From 1."""
    config: TrainConfig


def clip_factor(norm: float, largest: float) -> float:
    """Return what a gradient of this norm is scaled by, so that its norm is at most `largest`. Pascanu et al. 2013."""
    return largest / norm if norm > largest else 1.0


# The fused forms read and write everything once; written as single operations, Adam takes five times as long. They are
# what torch.optim calls for `fused=True`, but have no public name of their own.


def _descend(step: Step) -> None:
    # With momentum: Polyak 1964, in the form of Sutskever et al. 2013.
    torch._fused_sgd_(
        [step.values],
        [step.gradient],
        step.state,
        weight_decay=step.config.weight_decay,
        momentum=step.config.momentum if step.state else 0.0,
        lr=step.rate,
        dampening=0.0,
        nesterov=False,
        maximize=False,
        is_first_step=False,
    )


def _adagrad(step: Step) -> None:
    # Duchi et al. 2011.
    torch._fused_adagrad_(
        [step.values],
        [step.gradient],
        step.state,
        [torch.tensor(float(step.number))],
        lr=step.rate,
        lr_decay=0.0,
        weight_decay=step.config.weight_decay,
        eps=1e-10,
        maximize=False,
    )


def _rmsprop(step: Step) -> None:
    # Tieleman and Hinton 2012, lecture 6.5; decay 0.99 as in torch.
    if step.config.weight_decay:
        step.gradient.add_(step.values, alpha=step.config.weight_decay)
    squares = step.state[0].mul_(0.99).addcmul_(step.gradient, step.gradient, value=0.01)
    step.values.addcdiv_(step.gradient, squares.sqrt().add_(1e-8), value=-step.rate)


def _adam(step: Step) -> None:
    # Kingma and Ba 2015, algorithm 1; with "adamw" the decay of Loshchilov and Hutter 2019, algorithm 2.
    fused = torch._fused_adamw_ if step.config.optimizer == "adamw" else torch._fused_adam_
    fused(
        [step.values],
        [step.gradient],
        step.state[:1],
        step.state[1:],
        [],
        [torch.tensor(float(step.number))],
        lr=step.rate,
        beta1=0.9,
        beta2=0.999,
        weight_decay=step.config.weight_decay,
        eps=1e-8,
        amsgrad=False,
        maximize=False,
    )


Rule = Callable[[Step], None]

RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "gd": ((), _descend),
    "sgd": ((), _descend),
    "momentum": (("velocity",), _descend),
    "adagrad": (("squares",), _adagrad),
    "rmsprop": (("squares",), _rmsprop),
    "adam": (("mean", "squares"), _adam),
    "adamw": (("mean", "squares"), _adam),
}
