"""What every peer's loop is given: the model with its first weights, its batches, and what notes its steps.

The environment names a folder for what it leaves and the folder of its task, so that processes that others start know
them too. Batches are rows of tensors in memory, without a loader that would cost something.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import models
import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

OUT, TASK = (Path(os.environ[name]) for name in ("BENCH_OUT", "BENCH_TASK"))
PLAN = json.loads((TASK / "plan.json").read_text())
STEPS, EPOCHS = PLAN["steps"], PLAN["epochs"]


def model() -> nn.Module:
    """Build the model, with the weights that all contenders begin with."""
    built = getattr(models, PLAN["model"])(**PLAN["arguments"])
    built.load_state_dict(load_file(TASK / "weights.safetensors"))
    return built


def optimizer(parameters: Iterable[nn.Parameter], *, is_sharded: bool = False) -> torch.optim.Optimizer:
    """Make the optimizer, in PyTorch's fastest form: everything that belongs to an element in one pass.

    SGD has no such form for sharded parameters.
    """
    kind = {"sgd": torch.optim.SGD, "adamw": torch.optim.AdamW}[PLAN["optimizer"]]
    return kind(parameters, lr=PLAN["rate"], weight_decay=0.0, fused=not is_sharded or kind is torch.optim.AdamW)


def loss_of(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross-entropy, over all tokens where there are any."""
    return F.cross_entropy(outputs.flatten(0, -2), targets.flatten())


class Batches:
    """A rank's part of every batch, in the order in which Argosy takes them."""

    def __init__(self, rank: int, world_size: int) -> None:
        arrays = np.load(TASK / "samples.npz")
        self._x, self._y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
        self._is_text = not self._x.is_floating_point()
        size = PLAN["batch"]
        self._part = slice(size * rank // world_size, size * (rank + 1) // world_size)
        self._rows = torch.from_numpy(np.load(TASK / "order.npy")).view(-1, size)

    def __len__(self) -> int:
        """How many steps there are."""
        return STEPS * EPOCHS

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return inputs and targets of a step."""
        rows = self._rows[step][self._part]
        x = self._x[rows]
        return (x.long() if self._is_text else x), self._y[rows]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all steps."""
        return (self[step] for step in range(len(self)))


class Steps:
    """Notes the losses of a rank's steps, and when its epochs ended. Rank 0 tells who watches when to look."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._losses: list[float] = []
        self._ends: list[float] = []

    def done(self, loss: Tensor | float) -> None:
        """Note a step; at the last one leave everything in a file."""
        self._losses.append(float(loss))
        if len(self._losses) % STEPS:
            return
        self._ends.append(time.monotonic())
        if self._rank == 0 and len(self._ends) in {1, EPOCHS - 1}:
            (OUT / ("begun" if len(self._ends) == 1 else "ended")).touch()
        if len(self._ends) == EPOCHS:
            path = OUT / f"rank-{self._rank}.part"
            path.write_text(json.dumps({"losses": self._losses, "ends": self._ends}))
            path.rename(path.with_suffix(".json"))
