"""Optimizers over one flat tensor, and schedules as functions of the step.

Not torch.optim: its first use imports the compiler, 1.4 CPU seconds in every rank (measured with torch 2.13), more
than a small training takes. Tests hold each rule against torch.optim to 1e-12.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from argosy.train.config import TrainConfig

State = dict[str, Tensor]
"""What an optimizer remembers, by name; each is as long as the parameters."""


class Step(NamedTuple):
    """What a rule works on: it changes `values` and `state` in place."""

    values: Tensor
    gradient: Tensor
    state: State
    rate: float
    number: int
    """From 1."""
    momentum: float


class Optimizer:
    """Applies one rule to flat parameters. `state` belongs into a checkpoint."""

    def __init__(self, config: TrainConfig, values: Tensor) -> None:
        self._config = config
        self._values = values
        names, self._rule = RULES[config.optimizer]
        self.state: State = {name: torch.zeros_like(values) for name in names}

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float, number: int) -> None:
        """Change the parameters by one step. Regularization and clipping change `gradient` in place."""
        config, values = self._config, self._values
        if config.clip:
            clip(gradient, config.clip)
        if config.l1:
            gradient.add_(values.sign(), alpha=config.l1)
        if config.weight_decay:
            if config.optimizer == "adamw":
                values.mul_(1 - rate * config.weight_decay)
            else:
                gradient.add_(values, alpha=config.weight_decay)
        self._rule(Step(values, gradient, self.state, rate, number, config.momentum))


def clip(gradient: Tensor, largest: float) -> float:
    """Scale `gradient`, in place, to a norm of at most `largest`; return the norm it had. Pascanu et al. 2013."""
    norm = float(torch.linalg.vector_norm(gradient))
    if norm > largest:
        gradient.mul_(largest / norm)
    return norm


def rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `steps`."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    passed = (step - warm) / max(1, steps - warm)
    if config.schedule == "cosine":  # Loshchilov and Hutter 2017, equation 5
        return config.learning_rate * (1 + math.cos(math.pi * passed)) / 2
    return config.learning_rate * (1 - passed if config.schedule == "linear" else 1)


def _descend(step: Step) -> None:
    step.values.sub_(step.gradient, alpha=step.rate)


def _momentum(step: Step) -> None:
    # Polyak 1964, in the form of Sutskever et al. 2013.
    velocity = step.state["velocity"].mul_(step.momentum).add_(step.gradient)
    step.values.sub_(velocity, alpha=step.rate)


def _adagrad(step: Step) -> None:
    # Duchi et al. 2011.
    squares = step.state["squares"].addcmul_(step.gradient, step.gradient)
    step.values.addcdiv_(step.gradient, squares.sqrt().add_(1e-10), value=-step.rate)


def _rmsprop(step: Step) -> None:
    # Tieleman and Hinton 2012, lecture 6.5; decay 0.99 as in torch.
    squares = step.state["squares"].mul_(0.99).addcmul_(step.gradient, step.gradient, value=0.01)
    step.values.addcdiv_(step.gradient, squares.sqrt().add_(1e-8), value=-step.rate)


def _adam(step: Step) -> None:
    # Kingma and Ba 2015, algorithm 1; AdamW's decay (Loshchilov and Hutter 2019) is done before.
    mean = step.state["mean"].lerp_(step.gradient, 1 - 0.9)
    squares = step.state["squares"].mul_(0.999).addcmul_(step.gradient, step.gradient, value=1 - 0.999)
    spread = squares.sqrt().div_(math.sqrt(1 - 0.999**step.number)).add_(1e-8)
    step.values.addcdiv_(mean, spread, value=-step.rate / (1 - 0.9**step.number))


Rule = Callable[[Step], None]

RULES: dict[str, tuple[tuple[str, ...], Rule]] = {
    "gd": ((), _descend),
    "sgd": ((), _descend),
    "momentum": (("velocity",), _momentum),
    "adagrad": (("squares",), _adagrad),
    "rmsprop": (("squares",), _rmsprop),
    "adam": (("mean", "squares"), _adam),
    "adamw": (("mean", "squares"), _adam),
}
