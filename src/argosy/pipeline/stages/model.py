"""The trained module and its data set, as the stages after `train` need them."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from argosy.data.dataset import Dataset
from argosy.data.text import without_padding
from argosy.pipeline.context import StageContext

if TYPE_CHECKING:
    from torch import nn


_ROWS = 256
_TEXTS = 32
"""Texts at once: they are padded to the longest, and attention's memory grows with the square of its length."""
_BLOCKS = 8
"""Blocks of running text at once, for each token of which there are as many logits as known tokens."""


def rows_at_once(dataset: Dataset) -> int:
    """Return how many samples a model is given together where nothing is trained."""
    if dataset.task == "language-model":
        return _BLOCKS
    return _ROWS if dataset.tokenize is None else _TEXTS


def open_dataset(context: StageContext) -> Dataset:
    """Return the data set that stage `data` left."""
    return Dataset.load(context.input_folder("data", "dataset"))


def trained_module(context: StageContext, dataset: Dataset) -> "nn.Module":
    """Build the model again and fill it with the weights that stage `train` left."""
    return filled_module(context, dataset, context.input_file("train", "weights.safetensors"))


def filled_module(context: StageContext, dataset: Dataset, weights: Path) -> "nn.Module":
    """Build the model of the recipe for `dataset` and fill it with weights of a file."""
    from argosy.train.models import build_model, load_weights
    from argosy.train.samples import given_of

    recipe = context.recipe
    module = build_model(
        recipe.model, context.base, given_of(dataset), dataset.outputs, recipe.train.seed, for_training=False
    )
    load_weights(module, weights)
    return module


def served_module(context: StageContext, dataset: Dataset) -> "nn.Module":
    """Return the trained module in the form that is exported: float32, in inference mode, a language model wrapped."""
    module = trained_module(context, dataset)
    if dataset.task == "language-model":
        from argosy.train.next_token import NextToken

        module = NextToken(module)
    return module.eval().float()


def measured(module: "nn.Module", dataset: Dataset, part: str) -> dict[str, float]:
    """Return the metrics of a module on a part of the data, in the unit of the label; the main one first."""
    import torch

    from argosy.train.scores import score_for

    scale = float(getattr(dataset.finish[0], "scale", 1.0)) if dataset.task == "regression" else 1.0
    offset = float(getattr(dataset.finish[0], "offset", 0.0)) if dataset.task == "regression" else 0.0
    score = score_for(dataset.task, dataset.outputs, scale)
    found, prepare, step = dataset.splits[part], dataset.preparation(), rows_at_once(dataset)
    sums = torch.zeros(score.size, dtype=torch.float64)
    with torch.inference_mode():
        for start in range(0, len(found), step):
            rows = slice(start, start + step)
            given = without_padding(prepare({name: array[rows] for name, array in found.inputs.items()}))
            # Copies: arrays of a file can't be written to, which torch can't express.
            y = torch.from_numpy(np.array(found.y[rows]))
            outputs = module(*(torch.from_numpy(np.array(array)) for array in given.values()))
            sums += score.sums(outputs, (y - offset) / scale if dataset.task == "regression" else y)
    return score.values(sums)
