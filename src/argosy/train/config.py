"""The sections `[model]` and `[train]`. Imports nothing heavy: every command reads these."""

import math
import re
from typing import Any

from msgspec import field

from argosy.core.config import Config
from argosy.core.errors import InvalidInput

FAMILY_NAMES = ("gpt", "graph", "lstm", "mlp", "resnet", "transformer")
OPTIMIZER_NAMES = ("adagrad", "adam", "adamw", "gd", "momentum", "rmsprop", "sgd")
SCHEDULE_NAMES = ("constant", "cosine", "linear")
LOSS_NAMES = ("auto", "bce", "cross-entropy", "mse")
STRATEGY_NAMES = ("auto", "data-parallel", "single")
DTYPE_NAMES = ("float32", "float64")

_BUILD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class ModelConfig(Config, frozen=True):
    """Which model is built: a function of the user's (`build`) or a built-in family."""

    build: str = ""
    """`module:function` of a file beside `argosy.toml`; the function returns a `torch.nn.Module`."""
    family: str = ""
    """`mlp`, `resnet` (images), `lstm` and `transformer` (sequences, tokens), `graph`, or `gpt` (language models).
    Empty: what fits: `gpt` for a language model, `transformer` for texts, `resnet` for images, `graph` for two arrays,
    else `mlp`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the function, or the family's own fields, such as `width`."""

    def check(self) -> None:
        """Raise InvalidInput for what can't be built, before anything is started."""
        if self.build and self.family:
            raise InvalidInput(
                f"[model] has both build = {self.build!r} and family = {self.family!r}", hint="remove one of them"
            )
        if self.build and not _BUILD.fullmatch(self.build):
            raise InvalidInput(
                f"[model] build = {self.build!r} is not of the form 'module:function'",
                hint="for a function 'build' in model.py beside argosy.toml write: build = \"model:build\"",
            )
        if self.family:
            _one_of("[model] family", self.family, FAMILY_NAMES)


class TrainConfig(Config, frozen=True):
    """How the model is trained."""

    strategy: str = "auto"
    """`data-parallel`, `single`, or `auto`: data-parallel when there is more than one worker."""
    workers: int = 1
    """Processes that train together. Their result is that of one process on the whole batch."""
    epochs: int = 0
    """Passes over the training part; 0: ten, and more where few samples make few steps."""
    batch_size: int = 64
    """Samples per step over all workers together. `gd` uses the whole training part instead."""
    optimizer: str = "adamw"
    """`gd` (the whole training part in each step), `sgd`, `momentum`, `adagrad`, `rmsprop`, `adam`, `adamw`."""
    learning_rate: float = 1e-3
    """The highest rate of the schedule."""
    momentum: float = 0.9
    """Of `momentum`, from 0 to below 1."""
    weight_decay: float = 0.0
    """L2: added to the gradient as `weight_decay * weight`; with `adamw` it shrinks the weights directly."""
    l1: float = 0.0
    """L1: added to the gradient as `l1 * sign(weight)`."""
    schedule: str = "constant"
    """`constant`, or down to 0 at the last step as a half `cosine` or `linear`."""
    warmup: float = 0.0
    """Share of all steps in which the rate rises linearly from 0, from 0 to below 1."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    loss: str = "auto"
    """`cross-entropy`, `mse` or `bce`; `auto` is cross-entropy for classes and mse for numbers."""
    patience: int = 0
    """Stop after so many epochs without a better validation metric and keep the best epoch's weights; 0: never."""
    seed: int = 0
    """Of the first weights, the order of samples and all randomness in the model."""
    checkpoint_s: float = 10.0
    """Seconds between two checkpoints; the end of the training always writes what it needs."""
    dtype: str = "float32"
    """`float32`, or `float64` for comparisons to the last digit."""

    def check(self) -> None:
        """Raise InvalidInput for what can't be trained, before anything is started."""
        _one_of("[train] strategy", self.strategy, STRATEGY_NAMES)
        _one_of("[train] optimizer", self.optimizer, OPTIMIZER_NAMES)
        _one_of("[train] schedule", self.schedule, SCHEDULE_NAMES)
        _one_of("[train] loss", self.loss, LOSS_NAMES)
        _one_of("[train] dtype", self.dtype, DTYPE_NAMES)
        _require("epochs", self.epochs, self.epochs >= 0, "0 (chosen by the number of samples) or more")
        for name in ("workers", "batch_size"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate <= 1e3, "above 0 and at most 1000")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        _require("warmup", self.warmup, 0 <= self.warmup < 1, "a share of all steps, from 0 to below 1")
        for name in ("weight_decay", "l1", "clip"):
            value = getattr(self, name)
            _require(name, value, value >= 0 and math.isfinite(value), "0 or more")
        _require("patience", self.patience, self.patience >= 0, "0 (never stop early) or more")
        _require("seed", self.seed, 0 <= self.seed < 2**63, "0 or more and below 2**63")
        _require("checkpoint_s", self.checkpoint_s, self.checkpoint_s > 0, "seconds, more than 0")
        if self.strategy == "single" and self.workers > 1:
            raise InvalidInput(
                f"[train] strategy 'single' is one process, but workers = {self.workers}",
                hint='set workers = 1 or strategy = "data-parallel"',
            )
        if self.optimizer != "gd" and self.workers > self.batch_size:
            raise InvalidInput(
                f"[train] batch_size = {self.batch_size} has too few samples for {self.workers} workers",
                hint="batch_size counts the samples of all workers together; raise it or use fewer workers",
            )

    @property
    def strategy_name(self) -> str:
        """The strategy that `auto` stands for, or the one that was named."""
        if self.strategy != "auto":
            return self.strategy
        return "data-parallel" if self.workers > 1 else "single"


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{what} = {value!r} is not known; known are: {', '.join(known)}", known=list(known))


def _require(name: str, value: float, holds: bool, expected: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise InvalidInput(f"[train] {name} = {value:g} is impossible; it must be {expected}", field=name)
