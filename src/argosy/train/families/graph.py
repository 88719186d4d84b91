"""Graph networks: one answer per graph, from its nodes' features and which of them are connected.

Shape suffixes: b batch, n and m nodes, f features, d width, k outputs.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.train.families.checks import at_least, one_of, share
from argosy.train.families.sequences import POOLS, pooled
from argosy.train.inputs import ModelInput

_KINDS = ("gcn", "gin")


class GraphOptions(Config, frozen=True):
    """Options of `family = "graph"`."""

    kind: str = "gcn"
    """`gcn` averages over neighbours, `gin` adds them up, which tells more graphs apart."""
    width: int = 64
    """Width of a node's vector."""
    layers: int = 3
    """Rounds in which each node hears of its neighbours."""
    pool: str = "mean"
    """How the nodes become one graph: `mean`, `max` or `sum`."""
    dropout: float = 0.0
    """After each round, from 0 to below 1."""


def build(options: GraphOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build a graph network for samples of two arrays: features `[nodes, features]` and adjacency `[nodes, nodes]`."""
    one_of("kind", options.kind, _KINDS)
    one_of("pool", options.pool, ("sum", *POOLS))
    at_least(1, width=options.width, layers=options.layers)
    share("dropout", options.dropout)
    return GraphNetwork(options, _features(given), outputs)


def _features(given: ModelInput) -> int:
    if not given.is_text and len(given.shape) == 2 and given.more == ((given.shape[0],) * 2,):
        return given.shape[1]
    raise InvalidInput(
        "family 'graph' takes two arrays per sample, features [nodes, features] and adjacency [nodes, nodes], in this "
        f"order; it was given {given}",
        hint='save both in one NPZ file and name them: [data] columns = ["nodes", "adjacency"]',
    )


class GraphNetwork(nn.Module):
    """Rounds of messages between neighbours, then one vector per graph.

    Graphs of different sizes share a batch: a node without any edge, not even to itself, is padding and counts nowhere.
    A real node that stands alone needs an edge to itself (a 1 on the diagonal).
    """

    def __init__(self, options: GraphOptions, features: int, outputs: int) -> None:
        super().__init__()
        self.pool = options.pool
        self.read = nn.Linear(features, options.width)
        round_of = {"gcn": GcnRound, "gin": GinRound}[options.kind]
        self.rounds = nn.ModuleList(round_of(options.width) for _ in range(options.layers))
        self.norms = nn.ModuleList(nn.LayerNorm(options.width) for _ in range(options.layers))
        self.dropout = nn.Dropout(options.dropout)
        self.head = nn.Linear(options.width, outputs)

    def forward(self, nodes_bnf: Tensor, adjacency_bnm: Tensor) -> Tensor:
        """Return the outputs [b, k]. `adjacency_bnm[b, n, m]` is the weight, 0 or more, of what n hears from m."""
        own_bn = ((adjacency_bnm.sum(dim=2) + adjacency_bnm.sum(dim=1)) > 0).to(nodes_bnf.dtype)
        x_bnd = self.read(nodes_bnf)
        for messages, norm in zip(self.rounds, self.norms, strict=True):
            x_bnd = self.dropout(F.relu(norm(messages(x_bnd, adjacency_bnm, own_bn))))
        if self.pool == "sum":
            summary_bd = (x_bnd * own_bn.unsqueeze(2)).sum(dim=1)
        else:
            summary_bd = pooled(self.pool, x_bnd, own_bn)
        return cast("Tensor", self.head(summary_bd))


class GcnRound(nn.Module):
    """D^-1/2 (A + I) D^-1/2 X W, with D the degrees in A + I (Kipf and Welling 2017, equation 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weigh = nn.Linear(width, width)

    def forward(self, x_bnd: Tensor, adjacency_bnm: Tensor, own_bn: Tensor) -> Tensor:
        """Return what each node has heard, [b, n, d]."""
        # The diagonal is one edge of weight 1, whether the data has it or not.
        loop_nm = torch.eye(adjacency_bnm.shape[1], dtype=x_bnd.dtype, device=x_bnd.device)
        edges_bnm = adjacency_bnm * (1 - loop_nm) + loop_nm * own_bn.unsqueeze(2)
        scale_bn = edges_bnm.sum(dim=2).clamp(min=1.0).rsqrt()
        heard_bnd = scale_bn.unsqueeze(2) * (edges_bnm @ (scale_bn.unsqueeze(2) * x_bnd))
        return cast("Tensor", self.weigh(heard_bnd))


class GinRound(nn.Module):
    """MLP((1 + e) x + sum of the neighbours), e learned (Xu et al. 2019, equation 4.1)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.epsilon = nn.Parameter(torch.zeros(1))
        self.network = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x_bnd: Tensor, adjacency_bnm: Tensor, own_bn: Tensor) -> Tensor:
        """Return what each node has heard, [b, n, d]."""
        loop_nm = torch.eye(adjacency_bnm.shape[1], dtype=x_bnd.dtype, device=x_bnd.device)
        # Padding has no edges to anybody, but what its own vector holds must not be heard either.
        heard_bnd = (adjacency_bnm * (1 - loop_nm)) @ (x_bnd * own_bn.unsqueeze(2))
        return cast("Tensor", self.network((1 + self.epsilon) * x_bnd + heard_bnd))
