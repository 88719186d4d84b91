"""The learning rate of each step: pure functions, so that nothing of a schedule stands in a checkpoint."""

import math
from collections.abc import Callable

from argosy.train.config import TrainConfig

_RISE = 0.3
_FIRST, _LAST = 25.0, 1e4
"""Of `one-cycle`: the share of steps in which the rate rises, and by how much the first and the last rate are smaller
than the highest and the first. Smith and Topin 2018 leave them open; these are what torch and fastai use."""


def rate_at(config: TrainConfig, step: int, steps: int) -> float:
    """Return the learning rate of `step` (from 0) of `steps`.

    `warmup` is the share of steps in which the rate rises linearly first; the schedule then takes the rest. With
    `one-cycle`, which rises by itself, it is the share in which that happens.
    """
    if config.schedule == "one-cycle":
        return config.learning_rate * _one_cycle(step, steps, config.warmup or _RISE)
    warm = round(config.warmup * steps)
    if step < warm:
        return config.learning_rate * (step + 1) / warm
    return config.learning_rate * _SHARES[config.schedule](config, (step - warm) / max(1, steps - warm))


def _constant(config: TrainConfig, passed: float) -> float:
    del config, passed
    return 1.0


def _cosine(config: TrainConfig, passed: float) -> float:
    # Loshchilov and Hutter 2017, equation 5, without restarts.
    del config
    return (1 + math.cos(math.pi * passed)) / 2


def _linear(config: TrainConfig, passed: float) -> float:
    del config
    return 1 - passed


def _steps(config: TrainConfig, passed: float) -> float:
    # Drops make one part more of equal length. A share that is a part's border but for rounding counts as it.
    return float(config.decay ** min(config.drops, math.floor(passed * (config.drops + 1) + 1e-9)))


def _exponential(config: TrainConfig, passed: float) -> float:
    return float(config.decay**passed)


_SHARES: dict[str, Callable[[TrainConfig, float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "exponential": _exponential,
    "linear": _linear,
    "step": _steps,
}
"""What is left of the highest rate when a share, from 0 to 1, of the steps after the warm-up has passed."""


def _one_cycle(step: int, steps: int, rise: float) -> float:
    """Smith and Topin 2018: up from a low rate to the highest and down to far below it, each as half a cosine."""
    # As torch counts: the highest rate stands at step `peak`, the lowest at the last one.
    peak, last = rise * steps - 1, steps - 1
    low, lowest = 1 / _FIRST, 1 / (_FIRST * _LAST)
    if step <= peak:
        return _half_cosine(low, 1.0, step / peak if peak > 0 else 1.0)
    return _half_cosine(1.0, lowest, (step - peak) / max(1e-9, last - peak))


def _half_cosine(start: float, end: float, passed: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(1.0, passed)))
