"""The metrics of an epoch against scikit-learn's, and sums that any cut of the samples adds up to."""

import numpy as np
import pytest
import torch
from sklearn import metrics

from argosy.train.scores import score_for

DRAW = np.random.default_rng(0)


def summed(score, outputs, y, cuts):
    parts = zip([0, *cuts], [*cuts, len(y)], strict=True)
    return sum(score.sums(outputs[start:stop], y[start:stop]) for start, stop in parts)


@pytest.mark.capability("T6")
@pytest.mark.parametrize("cuts", [(), (1,), (3, 50, 51)])
def test_accuracy_and_f1_are_scikit_learns_however_the_samples_are_cut(cuts):
    outputs = torch.from_numpy(DRAW.normal(size=(90, 4)))
    y = torch.from_numpy(DRAW.integers(0, 4, size=90))
    score = score_for("classification", 4)
    found = score.values(summed(score, outputs, y, cuts))
    chosen = outputs.argmax(dim=1)
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, chosen))
    assert found["f1"] == pytest.approx(metrics.f1_score(y, chosen, average="macro"))
    assert (score.name, score.is_higher_better) == ("accuracy", True)


def test_classes_that_neither_occur_nor_are_answered_do_not_count():
    score = score_for("classification", 5)
    outputs = torch.eye(5)[[0, 1, 1, 0]]
    y = torch.tensor([0, 1, 0, 0])
    assert score.values(score.sums(outputs, y))["f1"] == pytest.approx(
        metrics.f1_score(y, outputs.argmax(dim=1), average="macro")
    )


@pytest.mark.capability("T6")
@pytest.mark.parametrize("cuts", [(), (7, 40)])
def test_errors_of_numbers_are_scikit_learns_in_the_labels_unit(cuts):
    y = DRAW.normal(size=60)
    answers = y + 0.3 * DRAW.normal(size=60)
    score = score_for("regression", 1, unit=20.0)
    found = score.values(summed(score, torch.from_numpy(answers)[:, None], torch.from_numpy(y), cuts))
    assert found["rmse"] == pytest.approx(20 * metrics.root_mean_squared_error(y, answers))
    assert found["mae"] == pytest.approx(20 * metrics.mean_absolute_error(y, answers))
    assert found["r2"] == pytest.approx(metrics.r2_score(y, answers))
    assert (score.name, score.is_higher_better) == ("rmse", False)


def test_a_constant_truth_is_explained_if_it_is_met():
    score = score_for("regression", 1)
    y = torch.full((4,), 2.0)
    assert score.values(score.sums(y[:, None], y))["r2"] == 1.0
    assert score.values(score.sums(y[:, None] + 1, y))["r2"] == 0.0


@pytest.mark.capability("T6")
def test_the_perplexity_of_equal_chances_is_their_number_and_no_answer_overflows_it():
    score = score_for("language-model", 8)
    y = torch.zeros(3, 5, dtype=torch.int32)
    assert score.values(score.sums(torch.zeros(3, 5, 8), y))["perplexity"] == pytest.approx(8.0)
    sure = torch.zeros(3, 5, 8)
    sure[:, :, 1] = 1e9
    assert np.isfinite(score.values(score.sums(sure, y))["perplexity"])
