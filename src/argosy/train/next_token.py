"""A language model as callers ask it: a text in, what comes next out.

Shape suffixes: b batch, t tokens, v vocabulary.
"""

import torch
from torch import Tensor, nn

OUTPUTS = ("logits", "nats")


class NextToken(nn.Module):
    """Wraps a language model so that a text's length doesn't change the size of its answer."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_bt: Tensor, mask_bt: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits [b, v] of the token behind each text, and the text's own mean surprise in nats [b].

        `mask_bt` is 1 for a text's tokens and 0 for the padding behind them. The surprise is the mean over all tokens
        but the first of -ln(probability by those before it); 0 for a text of one token. exp of it is the perplexity.
        """
        logits_btv = self.model(ids_bt, mask_bt)
        last_b11 = (mask_bt.sum(dim=1) - 1).reshape(-1, 1, 1)
        # Indexed, not squeezed: of a squeeze the exporter makes a branch, by a size it doesn't know.
        last_bv = logits_btv.gather(1, last_b11.expand(-1, 1, logits_btv.shape[2]))[:, 0]
        # Turned by one instead of cut, so that a text of one token has nothing of size 0 in it.
        next_bt = torch.cat([ids_bt[:, 1:], ids_bt[:, :1]], dim=1)
        is_next_bt = torch.cat([mask_bt[:, 1:], torch.zeros_like(mask_bt[:, :1])], dim=1).to(logits_btv.dtype)
        said_bt = torch.log_softmax(logits_btv, dim=2).gather(2, next_bt.unsqueeze(2))[:, :, 0]
        nats_b = -(said_bt * is_next_bt).sum(dim=1) / is_next_bt.sum(dim=1).clamp(min=1.0)
        return last_bv, nats_b
