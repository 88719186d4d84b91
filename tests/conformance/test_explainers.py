"""What every explainer in the table has to keep."""

import numpy as np
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.explain.explainer import EXPLAINERS

pytestmark = pytest.mark.capability("X1")

ROW = np.array([[0.5, -1.0, 2.0], [1.0, 0.0, -0.5]])
BACKGROUND = np.random.default_rng(0).normal(size=(7, 2, 3))


def answer(rows):
    flat = rows.reshape(len(rows), -1)
    return np.tanh(flat[:, 0] * flat[:, 2]) + flat[:, 1:].sum(axis=1)


def timed(clock):
    def model(rows):
        clock.advance(0.001 * len(rows))
        return answer(rows)

    return model


@pytest.fixture(params=EXPLAINERS.names())
def explainer(request):
    return EXPLAINERS.load(request.param)()


def explained(explainer, **changes):
    clock = FakeClock()
    given = {"seconds": 1.0, "seed": 3, "clock": clock} | changes
    return explainer.explain(timed(clock), ROW, BACKGROUND, **given)


def test_values_add_up_to_the_answer_minus_the_average_answer(explainer):
    found = explained(explainer)
    assert found.prediction == pytest.approx(answer(ROW[None])[0])
    assert found.base == pytest.approx(answer(BACKGROUND).mean())
    assert found.values.sum() == pytest.approx(found.prediction - found.base, abs=1e-9)


def test_each_group_has_a_value_and_a_standard_error(explainer):
    groups = np.array([[0, 1, 0], [2, 2, 1]])
    found = explained(explainer, groups=groups)
    assert found.values.shape == found.standard_error.shape == (3,)
    assert (found.standard_error >= 0).all()
    assert np.array_equal(found.groups, groups)
    assert explained(explainer).values.shape == (ROW.size,)


def test_the_same_seed_and_time_give_the_same_explanation(explainer):
    one, other, third = explained(explainer), explained(explainer), explained(explainer, seed=4)
    assert np.array_equal(one.values, other.values)
    assert not np.array_equal(one.values, third.values)


def test_the_row_and_the_background_are_left_unchanged(explainer):
    before = ROW.copy(), BACKGROUND.copy()
    explained(explainer)
    assert np.array_equal(before[0], ROW)
    assert np.array_equal(before[1], BACKGROUND)


def test_a_background_of_another_shape_is_refused(explainer):
    with pytest.raises(InvalidInput):
        explainer.explain(answer, ROW, np.zeros((4, 3)), seconds=1.0, seed=0, clock=FakeClock())
