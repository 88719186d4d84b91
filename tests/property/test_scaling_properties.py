"""What holds of the autoscaler whatever it sees, and under random loads through the gateway's own queue."""

import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from argosy.operate.scaling import MOST_ADDED, Rules, Sample, Scaler
from argosy.operate.sharing import BACKUP, CANARY, PART, STABLE, Ask, Machine, share

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from scaling_simulation import Argosy, Bursts, Model, Step, Swings, World, poisson

pytestmark = pytest.mark.capability("R6")

SAMPLES = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.1, 0.3, 0.3, 0.3, 2.0, 11.0, 400.0, -50.0]),
        st.floats(0.0, 1000.0),
        st.integers(0, 2000),
        st.integers(0, 2000),
        st.floats(0.0, 60.0),
        st.integers(0, 70),
        st.sampled_from([0.0, 1e-5, 0.01, 1.0, 60.0]),
    ),
    max_size=80,
)


@hypothesis.given(SAMPLES, st.integers(0, 4), st.integers(1, 60), st.floats(0.01, 100.0), st.integers(0, 64))
@hypothesis.settings(max_examples=150, deadline=None)
def test_whatever_is_seen_the_number_is_in_its_range_and_never_leaps(samples, low, more, target, start):
    rules = Rules(low=low, high=low + more, target=target, idle_s=30.0, delay_s=60.0)
    start = min(max(start, rules.low), rules.high)
    first, second = Scaler(start), Scaler(start)
    now, former = 0.0, start
    for step, concurrency, arrived, waiting, oldest_s, ready, pace_s in samples:
        now += step
        sample = Sample(
            at=now, concurrency=concurrency, arrived=arrived, waiting=waiting, oldest_s=oldest_s, ready=ready,
            pace_s=pace_s,
        )  # fmt: skip
        wish = first.take(sample, rules)
        assert wish == second.take(sample, rules)
        assert rules.low <= wish.replicas <= rules.high
        assert wish.replicas <= max(former, 2 * ready, ready + MOST_ADDED)
        assert former > 0 or wish.replicas <= 1
        assert wish.replicas >= former // 2 or wish.replicas == 0
        assert wish.replicas or not (arrived or waiting) or (former == 0 and low == 0 and not (arrived or waiting))
        assert wish.reason
        former = wish.replicas


@hypothesis.given(st.integers(0, 10**6), st.sampled_from([0.4, 0.69, 0.75, 1.38, 1.5, 2.6]))
@hypothesis.settings(max_examples=8, deadline=None, derandomize=True)
def test_a_noisy_load_turns_the_number_at_most_once_in_half_an_hour(seed, load):
    model = Model(run_s=0.4, spread=0.5)
    world = World(model, Argosy, poisson(load * model.capacity, seed), start=max(1, round(load)), seed=seed)
    outcome = world.run(1800)
    assert outcome.reversals <= 1, outcome.numbers
    assert outcome.refused == outcome.late == 0


@pytest.mark.parametrize("kind", ["bursts", "swings"])
def test_bursts_and_swings_turn_it_at_most_once_too(kind):
    model = Model(run_s=0.1)
    if kind == "bursts":
        arrivals = Bursts(1.35 * model.capacity, 8).times(5, 1800)
    else:
        arrivals = poisson(Swings(1.35 * model.capacity, 120), 5, 1800)
    outcome = World(model, Argosy, arrivals, start=2, seed=5).run(1800)
    assert outcome.reversals <= 1, outcome.numbers
    assert outcome.refused == outcome.late == 0


@hypothesis.given(st.integers(0, 10**6), st.sampled_from([1, 16]), st.sampled_from([0.5, 2.0, 8.0]))
@hypothesis.settings(max_examples=6, deadline=None, derandomize=True)
def test_ten_times_the_load_up_to_twice_the_target_is_never_refused(seed, batch, cold_s):
    model = Model(run_s=0.05, row_s=0.05 if batch == 1 else 0.005, batch=batch, cold_s=cold_s)
    twice = 1.4 * model.capacity
    outcome = World(model, Argosy, poisson(Step(twice / 10, twice, 60), seed), seed=seed).run(60 + 4 * cold_s + 20)
    assert outcome.refused == outcome.late == 0
    assert outcome.numbers[-1][1] > 1


ASKS = st.lists(
    st.builds(
        lambda replicas, least, purpose, priority, memory, running, busy, is_scaled, threads: {
            "replicas": replicas, "least": min(least, replicas), "purpose": purpose, "priority": priority,
            "memory_bytes": memory, "running": running, "busy": busy, "is_scaled": is_scaled, "threads": threads,
        },
        st.integers(0, 8), st.integers(0, 3), st.sampled_from([STABLE, CANARY, BACKUP]), st.integers(-2, 2),
        st.sampled_from([0, 50, 100, 300]), st.integers(0, 4), st.floats(0.0, 4.0), st.booleans(), st.integers(1, 4),
    ),
    max_size=6,
)  # fmt: skip


@hypothesis.given(ASKS, st.sampled_from([0, 400, 1000, 4000]), st.sampled_from([0, 1, 4]))
@hypothesis.settings(max_examples=200, deadline=None)
def test_nobody_gets_more_than_asked_and_all_fit_into_the_memory(plain, memory, cores):
    asks = [Ask(digest=f"d{i}", ref=f"m:{i}", **one) for i, one in enumerate(plain)]
    grants = share(asks, Machine(memory, 0, cores))
    for ask in asks:
        grant = grants[ask.digest]
        assert 0 <= grant.replicas <= ask.replicas
        assert (grant.replicas < ask.replicas) == bool(grant.limit)
    if memory:
        assert sum(grants[a.digest].replicas * a.memory_bytes for a in asks) <= PART * memory
    assert share(list(reversed(asks)), Machine(memory, 0, cores)) == grants
