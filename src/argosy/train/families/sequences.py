"""What the families of sequences share: how samples are read, and how vectors become one per sequence.

Shape suffixes: b batch, t time or tokens, d width.
"""

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from argosy.core.errors import InvalidInput
from argosy.train.families.checks import one_tensor
from argosy.train.inputs import ModelInput

POOLS = ("mean", "max")


class Sequence(NamedTuple):
    """What a sample is, for a family that reads it step by step."""

    steps: int
    features: int
    """Numbers per step; 1 for tokens."""
    vocabulary: int
    """How many different tokens there are; 0: numbers."""


def read_sequence(family: str, given: ModelInput, vocabulary: int) -> Sequence:
    """Return what a sample is; `vocabulary` is the user's, for tokens that come as numbers. Raises InvalidInput."""
    one_tensor(family, given, takes_texts=True)
    if vocabulary and given.is_text and vocabulary != given.vocabulary:
        raise InvalidInput(
            f"[model] vocabulary = {vocabulary}, but the texts were split into {given.vocabulary} different tokens",
            hint="leave vocabulary out: it is taken from the data",
        )
    vocabulary = vocabulary or given.vocabulary
    if vocabulary and len(given.shape) != 1:
        raise InvalidInput(
            f"family '{family}' with a vocabulary reads tokens, one number per step, so a sample must have the shape "
            f"[steps]; it has the shape {list(given.shape)}",
            hint="leave [model] options vocabulary out when the samples are numbers",
        )
    if len(given.shape) not in (1, 2) or min(given.shape) < 1:
        raise InvalidInput(
            f"family '{family}' reads sequences, so a sample must have the shape [steps] or [steps, features]; "
            f"it has the shape {list(given.shape)}",
            hint="save sequences as one array [samples, steps, features] in an NPZ file",
        )
    return Sequence(given.shape[0], 1 if len(given.shape) == 1 else given.shape[1], vocabulary)


class Reader(nn.Module):
    """Turn samples into one vector per step: tokens by a table, numbers by an affine map or, if it fits, as they are.

    Tokens may come as whole numbers in a float tensor, as tables give them.
    """

    def __init__(self, sample: Sequence, width: int) -> None:
        super().__init__()
        self.reads_tokens = sample.vocabulary > 0
        self.table: nn.Module
        if self.reads_tokens:
            self.table = nn.Embedding(sample.vocabulary, width)
        else:
            self.table = nn.Identity() if sample.features == width else nn.Linear(sample.features, width)

    def forward(self, x: Tensor) -> Tensor:
        """Return [b, t, d] for tokens [b, t] or numbers [b, t] or [b, t, features]."""
        if self.reads_tokens:
            return cast("Tensor", self.table(x.to(torch.int64)))
        return cast("Tensor", self.table(x.unsqueeze(2) if x.dim() == 2 else x))


def pooled(pool: str, x_btd: Tensor, mask: Tensor | None) -> Tensor:
    """Return the mean or the largest [b, d] over a sequence's own steps, which `mask` [b, t] marks with 1."""
    if mask is None:
        return x_btd.mean(dim=1) if pool == "mean" else x_btd.amax(dim=1)
    own_bt1 = mask.unsqueeze(2).to(x_btd.dtype)
    if pool == "mean":
        return (x_btd * own_bt1).sum(dim=1) / own_bt1.sum(dim=1).clamp(min=1.0)
    return x_btd.masked_fill(own_bt1 == 0, torch.finfo(x_btd.dtype).min).amax(dim=1)
