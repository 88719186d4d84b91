"""The block that encoder and decoder are made of.

Shape suffixes: b batch, n heads, t tokens, d width, s width of a head.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects


class Attention(nn.Module):
    """Multi-head self-attention (Vaswani et al. 2017, section 3.2.2)."""

    def __init__(self, width: int, heads: int, dropout: float, *, is_causal: bool) -> None:
        super().__init__()
        self.heads, self.dropout, self.is_causal = heads, dropout, is_causal
        self.mix = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x_btd: Tensor, seen: Tensor | None) -> Tensor:
        """Return [b, t, d]. `seen` [b, 1, 1, t] is true for what may be looked at; None: all, or all before."""
        steps, width = x_btd.shape[1], x_btd.shape[2]
        # One product for queries, keys and values. -1 for the batch, whose size an export must leave free.
        mixed = self.mix(x_btd).reshape(-1, steps, 3, self.heads, width // self.heads)
        q_bnts, k_bnts, v_bnts = (part.transpose(1, 2) for part in mixed.unbind(2))
        y_bnts = F.scaled_dot_product_attention(
            q_bnts,
            k_bnts,
            v_bnts,
            attn_mask=seen,
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=self.is_causal,
        )
        y_btd: Tensor = self.out(y_bnts.transpose(1, 2).reshape(-1, steps, width))
        return y_btd


class Block(nn.Module):
    """Attention and a two-layer network, each behind a layer norm and beside a shortcut (pre-norm, Xiong et al. 2020).

    Without norms in the way of the shortcuts deep models train without a warm-up.
    """

    def __init__(
        self, width: int, heads: int, hidden: int, dropout: float, *, is_causal: bool, gelu: str = "none"
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, dropout, is_causal=is_causal)
        self.network_norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, hidden)
        self.down = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)
        self.gelu = gelu

    def forward(self, x_btd: Tensor, seen: Tensor | None) -> Tensor:
        """Return [b, t, d]; `seen` as for `Attention`."""
        x_btd = x_btd + self.dropout(self.attention(self.attention_norm(x_btd), seen))
        inner = F.gelu(self.up(self.network_norm(x_btd)), approximate=self.gelu)
        y_btd: Tensor = x_btd + self.dropout(self.down(self.dropout(inner)))
        return y_btd


def initialize(module: nn.Module, layers: int) -> None:
    """Give every weight the first values of GPT-2: N(0, 0.02), and what ends on a shortcut 1 / sqrt(2 layers) of that.

    Source: Radford et al. 2018, section 4.1, for 0.02; Radford et al. 2019, section 2.3, for the scaling.
    """
    for name, part in module.named_modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            ends_shortcut = name.endswith((".out", ".down"))
            nn.init.normal_(part.weight, std=0.02 / math.sqrt(2 * layers) if ends_shortcut else 0.02)
            if isinstance(part, nn.Linear) and part.bias is not None:
                nn.init.zeros_(part.bias)


def positions(table: nn.Embedding, x: Tensor) -> Tensor:
    """Return the vectors [t, d] of the places 0..t-1 of `x` [b, t, ...]."""
    found: Tensor = table(torch.arange(x.shape[1], device=x.device))
    return found
