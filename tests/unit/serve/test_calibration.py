"""How a replica wants to be fed, measured on versions whose cost is a formula."""

import pytest

from argosy.serve.calibration import HOP_S, MAX_BATCH, MAX_RUN_S, Cost, measure_batching
from synthetic import SyntheticBench, measured, padded, rows

TEXTS = {"lengths": (48, 200, 720), "takes_texts": True, "budget_s": 3.0}


@pytest.mark.parametrize("noise", [0.0, 0.1, 0.3])
@pytest.mark.parametrize(
    ("cost", "batches"),
    [
        (lambda n: 1e-5 + n * 1e-6, {MAX_BATCH}),  # a small model: calls cost more than rows
        (lambda n: 4e-2 * n, {1}),  # rows cost the same alone
        (lambda n: 1e-3 * (1 + 0.5 * n), {8, 16, 32, 64}),  # half of a run is for the first row
        (lambda n: 1e-3 * n**1.1, {1}),  # rows get dearer together
        (lambda n: 1.0, {1}),  # so slow that hardly anything is tried
    ],
)
def test_a_batch_is_as_large_as_it_brings_a_gain(cost, batches, noise):
    found, _ = measured(rows(cost), noise=noise, seed=3)
    assert found.batching.max_batch in batches
    assert found.batching.row_s == pytest.approx(cost(1), rel=0.05 + noise)


@pytest.mark.parametrize("seed", range(5))
def test_a_gain_of_three_in_a_hundred_is_taken_by_the_smallest_batch_that_has_it(seed):
    """As an image model's: rows in pairs are 3 % cheaper, in fours 4 %; which is more than noise."""
    found, _ = measured(
        rows(lambda n: 17.4e-3 * n * (1 if n == 1 else 0.97 if n < 4 else 0.96)), budget_s=3.0, noise=0.02, seed=seed
    )
    assert found.batching.max_batch == 2


def test_what_a_batch_costs_gateway_and_replica_counts_too():
    """Rows of a millisecond that cost the same together still save a tenth of one by travelling together."""
    found, _ = measured(rows(lambda n: 1e-3 * n))
    assert found.batching.max_batch > 1
    assert measured(rows(lambda n: 100 * HOP_S * n))[0].batching.max_batch == 1


def test_a_size_between_two_good_ones_that_is_bad_is_found():
    """A version that rounds up to blocks of four: eight rows are cheap, but five cost as much as eight."""

    def cost(n):
        return 4e-2 * (1 if n == 1 else 1.6 if n <= 4 else 5.2 if n <= 8 else 9.9)

    found, bench = measured(rows(lambda n: cost(n) / 10), budget_s=10.0)
    assert found.batching.max_batch == 4
    assert {len(case) for case in bench.cases} >= {1, 2, 4, 8}


def test_a_first_step_that_hurts_ends_it_though_larger_ones_would_pay():
    found, _ = measured(rows(lambda n: 1e-2 * (1 if n == 1 else 0.8 * (4 * -(-n // 4)))))
    assert found.batching.max_batch == 1


def test_no_run_of_several_rows_takes_longer_than_others_should_wait():
    found, bench = measured(rows(lambda n: 0.02 + 0.001 * n), budget_s=10.0)
    assert found.batching.run_s <= MAX_RUN_S
    assert max(bench.seconds(case) for case in bench.cases) <= 1.5 * MAX_RUN_S


@pytest.mark.parametrize(
    "cost", [lambda n: 1e-5 + n * 1e-6, lambda n: 1e-3 * n, lambda n: 0.05 + 0.001 * n, lambda n: 0.3]
)
@pytest.mark.parametrize("budget_s", [0.2, 1.5])
def test_measuring_takes_its_budget_and_no_more(cost, budget_s):
    _, bench = measured(rows(cost), budget_s=budget_s)
    # The very first run is made in any case, and the second one tells its time.
    assert bench.clock.monotonic() <= max(1.1 * budget_s, 2 * cost(1) + 1e-9)


def test_on_a_machine_that_stands_still_measuring_ends_by_the_clock_on_the_wall():
    class Starved(SyntheticBench):
        def __call__(self, case):
            self.clock.advance(2.0)
            return super().__call__(case)

    bench = Starved(rows(lambda n: 1e-3 * (1 + 0.2 * n)))
    found = measure_batching(bench, (0,), bench.clock, is_batched=True, takes_texts=False, budget_s=1.5, wall_s=20.0)
    assert bench.clock.monotonic() < 25
    assert found.batching.max_batch == 1


def test_time_in_line_for_a_core_is_not_held_against_a_run():
    """On a machine where every run waits three times as long as it takes."""

    class Crowded(SyntheticBench):
        def __call__(self, case):
            cost = super().__call__(case)
            self.clock.advance(3 * cost.wall_s)
            return Cost(4 * cost.wall_s, cost.own_s)

    bench = Crowded(rows(lambda n: 1e-3 * (1 + 0.5 * n)))
    found = measure_batching(bench, (0,), bench.clock, is_batched=True, takes_texts=False, budget_s=1.5, wall_s=60.0)
    assert found.batching.max_batch > 4
    assert found.batching.row_s == pytest.approx(1.5e-3)


def test_a_version_that_takes_no_made_up_inputs_is_served_one_by_one_and_says_why():
    def fail(case):
        raise RuntimeError("no such word\nin /usr/lib")

    found, _ = measured(fail)
    assert (found.batching.max_batch, found.is_complete, found.error) == (1, True, "RuntimeError: no such word")


def test_a_version_that_takes_rows_only_one_by_one_keeps_what_is_known_of_one():
    def cost(case):
        if len(case) > 1:
            raise RuntimeError("one row, please")
        return 1e-3

    found, _ = measured(cost)
    assert (found.batching.max_batch, found.batching.row_s) == (1, 1e-3)
    assert "one row, please" in found.error


def test_a_length_that_the_version_refuses_is_left_out():
    def cost(case):
        if max(case) > 512:
            raise ValueError("too long")
        return 2e-3 + 1e-5 * len(case) * max(case)

    found, _ = measured(cost, **TEXTS)
    assert found.error == ""
    assert found.batching.max_batch > 1


def test_a_version_that_cannot_be_batched_is_not_tried_in_batches():
    found, bench = measured(rows(lambda n: 1e-3), is_batched=False)
    assert found.batching.max_batch == 1
    assert set(bench.cases) == {(0,)}


# Texts ----------------------------------------------------------------------------------------------------------------


def test_long_texts_are_kept_apart_where_the_cache_holds_no_more():
    """As measured on an encoder: short texts gain twice, long ones lose, so rows times length has a bound."""
    cost = padded(2.6e-3, 5e-5, cache_bytes=700)
    found, _ = measured(cost, **TEXTS)
    batching = found.batching
    assert batching.max_batch >= 8
    assert 400 <= batching.max_bytes <= 1440
    for length in (48, 100, 200, 400, 720):
        for n in range(2, min(batching.max_batch, batching.max_bytes // length) + 1):
            assert cost((length,) * n) <= n * cost((length,))


def test_padding_is_worth_what_a_saved_run_costs():
    found, _ = measured(padded(2e-3, 5e-5), **TEXTS)
    saved_bytes = (2e-3 + HOP_S) / 5e-5
    assert found.batching.spare == pytest.approx(saved_bytes / 2, rel=0.15)
    assert 1.0 < found.batching.padding < 1.5


def test_where_padding_costs_nothing_any_texts_may_share_a_run():
    """A version that pads to a fixed length by itself."""
    found, _ = measured(rows(lambda n: 5e-3 + 1e-3 * n), **TEXTS)
    assert found.batching.spare >= 1000
    assert found.batching.padding >= 2


def test_where_saving_a_run_saves_nothing_no_padding_is_allowed():
    found, _ = measured(padded(0.0, 5e-5, cache_bytes=48, slower=1.2), **TEXTS)
    assert (found.batching.max_batch, found.batching.spare, found.batching.padding) == (1, 0.0, 1.0)


def test_padding_that_turns_out_dearer_than_the_sum_says_is_reduced():
    """Rows of different lengths cost extra, which equal rows do not show."""
    plain = padded(2e-3, 5e-5)

    def cost(case):
        return plain(case) + (2e-3 * (len(case) - 1) if len(set(case)) > 1 else 0)

    found, _ = measured(cost, **TEXTS)
    assert found.batching.spare < 0.3 * 2e-3 / 5e-5
