"""The samples a training sees, as tensors."""

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from argosy.core.errors import InvalidInput
from argosy.data.dataset import Dataset
from argosy.data.prepare import Prepare
from argosy.data.steps import Arrays
from argosy.train.inputs import ModelInput

HELD_BYTES = 512 << 20
"""Samples that take more are read and prepared batch by batch, so that data may be larger than memory."""
_NARROW = torch.int32
"""Of tokens that wait: half the memory of what models take."""


@dataclass(frozen=True)
class Samples:
    """Training and validation part. `x` is model-ready, `y` class numbers (int64) or values; row by row together.

    `more` are the tensors that a model takes behind `x`.
    """

    x: Tensor
    y: Tensor
    validation_x: Tensor
    validation_y: Tensor
    task: str
    outputs: int
    unit: float = 1.0
    """For a regression: what one unit of `y` is in the unit that the user knows."""
    labels: tuple[str, ...] = ()
    """Names of the classes."""
    more: tuple[Tensor, ...] = ()
    validation_more: tuple[Tensor, ...] = ()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample, without the batch."""
        return tuple(self.x.shape[1:])

    @property
    def given(self) -> ModelInput:
        """What a model is given for one sample."""
        return ModelInput(shape=self.input_shape, more=tuple(tuple(tensor.shape[1:]) for tensor in self.more))

    @property
    def rows_at_once(self) -> int:
        """How many samples a model is given together where nothing is trained."""
        return 1024

    def __len__(self) -> int:
        """How many samples the training part has."""
        return len(self.y)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the training part: `model(*samples.batch(rows))`."""
        return (self.x[rows], *(tensor[rows] for tensor in self.more))

    def validation_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the validation part."""
        return (self.validation_x[rows], *(tensor[rows] for tensor in self.validation_more))

    def check(self, workers: int) -> None:
        """Raise InvalidInput if there are too few samples for so many workers."""
        if len(self) < workers:
            raise InvalidInput(
                f"[train] workers = {workers} is more than the {len(self)} samples of the training part",
                hint=f"use at most {max(1, len(self))} workers",
                code="too_few_samples",
            )


@dataclass(frozen=True)
class StreamedSamples(Samples):
    """Samples that stay in their files: the rows of a batch are read and prepared when it is their turn.

    `x` and `more` hold a single row, which says shapes and dtypes; answers (`y`) are held. All processes of a machine
    share what the system keeps of the files.
    """

    inputs: Arrays = field(kw_only=True)
    validation_inputs: Arrays = field(kw_only=True)
    prepare: Prepare = field(kw_only=True)

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the training part, prepared now."""
        return self._prepared(self.inputs, rows)

    def validation_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return what the model takes for `rows` (int64 [b]) of the validation part, prepared now."""
        return self._prepared(self.validation_inputs, rows)

    def _prepared(self, inputs: Arrays, rows: Tensor) -> tuple[Tensor, ...]:
        chosen = rows.numpy()
        made = self.prepare({name: array[chosen] for name, array in inputs.items()})
        return tuple(_numbers(array, self.x.dtype) for array in made.values())


@dataclass(frozen=True)
class TextSamples(Samples):
    """Samples that are texts: `x` holds their tokens (int32), each row padded behind its end, `lengths` says where.

    A batch is padded to its own longest text, so its inputs are as in `ModelInput`.
    """

    lengths: Tensor = field(kw_only=True)
    validation_lengths: Tensor = field(kw_only=True)
    vocabulary: int = field(kw_only=True)
    pad_id: int = field(kw_only=True)
    max_length: int = field(kw_only=True)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The most tokens a text may have, which may be more than any here has."""
        return (self.max_length,)

    @property
    def given(self) -> ModelInput:
        """What a model is given for one sample."""
        return ModelInput(shape=self.input_shape, vocabulary=self.vocabulary, pad_id=self.pad_id)

    @property
    def rows_at_once(self) -> int:
        """Few: attention's memory grows with the square of the length."""
        return 32

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return token numbers and mask (both int64 [b, t]) for `rows` of the training part."""
        return _padded(self.x, self.lengths, rows)

    def validation_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return token numbers and mask (both int64 [b, t]) for `rows` of the validation part."""
        return _padded(self.validation_x, self.validation_lengths, rows)


@dataclass(frozen=True)
class LanguageSamples(Samples):
    """Blocks of running text: `x` holds tokens and `y` what follows each of them, both int32 [blocks, context]."""

    @property
    def given(self) -> ModelInput:
        """What a model is given for one sample."""
        return ModelInput(shape=self.input_shape, vocabulary=self.outputs)

    @property
    def rows_at_once(self) -> int:
        """Few: for each token there are as many logits as known tokens."""
        return 8

    def batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return token numbers and mask (both int64 [b, t]) for `rows` of the training part. All blocks are full."""
        return _whole(self.x[rows])

    def validation_batch(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Return token numbers and mask (both int64 [b, t]) for `rows` of the validation part."""
        return _whole(self.validation_x[rows])


def _whole(ids: Tensor) -> tuple[Tensor, Tensor]:
    ids_bt = ids.to(torch.int64)
    return ids_bt, torch.ones_like(ids_bt)


def _padded(ids: Tensor, lengths: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    lengths_b = lengths[rows]
    longest = int(lengths_b.max()) if len(rows) else 1
    mask_bt = (torch.arange(longest) < lengths_b[:, None]).to(torch.int64)
    return ids[rows, :longest].to(torch.int64), mask_bt


def samples_of(dataset: Dataset, dtype: torch.dtype) -> Samples:
    """Return the prepared samples of `dataset` with numbers in `dtype`. An absent validation part is empty."""
    if dataset.task == "language-model":
        return _language_samples(dataset)
    if dataset.tokenize is None and _prepared_bytes(dataset) > HELD_BYTES:
        return _streamed_samples(dataset, dtype)
    (x, *more), y = _tensors(dataset, "train", dtype)
    if dataset.splits.get("validation") is None:
        (validation_x, *validation_more), validation_y = [tensor[:0] for tensor in (x, *more)], y[:0]
    else:
        (validation_x, *validation_more), validation_y = _tensors(dataset, "validation", dtype)
    known = _known(dataset)
    step = dataset.tokenize
    if step is None:
        return Samples(
            x, y, validation_x, validation_y, more=tuple(more), validation_more=tuple(validation_more), **known
        )
    return TextSamples(
        x.to(_NARROW),
        y,
        validation_x.to(_NARROW),
        validation_y,
        lengths=more[0].sum(dim=1),
        validation_lengths=validation_more[0].sum(dim=1),
        vocabulary=dataset.vocabulary,
        pad_id=step.pad_id,
        max_length=step.max_length,
        **known,
    )


def _known(dataset: Dataset) -> dict[str, Any]:
    return {
        "task": dataset.task,
        "outputs": dataset.outputs,
        "unit": float(getattr(dataset.finish[0], "scale", 1.0)) if dataset.task == "regression" else 1.0,
        "labels": tuple(dataset.labels),
    }


def _prepared_bytes(dataset: Dataset) -> int:
    """Return what all training and validation rows take as tensors, from what one takes."""
    one = {name: array[:1] for name, array in dataset.splits["train"].inputs.items()}
    each = sum(array.nbytes for array in dataset.preparation()(one).values())
    return each * sum(len(dataset.splits[part]) for part in ("train", "validation") if part in dataset.splits)


def _streamed_samples(dataset: Dataset, dtype: torch.dtype) -> StreamedSamples:
    train, validation = dataset.splits["train"], dataset.splits.get("validation")
    prepare = dataset.preparation()
    one = prepare({name: array[:1] for name, array in train.inputs.items()})
    x, *more = (_numbers(array, dtype) for array in one.values())
    y = _numbers(dataset.answers("train"), dtype)
    return StreamedSamples(
        x,
        y,
        x[:0],
        y[:0] if validation is None else _numbers(dataset.answers("validation"), dtype),
        more=tuple(more),
        inputs=train.inputs,
        validation_inputs={} if validation is None else validation.inputs,
        prepare=prepare,
        **_known(dataset),
    )


def _language_samples(dataset: Dataset) -> LanguageSamples:
    # Not through `prepared`, whose tokens and masks take eight bytes each.
    train, validation = (dataset.splits.get(part) for part in ("train", "validation"))
    assert train is not None
    x, y = (_shared(array) for array in (train.inputs["input_ids"], train.y))
    if validation is None:
        validation_x, validation_y = x[:0], y[:0]
    else:
        validation_x, validation_y = (_shared(array) for array in (validation.inputs["input_ids"], validation.y))
    return LanguageSamples(
        x,
        y,
        validation_x,
        validation_y,
        dataset.task,
        dataset.outputs,
    )


def given_of(dataset: Dataset) -> ModelInput:
    """Return what a model of this data set is given, at the cost of preparing one row."""
    step = dataset.tokenize
    if step is not None:
        return ModelInput(shape=(step.max_length,), vocabulary=dataset.vocabulary, pad_id=step.pad_id)
    one = {name: array[:1] for name, array in dataset.splits["train"].inputs.items()}
    shape, *more = (tuple(array.shape[1:]) for array in dataset.preparation()(one).values())
    return ModelInput(shape=shape, more=tuple(more))


def _tensors(dataset: Dataset, part: str, dtype: torch.dtype) -> tuple[list[Tensor], Tensor]:
    inputs, y = dataset.prepared(part)
    return [_numbers(array, dtype) for array in inputs.values()], _numbers(y, dtype)


def _shared(array: NDArray[Any]) -> Tensor:
    """Return the array itself as a tensor, which is only read: one in a file stays there."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*not writable.*")
        return torch.from_numpy(array)


def _numbers(array: NDArray[Any], dtype: torch.dtype) -> Tensor:
    # A copy: arrays from a file may be read-only, which torch can't express.
    tensor = torch.from_numpy(np.array(array, order="C"))
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
