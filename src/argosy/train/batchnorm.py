"""Batch norm over the samples of all ranks, so that two ranks on half batches equal one process on the whole batch.

Source: Ioffe and Szegedy 2015, algorithms 1 and 2; means and variances of parts are joined as in Chan et al. 1979,
which loses no digits where a difference of sums of squares would. torch.nn.SyncBatchNorm does not run on CPUs.

Shape suffixes: c channels; n all else.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects
from torch.nn.modules.batchnorm import _BatchNorm

from argosy.train.transport import Transport


class BatchShare(Protocol):
    """What batch norm must know about the step that runs."""

    transport: Transport | None
    """None when this process has the whole batch."""
    is_padding: bool
    """Whether this rank has no samples in this step and runs one for form's sake, which must count nowhere."""


@contextlib.contextmanager
def shared_statistics(model: nn.Module, share: BatchShare) -> Iterator[None]:
    """While open, all batch norms in `model` normalize over the samples of all ranks.

    Names and values of the model's state stay what they are. A step with one value per channel in all, in which
    there is no variance, uses the running statistics; torch would refuse it.
    """
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    for norm in norms:
        # An attribute of the instance hides the method of the class, until it is deleted.
        norm.__dict__["forward"] = functools.partial(_forward, norm, share)
    try:
        yield
    finally:
        for norm in norms:
            del norm.__dict__["forward"]


def _forward(norm: _BatchNorm, share: BatchShare, x: Tensor) -> Tensor:
    running_mean, running_var = norm.running_mean, norm.running_var
    if not norm.training:
        return F.batch_norm(x, running_mean, running_var, norm.weight, norm.bias, running_mean is None, 0.0, norm.eps)
    if share.transport is None:
        count = x.numel() // x.shape[1]
        mean = var = None
    else:
        count, mean, var = _joined_statistics(x.detach(), share)
    if count <= 1 and running_mean is not None:
        return F.batch_norm(x, running_mean, running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    factor = _count_step(norm)
    if share.transport is None or mean is None or var is None:
        return F.batch_norm(x, running_mean, running_var, norm.weight, norm.bias, True, factor, norm.eps)
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean, factor)
        running_var.lerp_(var * (count / (count - 1)), factor)
    step = _Shared(mean, var, count, norm.eps, share)
    return cast("Tensor", _Normalize.apply(x, norm.weight, norm.bias, step))  # type: ignore[no-untyped-call]


def _count_step(norm: _BatchNorm) -> float:
    """Count one step of the running statistics; return the weight of the newest.

    The first steps are averaged: torch lets 0 and 1, which no data gave, fade out instead, and with inputs of a small
    variance a model is useless in inference mode until they have (here: accuracy 0.1 for three epochs, then 1.0).
    """
    if norm.num_batches_tracked is None:
        return norm.momentum or 0.0
    norm.num_batches_tracked.add_(1)
    return max(norm.momentum or 0.0, 1.0 / float(norm.num_batches_tracked))


def _joined_statistics(x: Tensor, share: BatchShare) -> tuple[int, Tensor, Tensor]:
    """Return count, mean [c] and biased variance [c] over the values of all ranks."""
    transport = cast("Transport", share.transport)
    channels = x.shape[1]
    # One exchange: each rank fills its own row, and the sum over ranks is the table of all rows. In NumPy, which is
    # quicker than torch for so few numbers.
    rows = np.zeros((transport.world_size, 2 * channels + 1), np.float64 if x.dtype == torch.float64 else np.float32)
    if not share.is_padding:
        # torch.var_mean takes four times as long over these dimensions.
        mean, var = torch.batch_norm_update_stats(x, None, None, 0.0)
        own = rows[transport.rank]
        own[:channels], own[channels:-1], own[-1] = mean.numpy(), var.numpy(), x.numel() // channels
    transport.all_reduce(rows)
    counts = rows[:, -1:]
    total = counts.sum()
    means, variances = rows[:, :channels], rows[:, channels:-1]
    joined = (means * counts).sum(axis=0) / total
    spread = ((variances + np.square(means - joined)) * counts).sum(axis=0) / total
    return int(total), torch.from_numpy(joined), torch.from_numpy(spread)


class _Shared(NamedTuple):
    mean: Tensor
    var: Tensor
    values: int
    eps: float
    share: BatchShare


class _Normalize(torch.autograd.Function):
    """Normalizes with given statistics, which for the gradient depend on the samples of all ranks."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, shared: "_Shared") -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shared = shared
        return F.batch_norm(x, shared.mean, shared.var, weight, bias, False, 0.0, shared.eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        shared: _Shared = ctx.shared
        # The gradient with the statistics held fixed, and on the way the two sums that correct it.
        d_x, d_weight, d_bias = torch.ops.aten.native_batch_norm_backward(
            gradients[0], x, weight, shared.mean, shared.var, None, None, False, shared.eps, [True, True, True]
        )
        sums = np.stack([d_weight.numpy(), d_bias.numpy()])
        cast("Transport", shared.share.transport).all_reduce(sums)
        if shared.share.is_padding:
            d_x = torch.zeros_like(x)
        else:
            sums /= shared.values
            inverse = 1 / np.sqrt(shared.var.numpy() + shared.eps)
            # A copy, since memory that NumPy has seen can't be given back, as `sharded` does with gathered parameters.
            factor = 1.0 if weight is None else weight.detach().clone().numpy()
            scale = (inverse * factor).astype(sums.dtype)
            shape = [1, -1] + [1] * (x.dim() - 2)
            centred = x - shared.mean.view(shape)
            centred.mul_(torch.from_numpy((scale * inverse * sums[0]).astype(sums.dtype)).view(shape))
            d_x.sub_(centred).sub_(torch.from_numpy(scale * sums[1]).view(shape))
        return d_x, None if weight is None else d_weight, None if weight is None else d_bias, None
