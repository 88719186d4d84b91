"""Transformer decoders: language models that say which token comes next.

Shape suffixes: b batch, t tokens, d width, v vocabulary.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.train.families.attention import Block, initialize, positions
from argosy.train.families.checks import at_least, heads_divide, share
from argosy.train.inputs import ModelInput


class GptOptions(Config, frozen=True):
    """Options of `family = "gpt"`. Context and vocabulary come from `[data]`."""

    width: int = 128
    """Width of a token's vector."""
    layers: int = 4
    """Blocks of causal attention and a two-layer network."""
    heads: int = 4
    """Heads of attention; they divide the width."""
    hidden: int = 0
    """Width inside of the two-layer networks; 0: four times `width`."""
    dropout: float = 0.0
    """In attention, networks and behind the embedding, from 0 to below 1; 0.1 to 0.2 for texts read many times."""


def build(options: GptOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build a decoder for texts; `outputs` is the size of their vocabulary."""
    heads_divide(options.width, options.heads)
    at_least(1, layers=options.layers)
    at_least(0, hidden=options.hidden)
    share("dropout", options.dropout)
    if not given.is_text or given.vocabulary != outputs:
        asked = f"{outputs} outputs" if given.is_text else "numbers"
        raise InvalidInput(
            f"family 'gpt' is a language model: for a text it gives the next token, but here is {given} and {asked}",
            hint='set [data] task = "language-model", or use family = "transformer"',
        )
    return Gpt(options, given.shape[0], outputs)


class Gpt(nn.Module):
    """Decoder of Radford et al. 2019 (GPT-2): learned places, pre-norm blocks, token table used at both ends."""

    def __init__(self, options: GptOptions, context: int, vocabulary: int) -> None:
        super().__init__()
        width = options.width
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.dropout = nn.Dropout(options.dropout)
        hidden = options.hidden or 4 * width
        self.blocks = nn.ModuleList(
            Block(width, options.heads, hidden, options.dropout, is_causal=True, gelu="tanh")
            for _ in range(options.layers)
        )
        self.norm = nn.LayerNorm(width)
        initialize(self, options.layers)

    @property
    def context(self) -> int:
        """Most tokens it reads at once."""
        return self.places.num_embeddings

    def forward(self, ids_bt: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return [b, t, v]: behind each token the logits of the next one, from that token and those before it.

        A mask is taken and not needed: padding stands behind a text, where none of its tokens looks.
        """
        del mask
        if ids_bt.shape[1] > self.context:
            raise InvalidInput(
                f"a text has {ids_bt.shape[1]} tokens; this model reads at most {self.context}",
                hint="raise [data] context, or give the last tokens only",
            )
        ids_bt = ids_bt.to(torch.int64)
        x_btd = self.dropout(self.tokens(ids_bt) + positions(self.places, ids_bt))
        for block in self.blocks:
            x_btd = block(x_btd, None)
        return F.linear(self.norm(x_btd), self.tokens.weight)
