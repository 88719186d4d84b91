"""All parameters of a model in one flat tensor, and their gradients in another.

One exchange then carries all gradients, without copies, and an optimizer is a few operations on whole tensors.
"""

from types import TracebackType
from typing import Self

import torch
from torch import nn

_ALIGN = 16
"""Parameters begin at multiples of this, so that each keeps the 64-byte alignment that vector units like."""


class FlatParameters:
    """While it is open, the trainable parameters of `model` are views of `values`, their gradients of `gradients`.

    `exchanged` is the gradients with two more numbers, `totals`, which travel along. Closing gives every parameter
    memory of its own again and drops the gradients. Gaps between parameters hold 0.
    """

    def __init__(self, model: nn.Module) -> None:
        named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self._named = named
        offsets, size = [], 0
        for _, parameter in named:
            offsets.append(size)
            size += -(-parameter.numel() // _ALIGN) * _ALIGN
        self.values = torch.zeros(size, dtype=named[0][1].dtype)
        self.exchanged = torch.zeros(size + 2, dtype=self.values.dtype)
        self.gradients, self.totals = self.exchanged[:size], self.exchanged[size:]
        for (_, parameter), offset in zip(named, offsets, strict=True):
            part = slice(offset, offset + parameter.numel())
            view = self.values[part].view(parameter.shape)
            view.copy_(parameter.detach())
            parameter.data = view
            parameter.grad = self.gradients[part].view(parameter.shape)

    def first_not_finite(self, *, gradients: bool) -> str:
        """Return the name of the first parameter whose gradient (or value) holds NaN or infinity, or an empty text."""
        for name, parameter in self._named:
            found = parameter.grad if gradients else parameter.detach()
            if found is not None and not bool(torch.isfinite(found).all()):
                return name
        return ""

    def is_finite(self, *, gradients: bool) -> bool:
        """Return whether all gradients (or values) are finite."""
        found = self.gradients if gradients else self.values
        # One pass; the sum of finite numbers may overflow, so only then each is looked at.
        return bool(torch.isfinite(found.sum())) or not self.first_not_finite(gradients=gradients)

    def close(self) -> None:
        """Give every parameter memory of its own again."""
        for _, parameter in self._named:
            parameter.data = parameter.detach().clone()
            parameter.grad = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
