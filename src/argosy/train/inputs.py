"""What a model is given for one sample: numbers of a fixed shape, or the tokens of a text.

Shape suffixes: b batch, t tokens (as many as the longest text of the batch has).
"""

from math import prod

import msgspec
import torch
from torch import Tensor


class ModelInput(msgspec.Struct, frozen=True, kw_only=True):
    """The inputs of a model, without the batch.

    Numbers: the model is called with one tensor `[b, *shape]`, or with several when there is `more`. Texts
    (`vocabulary` above 0): it is called with `input_ids` and `attention_mask`, both int64 `[b, t]` with t at most
    `shape[0]`; the mask is 1 for tokens and 0 for the padding behind them, so every text is 1 at its first place.
    """

    shape: tuple[int, ...]
    """Of a sample's first tensor; for texts the most tokens that one may have."""
    vocabulary: int = 0
    """How many different tokens there are; 0: samples are numbers."""
    pad_id: int = 0
    """The token that padding consists of."""
    more: tuple[tuple[int, ...], ...] = ()
    """Shapes of the tensors behind the first."""

    @property
    def is_text(self) -> bool:
        """Whether samples are tokens of texts."""
        return self.vocabulary > 0

    @property
    def size(self) -> int:
        """How many numbers a sample's first tensor has, or how many tokens a text at most."""
        return prod(self.shape)

    def example(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Return two samples to try a model with: zeros, or two texts of different lengths."""
        if not self.is_text:
            return tuple(torch.zeros(2, *shape, dtype=dtype) for shape in (self.shape, *self.more))
        length = min(5, self.shape[0])
        ids_bt = (torch.arange(2 * length).reshape(2, length) + 1) % self.vocabulary
        mask_bt = torch.ones_like(ids_bt)
        mask_bt[1, (length + 1) // 2 :] = 0
        return torch.where(mask_bt == 1, ids_bt, self.pad_id), mask_bt

    def __str__(self) -> str:
        """Return the inputs as an error shows them."""
        if self.is_text:
            return f"texts of up to {self.shape[0]} tokens out of {self.vocabulary}"
        return "shape " + " and ".join(str(list(shape)) for shape in (self.shape, *self.more))
