"""How far off a measured number may be: 95% confidence intervals."""

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

CONFIDENCE = 0.95


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1.0 + confidence) / 2.0)


def wilson(successes: int, samples: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a share (Wilson 1927); good for few samples and shares near 0 or 1.

    >>> [round(bound, 4) for bound in wilson(97, 100)]
    [0.9155, 0.9897]
    """
    if samples == 0:
        return 0.0, 1.0
    z = _z(confidence)
    share = successes / samples
    center = (share + z * z / (2 * samples)) / (1 + z * z / samples)
    half = z / (1 + z * z / samples) * math.sqrt(share * (1 - share) / samples + z * z / (4 * samples * samples))
    # At the ends the bound is 0 or 1 exactly; rounding would leave 3e-17.
    return (max(0.0, center - half) if successes else 0.0), (min(1.0, center + half) if successes < samples else 1.0)


def paired_drop(
    reference_right: npt.NDArray[np.bool_], candidate_right: npt.NDArray[np.bool_], confidence: float = CONFIDENCE
) -> tuple[float, float, float]:
    """Return by how much accuracy fell from reference to candidate on the same samples, and its interval.

    Only samples that one of them got right tell anything, so this is far narrower than comparing two intervals.
    Source: Bonett and Price 2012, Laplace-adjusted Wald interval for paired shares.
    """
    n = len(reference_right)
    lost = int(np.sum(reference_right & ~candidate_right))
    won = int(np.sum(~reference_right & candidate_right))
    p_lost, p_won = (lost + 1) / (n + 2), (won + 1) / (n + 2)
    center = p_lost - p_won
    half = _z(confidence) * math.sqrt((p_lost + p_won - center * center) / (n + 2))
    return (lost - won) / max(1, n), max(-1.0, center - half), min(1.0, center + half)


def mean_interval(values: npt.NDArray[Any], confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the interval of a mean by the normal approximation; for at least some 30 values."""
    mean = float(np.mean(values))
    half = _z(confidence) * float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return mean - half, mean + half
