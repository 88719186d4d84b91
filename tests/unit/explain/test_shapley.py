"""The sampled Shapley values against cases whose values are known."""

from itertools import permutations

import numpy as np
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.explain.config import ExplainConfig
from argosy.explain.explainer import explain, explain_row, square_patches

pytestmark = pytest.mark.capability("X1")


class Costly:
    """A model that takes time on a fake clock and counts what it was asked."""

    def __init__(self, function, clock, seconds_per_row=0.001):
        self.function, self.clock, self.seconds_per_row, self.rows = function, clock, seconds_per_row, 0
        self.largest = 0

    def __call__(self, rows):
        self.rows += len(rows)
        self.largest = max(self.largest, rows.size)
        self.clock.advance(len(rows) * self.seconds_per_row)
        return self.function(rows)


def shapley_by_definition(function, row, background):
    """Average over every order and every background row."""
    found = np.zeros(row.size)
    orders = list(permutations(range(row.size)))
    for order in orders:
        for start in background:
            point = start.copy()
            for feature in order:
                before = function(point[None])[0]
                point[feature] = row[feature]
                found[feature] += function(point[None])[0] - before
    return found / (len(orders) * len(background))


def test_a_linear_model_is_explained_exactly_after_one_turn_of_the_background():
    random = np.random.default_rng(1)
    weights, row, background = random.normal(size=12), random.normal(size=12), random.normal(size=(40, 12))
    clock = FakeClock()
    model = Costly(lambda rows: rows @ weights + 3.0, clock)
    found = explain_row(model, row, background, seconds=40 * 22 * 0.001 * 2.5, seed=0, clock=clock)
    # float64 sums of a few hundred numbers of size one
    np.testing.assert_allclose(found.values, weights * (row - background.mean(axis=0)), atol=1e-12)
    np.testing.assert_allclose(found.standard_error, 0, atol=1e-7)


def test_two_features_that_interact_share_the_interaction_equally():
    background = np.zeros((1, 2))
    clock = FakeClock()
    model = Costly(lambda rows: rows[:, 0] * rows[:, 1], clock)
    found = explain_row(model, np.array([3.0, 5.0]), background, seconds=0.1, seed=4, clock=clock)
    np.testing.assert_allclose(found.values, [7.5, 7.5], atol=1e-12)


def test_sampled_values_are_within_four_standard_errors_of_the_definition():
    random = np.random.default_rng(2)
    row, background = random.normal(size=5), random.normal(size=(6, 5))

    def bent(rows):
        return np.tanh(3 * rows[:, 0] * rows[:, 1] * rows[:, 4]) + np.maximum(rows[:, 1:3].max(axis=1), rows[:, 3])

    expected = shapley_by_definition(bent, row, background)
    clock = FakeClock()
    found = explain_row(Costly(bent, clock), row, background, seconds=4.0, seed=3, clock=clock)
    assert found.permutations > 200
    assert (np.abs(found.values - expected) <= 4 * found.standard_error + 1e-9).all()
    assert found.standard_error.max() < 0.02 * np.abs(expected).max()


def test_more_time_gives_smaller_standard_errors():
    random = np.random.default_rng(5)
    row, background = random.normal(size=8), random.normal(size=(10, 8))

    def product(rows):
        return np.prod(1 + rows, axis=1)

    errors = []
    for seconds in (2.0, 32.0):
        clock = FakeClock()
        errors.append(explain_row(Costly(product, clock), row, background, seconds=seconds, seed=0, clock=clock))
    # 16 times the time is a quarter of the error; half of it leaves room for chance
    assert errors[1].standard_error.mean() < errors[0].standard_error.mean() / 2


def test_values_add_up_even_when_time_ends_before_every_background_row_was_used():
    random = np.random.default_rng(6)
    row, background = random.normal(size=30), random.normal(size=(500, 30))
    clock = FakeClock()
    model = Costly(lambda rows: np.sin(rows).sum(axis=1) * rows[:, 0], clock)
    found = explain_row(model, row, background, seconds=1.0, seed=0, clock=clock)
    assert found.permutations < 2 * len(background)
    assert found.values.sum() == pytest.approx(found.prediction - found.base, abs=1e-9)
    assert found.base == pytest.approx(model.function(background).mean(), abs=1e-12)
    assert (found.standard_error > 0).all()


def test_an_equal_gain_from_every_background_row_is_shared_without_dividing_by_zero():
    clock = FakeClock()
    model = Costly(lambda rows: rows[:, 0] ** 2, clock)
    background = np.array([[-1.0, 0.0], [1.0, 4.0], [1.0, -3.0], [-1.0, 2.0]])
    found = explain_row(model, np.array([2.0, 9.0]), background, seconds=0.001, seed=0, clock=clock)
    np.testing.assert_allclose(found.values, [3.0, 0.0], atol=1e-12)


def test_the_time_is_kept_to_within_a_tenth():
    random = np.random.default_rng(7)
    row, background = random.normal(size=20), random.normal(size=(50, 20))
    clock = FakeClock()
    model = Costly(lambda rows: np.prod(1 + rows, axis=1), clock)
    found = explain_row(model, row, background, seconds=10.0, seed=0, clock=clock)
    assert 10.0 <= found.seconds <= 11.0
    assert found.seconds == pytest.approx(model.rows * 0.001)


def test_it_ends_early_when_the_values_are_exact():
    clock = FakeClock()
    model = Costly(lambda rows: rows.sum(axis=1), clock)
    found = explain_row(model, np.ones(4), np.zeros((5, 4)), seconds=1e6, seed=0, clock=clock)
    assert found.seconds < 60


def test_grouped_elements_enter_together_and_share_one_value():
    random = np.random.default_rng(8)
    image, background = random.normal(size=(2, 4, 4)), random.normal(size=(3, 2, 4, 4))
    weights = random.normal(size=(2, 4, 4))
    groups = square_patches(image.shape, 2)
    clock = FakeClock()
    model = Costly(lambda rows: (rows * weights).sum(axis=(1, 2, 3)), clock)
    found = explain_row(model, image, background, seconds=5.0, seed=0, clock=clock, groups=groups)
    by_pixel = weights * (image - background.mean(axis=0))
    expected = [by_pixel[groups == number].sum() for number in range(4)]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)


def test_rows_reach_the_model_in_their_own_type_and_bounded_numbers():
    def only_bytes(rows):
        assert rows.dtype == np.uint8
        return rows.reshape(len(rows), -1).mean(axis=1)

    clock = FakeClock()
    image = np.full((1, 600, 600), 200, np.uint8)
    model = Costly(only_bytes, clock)
    explain(model, image, np.zeros((4, 1, 600, 600), np.uint8), ExplainConfig(seconds=0.2), clock)
    assert model.largest <= 2**22


def test_a_sample_of_the_rows_is_the_background():
    rows = np.arange(1000.0)[:, None]
    clock = FakeClock()
    model = Costly(lambda r: r[:, 0], clock)
    found = explain(model, np.array([5.0]), rows, ExplainConfig(seconds=0.1, background=10), clock)
    # the mean of ten drawn rows, not of all; their own spread is 289 and of the mean 91
    assert 499.5 - 4 * 91 < found.base < 499.5 + 4 * 91
    assert found.base != 499.5


def test_patches_cover_an_image_and_are_at_most_64_by_default():
    for shape in ((8, 8), (1, 28, 28), (3, 224, 200), (3, 5, 1000)):
        numbers = square_patches(shape)
        assert numbers.shape == shape
        assert np.array_equal(np.unique(numbers), np.arange(numbers.max() + 1))
        assert numbers.max() < 64
    assert square_patches((8, 8)).max() == 63


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"background": np.zeros((3, 5))}, "needs a background of shape"),
        ({"background": np.zeros((0, 4))}, "n >= 1"),
        ({"groups": np.array([0, 1, 1, 3])}, "every number from 0"),
        ({"groups": np.array([0.0, 1.0, 1.0, 2.0])}, "whole numbers"),
        ({"groups": np.array([0, 1])}, "of the row's shape"),
        ({"seconds": 0.0}, "not enough"),
        ({"predict": lambda rows: np.zeros((len(rows), 3))}, "one number per row"),
        ({"predict": lambda rows: np.full(len(rows), np.nan)}, "not finite"),
    ],
)
def test_what_cannot_be_explained_is_refused_with_the_reason(change, says):
    given = {
        "predict": lambda rows: rows.sum(axis=1),
        "row": np.ones(4),
        "background": np.zeros((3, 4)),
        "seconds": 1.0,
        "seed": 0,
        "clock": FakeClock(),
        "groups": None,
    } | change
    with pytest.raises(InvalidInput, match=says):
        explain_row(given.pop("predict"), given.pop("row"), given.pop("background"), **given)


@pytest.mark.parametrize(
    "wrong", [{"seconds": 0.0}, {"background": 0}, {"patch": -1}, {"seed": -1}, {"seconds": float("nan")}]
)
def test_an_impossible_setting_is_refused_by_name(wrong):
    with pytest.raises(InvalidInput, match=next(iter(wrong))):
        ExplainConfig(**wrong).check()
