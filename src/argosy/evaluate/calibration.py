"""Whether stated probabilities come true, and the one number that mends most of it."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.evaluate.metrics import Prediction

BINS = 15
"""Guo et al. 2017, section 4: the usual number, so that values can be compared with published ones."""


class ReliabilityBin(msgspec.Struct, frozen=True, kw_only=True):
    """Answers whose confidence lies in (low, high]: how many, how sure on average, how often right."""

    low: float
    high: float
    samples: int
    confidence: float
    accuracy: float


def reliability(found: Prediction, bins: int = BINS) -> list[ReliabilityBin]:
    """Return the bins of equal width that hold any answers."""
    confidence = found.probabilities.max(axis=1)
    place = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    samples = np.bincount(place, minlength=bins)
    sure = np.bincount(place, weights=confidence, minlength=bins)
    right = np.bincount(place, weights=found.chosen == found.truth, minlength=bins)
    return [
        ReliabilityBin(
            low=k / bins,
            high=(k + 1) / bins,
            samples=int(samples[k]),
            confidence=float(sure[k] / samples[k]),
            accuracy=float(right[k] / samples[k]),
        )
        for k in range(bins)
        if samples[k]
    ]


def calibration_error(found: Prediction) -> float:
    """Return the expected calibration error (Guo et al. 2017, equation 3): the mean gap, weighted by samples."""
    bins = reliability(found)
    return sum(b.samples * abs(b.accuracy - b.confidence) for b in bins) / sum(b.samples for b in bins)


def fit_temperature(scores: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Return the temperature, 0.05 to 20, that makes softmax(scores / temperature) least surprised by the truth.

    scores: float [N, K], of the validation part. Answers don't change, only how sure they are (Guo et al. 2017, 4.2).
    The loss is convex in 1 / temperature, so its slope is bisected; of equally good ones the highest is taken.
    """
    z = np.asarray(scores, dtype=np.float64)
    z = z - z.max(axis=1, keepdims=True)
    of_truth = z[np.arange(len(truth)), truth]

    def slope(beta: float) -> float:
        powers = np.exp(beta * z)
        expected = (powers * z).sum(axis=1) / powers.sum(axis=1)
        return float(np.mean(expected - of_truth))

    low, high = 1 / 20, 1 / 0.05
    for _ in range(60):
        middle = (low + high) / 2
        if slope(middle) < 0.0:
            low = middle
        else:
            high = middle
    return 2.0 / (low + high)
