"""Metrics of predictions, one table. NumPy only; every value is finite and in float64."""

from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.plugins import Plugins

Array = npt.NDArray[Any]


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """Answers beside the truth. Classification: `truth` int64 [N], `probabilities` float64 [N, K], `chosen` int64 [N].

    Regression: `truth` and `value` float64 [N]. Language model: `nats` float64 [N], for each text the mean over its
    tokens of -ln(probability of the true token); all texts are equally long.
    """

    task: str
    truth: Array = np.empty(0)
    probabilities: Array = np.empty((0, 0))
    chosen: Array = np.empty(0, dtype=np.int64)
    value: Array = np.empty(0)
    nats: Array = np.empty(0)


class Metric(Protocol):
    """Turns predictions of at least one row into one finite number."""

    def __call__(self, found: Prediction) -> float:
        """Return the metric."""
        ...


METRICS = Plugins[Metric](
    "argosy.metrics",
    {
        "accuracy": "argosy.evaluate.metrics:accuracy",
        "f1": "argosy.evaluate.metrics:macro_f1",
        "balanced_accuracy": "argosy.evaluate.metrics:balanced_accuracy",
        "roc_auc": "argosy.evaluate.ranking:roc_auc",
        "average_precision": "argosy.evaluate.ranking:average_precision",
        "log_loss": "argosy.evaluate.metrics:log_loss",
        "calibration_error": "argosy.evaluate.calibration:calibration_error",
        "mae": "argosy.evaluate.metrics:mean_absolute_error",
        "rmse": "argosy.evaluate.metrics:root_mean_squared_error",
        "r2": "argosy.evaluate.metrics:r_squared",
        "perplexity": "argosy.evaluate.metrics:perplexity",
    },
)

OF_TASK = {
    "classification": (
        "accuracy",
        "f1",
        "balanced_accuracy",
        "roc_auc",
        "average_precision",
        "log_loss",
        "calibration_error",
    ),
    "regression": ("mae", "rmse", "r2"),
    "language-model": ("perplexity",),
}
"""Which metrics are reported for a task, the most important one first."""


def accuracy(found: Prediction) -> float:
    """Return the share of right answers."""
    return float(np.mean(found.chosen == found.truth))


def confusion(found: Prediction) -> npt.NDArray[np.int64]:
    """Return how often class i (row) was taken for class j (column)."""
    classes = found.probabilities.shape[1]
    counts = np.bincount(found.truth * classes + found.chosen, minlength=classes * classes)
    return counts.reshape(classes, classes).astype(np.int64)


def macro_f1(found: Prediction) -> float:
    """Return the F1 score averaged over the classes that occur in truth or answers."""
    table = confusion(found)
    occurring = table.sum(axis=0) + table.sum(axis=1)
    hits = np.diag(table)
    present = occurring > 0
    return float(np.mean(2.0 * hits[present] / occurring[present]))


def balanced_accuracy(found: Prediction) -> float:
    """Return the recall averaged over the classes that occur in the truth."""
    table = confusion(found)
    members = table.sum(axis=1)
    present = members > 0
    return float(np.mean(np.diag(table)[present] / members[present]))


def log_loss(found: Prediction) -> float:
    """Return the mean of -ln(probability of the true class), at most 15.9 per row.

    Probabilities are float32; one that was rounded to 0 counts as float32's epsilon, as in scikit-learn.
    """
    of_truth = found.probabilities[np.arange(len(found.truth)), found.truth]
    return float(-np.mean(np.log(np.maximum(of_truth, np.finfo(np.float32).eps))))


def mean_absolute_error(found: Prediction) -> float:
    """Return the mean distance from the truth."""
    return float(np.mean(np.abs(found.value - found.truth)))


def root_mean_squared_error(found: Prediction) -> float:
    """Return the root of the mean squared distance from the truth."""
    return float(np.sqrt(np.mean((found.value - found.truth) ** 2)))


def r_squared(found: Prediction) -> float:
    """Return 1 - error / variance; for a constant truth 1 if it is met, else 0."""
    error = float(np.sum((found.value - found.truth) ** 2))
    variance = float(np.sum((found.truth - found.truth.mean()) ** 2))
    if variance == 0.0:
        return 1.0 if error == 0.0 else 0.0
    return 1.0 - error / variance


def perplexity(found: Prediction) -> float:
    """Return exp of the mean surprise per token: among how many equally likely tokens the model wavers.

    Beyond float64 it counts as 1e300.
    """
    return float(np.exp(min(690.0, float(np.mean(found.nats)))))
