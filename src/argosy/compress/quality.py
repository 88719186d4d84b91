"""How much worse a candidate's answers are, and how sure that is on a small validation part."""

from typing import Any, Protocol

import numpy as np

from argosy.compress.candidate import Quality
from argosy.core.errors import InvalidInput
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.evaluate.agreement import answers_agree
from argosy.evaluate.intervals import mean_interval, paired_drop
from argosy.formats.runner import Runner

# A two-sided interval of 60 % has an upper end that holds with 80 %. That is what 144 items without any loss can say
# about one point: the exact chance of such luck is then (1 - 0.01)^144, or 23 %.
_CONFIDENCE = 0.6
_BATCH = 256
# Attention's memory grows with the square of a text's length.
_TEXTS = 32
# As many training samples tell a broken model from a whole one; more only take time.
_MAX_SEEN = 2048
# Two numbers are the same answer within this share of the spread of the truth.
_SAME_SHARE = 0.05


class PreparedData(Protocol):
    """What this package needs of a data set (`argosy.data.dataset.Dataset`)."""

    @property
    def task(self) -> str:
        """What is learned: classification or regression."""
        ...

    @property
    def digest(self) -> str:
        """The digest of everything in it."""
        ...

    def prepared(self, split: str) -> tuple[dict[str, Any], Any]:
        """Return model-ready inputs and answers of one part: train, validation or test."""
        ...


class Samples:
    """The training part, for calibration, and the validation part, for judging, with the original's answers."""

    def __init__(self, dataset: PreparedData, original: Runner) -> None:
        self.is_classification = dataset.task == "classification"
        self.train, train_y = dataset.prepared("train")
        self.validation, self.y = dataset.prepared("validation")
        for part, y in (("training", train_y), ("validation", self.y)):
            if len(y) == 0:
                raise InvalidInput(
                    f"the {part} part of the data is empty, so nothing can be compressed and judged",
                    hint="set [data] validation to a share such as 0.1, or give more rows",
                )
        step = max(1, -(-len(train_y) // _MAX_SEEN))
        self._seen = {name: array[::step] for name, array in self.train.items()}
        self._seen_y = train_y[::step]
        self._answers = answers(original, self.validation)
        self._seen_points = self._points(answers(original, self._seen), self._seen_y)
        self._original_points = self._points(self._answers, self.y)

    def judge(self, runner: Runner) -> Quality:
        """Judge a candidate on the validation part, beside the original."""
        got = answers(runner, self.validation)
        if got.shape != self._answers.shape or not np.isfinite(got).all():
            raise InvalidInput("the compressed model's answers are not finite numbers of the original's shape")
        points = self._points(got, self.y)
        seen = self._seen_points - self._points(answers(runner, self._seen), self._seen_y)
        loss = self._original_points - points
        if self.is_classification:
            drop_high = paired_drop(self._original_points > 0, points > 0, _CONFIDENCE)[2]
        else:
            drop_high = mean_interval(loss, _CONFIDENCE)[1]
        return Quality(
            measure="accuracy" if self.is_classification else "r2",
            value=float(points.mean()),
            drop=float(loss.mean()),
            drop_high=drop_high,
            seen_drop=float(seen.mean()),
            agreement=float(self._agrees(got).mean()),
            lost=int((loss > 0).sum()),
            won=int((loss < 0).sum()),
            items=len(loss),
        )

    def _points(self, got: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What each item adds to the measure, whose mean is accuracy or R2."""
        if self.is_classification:
            return np.asarray(_classes(got) == y, dtype=np.float64)
        spread = float(np.var(self.y)) or 1.0
        return np.asarray(1.0 - (got.reshape(len(y), -1)[:, 0].astype(np.float64) - y) ** 2 / spread)

    def _agrees(self, got: np.ndarray) -> np.ndarray:
        if self.is_classification:
            return answers_agree({"label": _classes(got)}, {"label": _classes(self._answers)}, tolerance=0.0)
        spread = float(np.std(self.y)) or 1.0
        return np.asarray(np.abs(got - self._answers).reshape(len(got), -1).max(axis=1) <= _SAME_SHARE * spread)


def _classes(logits: np.ndarray) -> np.ndarray:
    """The class of each row; a single number per row is the logit of the second of two classes."""
    return np.asarray(logits.reshape(-1) > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1))


def answers(runner: Runner, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return the first output for all rows, run in batches that fit into memory; texts without needless padding."""
    count = len(next(iter(inputs.values())))
    output = runner.signature.outputs[0].name
    size = _TEXTS if ATTENTION_MASK in inputs else _BATCH
    # Texts of like lengths together: padding costs as much as words.
    order = (
        np.argsort(inputs[ATTENTION_MASK].sum(axis=1), kind="stable") if ATTENTION_MASK in inputs else np.arange(count)
    )
    parts = []
    for start in range(0, count, size):
        rows = order[start : start + size]
        parts.append(runner.run(without_padding({name: array[rows] for name, array in inputs.items()}))[output])
    found = np.concatenate(parts)
    found[order] = found.copy()
    return found
