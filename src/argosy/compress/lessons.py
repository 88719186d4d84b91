"""What a student learns from: batches of the training part, what the original answers to them, and how far it is off.

The original answers each training sample once, on ONNX Runtime. For vectors of texts the hidden states of every token
are compared, which are too many to keep and are asked for batch by batch. A classifier with a last layer as wide as the
original's learns the values before that layer, too.

Shape suffixes: b batch, t tokens, k classes or width.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from argosy.compress.features import beside, has_layer, heard, with_features
from argosy.compress.quality import Samples, answers
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.runner import Runner

if TYPE_CHECKING:
    import torch
    from torch import nn

Arrays = dict[str, np.ndarray]

# Hinton et al. 2015, section 2: soft targets weigh most, and the true labels keep a share.
_TEMPERATURE = 2.0
_SOFT_SHARE = 0.7
# Texts of like lengths share a batch; so many batches are drawn together and then sorted, so that order stays random.
_SORTED_BATCHES = 16
_MOST_FEATURE_BYTES = 512 << 20
# What a student learns from in a search: texts it knows by heart after so many passes (of a 40th of a MiniLM trained on
# Reuters R52, 30 lost 0.6 points of the validation part, 120 lost 2.8).
MOST_EPOCHS = 30


class Lesson(msgspec.Struct, frozen=True, kw_only=True):
    """How long and how fast a student learns."""

    epochs: int
    """Passes over the training part; 0: as many as fit into `seconds`."""
    seconds: float
    """About so long at most, by the time of the first steps; where an epoch takes longer, a part of it."""
    batch_size: int
    learning_rate: float
    seed: int
    most_epochs: int = MOST_EPOCHS
    soft_share: float = _SOFT_SHARE
    """How much the original's answers count beside the truth, 0 to 1."""


class Insight(msgspec.Struct, frozen=True):
    """What the original answers to each training sample, and the values before its last layer where it has one."""

    answers: np.ndarray
    features: np.ndarray | None = None

    @classmethod
    def of(
        cls, original: Runner, samples: Samples, file: Path | None, tell: Callable[[int, int], None] | None = None
    ) -> "Insight":
        """Ask the original; without features where there is no `file` or no room for them.

        `tell` is called now and then with the number of samples that are done and that of all.
        """
        extended = with_features(file.read_bytes()) if file is not None else None
        count = len(next(iter(samples.train.values())))
        if extended is None or 4 * count * extended.width > _MOST_FEATURE_BYTES:
            return cls(samples.answers(original, samples.train, tell))
        runner = OnnxRunner.load(extended.content, threads=0)
        both = answers(runner, samples.train, beside(extended.name), tell).astype(np.float32)
        return cls(both[:, : extended.classes], both[:, extended.classes :])

    def for_student(self, student: "nn.Module") -> "Insight":
        """Return what the student can learn from: the answers alone where it has no last layer of the same width."""
        if self.features is None or has_layer(student, self.features.shape[1], self.answers.shape[1]):
            return self
        return Insight(self.answers)


def tensor_of(array: np.ndarray) -> "torch.Tensor":
    """Return an array as a tensor: with its own memory where that may be written to, else with a copy's."""
    import torch

    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


class Lessons:
    """Batches, and how far the student's answers are from the original's."""

    def __init__(
        self, original: Runner, samples: Samples, inputs: Arrays, lesson: Lesson, insight: Insight | None = None
    ) -> None:
        import torch

        self._original, self._samples, self._inputs, self._lesson = original, samples, inputs, lesson
        self.count = len(next(iter(inputs.values())))
        self._lengths = inputs[ATTENTION_MASK].sum(axis=1) if ATTENTION_MASK in inputs else None
        self.batches = -(-self.count // lesson.batch_size)
        # A row that is left over alone comes with the ones before it: batch norms can't learn from a single one.
        if self._lengths is None and self.count % lesson.batch_size == 1 < min(self.count, lesson.batch_size):
            self.batches -= 1
        self._outputs = [spec.name for spec in original.signature.outputs]
        self._y = None if samples.train_y is None else tensor_of(samples.train_y)
        self._soft = None if insight is None else tensor_of(insight.answers.astype(np.float32, copy=False))
        features = None if insight is None else insight.features
        self._features = None if features is None else tensor_of(features)
        self._spread = 1.0 if features is None else float(np.var(features, axis=0).mean()) + 1e-12
        self._take: Callable[[], torch.Tensor | None] = lambda: None

    @contextlib.contextmanager
    def listening(self, student: "nn.Module") -> Iterator[None]:
        """Hear what goes into the student's last layer, where that is to be learned."""
        if self._features is None or self._soft is None:
            yield
            return
        with heard(student, self._features.shape[1], self._soft.shape[1]) as self._take:
            yield

    def epoch(self, epoch: int) -> Iterator[np.ndarray]:
        """Yield the rows of each batch."""
        order = np.random.default_rng((self._lesson.seed, epoch)).permutation(self.count)
        size = self._lesson.batch_size
        if self._lengths is None:
            for number in range(self.batches):
                yield order[number * size : (number + 1) * size if number + 1 < self.batches else None]
            return
        span = size * _SORTED_BATCHES
        for start in range(0, self.count, span):
            part = order[start : start + span]
            part = part[np.argsort(self._lengths[part], kind="stable")]
            cuts = np.arange(0, len(part), size)
            for cut in np.random.default_rng((self._lesson.seed, epoch, start)).permutation(cuts):
                yield part[cut : cut + size]

    def usual(self) -> tuple[np.ndarray, float]:
        """Return the rows of a batch that costs about as much as the mean one, and its cost divided by the mean's."""
        if self._lengths is None:
            return next(self.epoch(0)), 1.0
        batches = list(itertools.islice(self.epoch(0), 4 * _SORTED_BATCHES))
        # A text costs what the longest of its batch has.
        costs = np.array([len(rows) * self._lengths[rows].max() for rows in batches], dtype=np.float64)
        nearest = int(np.argmin(np.abs(costs - costs.mean())))
        return batches[nearest], float(costs[nearest] / costs.mean())

    def loss(self, student: "nn.Module", rows: np.ndarray) -> "torch.Tensor":
        """Return the mean loss of a batch."""
        given = without_padding({name: array[rows] for name, array in self._inputs.items()})
        answer = student(*(tensor_of(array) for array in given.values()))
        parts = answer if isinstance(answer, tuple) else (answer,)
        outputs = dict(zip(self._outputs, parts, strict=False))
        task = self._samples.task
        if task == "embedding":
            return self._of_vectors(outputs, given)
        if task == "language-model":
            return self._of_text(outputs, given)
        return self._of_answers(parts[0].float(), rows)

    def _of_answers(self, outputs_bk: "torch.Tensor", rows: np.ndarray) -> "torch.Tensor":
        import torch
        from torch.nn import functional as F  # noqa: N812 - as everybody calls it

        from argosy.train.losses import distilled

        assert self._soft is not None
        is_classes = self._samples.task == "classification" and outputs_bk.shape[-1] > 1
        soft = distilled(
            self._soft[rows].reshape(outputs_bk.shape),
            outputs_bk,
            "classification" if is_classes else "regression",
            _TEMPERATURE,
        ).mean()
        felt_bw = self._take()
        if self._features is not None and felt_bw is not None:
            soft = soft + F.mse_loss(felt_bw.float(), self._features[rows]) / self._spread
        if self._y is None:
            return soft
        y = self._y[rows]
        if is_classes:
            hard = F.cross_entropy(outputs_bk, y)
        elif self._samples.task == "classification":
            hard = F.binary_cross_entropy_with_logits(outputs_bk.reshape(-1), y.to(torch.float32))
        else:
            hard = F.mse_loss(outputs_bk.reshape(len(y), -1)[:, 0], y.to(torch.float32))
        share = self._lesson.soft_share
        return share * soft + (1 - share) * hard

    def _of_vectors(self, outputs: "Mapping[str, torch.Tensor]", given: Arrays) -> "torch.Tensor":
        """Squared distance of the tokens' vectors, in units of their spread, and one less the cosine of their mean."""
        import torch
        from torch.nn import functional as F  # noqa: N812 - as everybody calls it

        wanted = {name: torch.from_numpy(array) for name, array in self._original.run(given).items()}
        total = torch.zeros(())
        for name, given_by_original in wanted.items():
            if not given_by_original.is_floating_point():
                continue
            got, want = outputs[name].float(), given_by_original
            if want.ndim == 3 and ATTENTION_MASK in given:
                mask_bt1 = torch.from_numpy(given[ATTENTION_MASK]).unsqueeze(2).float()
                spread = (want.square() * mask_bt1).sum() / mask_bt1.sum()
                total = total + ((got - want).square() * mask_bt1).sum() / mask_bt1.sum() / spread
                count_b1 = mask_bt1.sum(dim=1).clamp(min=1)
                pooled = (got * mask_bt1).sum(dim=1) / count_b1, (want * mask_bt1).sum(dim=1) / count_b1
            else:
                pooled = got.flatten(1), want.flatten(1)
                total = total + F.mse_loss(got, want) / want.square().mean().clamp(min=1e-12)
            total = total + (1 - F.cosine_similarity(*pooled, dim=1)).mean()
        return total

    def _of_text(self, outputs: "Mapping[str, torch.Tensor]", given: Arrays) -> "torch.Tensor":
        """The text's own surprise, and the distance of the next token's distribution from the original's."""
        import torch

        from argosy.train.losses import distilled

        wanted = torch.from_numpy(self._original.run(given)["logits"])
        soft = distilled(wanted, outputs["logits"].float(), "classification", 1.0).mean()
        return outputs["nats"].float().mean() + 0.1 * soft


def named(inputs: Arrays, names: list[str]) -> Arrays:
    """Give the inputs the names and the order of the graph's."""
    if set(names) <= set(inputs):
        return {name: inputs[name] for name in names}
    return dict(zip(names, inputs.values(), strict=False))
