"""The sections `[model]` and `[train]`. Imports nothing heavy: every command reads these."""

import math
import re
from typing import Any

from msgspec import field

from argosy.core.config import Config
from argosy.core.errors import InvalidInput

FAMILY_NAMES = ("gpt", "graph", "lstm", "mlp", "resnet", "transformer")
OPTIMIZER_NAMES = ("adagrad", "adam", "adamw", "gd", "momentum", "rmsprop", "sgd")
SCHEDULE_NAMES = ("constant", "cosine", "exponential", "linear", "one-cycle", "step")
LOSS_NAMES = ("auto", "bce", "cross-entropy", "focal", "huber", "mae", "mse")
STRATEGY_NAMES = ("auto", "data-parallel", "local-sgd", "parameter-server", "sharded", "single")
REPLACING = ("data-parallel", "parameter-server")
"""Strategies that go on when a rank is lost, as soon as another process has come in its place."""
FEWER = ("data-parallel", "parameter-server", "sharded")
"""Strategies that any number of workers can go on with, from the same checkpoint."""
OUTER_NAMES = ("average", "diloco")
COMPRESSION_NAMES = ("auto", "none", "fp16", "int8", "powersgd")
AUTO = "auto"
INTERVAL = 8
"""Steps of a round of local SGD that was given none, on one host."""
DTYPE_NAMES = ("float32", "float64")
PRECISION_NAMES = ("float32", "bfloat16")

_BUILD = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


class LoraConfig(Config, frozen=True):
    """Low-rank adaptation (Hu et al. 2021): thin factors beside frozen weights are trained, and merged at the end."""

    rank: int = 8
    """Columns of the factors: more can learn more, and are more to train."""
    alpha: float = 16.0
    """The factors' product counts `alpha / rank` times; raise the learning rate instead of it."""
    targets: list[str] = field(default_factory=list)
    """Ends of the names of linear layers, such as `query`, or patterns such as `*.attention.*`. Empty: every linear
    layer beside the head, which is always trained itself."""

    def check(self) -> None:
        """Raise InvalidInput for what can't be adapted, before anything is started."""
        if self.rank < 1:
            raise InvalidInput(f"[model.lora] rank = {self.rank} must be 1 or more")
        if not 0 < self.alpha < math.inf:
            raise InvalidInput(f"[model.lora] alpha = {self.alpha:g} must be above 0", hint="twice the rank is usual")


class ModelConfig(Config, frozen=True):
    """Which model is built: a function of the user's (`build`), a built-in family, or a folder's (`init`)."""

    build: str = ""
    """`module:function` of a file beside `argosy.toml`; the function returns a `torch.nn.Module`."""
    family: str = ""
    """`mlp`, `resnet` (images), `lstm` and `transformer` (sequences, tokens), `graph`, or `gpt` (language models).
    Empty: what fits: `gpt` for a language model, `transformer` for texts, `resnet` for images, `graph` for two arrays,
    else `mlp`."""
    options: dict[str, Any] = field(default_factory=dict)
    """Passed to the function, or the family's own fields, such as `width`."""
    init: str = ""
    """Where training starts: a Hugging Face or sentence-transformers folder, which says itself what is built, or a
    `.safetensors` file of the built model's weights; relative to `argosy.toml`. Empty: random weights."""
    lora: LoraConfig | None = None
    """Train few parameters beside frozen ones instead of all of them."""

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
        if self.lora is not None:
            self.lora.check()


class LogConfig(Config, frozen=True):
    """Where else the numbers of a training go while it runs. Neither changes the training nor runs it again."""

    tensorboard: str = ""
    """Folder for TensorBoard's event files, relative to `argosy.toml`; each training has a folder of its own in it."""
    mlflow: str = ""
    """Address of an MLflow tracking server, such as `http://127.0.0.1:5000`."""
    experiment: str = ""
    """Name of the experiment there; empty: the project's."""

    def check(self) -> None:
        """Raise InvalidInput for an address that is none."""
        if self.mlflow and not re.fullmatch(r"https?://[^\s/@]+(/\S*)?", self.mlflow):
            raise InvalidInput(
                f"[train.log] mlflow = {self.mlflow!r} is not the address of a server",
                hint='write it as mlflow = "http://127.0.0.1:5000"',
            )


class LocalConfig(Config, frozen=True):
    """`[train.local]`: how ranks of `local-sgd`, or hosts if there are several, come together."""

    interval: int | str = AUTO
    """Steps that each makes alone before all combine what they have changed. `auto`: 8 on one host; over several,
    as many as keep the network from being waited for."""
    delay: int | str = AUTO
    """Steps into the next round after which what the others have learned is used. Meanwhile training goes on, and the
    exchange hides behind it. 0: at once, and all wait. `auto`: 0 on one host, over several what the exchange takes."""
    outer: str = "average"
    """`average` replaces the parameters by their mean; `diloco` takes a step with Nesterov's momentum towards it, which
    bears intervals of hundreds of steps."""

    def check(self) -> None:
        """Raise InvalidInput for what can't be done."""
        if self.interval != AUTO and not (isinstance(self.interval, int) and self.interval >= 1):
            raise InvalidInput(f'[train.local] interval = {self.interval!r} must be 1 or more steps, or "auto"')
        most = self.interval if isinstance(self.interval, int) else math.inf
        if self.delay != AUTO and not (isinstance(self.delay, int) and 0 <= self.delay <= most):
            raise InvalidInput(
                f'[train.local] delay = {self.delay!r} must be a number of steps up to the interval, or "auto"'
            )
        _one_of("[train.local] outer", self.outer, OUTER_NAMES)

    @property
    def steps(self) -> int:
        """The interval, on one host if it was left open."""
        return self.interval if isinstance(self.interval, int) else INTERVAL

    @property
    def late(self) -> int:
        """The delay, on one host if it was left open."""
        return self.delay if isinstance(self.delay, int) else 0


class TrainConfig(Config, frozen=True):
    """How the model is trained."""

    strategy: str = "auto"
    """`data-parallel`; `parameter-server`; `sharded`, where each worker holds a part of every parameter; `single`; or
    `auto`: one process with one worker; with more, the fastest that learns the same, measured where training takes so
    long that it pays, else data-parallel."""
    max_staleness: int | str = 0
    """Of `parameter-server`: how many rounds of batches a worker may be ahead of the slowest. 0 makes every step
    together, equal to data parallel; `"none"` never waits."""
    local: LocalConfig = LocalConfig()
    """Of `local-sgd`: when and how ranks combine what they have learned."""
    compression: str = AUTO
    """What hosts exchange is sent as `none` (as it is), `fp16`, `int8` or `powersgd`; what is lost so is sent with the
    next. `auto`: what is fastest over the network at hand. On one host nothing is sent, so only `local-sgd` heeds it,
    to show what it would do."""
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
    """`constant`; down to 0 at the last step as a half `cosine` or `linear`; in `drops` equal `step`s or as an
    `exponential`, both by `decay`; or `one-cycle`, up from a low rate and down to a far lower one."""
    decay: float = 0.1
    """What a `step` multiplies the rate by, and what an `exponential` has left of it at the end; above 0, at most 1."""
    drops: int = 2
    """How often the rate of the `step` schedule drops, evenly over the steps after the warm-up."""
    warmup: float = 0.0
    """Share of all steps in which the rate rises linearly from 0, from 0 to below 1; with `one-cycle` the share in
    which it rises, 0 being 0.3."""
    clip: float = 0.0
    """Largest norm of the whole gradient; 0 leaves it as it is."""
    accumulate: int = 1
    """Passes per step: each takes a share of the batch, so a step needs less memory and stays what it is."""
    precision: str = "float32"
    """What layers compute in: `float32` (or `dtype`), or `bfloat16` where PyTorch's autocast allows it; weights and
    optimizer stay as they are."""
    loss: str = "auto"
    """Classes: `cross-entropy`, `focal`, or `bce` (each class against the rest). Numbers: `mse`, `mae` or `huber`.
    `auto` is cross-entropy for classes and tokens, and mse for numbers."""
    focal_gamma: float = 2.0
    """How much less `focal` counts samples that are already classified well, 0 (not at all) or more."""
    label_smoothing: float = 0.0
    """Share of the target that is spread over all classes, from 0 to below 1; of `cross-entropy`."""
    class_weights: str | dict[str, float] = ""
    """`"balanced"`: every class counts as much as the others, however rare; or a weight for some classes by their
    label, such as `{fraud = 20}`, 1 for the others. In training only: validation counts samples."""
    patience: int = 0
    """Stop after so many epochs without a better validation metric and keep the best epoch's weights; 0: never."""
    seed: int = 0
    """Of the first weights, the order of samples and all randomness in the model."""
    checkpoint_s: float = 10.0
    """Seconds between two checkpoints; the end of the training always writes what it needs."""
    dtype: str = "float32"
    """`float32`, or `float64` for comparisons to the last digit."""

    log: LogConfig = LogConfig()

    def check(self) -> None:
        """Raise InvalidInput for what can't be trained, before anything is started."""
        self.log.check()
        _one_of("[train] strategy", self.strategy, STRATEGY_NAMES)
        self.local.check()
        _one_of("[train] compression", self.compression, COMPRESSION_NAMES)
        if self.compression not in (AUTO, "none") and self.dtype != "float32":
            raise InvalidInput(
                f"[train] compression = '{self.compression}' needs dtype = 'float32', not '{self.dtype}'"
            )
        if self.strategy == "local-sgd" and self.compression == "powersgd":
            raise InvalidInput(
                "[train] compression = 'powersgd' is for gradients, and 'local-sgd' exchanges changes",
                hint='use "int8", or strategy = "data-parallel"',
            )
        if not (self.max_staleness == "none" or (isinstance(self.max_staleness, int) and self.max_staleness >= 0)):
            raise InvalidInput(
                f"[train] max_staleness = {self.max_staleness!r} is impossible",
                hint='write 0 for steps that all workers make together, a number of rounds, or "none"',
            )
        _one_of("[train] optimizer", self.optimizer, OPTIMIZER_NAMES)
        _one_of("[train] schedule", self.schedule, SCHEDULE_NAMES)
        _one_of("[train] loss", self.loss, LOSS_NAMES)
        _one_of("[train] dtype", self.dtype, DTYPE_NAMES)
        _one_of("[train] precision", self.precision, PRECISION_NAMES)
        _require("epochs", self.epochs, self.epochs >= 0, "0 (chosen by the number of samples) or more")
        for name in ("workers", "batch_size", "accumulate"):
            _require(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _require("learning_rate", self.learning_rate, 0 < self.learning_rate <= 1e3, "above 0 and at most 1000")
        _require("momentum", self.momentum, 0 <= self.momentum < 1, "from 0 to below 1")
        _require("warmup", self.warmup, 0 <= self.warmup < 1, "a share of all steps, from 0 to below 1")
        for name in ("weight_decay", "l1", "clip"):
            value = getattr(self, name)
            _require(name, value, value >= 0 and math.isfinite(value), "0 or more")
        _require("decay", self.decay, 0 < self.decay <= 1, "above 0 and at most 1")
        _require("drops", self.drops, self.drops >= 1, "1 or more")
        gamma = self.focal_gamma
        _require("focal_gamma", gamma, gamma >= 0 and math.isfinite(gamma), "0 or more")
        _require("label_smoothing", self.label_smoothing, 0 <= self.label_smoothing < 1, "from 0 to below 1")
        self._check_class_weights()
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

    def _check_class_weights(self) -> None:
        if isinstance(self.class_weights, str):
            if self.class_weights not in ("", "balanced"):
                raise InvalidInput(
                    f"[train] class_weights = {self.class_weights!r} is not known",
                    hint='write "balanced", or a weight for each label: class_weights = { rare = 5.0 }',
                )
            return
        for label, weight in self.class_weights.items():
            if not (weight > 0 and math.isfinite(weight)):
                raise InvalidInput(f"[train] class_weights has {weight:g} for '{label}'; a weight must be above 0")

    @property
    def strategy_name(self) -> str:
        """The strategy that `auto` stands for, or the one that was named."""
        if self.strategy != "auto":
            return self.strategy
        return "data-parallel" if self.workers > 1 else "single"

    @property
    def sent_as(self) -> str:
        """The compression, `none` if it was left open and nothing has been measured."""
        return "none" if self.compression == AUTO else self.compression


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InvalidInput(f"{what} = {value!r} is not known; known are: {', '.join(known)}", known=list(known))


def _require(name: str, value: float, holds: bool, expected: str) -> None:  # noqa: FBT001 - reads as a sentence
    if not holds:
        raise InvalidInput(f"[train] {name} = {value:g} is impossible; it must be {expected}", field=name)
