"""Predictions are formulas over what was measured."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.core.errors import InvalidInput
from argosy.pipeline.config import ProjectConfig, Recipe
from argosy.pipeline.estimates import estimate, parse_link
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.measure import plan_trials
from argosy.train.measurement import Measurement, MeasurementStore, Trial, measurement_key
from argosy.train.network.links import Link
from argosy.train.predict import Terms, choose, compute_s, exchange_between, predictions, reasons, total_s

pytestmark = pytest.mark.capability("T8")

MB = 10**6


def trial(strategy, workers, step_s, *, threads=1, batch=64, memory=100 * MB, error=""):
    return Trial(
        strategy=strategy,
        workers=workers,
        threads=threads,
        batch=batch,
        step_s=step_s,
        validation_s=0.5,
        memory_bytes=memory,
        host_bytes=memory * workers,
        error=error,
    )


def measured(*trials, parameter_bytes=80 * MB, **more):
    known = {
        "key": "sha256:" + "0" * 64,
        "cores": 2,
        "samples": 640,
        "batch": 64,
        "usual_epochs": 10,
        "parameters": parameter_bytes // 4,
        "parameter_bytes": parameter_bytes,
        "state_bytes": 0,
        "start_s": 2.0,
        "is_complete": True,
    }
    return Measurement(trials=list(trials), **{**known, **more})


TERMS = Terms(epochs=10, checkpoint_every_s=1e9)
PAIR = (trial("single", 1, 0.100, threads=2), trial("data-parallel", 2, 0.080))


def named(ways, strategy, workers=2):
    return next(way for way in ways if (way.strategy, way.workers) == (strategy, workers))


def test_a_training_takes_its_start_its_steps_and_its_validations():
    way = named(predictions(measured(*PAIR), TERMS), "data-parallel")
    assert way.epoch_s == pytest.approx(10 * 0.080 + 0.5)
    assert way.total_s == pytest.approx(2.0 + 10 * 1.3)


def test_checkpoints_count_as_often_as_they_are_written():
    found = measured(*PAIR, checkpoint_s=0.5)
    assert total_s(found, Terms(epochs=10, checkpoint_every_s=4.0), 1.3) == pytest.approx(2.0 + 13 + 3 * 0.5)
    assert total_s(found, Terms(epochs=1, checkpoint_every_s=4.0), 1.3) == pytest.approx(3.3)


def test_memory_is_that_of_the_steps_and_the_larger_of_a_checkpoint_and_the_parameters_taken_out_at_the_end():
    terms = Terms(epochs=10, checkpoint_every_s=1.0)
    for checkpoint, expected in ((50 * MB, 360 * MB), (200 * MB, 400 * MB)):
        found = measured(*PAIR, checkpoint_memory_bytes=checkpoint)
        assert named(predictions(found, terms), "data-parallel").host_bytes == expected


def test_the_fastest_that_fits_is_chosen_and_of_equally_fast_ones_the_simpler():
    assert choose(predictions(measured(*PAIR), TERMS)).strategy == "data-parallel"
    close = (trial("single", 1, 0.082, threads=2), trial("data-parallel", 2, 0.080))
    assert choose(predictions(measured(*close), TERMS)).strategy == "single"


def test_threads_are_chosen_where_they_beat_ranks_and_the_reason_says_so():
    ways = predictions(measured(trial("single", 1, 0.05, threads=2), trial("data-parallel", 2, 0.08)), TERMS)
    chosen = choose(ways)
    lines = reasons(chosen, ways, TERMS)
    assert len(lines) == 3
    assert lines[0].startswith("one process with 2 threads: 50 ms a step")
    assert lines[1] == "data-parallel with 2 workers: 80 ms a step, 1.60 times as long: threads beat ranks here"


def test_what_does_not_fit_is_not_chosen_and_the_reason_says_what_it_needs():
    found = measured(
        trial("single", 1, 0.1, memory=200 * MB),
        trial("data-parallel", 2, 0.05, memory=300 * MB),
        trial("sharded", 2, 0.2, memory=90 * MB),
        parameter_bytes=4,
    )
    terms = msgspec.structs.replace(TERMS, memory_bytes=250 * MB)
    ways = predictions(found, terms)
    assert choose(ways).strategy == "single"
    assert "but needs 600 MB" in reasons(choose(ways), ways, terms)[1]
    tight = msgspec.structs.replace(TERMS, memory_bytes=100 * MB)
    least = choose(predictions(found, tight))
    assert (least.strategy, least.fits) == ("sharded", False)
    assert "more than the 100 MB" in reasons(least, predictions(found, tight), tight)[2]


def test_what_learns_differently_is_shown_but_never_chosen():
    stale = msgspec.structs.replace(TERMS, is_stale=True)
    found = measured(*PAIR, trial("parameter-server", 2, 0.01), trial("local-sgd", 2, 0.01))
    ways = predictions(found, stale)
    assert {way.strategy for way in ways} == {"single", "data-parallel", "parameter-server", "local-sgd"}
    assert choose(ways).strategy == "data-parallel"


def test_what_is_slower_than_another_way_is_told_when_it_was_asked_for():
    ways = predictions(measured(*PAIR), TERMS)
    assert reasons(named(ways, "single", 1), ways, TERMS)[1].startswith("faster here: data-parallel with 2 workers")


def test_a_failed_trial_counts_for_nothing():
    found = measured(*PAIR, trial("sharded", 2, 0.0, error="its layers share parameters"))
    assert all(way.strategy != "sharded" for way in predictions(found, TERMS))


def test_two_sizes_of_batch_tell_what_of_a_step_depends_on_it():
    whole, half = trial("data-parallel", 2, 0.10), trial("data-parallel", 2, 0.07, batch=32)
    found = measured(whole, half)
    assert compute_s(found, whole, 0.25) == pytest.approx(0.04 + 0.06 / 4)
    assert compute_s(measured(whole), whole, 0.25) == pytest.approx(0.025)


@pytest.mark.parametrize(
    ("strategy", "expected"),
    [("data-parallel", 2 * 60 + 1), ("parameter-server", 2 * (60 + 0.5)), ("sharded", 3 * (60 + 0.5))],
)
def test_exchanges_between_hosts_follow_from_bytes_and_link(strategy, expected):
    link = Link(bytes_s=1e6, round_trip_s=1.0)
    assert exchange_between(strategy, 80 * MB, link, 4) == pytest.approx(expected)


def test_local_sgd_exchanges_so_rarely_that_it_takes_a_twentieth():
    link = Link(bytes_s=125e6, round_trip_s=0.005)
    ways = predictions(measured(*PAIR), TERMS, hosts=2, link=link)
    way = next(way for way in ways if way.strategy == "local-sgd")
    own_s = way.step_s - way.exchange_s
    assert way.interval > 100
    assert way.exchange_s <= 0.0501 * own_s
    sync = next(way for way in ways if (way.strategy, way.hosts) == ("data-parallel", 2))
    assert sync.exchange_s == pytest.approx(80 / 125 + 0.0025)


speeds = st.floats(min_value=1e3, max_value=1e11)
steps = st.floats(min_value=1e-4, max_value=10.0)


@given(slow=speeds, factor=st.floats(1.0, 1e4), hosts=st.integers(2, 64), step_s=steps, delay=st.floats(0, 1))
def test_more_bandwidth_is_never_slower_and_less_delay_neither(slow, factor, hosts, step_s, delay):
    found = measured(trial("single", 1, step_s), trial("data-parallel", 2, step_s))

    def times(bytes_s, round_trip_s):
        link = Link(bytes_s=bytes_s, round_trip_s=round_trip_s)
        return {(w.strategy, w.hosts): w.step_s for w in predictions(found, TERMS, hosts=hosts, link=link)}

    before = times(slow, delay)
    for after in (times(slow * factor, delay), times(slow, delay / 2)):
        for way, step in after.items():
            # Rounds of local SGD are whole steps: one fewer may make the share of the exchange a little larger.
            assert step <= before[way] * (1.06 if way[0] == "local-sgd" else 1 + 1e-9)


@given(step_s=steps, other_s=steps, epochs=st.integers(1, 1000))
def test_the_chosen_way_is_at_most_a_twentieth_slower_than_the_fastest(step_s, other_s, epochs):
    ways = predictions(measured(trial("single", 1, step_s), trial("data-parallel", 2, other_s)), Terms(epochs=epochs))
    assert choose(ways).total_s <= 1.05 * min(way.total_s for way in ways) * (1 + 1e-9)


@given(whole=steps, half=steps, share=st.floats(0, 1), more=st.floats(0, 1))
def test_a_larger_share_of_a_batch_never_takes_less_time(whole, half, share, more):
    found = measured(trial("data-parallel", 2, whole), trial("data-parallel", 2, half, batch=32))
    less, larger = sorted((share, more))
    a, b = (compute_s(found, found.trials[0], part) for part in (less, larger))
    assert 0 <= a <= b + 1e-12
    assert b <= whole + 1e-12


def test_auto_tries_only_what_it_chooses_between_and_a_plan_everything():
    quick = plan_trials(TrainConfig(workers=2), 2, is_quick=True)
    assert [(t.strategy, t.workers, t.threads) for t in quick] == [("data-parallel", 2, 1), ("single", 1, 2)]
    full = plan_trials(TrainConfig(workers=4), 2, is_quick=False)
    assert {t.strategy for t in full} == {"single", "data-parallel", "parameter-server", "sharded", "local-sgd"}
    assert {t.workers for t in full if t.strategy == "data-parallel"} == {2, 4}
    assert {t.threads for t in full if t.strategy == "single"} == {1, 2}
    assert [t.with_checkpoint for t in full] == [True] + [False] * (len(full) - 1)


def test_measurements_are_kept_by_what_they_depend_on(tmp_path):
    model, train = ModelConfig(family="mlp"), TrainConfig(workers=2)
    key = measurement_key("sha256:a", model, train, tmp_path)
    same = msgspec.structs.replace(train, epochs=99, learning_rate=0.5, seed=3, strategy="single", workers=1)
    assert measurement_key("sha256:a", model, same, tmp_path) == key
    others = [
        measurement_key("sha256:b", model, train, tmp_path),
        measurement_key("sha256:a", ModelConfig(family="resnet"), train, tmp_path),
        measurement_key("sha256:a", model, TrainConfig(workers=2, batch_size=32), tmp_path),
    ]
    assert len({key, *others}) == 4
    store = MeasurementStore(tmp_path)
    assert store.read(key) is None
    store.keep(measured(*PAIR, key=key))
    store.keep(measured(trial("data-parallel", 4, 0.06), key=key, is_complete=False))
    assert {(t.strategy, t.workers) for t in store.read(key).trials} == {
        ("single", 1),
        ("data-parallel", 2),
        ("data-parallel", 4),
    }
    assert store.read(key).is_complete
    next(store.folder.iterdir()).write_bytes(b"{")
    assert store.read(key) is None


def test_an_estimate_is_of_what_the_settings_ask():
    found = measured(*PAIR, trial("single", 1, 0.05, threads=1))

    def chosen(**train):
        return estimate(Recipe(project=ProjectConfig(name="p"), train=TrainConfig(**train)), found).chosen

    assert chosen(workers=2, strategy="data-parallel").strategy == "data-parallel"
    assert (chosen(workers=1).strategy, chosen(workers=1).threads) == ("single", 2)
    assert (chosen(workers=2).strategy, chosen(workers=2).threads) == ("single", 1)


def test_the_link_between_hosts_is_read_as_people_write_it():
    assert parse_link("100Mbit/s, 5ms") == Link(bytes_s=12.5e6, round_trip_s=0.005)
    assert parse_link("1 GB/s").bytes_s == pytest.approx(1e9)
    for wrong in ("fast", "100", "5ms", "0Mbit/s"):
        with pytest.raises(InvalidInput):
            parse_link(wrong)


def test_times_are_finite_for_a_link_without_limits():
    ways = predictions(measured(*PAIR), TERMS, hosts=2, link=Link(bytes_s=math.inf, round_trip_s=0.0))
    assert all(way.exchange_s == 0.0 for way in ways)
