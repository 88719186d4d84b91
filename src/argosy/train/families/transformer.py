"""Transformer encoders over tokens or sequences of numbers.

Shape suffixes: b batch, t tokens or steps, d width, k outputs.
"""

from typing import cast

from torch import Tensor, nn

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.train.families.attention import Block, initialize, positions
from argosy.train.families.checks import at_least, heads_divide, one_of, share
from argosy.train.families.sequences import POOLS, Reader, Sequence, pooled, read_sequence
from argosy.train.inputs import ModelInput


class TransformerOptions(Config, frozen=True):
    """Options of `family = "transformer"`."""

    width: int = 128
    """Width of a token's or step's vector."""
    layers: int = 2
    """Blocks of attention and a two-layer network."""
    heads: int = 4
    """Heads of attention; they divide the width."""
    hidden: int = 0
    """Width inside of the two-layer networks; 0: four times `width`."""
    dropout: float = 0.1
    """In attention, networks and behind the embedding, from 0 to below 1."""
    pool: str = "mean"
    """What becomes of the vectors: `mean` or `max` over the sequence, or `first`, the vector of the first token."""
    vocabulary: int = 0
    """How many different tokens there are where they come as whole numbers in a table; texts say it themselves."""
    longest: int = 0
    """Most tokens of a sample; 0: as many as the samples of the training have."""


def build(options: TransformerOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build an encoder for samples `[steps, features]`, `[steps]`, or tokens."""
    heads_divide(options.width, options.heads)
    at_least(1, layers=options.layers)
    at_least(0, hidden=options.hidden, vocabulary=options.vocabulary, longest=options.longest)
    one_of("pool", options.pool, ("first", *POOLS))
    share("dropout", options.dropout)
    sample = read_sequence("transformer", given, options.vocabulary)
    if options.longest and options.longest < sample.steps:
        raise InvalidInput(f"[model] longest = {options.longest} is less than the {sample.steps} steps of a sample")
    return Encoder(options, sample, outputs)


class Encoder(nn.Module):
    """Encoder as of Devlin et al. 2019 (BERT), with its norms before the sums (pre-norm), and a linear output."""

    def __init__(self, options: TransformerOptions, sample: Sequence, outputs: int) -> None:
        super().__init__()
        self.pool = options.pool
        width = options.width
        self.read = Reader(sample, width)
        self.places = nn.Embedding(options.longest or sample.steps, width)
        self.dropout = nn.Dropout(options.dropout)
        hidden = options.hidden or 4 * width
        self.blocks = nn.ModuleList(
            Block(width, options.heads, hidden, options.dropout, is_causal=False) for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)
        initialize(self, options.layers)
        if not sample.vocabulary and isinstance(self.read.table, nn.Linear):
            self.read.table.reset_parameters()  # numbers have no table; 0.02 would drown them in the places' vectors

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the outputs [b, k] of a batch. `mask` [b, t] is 1 for a sample's own tokens and 0 for padding."""
        if x.shape[1] > self.places.num_embeddings:
            raise InvalidInput(
                f"a sample has {x.shape[1]} steps; this model was built for at most {self.places.num_embeddings}",
                hint="raise [model] options longest",
            )
        x_btd = self.dropout(self.read(x) + positions(self.places, x))
        seen = None if mask is None else (mask != 0)[:, None, None, :]
        for block in self.blocks:
            x_btd = block(x_btd, seen)
        x_btd = self.norm(x_btd)
        summary_bd = x_btd[:, 0] if self.pool == "first" else pooled(self.pool, x_btd, mask)
        return cast("Tensor", self.head(summary_bd))
