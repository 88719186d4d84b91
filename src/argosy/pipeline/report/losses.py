"""The loss in between epochs, taken from the news of a training."""

import math
from pathlib import Path

import msgspec

from argosy.core.files import write_atomic
from argosy.core.progress import Progress, Reporter
from argosy.pipeline.report.chart import Point

_MOST = 300
"""Stretches of equal length that a training is shown in: about as many as a picture has places for."""
_SAVE_EVERY = 20


class _Place(msgspec.Struct):
    """A stretch of steps and the mean loss in it."""

    step: float
    loss: float
    steps: float


class LossCurve:
    """Hands news on, and remembers the losses in it. What it remembers outlives the process in `path`."""

    def __init__(self, path: Path, report: Reporter) -> None:
        self._path, self._report = path, report
        self._places: list[_Place] = []
        self._unsaved = 0
        try:
            self._places = msgspec.json.decode(path.read_bytes(), type=list[_Place])
        except (OSError, msgspec.DecodeError):
            self._places = []

    def __call__(self, news: Progress) -> None:
        """Take one piece of news."""
        self._report(news)
        loss = news.values.get("loss")
        if news.unit == "steps" and news.total and isinstance(loss, int | float) and math.isfinite(loss):
            self._take(news.done, float(loss), _epochs(news.message), news.total)

    def points(self, steps_per_epoch: float) -> list[Point]:
        """Return (epochs as a fraction, mean loss around there)."""
        return [((place.step - place.steps / 2) / steps_per_epoch, place.loss) for place in self._places]

    def _take(self, step: float, mean: float, epochs: int, total: float) -> None:
        """News has the mean since the epoch began; what happened since the last news follows from both means."""
        if not epochs:
            return
        per_epoch = total / epochs
        start = max(0, math.ceil(step / per_epoch - 1e-9) - 1) * per_epoch
        while self._places and self._places[-1].step >= step:  # a checkpoint was gone back to
            self._places.pop()
        known, summed = 0.0, 0.0
        for place in reversed(self._places):
            inside = min(place.steps, place.step - start)  # of this epoch
            if inside <= 1e-9:
                break
            known, summed = known + inside, summed + place.loss * inside
        steps = step - start - known
        if steps <= 1e-9:
            return
        self._places.append(_Place(step, (mean * (step - start) - summed) / steps, steps))
        width = total / _MOST
        if known and _stretch(step, width) == _stretch(self._places[-2].step, width):
            self._places[-2:] = [_joined(*self._places[-2:])]
        self._unsaved += 1
        if self._unsaved >= _SAVE_EVERY:
            self._unsaved = 0
            write_atomic(self._path, msgspec.json.encode(self._places))


def _epochs(message: str) -> int:
    """Return the number of epochs in "epoch 3/10", or 0."""
    _, _, last = message.rpartition("/")
    return int(last) if message.startswith("epoch ") and last.isdigit() else 0


def _stretch(step: float, width: float) -> int:
    return math.ceil(step / width - 1e-9)


def _joined(first: _Place, second: _Place) -> _Place:
    steps = first.steps + second.steps
    return _Place(second.step, (first.loss * first.steps + second.loss * second.steps) / steps, steps)
