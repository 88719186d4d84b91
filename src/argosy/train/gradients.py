"""Gradients go straight to where they are summed: one flat tensor, which ranks of one machine share.

PyTorch would make a new tensor for every gradient in every step. Here each ends in its place of the flat tensor: large
linear layers compute theirs there, all others are copied there as soon as they are known, while a cache still has them.
Nothing is set to zero in between and nothing added up that is there only once.
"""

import functools
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.train.marks import Marks

_LARGE = 1 << 16
"""Weights from which a linear layer computes its gradient in place: smaller ones are copied faster than asked for."""


class Gradients:
    """While it is open, backward passes of `model` leave their gradients in `places`, one view per parameter.

    The parameters' `grad` stays None. Between two calls of `begin` gradients are summed, so several backward passes
    make one step. `end` fills in zeros for parameters that had no part in it. With `marks`, gradients of the `sparse`
    parameters (each with its place in the flat tensor) are 0 but where they are marked.
    """

    def __init__(
        self,
        model: nn.Module,
        places: dict[nn.Parameter, Tensor],
        marks: Marks | None = None,
        sparse: Mapping[nn.Parameter, int] | None = None,
    ) -> None:
        self._marks = marks
        sparse = {} if marks is None or sparse is None else sparse
        self._sinks = {
            parameter: _Sink(place) if parameter not in sparse else _SparseSink(place, marks, sparse[parameter])
            for parameter, place in places.items()
        }
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(sink.take)  # type: ignore[no-untyped-call]
            for parameter, sink in self._sinks.items()
        ]
        self._direct = [module for module in model.modules() if self._is_direct(module)]
        for module in self._direct:
            # An attribute of the instance hides the method of the class, until it is deleted.
            module.__dict__["forward"] = functools.partial(_linear, module, self._sinks[_weight(module)])

    def _is_direct(self, module: nn.Module) -> TypeGuard[nn.Linear]:
        # Exactly this class: those that inherit from it may do anything.
        return (
            type(module) is nn.Linear
            and "forward" not in module.__dict__
            and _weight(module) in self._sinks
            and module.weight.numel() >= _LARGE
        )

    def begin(self) -> None:
        """Forget all gradients."""
        if self._marks is not None:
            self._marks.begin()
        for sink in self._sinks.values():
            sink.is_filled = sink.is_zero

    def end(self) -> None:
        """Make the gradient of every parameter that was not used 0."""
        for sink in self._sinks.values():
            if not sink.is_filled:
                sink.place.zero_()

    def close(self) -> None:
        """Give the model its ways back."""
        for hook in self._hooks:
            hook.remove()
        for module in self._direct:
            del module.__dict__["forward"]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Sink:
    """The place of one gradient, and whether this step has put something there."""

    is_zero = False
    """Whether the place holds zeros when a step begins."""

    def __init__(self, place: Tensor) -> None:
        self.place = place
        self.is_filled = False

    def take(self, parameter: Tensor) -> None:
        """Move what autograd has left in `parameter.grad` into the place."""
        gradient = parameter.grad
        if gradient is None:
            return
        parameter.grad = None
        gradient = gradient.detach()
        if gradient.is_sparse and not self.is_filled:
            self.place.zero_()
            self.is_filled = True
        if self.is_filled:
            self.place.add_(gradient)
        else:
            self.place.copy_(gradient)
            self.is_filled = True

    def take_product(self, left: Tensor, right: Tensor) -> None:
        """Put the matrix product `left @ right` into the place."""
        if self.is_filled:
            torch.addmm(self.place, left, right, out=self.place)
        else:
            torch.mm(left, right, out=self.place)
            self.is_filled = True


class _SparseSink(_Sink):
    """The place of a gradient that mostly has few rows; all others are 0 already."""

    is_zero = True

    def __init__(self, place: Tensor, marks: Marks | None, start: int) -> None:
        super().__init__(place)
        assert marks is not None
        self._marks = marks
        self._start = start

    def take(self, parameter: Tensor) -> None:
        """Say which rows there are, then move them."""
        gradient = parameter.grad
        if gradient is not None and gradient.is_sparse:
            # Not `indices`, which would first have to sum what is there twice.
            rows = gradient._indices()[0]  # noqa: SLF001
            self._marks.rows(self._start, self.place.shape[1], rows.numpy())
        elif gradient is not None:
            self._whole()
        super().take(parameter)

    def take_product(self, left: Tensor, right: Tensor) -> None:
        """Put the matrix product into the place: the table is a linear layer's weight, too."""
        self._whole()
        super().take_product(left, right)

    def _whole(self) -> None:
        self._marks.whole(self._start, self._start + self.place.numel())


def _weight(module: nn.Linear) -> nn.Parameter:
    # PyTorch declares it as a tensor.
    return cast("nn.Parameter", module.weight)


def _linear(module: nn.Linear, sink: _Sink, x: Tensor) -> Tensor:
    if not torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or x.dtype != module.weight.dtype:
        return F.linear(x, module.weight, module.bias)
    result: Tensor = _Linear.apply(x, module.weight, module.bias, sink)  # type: ignore[no-untyped-call]
    return result


class _Linear(torch.autograd.Function):
    """A linear layer whose weight's gradient is computed in its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, sink: _Sink) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.sink = sink
        ctx.has_bias = bias is not None
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        (d_y,) = gradients
        rows = d_y.reshape(-1, d_y.shape[-1])
        d_x = d_y @ weight if ctx.needs_input_grad[0] else None
        d_bias = rows.sum(dim=0) if ctx.has_bias else None
        if torch.is_grad_enabled():
            # Someone wants the gradient's own gradient (a penalty on it), so it has to be a result like any other.
            return d_x, rows.t() @ x.reshape(-1, x.shape[-1]), d_bias, None
        ctx.sink.take_product(rows.t(), x.reshape(-1, x.shape[-1]))
        return d_x, None, d_bias, None
