"""Training in this process, without files: what compression uses to fine-tune."""

from collections.abc import Callable

import msgspec
import torch
from torch import Tensor, nn

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import InvalidInput
from argosy.core.progress import Reporter, silent
from argosy.data.dataset import Dataset
from argosy.train.config import TrainConfig
from argosy.train.loop import BatchLoss, Training
from argosy.train.losses import distilled, loss_for, loss_of
from argosy.train.samples import Samples, StreamedSamples, samples_of
from argosy.train.strategy.synchronous import Single


def fit(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    teacher: Callable[[Tensor], Tensor] | None = None,
    alpha: float = 0.5,
    temperature: float = 2.0,
    report: Reporter = silent,
    clock: Clock | None = None,
) -> list[dict[str, float]]:
    """Train `model` in place, in the dtype it has; return one entry per epoch with loss and validation metric.

    With a `teacher` (model-ready inputs to outputs) the loss is `alpha` of the distance to its answers and
    `1 - alpha` of the usual loss. `workers` and `strategy` of `config` are ignored. The model ends in inference mode.
    """
    config = msgspec.structs.replace(config, workers=1, strategy="single")
    config.check()
    if not 0 <= alpha <= 1 or temperature <= 0:
        raise InvalidInput(f"alpha {alpha:g} must be from 0 to 1 and temperature {temperature:g} above 0")
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    samples = samples_of(dataset, dtype)
    samples.check(1)
    loss = training_loss(config, samples)
    if teacher is not None:
        loss = _with_teacher(loss, _taught(teacher, samples), samples.task, alpha, temperature)
    training = Training(
        model,
        samples,
        config,
        Single(),
        loss,
        clock=clock or SystemClock(),
        report=report,
        validation_loss=loss_for(config.loss, samples.task, samples.outputs),
    )
    return training.run().history


def training_loss(config: TrainConfig, samples: Samples) -> BatchLoss:
    """Return the loss of a batch, given its outputs and row numbers."""
    loss = loss_of(config, samples)
    return lambda outputs, rows: loss(outputs, samples.y[rows])


def _taught(teacher: Callable[[Tensor], Tensor], samples: Samples) -> Tensor:
    if not isinstance(samples, StreamedSamples):
        return answers_of(teacher, samples.x)
    rows = torch.split(torch.arange(len(samples)), samples.rows_at_once)
    return torch.cat([answers_of(teacher, samples.batch(some)[0]) for some in rows])


@torch.no_grad()
def answers_of(teacher: Callable[[Tensor], Tensor], x: Tensor, *, batch_size: int = 256) -> Tensor:
    """Return the teacher's answers to all of `x`, in inference mode; they are the same in every epoch."""
    was_training = isinstance(teacher, nn.Module) and teacher.training
    if isinstance(teacher, nn.Module):
        teacher.eval()
    try:
        return torch.cat([teacher(x[start : start + batch_size]) for start in range(0, len(x), batch_size)])
    finally:
        if isinstance(teacher, nn.Module):
            teacher.train(was_training)


def _with_teacher(loss: BatchLoss, answers: Tensor, task: str, alpha: float, temperature: float) -> BatchLoss:
    def both(outputs: Tensor, rows: Tensor) -> Tensor:
        distance = distilled(answers[rows].to(outputs.dtype), outputs, task, temperature)
        return alpha * distance + (1 - alpha) * loss(outputs, rows)

    return both
