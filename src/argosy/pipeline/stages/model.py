"""The trained module and its data set, as the stages after `train` need them."""

from pathlib import Path
from typing import TYPE_CHECKING

from argosy.data.dataset import Dataset
from argosy.pipeline.context import StageContext

if TYPE_CHECKING:
    from torch import nn


def open_dataset(context: StageContext) -> Dataset:
    """Return the data set that stage `data` left."""
    return Dataset.load(context.input_folder("data", "dataset"))


def trained_module(context: StageContext, dataset: Dataset) -> "nn.Module":
    """Build the model again and fill it with the weights that stage `train` left."""
    from argosy.train.models import build_model, load_weights
    from argosy.train.samples import given_of

    recipe = context.recipe
    module = build_model(
        recipe.model, context.base, given_of(dataset), dataset.outputs, recipe.train.seed, for_training=False
    )
    load_weights(module, Path(context.input_file("train", "weights.safetensors")))
    return module


def served_module(context: StageContext, dataset: Dataset) -> "nn.Module":
    """Return the trained module in the form that is exported: float32, in inference mode, a language model wrapped."""
    module = trained_module(context, dataset)
    if dataset.task == "language-model":
        from argosy.train.next_token import NextToken

        module = NextToken(module)
    return module.eval().float()
