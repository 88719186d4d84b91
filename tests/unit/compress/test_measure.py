import numpy as np
import pytest

from argosy.compress.measure import compare, interruptions
from argosy.core.clock import FakeClock


class Timed:
    """A runner that takes a known time on a fake clock, more for larger batches."""

    def __init__(self, clock, seconds, calls, *, every=0, slow_s=0.0):
        self.clock, self.seconds, self.calls = clock, seconds, calls
        self.every, self.slow_s, self.runs = every, slow_s, 0

    def run(self, inputs):
        self.runs += 1
        self.calls.append((self.seconds, len(inputs["x"])))
        slow = self.slow_s if self.every and self.runs % self.every == 0 else 0.0
        self.clock.advance(self.seconds * (1 + len(inputs["x"]) / 32) + slow)
        return {}


X = {"x": np.zeros((5, 2), np.float32)}


def measured(fast=0.001, slow=0.004, **kwargs):
    clock, calls = FakeClock(), []
    original, candidate = Timed(clock, slow, calls), Timed(clock, fast, calls, **kwargs)
    mine, its = compare(original, candidate, X, seconds=2.0, clock=clock, cpu=clock.monotonic, interrupted=lambda: 0)
    return mine, its, calls


def test_ratios_and_percentiles_are_those_of_the_runs():
    mine, its, _ = measured()
    assert [t.batch for t in its] == [1, 32]
    assert its[0].ratio == pytest.approx(0.25)
    assert its[1].p50_s == pytest.approx(0.002)
    assert its[1].cpu_s == pytest.approx(0.002)
    assert mine[0].ratio == 1.0


def test_a_rare_slow_run_shows_in_p95_and_not_in_p50():
    _, its, _ = measured(every=10, slow_s=0.5)
    assert its[0].p50_s == pytest.approx(0.001 * (1 + 1 / 32))
    assert its[0].p95_s > 0.4


def test_a_run_from_which_the_processor_was_taken_counts_by_what_it_computed():
    clock = FakeClock()
    neighbour = Neighbour(clock, every=4, slice_s=0.004)
    runner = Timed(clock, 0.0001, [])
    runner.run = neighbour.beside(runner.run)
    clocks = {"clock": clock, "cpu": neighbour.computed, "interrupted": neighbour.slices}
    (alone, _), _ = compare(runner, runner, X, seconds=2.0, **clocks)
    assert alone.p95_s == pytest.approx(0.0001 * (1 + 1 / 32))
    assert alone.interrupted == pytest.approx(0.25, abs=0.03)
    # Where nobody counts, it is seen as the model's own.
    (unknown, _), _ = compare(runner, runner, X, seconds=2.0, **{**clocks, "interrupted": lambda: 0})
    assert unknown.p95_s > 0.004
    assert unknown.interrupted == 0.0


class Neighbour:
    """Another program, that is given the processor in the middle of so many runs, one after the other."""

    def __init__(self, clock, *, every, slice_s):
        self.clock, self.every, self.slice_s = clock, every, slice_s
        self.runs = self.taken = 0

    def beside(self, run):
        def interrupted(inputs):
            self.runs += 1
            if self.runs % self.every == 0:
                self.taken += 1
                self.clock.advance(self.slice_s)
            return run(inputs)

        return interrupted

    def slices(self):
        return self.taken

    def computed(self):
        return self.clock.monotonic() - self.taken * self.slice_s


def test_the_kernel_counts_what_it_takes():
    before = interruptions()
    assert before >= 0
    assert interruptions() >= before


def test_both_run_in_turns_and_each_begins_half_of_the_time():
    _, _, calls = measured(fast=0.003, slow=0.004)
    single = [seconds for seconds, rows in calls if rows == 1][4:]  # without the warm-up
    for start in range(0, len(single) - 3, 4):
        assert sorted(single[start : start + 2]) == [0.003, 0.004]
        assert single[start : start + 2] == single[start + 2 : start + 4][::-1]


def test_batches_are_filled_from_few_samples():
    _, _, calls = measured()
    assert {rows for _, rows in calls} == {1, 32}


def test_the_time_is_kept_to_about_what_was_given():
    clock = FakeClock()
    runner = Timed(clock, 0.01, [])
    compare(runner, runner, X, seconds=1.0, clock=clock, cpu=clock.monotonic)
    assert 1.0 <= clock.monotonic() < 1.5


def test_a_very_slow_model_is_measured_a_few_times_all_the_same():
    clock = FakeClock()
    runner = Timed(clock, 30.0, [])
    mine, _ = compare(runner, runner, X, seconds=1.0, clock=clock, cpu=clock.monotonic)
    assert mine[0].runs == 2


def test_a_slow_model_is_measured_in_as_many_turns_as_any():
    clock = FakeClock()
    runner = Timed(clock, 1.0, [])
    mine, _ = compare(runner, runner, X, seconds=1.0, clock=clock, cpu=clock.monotonic)
    assert mine[0].runs == 4
