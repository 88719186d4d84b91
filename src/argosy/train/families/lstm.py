"""Recurrent networks over sequences of numbers or tokens.

Shape suffixes: b batch, t time, d width of what a layer takes, h width of what it gives.
"""

from typing import cast

import torch
from torch import Tensor, nn

from argosy.core.config import Config
from argosy.train.families.checks import at_least, one_of, share
from argosy.train.families.sequences import POOLS, Reader, Sequence, pooled, read_sequence
from argosy.train.inputs import ModelInput

_CELLS: dict[str, type[nn.LSTM | nn.GRU]] = {"lstm": nn.LSTM, "gru": nn.GRU}


class LstmOptions(Config, frozen=True):
    """Options of `family = "lstm"`."""

    hidden: int = 128
    """Width of the state, of each direction."""
    layers: int = 1
    """Recurrent layers on top of each other."""
    cell: str = "lstm"
    """`lstm` or `gru`, which has fewer weights."""
    bidirectional: bool = False
    """Read the sequence from its end too."""
    pool: str = "last"
    """What becomes of the states: `last` (where each direction ends), `mean` or `max` over the sequence."""
    dropout: float = 0.0
    """Between layers and before the output, from 0 to below 1."""
    vocabulary: int = 0
    """How many different tokens there are where they come as whole numbers in a table; texts say it themselves."""
    embedding: int = 64
    """Width of a token's vector."""


def build(options: LstmOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build a recurrent network for samples `[time, features]`, `[time]`, or tokens."""
    at_least(1, hidden=options.hidden, layers=options.layers, embedding=options.embedding)
    at_least(0, vocabulary=options.vocabulary)
    one_of("cell", options.cell, tuple(_CELLS))
    one_of("pool", options.pool, ("last", *POOLS))
    share("dropout", options.dropout)
    return Recurrent(options, read_sequence("lstm", given, options.vocabulary), outputs)


class Recurrent(nn.Module):
    """LSTM of Hochreiter and Schmidhuber 1997 (with forget gates), or GRU of Cho et al. 2014, read in one or both ways.

    A row of a batch gives what it gives alone: padding comes after a sequence's own steps in both directions.
    """

    def __init__(self, options: LstmOptions, sample: Sequence, outputs: int) -> None:
        super().__init__()
        self.pool = options.pool
        ways = 2 if options.bidirectional else 1
        width = options.embedding if sample.vocabulary else sample.features
        self.read = Reader(sample, width)
        cell, hidden = _CELLS[options.cell], options.hidden
        sizes = [width, *[ways * hidden] * (options.layers - 1)]
        self.forwards = nn.ModuleList(cell(size, hidden, batch_first=True) for size in sizes)
        self.backwards = nn.ModuleList(cell(size, hidden, batch_first=True) for size in sizes if ways == 2)
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(ways * hidden, outputs)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the outputs [b, k] of a batch. `mask` [b, t] is 1 for a sequence's own steps and 0 behind its end."""
        x_btd = self.read(x)
        order_bt = _backward_order(x_btd, mask)
        for place, forwards in enumerate(self.forwards):
            if place:
                x_btd = self.dropout(x_btd)
            y_bth = forwards(x_btd)[0]
            if len(self.backwards):
                # The same order turns it around and back again.
                back_bth = _reordered(self.backwards[place](_reordered(x_btd, order_bt))[0], order_bt)
                y_bth = torch.cat([y_bth, back_bth], dim=2)
            x_btd = y_bth
        return cast("Tensor", self.head(self.dropout(self._pooled(x_btd, mask, order_bt))))

    def _pooled(self, y_bth: Tensor, mask: Tensor | None, order_bt: Tensor) -> Tensor:
        if self.pool != "last":
            return pooled(self.pool, y_bth, mask)
        # Backwards a sequence ends at its first step; forwards at the step that the backward order begins with.
        end_bh = _reordered(y_bth, order_bt[:, :1])[:, 0]
        if not len(self.backwards):
            return end_bh
        hidden = y_bth.shape[2] // 2
        return torch.cat([end_bh[:, :hidden], y_bth[:, 0, hidden:]], dim=1)


def _backward_order(x_btd: Tensor, mask: Tensor | None) -> Tensor:
    """Return the places [b, t] that turn each sequence around within its own length and leave padding where it is."""
    steps = x_btd.shape[1]
    places_bt = torch.arange(steps, device=x_btd.device).expand(x_btd.shape[0], steps)
    if mask is None:
        return (steps - 1) - places_bt
    lengths_b1 = mask.to(torch.int64).sum(dim=1, keepdim=True)
    return torch.where(places_bt < lengths_b1, lengths_b1 - 1 - places_bt, places_bt)


def _reordered(x_btd: Tensor, order_bt: Tensor) -> Tensor:
    return x_btd.gather(1, order_bt.unsqueeze(2).expand(-1, -1, x_btd.shape[2]))
