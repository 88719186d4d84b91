"""Metrics of the order in which a classifier puts samples. NumPy only."""

import numpy as np
import numpy.typing as npt

from argosy.evaluate.metrics import Prediction

Floats = npt.NDArray[np.float64]


def roc_auc(found: Prediction) -> float:
    """Return the area under the ROC curve, each class against the rest, averaged over classes.

    It is the probability that a sample of the class has a higher probability of it than one of another class, ties
    counting half (Mann and Whitney 1947). Averaged over the classes that have members and others; 0.5 if there is none.
    """
    areas = [_area(scores, is_member) for scores, is_member in _classes(found) if not is_member.all()]
    return float(np.mean(areas)) if areas else 0.5


def average_precision(found: Prediction) -> float:
    """Return the sum over thresholds of precision times the recall gained there, averaged over classes with members.

    Not interpolated, so not too good (Davis and Goadrich 2006); samples of equal probability come at one threshold.
    """
    return float(np.mean([_precision(scores, is_member) for scores, is_member in _classes(found)]))


def _classes(found: Prediction) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
    """Return for each class that occurs its probability for every sample, and which samples are members."""
    return [(found.probabilities[:, kind], found.truth == kind) for kind in np.unique(found.truth)]


def _area(scores: Floats, is_member: npt.NDArray[np.bool_]) -> float:
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    # The middle of the ranks that equal scores share.
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    members = int(is_member.sum())
    above = float(ranks[is_member].sum()) - members * (members + 1) / 2
    return above / (members * (len(scores) - members))


def _precision(scores: Floats, is_member: npt.NDArray[np.bool_]) -> float:
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits = np.cumsum(is_member[order])[ends]
    gained = np.diff(hits, prepend=0)
    return float(np.sum(gained * hits / (ends + 1)) / hits[-1])
