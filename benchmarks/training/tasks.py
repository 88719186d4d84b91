"""What is trained: the same models, first weights, samples and batches for every contender."""

from dataclasses import dataclass, field
from typing import Any

RANKS = 2
WORKERS = 4
"""Of the section with a straggler."""


@dataclass(frozen=True)
class Task:
    """One training of a fixed number of steps, given in epochs as a training counts them.

    The first epoch is warm-up; the last is left out too, as in it the contender's memory is looked at.
    """

    name: str
    title: str
    data: str
    """What `make.py` makes: `random`, `text` or `digits`."""
    model: str
    """A function of `peers/models.py`."""
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "sgd"
    rate: float = 0.01
    batch: int = 64
    """Samples per step, of all ranks together."""
    steps: int = 6
    """Per epoch."""
    epochs: int = 8
    tolerance: float = 1e-4
    """By how much losses may differ from those of one process on the whole batch, as a share of the first."""
    batch_norm: bool = False
    """Whether the batch's own statistics are part of the model: peers then normalize by a rank's part of the batch."""

    @property
    def samples(self) -> int:
        """How many samples an epoch has."""
        return self.batch * self.steps

    @property
    def measured(self) -> int:
        """Steps that count."""
        return self.steps * (self.epochs - 2)

    def plain(self, *, is_quick: bool) -> dict[str, Any]:
        """Return what peers are told of it."""
        wanted = ("model", "options", "optimizer", "rate", "batch", "steps")
        return {name: getattr(self, name) for name in wanted} | {"epochs": 3 if is_quick else self.epochs}


_MLP = {"hidden": [2000, 3000]}
_MLP_TITLE = "perceptron 1000-2000-3000-4000 with ReLU between, 20 million parameters; random inputs, cross-entropy"

TASKS = (
    Task("mlp", f"{_MLP_TITLE}; 64 samples per step, SGD", "random", "mlp", _MLP),
    Task("mlp-128", f"{_MLP_TITLE}; 128 samples per step, SGD", "random", "mlp", _MLP, batch=128, steps=5, epochs=7),
    Task("mlp-adamw", f"{_MLP_TITLE}; 64 samples per step, AdamW", "random", "mlp", _MLP, optimizer="adamw", rate=1e-4),
    Task(
        "mlp-128-adamw",
        f"{_MLP_TITLE}; 128 samples per step, AdamW",
        "random",
        "mlp",
        _MLP,
        optimizer="adamw",
        rate=1e-4,
        batch=128,
        steps=5,
        epochs=7,
    ),
    Task(
        "gpt",
        "GPT of 10 million parameters (width 384, 5 blocks, 2,048 tokens known) on the text of Python's manual; "
        "8 blocks of 128 tokens per step, AdamW",
        "text",
        "gpt",
        {"width": 384, "layers": 5, "heads": 6, "context": 128},
        optimizer="adamw",
        rate=3e-4,
        batch=8,
        steps=3,
        epochs=5,
    ),
    Task(
        "resnet",
        "ResNet-18 (11 million parameters, first convolution 3x3, no pooling) on scikit-learn's digits (8x8); "
        "64 images per step, SGD",
        "digits",
        "resnet18",
        rate=0.02,
        steps=5,
        epochs=6,
        # In this deep net with batch norm float32's rounding grows from step to step; in float64 the same training
        # gives the same losses to 1e-15.
        tolerance=5e-3,
        batch_norm=True,
    ),
)
QUICK = Task(
    "tiny", "perceptron 64-256-10, only to try the benchmark itself", "digits", "mlp", {"hidden": [256]}, steps=8
)
"""Of `--quick`, whose figures say nothing."""
SLOW = Task(
    "slow",
    "one linear layer behind a pause, an emulated accelerator",
    "digits",
    "slow",
    {"seconds": 0.0, "lock": ""},
    batch=32,
    steps=40,
)
"""Of the sections with slow, killed and frozen ranks."""

FAR = Task(
    "far",
    "GPT of 10 million parameters (width 384, 5 blocks, 2,048 tokens known) on the text of Python's library; 8 blocks "
    "of 128 tokens per step, AdamW",
    "library",
    "gpt",
    {"width": 384, "layers": 5, "heads": 6, "context": 128},
    optimizer="adamw",
    rate=5e-4,
    batch=8,
    steps=4,
    epochs=2,
)
"""Of the section with several hosts."""


def task_named(name: str) -> Task:
    """Return the task called `name`."""
    return next(task for task in (*TASKS, QUICK, FAR) if task.name == name)
