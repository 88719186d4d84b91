"""The samples a training sees, as tensors."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from argosy.core.errors import InvalidInput
from argosy.data.dataset import Dataset


@dataclass(frozen=True)
class Samples:
    """Training and validation part. `x` is model-ready, `y` class numbers (int64) or values; row by row together."""

    x: Tensor
    y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    task: str
    outputs: int
    unit: float = 1.0
    """For a regression: what one unit of `y` is in the unit that the user knows."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        return tuple(self.x.shape[1:])

    def __len__(self) -> int:
        """How many samples the training part has."""
        return len(self.y)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the training part: `model(*samples.batch(rows))`."""
        return (self.x[rows],)

    def validation_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the validation part."""
        return (self.validation_x[rows],)

    def check(self, workers: int) -> None:
        """Raise InvalidInput if there are too few samples for so many workers."""
        if len(self.x) < workers:
            raise InvalidInput(
                f"[train] workers = {workers} is more than the {len(self.x)} samples of the training part",
                hint=f"use at most {max(1, len(self.x))} workers",
                code="too_few_samples",
            )


def samples_of(dataset: Dataset, dtype: torch.dtype) -> Samples:
    """Return the prepared samples of `dataset` with numbers in `dtype`. An absent validation part is empty."""
    x, y = _tensors(dataset, "train", dtype)
    if dataset.splits.get("validation") is None:
        validation_x, validation_y = x[:0], y[:0]
    else:
        validation_x, validation_y = _tensors(dataset, "validation", dtype)
    unit = 1.0 if dataset.task == "classification" else float(getattr(dataset.finish[0], "scale", 1.0))
    return Samples(x, y, validation_x, validation_y, dataset.task, dataset.outputs, unit)


def _tensors(dataset: Dataset, part: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs, y = dataset.prepared(part)
    if len(inputs) != 1:
        raise InvalidInput(
            f"training takes one tensor per sample, but the data set prepares {len(inputs)}: {', '.join(inputs)}",
            hint="keep one of them with [data] columns or drop the others",
        )
    return _numbers(next(iter(inputs.values())), dtype), _numbers(y, dtype)


def _numbers(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    # A copy: arrays from a file may be read-only, which torch can't express.
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
