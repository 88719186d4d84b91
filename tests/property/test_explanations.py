"""Laws that Shapley values keep whatever the model and however short the time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.core.clock import FakeClock
from argosy.explain.explainer import explain_row

pytestmark = pytest.mark.capability("X1")


def explained(model, row, background, seconds, seed):
    clock = FakeClock()

    def timed(rows):
        clock.advance(0.001 * len(rows))
        return model(rows)

    return explain_row(timed, row, background, seconds=seconds, seed=seed, clock=clock)


@st.composite
def problems(draw):
    features, rows = draw(st.integers(1, 9)), draw(st.integers(1, 30))
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    scale = 10.0 ** draw(st.integers(-3, 4))
    return (
        random.normal(size=features) * scale,
        random.normal(size=(rows, features)) * scale,
        random.normal(size=features),
    )


@settings(max_examples=60, deadline=None)
@given(problems(), st.floats(0.001, 0.5), st.integers(0, 1000))
def test_values_add_up_to_the_answer_minus_the_average_answer(problem, seconds, seed):
    row, background, weights = problem

    def model(rows):
        return np.abs(rows @ weights) + np.maximum(rows[:, 0], rows.min(axis=1)) ** 2

    found = explained(model, row, background, seconds, seed)
    size = max(1.0, float(np.abs(model(background)).max()), abs(found.prediction))
    # float64 has 16 digits; a few hundred additions may cost four of them
    assert abs(found.values.sum() - (found.prediction - found.base)) <= 1e-12 * size * len(background)


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_a_linear_model_gets_its_weights_times_the_distance_from_the_average(problem, seed):
    row, background, weights = problem
    found = explained(lambda rows: rows @ weights - 1.0, row, background, 2.0, seed)
    expected = weights * (row - background.mean(axis=0))
    scale = max(1.0, float(np.abs(background).max()), float(np.abs(row).max()))
    np.testing.assert_allclose(found.values, expected, atol=1e-11 * scale)


@settings(max_examples=40, deadline=None)
@given(problems(), st.integers(0, 1000))
def test_a_feature_the_model_ignores_gets_nothing(problem, seed):
    row, background, weights = problem
    row, background, weights = np.append(row, 9.0), np.c_[background, background[:, 0]], np.append(weights, 0.0)
    found = explained(lambda rows: np.sin(rows[:, :-1] @ weights[:-1]), row, background, 2.0, seed)
    assert abs(found.values[-1]) <= 1e-12
