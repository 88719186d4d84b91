"""The loop of every training, whatever its strategy."""

import math
from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress, Reporter
from argosy.data.dataset import batches
from argosy.train.checkpoint import Checkpoints
from argosy.train.config import TrainConfig
from argosy.train.losses import Loss
from argosy.train.optimizers import Optimizer, rate_at
from argosy.train.parameters import FlatParameters
from argosy.train.randomness import own_randomness, seed_step
from argosy.train.samples import Samples
from argosy.train.strategy import Strategy

BatchLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and row numbers of a batch to one loss per row; rows lead to targets and a teacher's answers."""

_NEWS_S = 0.25
"""Seconds between two pieces of news: often enough to look alive, too seldom to cost anything."""


class Position(msgspec.Struct, kw_only=True):
    """Where a training stands, but for its tensors. Plain values: part of every checkpoint."""

    epoch: int = 0
    """Whole epochs done."""
    batch: int = 0
    """Batches done in the epoch that runs."""
    step: int = 0
    loss: float = 0.0
    """Sum over the samples of this epoch."""
    count: float = 0.0
    waited: int = 0
    """Epochs since the best metric."""
    best: float | None = None
    history: list[dict[str, float]] = []
    seconds: float = 0.0
    """Time spent, over all starts."""


def usual_epochs(steps_per_epoch: int) -> int:
    """Return how many epochs a training gets that was not told: ten, and for few samples enough for some 800 steps.

    A hundred rows are two steps of 64; ten epochs of them would leave a network where it began.
    """
    return max(10, min(200, math.ceil(800 / steps_per_epoch)))


class Training:
    """One training: what it works on, and where it stands. `run` goes on from there to the end."""

    def __init__(
        self,
        model: nn.Module,
        samples: Samples,
        config: TrainConfig,
        strategy: Strategy,
        loss: BatchLoss,
        *,
        clock: Clock,
        report: Reporter,
        checkpoints: Checkpoints | None = None,
        validation_loss: Loss | None = None,
    ) -> None:
        self.model, self.samples, self.config, self.strategy = model, samples, config, strategy
        self.position = Position()
        self._loss, self._validation_loss = loss, validation_loss
        self._clock, self._report = clock, report
        self._checkpoints = checkpoints
        self._best: dict[str, Tensor] = {}
        self._batch_size = len(samples.x) if config.optimizer == "gd" else config.batch_size
        self._steps_per_epoch = math.ceil(len(samples.x) / self._batch_size)
        self._epochs = config.epochs or usual_epochs(self._steps_per_epoch)
        self._steps = self._steps_per_epoch * self._epochs

    @property
    def metric_name(self) -> str:
        """What decides which epoch is best: accuracy (higher is better), or rmse or loss (lower is better)."""
        if len(self.samples.validation_x) == 0:
            return "loss"
        return "accuracy" if self.samples.task == "classification" else "rmse"

    def run(self) -> Position:
        """Train to the end, from the newest checkpoint if there is one; the model then holds the final weights.

        Those are the last epoch's, or the best epoch's when `patience` asks for early stopping. Raises InvalidInput
        with the code `not_finite` when the loss or a gradient is no longer a number; checkpoints stay.
        """
        with own_randomness(), self.strategy.attached(self.model), FlatParameters(self.model) as flat:
            self._optimizer = Optimizer(self.config, flat.values)
            self._flat = flat
            self._resume()
            self._started = self._said = self._saved = self._clock.monotonic()
            self._started_step, self._seconds_before = self.position.step, self.position.seconds
            while self.position.epoch < self._epochs and not self._is_stopped():
                self._train_epoch()
                self._finish_epoch()
            if self._best:
                self.model.load_state_dict(self._best)
            self.model.eval()
            self.position.seconds = self._seconds()
        return self.position

    def _train_epoch(self) -> None:
        position = self.position
        self.model.train()
        for number, rows in enumerate(self._batches(position.epoch)):
            if number < position.batch:
                continue
            loss, count = self._step(torch.from_numpy(rows))
            position.batch, position.step = number + 1, position.step + 1
            position.loss, position.count = position.loss + loss, position.count + count
            self._tell()
            self._maybe_save()

    def _step(self, rows: Tensor) -> tuple[float, float]:
        """Make one step over this rank's `rows` of the batch; return the sum of losses and samples of all ranks."""
        position, strategy, flat = self.position, self.strategy, self._flat
        seed_step(self.config.seed, position.step, strategy.rank)
        strategy.begin(len(rows))
        flat.exchanged.zero_()
        # A rank without samples runs one all the same, for its exchanges, and counts it as nothing.
        used = rows if len(rows) else torch.zeros(1, dtype=torch.int64)
        losses = self._loss(self.model(self.samples.x[used]), used)
        loss_sum = losses.sum() * (1.0 if len(rows) else 0.0)
        if not loss_sum.requires_grad:
            raise InvalidInput(
                "the model's outputs do not depend on its parameters, so nothing can be learned",
                hint="look for detach(), no_grad() or .item() in the model's forward",
                code="no_gradient",
            )
        loss_sum.backward()  # type: ignore[no-untyped-call]
        flat.totals[0], flat.totals[1] = loss_sum.detach(), len(rows)
        strategy.reduce(flat.exchanged)
        loss, count = flat.totals.tolist()
        flat.gradients.div_(count)
        self._check_finite(loss)
        rate = rate_at(self.config, position.step, self._steps)
        self._optimizer.step(flat.gradients, rate, position.step + 1)
        strategy.updated(self.model)
        return loss, count

    def _batches(self, epoch: int) -> Any:
        return batches(
            len(self.samples.x),
            self._batch_size,
            seed=self.config.seed,
            epoch=epoch,
            rank=self.strategy.rank,
            world_size=self.strategy.world_size,
        )

    def _check_finite(self, loss: float) -> None:
        if math.isfinite(loss) and self._flat.is_finite(gradients=True):
            return
        culprit = self._flat.first_not_finite(gradients=False) or self._flat.first_not_finite(gradients=True)
        what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
        raise InvalidInput(
            f"training stopped at step {self.position.step + 1} of {self._steps}: {what}"
            + (f", first seen in '{culprit}'" if culprit else ""),
            hint="lower learning_rate, set clip = 1.0, or look for missing values and logarithms of 0",
            code="not_finite",
            step=self.position.step + 1,
            parameter=culprit,
        )

    def _finish_epoch(self) -> None:
        position = self.position
        entry = {"epoch": float(position.epoch + 1), "loss": position.loss / max(1.0, position.count)}
        entry.update(self._validate())
        entry["learning_rate"] = rate_at(self.config, position.step - 1, self._steps)
        entry["seconds"] = self._seconds()
        metric = entry[self.metric_name]
        sign = 1 if self.metric_name == "accuracy" else -1
        position.waited += 1
        if position.best is None or sign * metric > sign * position.best:
            position.best, position.waited = metric, 0
            if self.config.patience:
                self._best = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        position.history.append(entry)
        position.epoch, position.batch = position.epoch + 1, 0
        position.loss = position.count = 0.0
        self._tell(at_once=True)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the metrics of the validation part, of which every rank looks at its share."""
        samples, strategy = self.samples, self.strategy
        total = len(samples.validation_x)
        if total == 0:
            return {}
        self.model.eval()
        begin, end = (total * (strategy.rank + i) // strategy.world_size for i in (0, 1))
        loss = right = 0.0
        for start in range(begin, end, 1024):
            rows = slice(start, min(start + 1024, end))
            y = samples.validation_y[rows]
            outputs = self.model(samples.validation_x[rows])
            if self._validation_loss is not None:
                loss += float(self._validation_loss(outputs, y).double().sum())
            if samples.task == "classification":
                right += float((outputs.argmax(dim=1) == y).sum())
            else:
                right += float((outputs.reshape(-1) - y.reshape(-1)).double().square().sum())
        loss, right = strategy.total(loss, right)
        score = right / total if samples.task == "classification" else math.sqrt(right / total) * samples.unit
        return {"validation_loss": loss / total, self.metric_name: score}

    def _is_stopped(self) -> bool:
        return bool(self.config.patience) and self.position.waited >= self.config.patience

    def _seconds(self) -> float:
        return self._seconds_before + self._clock.monotonic() - self._started

    def _tell(self, *, at_once: bool = False) -> None:
        now = self._clock.monotonic()
        if self.strategy.rank != 0 or (now - self._said < _NEWS_S and not at_once):
            return
        self._said = now
        position = self.position
        passed = max(1e-9, now - self._started)
        per_second = (position.step - self._started_step) / passed
        last = position.history[-1] if position.history else {}
        values = {name: last[name] for name in (self.metric_name, "validation_loss") if name in last}
        values["loss"] = position.loss / position.count if position.count else last.get("loss", math.nan)
        values["samples_per_s"] = round(per_second * len(self.samples.x) / self._steps_per_epoch, 1)
        self._report(
            Progress(
                stage="train",
                message=f"epoch {min(position.epoch + (position.batch > 0), self._epochs)}/{self._epochs}",
                done=position.step,
                total=self._steps,
                unit="steps",
                left_s=round((self._steps - position.step) / per_second, 1) if per_second else -1.0,
                values=values,
            )
        )

    def _maybe_save(self) -> None:
        # All ranks hold the same state, so one writes, when its own clock says so.
        now = self._clock.monotonic()
        if self._checkpoints is None or self.strategy.rank != 0 or now - self._saved < self.config.checkpoint_s:
            return
        if not self._flat.is_finite(gradients=False):
            return  # the next step will say so; the former checkpoint must stay
        self._saved = now
        self.position.seconds = self._seconds()
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        tensors.update({f"optimizer.{name}": tensor for name, tensor in self._optimizer.state.items()})
        tensors.update({f"best.{name}": tensor for name, tensor in self._best.items()})
        self._checkpoints.save(self.position.step, tensors, msgspec.to_builtins(self.position))

    def _resume(self) -> None:
        """Take up the newest checkpoint. Rank 0 says which one that is, so that all take the same."""
        if self._checkpoints is None:
            return
        step = self._checkpoints.newest() if self.strategy.rank == 0 else 0
        step = int(self.strategy.total(step)[0])
        if step < 0:
            return
        tensors, position = self._checkpoints.load(step)
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "best": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = tensor
        self.model.load_state_dict(parts["model"])
        for name, state in self._optimizer.state.items():
            state.copy_(parts["optimizer"][name])
        self._best = parts["best"]
        self.position = msgspec.convert(position, Position)
        if self.strategy.rank == 0:
            self._report(Progress(stage="train", message=f"goes on from the checkpoint of step {step}", done=step))
