"""What the stages do otherwise with a language model, whose data is blocks of tokens."""

from typing import Any

import numpy as np
import numpy.typing as npt

from argosy.data.dataset import Dataset

Arrays = dict[str, npt.NDArray[Any]]

_TEXTS = 16


def is_language(dataset: Dataset) -> bool:
    """Return whether the data set is running text."""
    return dataset.task == "language-model"


def texts_of_all_lengths(dataset: Dataset) -> Arrays:
    """Return beginnings of blocks of the validation part, from one token to whole ones, padded as an endpoint does."""
    part = dataset.splits["validation"]
    blocks = part.inputs["input_ids"][: min(len(part), _TEXTS)]
    # At least four, the longest first: an export is traced with the first ones.
    blocks = np.concatenate([blocks] * -(-4 // len(blocks)))
    context = blocks.shape[1]
    lengths = np.linspace(context, 1, len(blocks)).astype(np.int64)
    mask = (np.arange(context) < lengths[:, None]).astype(np.int64)
    assert dataset.tokenize is not None
    return {"input_ids": np.where(mask == 1, blocks, dataset.tokenize.pad_id).astype(np.int64), "attention_mask": mask}
