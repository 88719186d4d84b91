"""Metrics of an order against scikit-learn's."""

import numpy as np
import pytest
from sklearn import metrics

from argosy.evaluate.config import EvaluateConfig
from argosy.evaluate.ranking import average_precision, roc_auc
from argosy.evaluate.report import evaluate_predictions, read_prediction

DRAW = np.random.default_rng(1)


def predictions(probabilities, truth):
    return read_prediction("classification", {"probabilities": np.asarray(probabilities)}, np.asarray(truth))


def random_ones(classes, rows=200, *, ties=False):
    truth = DRAW.integers(0, classes, size=rows)
    scores = DRAW.normal(size=(rows, classes)) + 1.2 * np.eye(classes)[truth]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    return (np.round(probabilities, 1) if ties else probabilities), truth


@pytest.mark.capability("T6")
@pytest.mark.parametrize("classes", [2, 3, 7])
def test_the_area_under_the_curve_is_scikit_learns(classes):
    probabilities, truth = random_ones(classes)
    found = roc_auc(predictions(probabilities, truth))
    if classes == 2:
        assert found == pytest.approx(metrics.roc_auc_score(truth, probabilities[:, 1]))
    else:
        assert found == pytest.approx(metrics.roc_auc_score(truth, probabilities, multi_class="ovr"))


@pytest.mark.capability("T6")
@pytest.mark.parametrize("classes", [3, 6])
@pytest.mark.parametrize("ties", [False, True])
def test_both_metrics_are_scikit_learns_class_by_class_with_ties_too(classes, ties):
    probabilities, truth = random_ones(classes, ties=ties)
    areas = [metrics.roc_auc_score(truth == k, probabilities[:, k]) for k in range(classes)]
    precisions = [metrics.average_precision_score(truth == k, probabilities[:, k]) for k in range(classes)]
    found = predictions(probabilities, truth)
    assert roc_auc(found) == pytest.approx(np.mean(areas))
    assert average_precision(found) == pytest.approx(np.mean(precisions))


def test_a_single_class_has_no_order_to_judge():
    found = predictions([[0.9, 0.1], [0.4, 0.6]], [0, 0])
    assert roc_auc(found) == 0.5
    assert average_precision(found) == 1.0


@pytest.mark.capability("T6")
def test_the_perplexity_of_texts_is_that_of_their_mean_surprise_and_has_a_gate():
    nats = np.log(np.array([2.0, 8.0, 2.0, 8.0]))
    found = evaluate_predictions(
        "language-model", {"nats": nats}, np.zeros((4, 5)), EvaluateConfig(perplexity="<= 3.5")
    )
    assert found.metrics["perplexity"] == pytest.approx(4.0)
    assert found.metrics["perplexity_low"] < 4.0 < found.metrics["perplexity_high"]
    (gate,) = found.gates
    assert not found.passed
    assert gate.missed_by == pytest.approx(0.5)
