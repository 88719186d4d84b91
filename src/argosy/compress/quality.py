"""How much worse a candidate's answers are, and how sure that is on a small validation part."""

import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol, cast

import numpy as np

from argosy.compress.candidate import Quality
from argosy.core.errors import InvalidInput
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.evaluate.agreement import answers_agree
from argosy.evaluate.intervals import mean_interval, paired_drop
from argosy.formats.runner import Answering

# A two-sided interval of 60 % has an upper end that holds with 80 %. That is what 144 items without any loss can say
# about one point: the exact chance of such luck is then (1 - 0.01)^144, or 23 %.
_CONFIDENCE = 0.6
_SURELY = 0.95
_BATCH = 256
# Attention's memory grows with the square of a text's length.
_TEXTS = 32
# As many training samples tell a broken model from a whole one; more only take time.
_MAX_SEEN, _MIN_SEEN, _SEEN_S = 2048, 64, 3.0
_VECTORS = 256
# A glimpse tells what is hopeless, no more.
_GLIMPSED = 128
# Two numbers are the same answer within this share of the spread of the truth,
_SAME_SHARE = 0.05
# and two vectors from this cosine on.
_SAME_COSINE = 0.99
_MEASURES = {"classification": "accuracy", "regression": "r2", "embedding": "cosine", "language-model": "perplexity"}
Arrays = dict[str, np.ndarray]


class PreparedData(Protocol):
    """What this package needs of a data set (`argosy.data.dataset.Dataset`)."""

    @property
    def task(self) -> str:
        """What is learned: classification, regression, language-model; or embedding, which needs no truth."""
        ...

    @property
    def digest(self) -> str:
        """The digest of everything in it."""
        ...

    def prepared(self, split: str) -> tuple[dict[str, Any], Any]:
        """Return model-ready inputs and answers of one part: train, validation or test.

        For a language model the next tokens, which its own inputs hold as well; for an embedding there are no answers.
        """
        ...


class VectorData(PreparedData, Protocol):
    """Data of the task embedding: what makes one vector of a model's outputs."""

    def vectors(self, outputs: Mapping[str, np.ndarray], prepared: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return a vector per row [n, width], as callers get it."""
        ...


class Samples:
    """The training part, for calibration, and the validation part, for judging, with the original's answers."""

    def __init__(self, dataset: PreparedData, original: Answering) -> None:
        self.task = dataset.task
        self.vectors = cast("VectorData", dataset).vectors if dataset.task == "embedding" else None
        self.train, self.train_y = dataset.prepared("train")
        self.validation, self.y = dataset.prepared("validation")
        if self.task == "embedding" and self.validation:
            # A cosine varies little from row to row, so a mean of as many is as good as one of thousands.
            self.validation = {name: array[:_VECTORS] for name, array in self.validation.items()}
        for part, inputs in (("training", self.train), ("validation", self.validation)):
            if not inputs or min(len(array) for array in inputs.values()) == 0:
                raise InvalidInput(
                    f"the {part} part of the data is empty, so nothing can be compressed and judged",
                    hint="set [data] validation to a share such as 0.1, or give more rows",
                )
        begun = time.monotonic()
        self._answers = self.answers(original, self.validation)
        self.seconds = time.monotonic() - begun
        """How long the original took for the validation part."""
        each_s = self.seconds / len(self._answers)
        count = len(next(iter(self.train.values())))
        step = max(1, -(-count // max(_MIN_SEEN, min(_MAX_SEEN, int(_SEEN_S / max(each_s, 1e-9))))))
        self._seen = {name: array[::step] for name, array in self.train.items()}
        self._seen_y = None if self.train_y is None else self.train_y[::step]
        self._seen_answers = self.answers(original, self._seen)
        self._seen_points = self._points(self._seen_answers, self._seen_answers, self._seen_y)
        self._original_points = self._points(self._answers, self._answers, self.y)
        # What the original answers better on samples it has learned than on others, it knows by heart.
        self._by_heart = max(0.0, float(self._seen_points.mean() - self._original_points.mean()))

    def own(self) -> Quality:
        """Return the original's quality, which is what all others are held against."""
        value = float(self._original_points.mean())
        return Quality(
            measure=_MEASURES[self.task],
            value=float(np.exp(-value)) if self.task == "language-model" else value,
            items=len(self._original_points),
        )

    @property
    def own_error(self) -> float:
        """How much the original errs, as a share of one: what it is short of the best value; 0 where there is none."""
        is_share = self.task in {"classification", "regression"}
        return max(0.0, 1.0 - float(self._original_points.mean())) if is_share else 0.0

    def judge(self, runner: Answering) -> Quality:
        """Judge a candidate on the validation part, beside the original."""
        got = self.answers(runner, self.validation)
        if got.shape != self._answers.shape or not np.isfinite(got).all():
            raise InvalidInput("the compressed model's answers are not finite numbers of the original's shape")
        points = self._points(got, self._answers, self.y)
        seen = self._seen_points - self._points(self.answers(runner, self._seen), self._seen_answers, self._seen_y)
        loss = self._original_points - points
        drop_high, drop_surely = (self._upper(points, confidence) for confidence in (_CONFIDENCE, _SURELY))
        value = float(points.mean())
        agrees = self._agrees(got)
        # Every vector moves a little: what counts as lost is one that is another now.
        lost, won = (~agrees, np.zeros(1, dtype=bool)) if self.task == "embedding" else (loss > 0, loss < 0)
        return Quality(
            measure=_MEASURES[self.task],
            value=float(np.exp(-value)) if self.task == "language-model" else value,
            drop=float(loss.mean()),
            drop_high=drop_high,
            drop_surely=drop_surely,
            seen_drop=float(seen.mean()) - self._by_heart,
            agreement=float(agrees.mean()),
            lost=int(lost.sum()),
            won=int(won.sum()),
            items=len(loss),
        )

    def _upper(self, points: np.ndarray, confidence: float) -> float:
        if self.task == "classification":
            return paired_drop(self._original_points > 0, points > 0, confidence)[2]
        return mean_interval(self._original_points - points, confidence)[1]

    def glimpse(self, runner: Answering) -> tuple[float, float]:
        """Return about how much a model loses, on some of the validation part, and the standard error of that."""
        rows = np.arange(0, len(self._answers), -(-len(self._answers) // _GLIMPSED))
        got = self.answers(runner, {name: array[rows] for name, array in self.validation.items()})
        points = self._points(got, self._answers[rows], None if self.y is None else self.y[rows])
        lost = self._original_points[rows] - points
        return float(lost.mean()), float(lost.std() / np.sqrt(len(lost)))

    def answers(self, runner: Answering, inputs: Arrays, tell: Callable[[int, int], None] | None = None) -> np.ndarray:
        """Return what is judged for each row: logits, a number, a vector; for running text nats and the next token."""
        if self.task == "language-model":
            return answers(runner, inputs, _nats_and_next, tell)
        vectors = self.vectors
        return answers(runner, inputs, _first if vectors is None else vectors, tell)

    def _points(self, got: np.ndarray, original: np.ndarray, y: Any) -> np.ndarray:
        """What each item adds to the measure, whose mean is accuracy, R2, cosine, or log-likelihood."""
        if self.task == "classification":
            return np.asarray(_classes(got) == y, dtype=np.float64)
        if self.task == "embedding":
            return _cosines(got, original)
        if self.task == "language-model":
            return -got[:, 0].astype(np.float64)
        spread = float(np.var(self.y)) or 1.0
        return np.asarray(1.0 - (got.reshape(len(y), -1)[:, 0].astype(np.float64) - y) ** 2 / spread)

    def _agrees(self, got: np.ndarray) -> np.ndarray:
        if self.task == "classification":
            return answers_agree({"label": _classes(got)}, {"label": _classes(self._answers)}, tolerance=0.0)
        if self.task == "embedding":
            return np.asarray(_cosines(got, self._answers) >= _SAME_COSINE)
        if self.task == "language-model":
            return np.asarray(got[:, 1] == self._answers[:, 1])
        spread = float(np.std(self.y)) or 1.0
        return np.asarray(np.abs(got - self._answers).reshape(len(got), -1).max(axis=1) <= _SAME_SHARE * spread)


def _cosines(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    a, b = got.reshape(len(got), -1).astype(np.float64), wanted.reshape(len(wanted), -1).astype(np.float64)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return np.asarray((a * b).sum(axis=1) / np.maximum(lengths, 1e-12))


def _classes(logits: np.ndarray) -> np.ndarray:
    """The class of each row; a single number per row is the logit of the second of two classes."""
    return np.asarray(logits.reshape(-1) > 0 if logits.shape[-1] == 1 else logits.argmax(axis=-1))


Answer = Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]


def _first(outputs: Mapping[str, np.ndarray], prepared: Mapping[str, np.ndarray]) -> np.ndarray:
    del prepared
    return next(iter(outputs.values()))


def _nats_and_next(outputs: Mapping[str, np.ndarray], prepared: Mapping[str, np.ndarray]) -> np.ndarray:
    del prepared
    return np.stack([outputs["nats"], outputs["logits"].argmax(axis=-1)], axis=1).astype(np.float64)


def answers(
    runner: Answering, inputs: Arrays, answer: Answer = _first, tell: Callable[[int, int], None] | None = None
) -> np.ndarray:
    """Return what `answer` makes of the outputs, by default the first one, for all rows.

    Run in batches that fit into memory; texts without needless padding. `tell` hears of the rows that are done after
    each batch, and of the number of all.
    """
    count = len(next(iter(inputs.values())))
    names = [spec.name for spec in runner.signature.inputs]
    size = _TEXTS if ATTENTION_MASK in inputs else _BATCH
    # Texts of like lengths together: padding costs as much as words.
    order = (
        np.argsort(inputs[ATTENTION_MASK].sum(axis=1), kind="stable") if ATTENTION_MASK in inputs else np.arange(count)
    )
    parts = []
    for start in range(0, count, size):
        rows = order[start : start + size]
        prepared = without_padding({name: array[rows] for name, array in inputs.items()})
        given = prepared if set(names) == set(prepared) else dict(zip(names, prepared.values(), strict=False))
        parts.append(answer(runner.run(given), prepared))
        if tell is not None:
            tell(min(start + size, count), count)
    found = np.concatenate(parts)
    found[order] = found.copy()
    return found
