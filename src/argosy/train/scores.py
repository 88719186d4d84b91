"""The metrics of the validation part that are shown after each epoch: sums over samples, so that ranks can share it.

Shape suffixes: b batch, k outputs, t tokens.
"""

import math
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.train.samples import Samples

_MOST_CLASSES = 200


class Score(Protocol):
    """Metrics of one task. `name` is the one that decides which epoch is best."""

    name: str
    is_higher_better: bool
    size: int
    """How many sums there are."""

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return what a batch adds to the sums (float64 [size]); those of all batches and ranks are added up."""
        ...

    def values(self, sums: Tensor) -> dict[str, float]:
        """Return the metrics by name, `name` first, of the sums over at least one sample."""
        ...


def score_of(samples: Samples) -> Score:
    """Return the metrics for the task of these samples."""
    return score_for(samples.task, samples.outputs, samples.unit)


def score_for(task: str, outputs: int, unit: float = 1.0) -> Score:
    """Return the metrics for a task of `outputs` numbers per sample; `unit` is that of a regression's numbers."""
    if task == "language-model":
        return OfTokens()
    return OfClasses(outputs) if task == "classification" else OfNumbers(unit)


class OfClasses:
    """Accuracy, and F1 averaged over the classes that occur: of each class the hits, its samples, and its answers.

    Of very many classes the accuracy alone, so that ranks have little to add up.
    """

    name = "accuracy"
    is_higher_better = True

    def __init__(self, classes: int) -> None:
        self._has_f1 = classes <= _MOST_CLASSES
        self.size = 3 * classes if self._has_f1 else 2
        self._classes = classes

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return counts for outputs [b, k] and class numbers [b]: by class, or hits and samples."""
        chosen_b = outputs.argmax(dim=1)
        if not self._has_f1:
            return torch.tensor([float((chosen_b == y).sum()), float(len(y))], dtype=torch.float64)
        counted = (y[chosen_b == y], y, chosen_b)
        return torch.cat([torch.bincount(part, minlength=self._classes) for part in counted]).to(torch.float64)

    def values(self, sums: Tensor) -> dict[str, float]:
        """Return accuracy and f1."""
        if not self._has_f1:
            return {"accuracy": float(sums[0] / sums[1])}
        hits_k, members_k, answers_k = sums.reshape(3, -1)
        occurring_k = members_k + answers_k
        f1_k = 2 * hits_k[occurring_k > 0] / occurring_k[occurring_k > 0]
        return {"accuracy": float(hits_k.sum() / members_k.sum()), "f1": float(f1_k.mean())}


class OfNumbers:
    """Errors in the unit that the user knows, and the share of the variance that is explained."""

    name = "rmse"
    is_higher_better = False
    size = 5

    def __init__(self, unit: float) -> None:
        self._unit = unit

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return how many there are, the sums of |error|, error^2, y and y^2, for outputs [b, 1] and values [b]."""
        y_b = y.reshape(-1).double()
        error_b = outputs.reshape(-1).double() - y_b
        count = torch.tensor(float(len(y_b)), dtype=torch.float64)
        return torch.stack([count, error_b.abs().sum(), error_b.square().sum(), y_b.sum(), y_b.square().sum()])

    def values(self, sums: Tensor) -> dict[str, float]:
        """Return rmse, mae and r2."""
        count, absolute, squares, total, total_squares = sums.tolist()
        variance = total_squares - total**2 / count
        explained = 1 - squares / variance if variance > 0 else float(squares == 0)
        return {
            "rmse": math.sqrt(squares / count) * self._unit,
            "mae": absolute / count * self._unit,
            "r2": explained,
        }


class OfTokens:
    """Perplexity: among how many equally likely tokens the model wavers."""

    name = "perplexity"
    is_higher_better = False
    size = 2

    def sums(self, outputs: Tensor, y: Tensor) -> Tensor:
        """Return the sum of -ln(probability of the true token) and how many tokens, for [b, t, k] and [b, t]."""
        # A sum in float32 would depend on how the samples are shared out.
        nats = F.cross_entropy(outputs.flatten(0, 1), y.flatten().long(), reduction="none").double().sum()
        return torch.stack([nats, torch.tensor(float(y.numel()), dtype=torch.float64)])

    def values(self, sums: Tensor) -> dict[str, float]:
        """Return the perplexity, exp of the mean; beyond float64 it counts as 1e300."""
        return {"perplexity": math.exp(min(690.0, float(sums[0] / sums[1])))}
