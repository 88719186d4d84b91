"""The loop of every training, whatever its strategy."""

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput, Unavailable
from argosy.core.progress import Progress, Reporter
from argosy.data.dataset import share_of_batch
from argosy.data.shuffle import permutation
from argosy.train.checkpoint import BackgroundSaver, Checkpoints, packed, unpacked
from argosy.train.config import TrainConfig
from argosy.train.losses import Loss
from argosy.train.randomness import own_randomness, seed_step
from argosy.train.samples import Samples
from argosy.train.schedules import rate_at
from argosy.train.scores import score_of
from argosy.train.strategy import Strategy
from argosy.train.totals import NotFinite, Totals

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
        self._score = score_of(samples)
        self._clock, self._report = clock, report
        self._checkpoints = checkpoints
        self._best: dict[str, Tensor] = {}
        self._order: tuple[int, Tensor] | None = None
        self._batch_size = len(samples) if config.optimizer == "gd" else config.batch_size
        self._steps_per_epoch = math.ceil(len(samples) / self._batch_size)
        self._epochs = config.epochs or usual_epochs(self._steps_per_epoch)
        self._steps = self._steps_per_epoch * self._epochs

    @property
    def metric_name(self) -> str:
        """What decides which epoch is best: the task's first metric, or the loss where there is no validation part."""
        return self._score.name if len(self.samples.validation_y) else "loss"

    def run(self) -> Position:
        """Train to the end, from the newest checkpoint if there is one; the model then holds the final weights.

        Those are the last epoch's, or the best epoch's when `patience` asks for early stopping. Raises InvalidInput
        with the code `not_finite` when the loss or a gradient is no longer a number; checkpoints stay.
        """
        with own_randomness(), self.strategy.attached(self.model, self.config), self._saving():
            if self.strategy.is_fresh:
                if not self._recover():
                    raise Unavailable("nobody is left who knows where the training stands", code="rank_lost")
            else:
                self._resume()
            self._started = self._said = self._saved = self._clock.monotonic()
            self._started_step, self._seconds_before = self.position.step, self.position.seconds
            while self.position.epoch < self._epochs and not self._is_stopped():
                self._train_epoch()
                self._finish_epoch()
            if self._best:
                weights = self.strategy.weights(self.model)
                for name, tensor in self._best.items():
                    weights[name].copy_(tensor)
            self.model.eval()
            self.position.seconds = self._seconds()
        return self.position

    @contextlib.contextmanager
    def _saving(self) -> Iterator[None]:
        if self._checkpoints is None:
            yield
            return
        with BackgroundSaver(self._checkpoints) as self._saver:
            yield

    def _train_epoch(self) -> None:
        position, strategy = self.position, self.strategy
        self.model.train()
        while True:
            work = self._whole(lambda: strategy.next_work(position.epoch, position.batch, self._steps_per_epoch))
            if work is None:
                return
            number, share = work
            loss, count = self._whole(self._step, number, share)
            position.batch = strategy.batches_done(number)
            position.step = position.epoch * self._steps_per_epoch + position.batch
            position.loss, position.count = position.loss + loss, position.count + count
            self._tell()
            self._maybe_save()

    def _whole(self, act: Callable[..., Any], *arguments: Any) -> Any:
        """Do `act`, which leaves no trace until its end, again and again until no rank was lost in it."""
        while True:
            try:
                return act(*arguments)
            except Unavailable as error:
                if error.code != "rank_lost" or not self._recover():
                    raise

    def _recover(self) -> bool:
        """Wait until all ranks are there again; a fresh one learns where the others stand."""
        return self.strategy.recover(self._told, self._adopt)

    def _told(self) -> bytes:
        """Return what a fresh rank has to know, but for what ranks hold in common."""
        self.position.seconds = self._seconds()
        tensors = {f"buffer.{name}": buffer for name, buffer in self.model.named_buffers()}
        tensors.update({f"best.{name}": tensor for name, tensor in self._best.items()})
        return packed(tensors, self.position)

    def _adopt(self, told: bytes) -> None:
        tensors, position = unpacked(told)
        self.position = msgspec.convert(position, Position)
        parts = _parted(tensors, "buffer", "best")
        for name, buffer in self.model.named_buffers():
            buffer.copy_(parts["buffer"][name])
        self._best = parts["best"]
        if len(self.strategy.partners) < self.strategy.world_size:
            self.position.loss = self.position.count = 0.0  # they were another's

    def _step(self, number: int, share: int) -> Totals:
        """Make one step over a share of batch `number` of the epoch; return the sums over all who make it together."""
        strategy, rows = self.strategy, self._rows(number, share)
        step = self.position.epoch * self._steps_per_epoch + number
        seed_step(self.config.seed, step, share)
        strategy.begin()
        together = self._together(number, rows)
        loss = 0.0
        for part in self._parts(rows):
            strategy.begin_pass(len(part))
            # A rank without samples runs one all the same, for its exchanges, and counts it as nothing.
            losses = self._losses(part if len(part) else torch.zeros(1, dtype=torch.int64))
            mean = losses.sum() * (1.0 / together if len(part) else 0.0)
            if not mean.requires_grad:
                raise InvalidInput(
                    "the model's outputs do not depend on its parameters, so nothing can be learned",
                    hint="look for detach(), no_grad() or .item() in the model's forward",
                    code="no_gradient",
                )
            mean.backward()  # type: ignore[no-untyped-call]
            loss += float(mean.detach()) * together
        try:
            return strategy.finish(step, loss, len(rows), rate_at(self.config, step, self._steps))
        except NotFinite:
            raise self._not_finite(step, loss) from None

    def _together(self, number: int, rows: Tensor) -> int:
        """Return the samples of all that make this step together, of which this rank has `rows`."""
        partners = self.strategy.partners
        if len(partners) == 1:
            return len(rows)
        first, last = (self._share(number, partners[index]) for index in (0, -1))
        return int(last.stop - first.start)

    def _rows(self, number: int, share: int) -> Tensor:
        """Return the rows of one rank's share of a batch; shares differ by one row at most, and may be empty."""
        epoch = self.position.epoch
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, torch.from_numpy(permutation(len(self.samples), self.config.seed, epoch))
        return self._order[1][self._share(number, share)]

    def _share(self, number: int, share: int) -> slice:
        return share_of_batch(len(self.samples), self._batch_size, number, share, self.strategy.world_size)

    def _parts(self, rows: Tensor) -> list[Tensor]:
        """Return the rows of each pass of this step: as many passes on every rank."""
        passes = self.config.accumulate
        cuts = [len(rows) * number // passes for number in range(passes + 1)]
        return [rows[start:stop] for start, stop in itertools.pairwise(cuts)]

    def _losses(self, rows: Tensor) -> Tensor:
        return losses_of(self.model, self.samples, self._loss, rows, self.config.precision)

    def _not_finite(self, step: int, loss: float) -> InvalidInput:
        culprit = self.strategy.first_not_finite()
        what = f"the loss is {loss:g}" if not math.isfinite(loss) else "a gradient is not finite"
        return InvalidInput(
            f"training stopped at step {step + 1} of {self._steps}: {what}"
            + (f", first seen in '{culprit}'" if culprit else ""),
            hint="lower learning_rate, set clip = 1.0, or look for missing values and logarithms of 0",
            code="not_finite",
            step=step + 1,
            parameter=culprit,
        )

    def _finish_epoch(self) -> None:
        position = self.position
        # Both again after a loss: whoever has come in the place of the lost one begins with the first of them.
        (loss, count), measured = self._whole(
            lambda: (self.strategy.end_epoch(position.loss, position.count), self._validate())
        )
        entry = {"epoch": float(position.epoch + 1), "loss": loss / max(1.0, count), **measured}
        entry["learning_rate"] = rate_at(self.config, (position.epoch + 1) * self._steps_per_epoch - 1, self._steps)
        entry["seconds"] = self._seconds()
        metric = entry[self.metric_name]
        sign = 1 if self.metric_name != "loss" and self._score.is_higher_better else -1
        position.waited += 1
        if position.best is None or sign * metric > sign * position.best:
            position.best, position.waited = metric, 0
            if self.config.patience:
                self._best = {name: tensor.clone() for name, tensor in self.strategy.weights(self.model).items()}
        position.history.append(entry)
        position.epoch, position.batch = position.epoch + 1, 0
        position.step = position.epoch * self._steps_per_epoch
        position.loss = position.count = 0.0
        self._tell(at_once=True)

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return the metrics of the validation part, of which every rank looks at its share."""
        samples, strategy = self.samples, self.strategy
        total = len(samples.validation_y)
        if total == 0:
            return {}
        self.model.eval()
        begin, end = (total * (strategy.rank + i) // strategy.world_size for i in (0, 1))
        loss, sums = 0.0, torch.zeros(self._score.size, dtype=torch.float64)
        # As many passes on every rank, in which some exchange parameters; one without rows runs for form's sake.
        longest = -(-total // strategy.world_size)
        for start in range(begin, begin + longest, samples.rows_at_once):
            rows = torch.arange(start, min(start + samples.rows_at_once, end))
            outputs = self.model(*samples.validation_batch(rows if len(rows) else torch.zeros(1, dtype=torch.int64)))
            if not len(rows):
                continue
            y = samples.validation_y[rows]
            if self._validation_loss is not None:
                loss += float(self._validation_loss(outputs, y).double().sum())
            sums += self._score.sums(outputs, y)
        loss, *added = strategy.total(loss, *sums.tolist())
        return {"validation_loss": loss / total, **self._score.values(torch.tensor(added, dtype=torch.float64))}

    def _is_stopped(self) -> bool:
        return bool(self.config.patience) and self.position.waited >= self.config.patience

    def _seconds(self) -> float:
        return self._seconds_before + self._clock.monotonic() - self._started

    def _tell(self, *, at_once: bool = False) -> None:
        now = self._clock.monotonic()
        if not self.strategy.is_writer or (now - self._said < _NEWS_S and not at_once):
            return
        self._said = now
        position = self.position
        passed = max(1e-9, now - self._started)
        per_second = (position.step - self._started_step) / passed
        last = position.history[-1] if position.history else {}
        values = {name: last[name] for name in (self.metric_name, "validation_loss") if name in last}
        values["loss"] = position.loss / position.count if position.count else last.get("loss", math.nan)
        values["samples_per_s"] = round(per_second * len(self.samples) / self._steps_per_epoch, 1)
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
        # One rank writes, when its own clock says so.
        strategy, now = self.strategy, self._clock.monotonic()
        if self._checkpoints is None or not strategy.takes_part(now - self._saved >= self.config.checkpoint_s):
            return
        self._saved = now
        self.position.seconds = self._seconds()
        best = {f"model.{name}": tensor for name, tensor in self._best.items()}
        with strategy.quiet():
            tensors = dict(strategy.joined(self._parts_of_state()))
            tensors.update({f"best.{name.partition('.')[2]}": tensor for name, tensor in strategy.joined(best)})
            if strategy.is_writer:
                self._saver.save(self.position.step, tensors, msgspec.to_builtins(self.position))

    def _parts_of_state(self) -> dict[str, Tensor]:
        """Return this rank's parts of all tensors of a checkpoint, by their names in it: the memory itself."""
        parts = {f"model.{name}": tensor for name, tensor in self.strategy.weights(self.model).items()}
        return parts | {f"optimizer.{name}": tensor for name, tensor in self.strategy.state().items()}

    def _resume(self) -> None:
        """Take up the newest checkpoint that all have."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        steps = checkpoints.whole() if self.strategy.is_writer else []
        step, data = self.strategy.checkpoint(steps, checkpoints.packed)
        if step < 0:
            return
        tensors, position = checkpoints.load(step) if data is None else unpacked(data)
        self._fill(tensors)
        self.position = msgspec.convert(position, Position)
        self.strategy.resumed(self.position.step, self.position.epoch, self.position.batch)
        if self.strategy.is_writer:
            self._report(Progress(stage="train", message=f"goes on from the checkpoint of step {step}", done=step))

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        """Take this rank's parts of a checkpoint's tensors."""
        best = _parted(tensors, "model", "optimizer", "best")["best"]
        self.strategy.fill(self._parts_of_state(), tensors)
        if best:
            self._best = {n: torch.empty_like(part) for n, part in self.strategy.weights(self.model).items()}
            parts, wholes = ({f"model.{name}": t for name, t in found.items()} for found in (self._best, best))
            self.strategy.fill(parts, wholes)


def losses_of(model: nn.Module, samples: Samples, loss: BatchLoss, rows: Tensor, precision: str) -> Tensor:
    """Return one loss per row of the training part."""
    if precision == "float32":
        return loss(model(*samples.batch(rows)), rows)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return loss(model(*samples.batch(rows)), rows)


def _parted(tensors: dict[str, Tensor], *parts: str) -> dict[str, dict[str, Tensor]]:
    """Return the tensors by the first word of their names, and below it by the rest."""
    found: dict[str, dict[str, Tensor]] = {part: {} for part in parts}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        found[part][rest] = tensor
    return found
