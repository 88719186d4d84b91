"""Ejection of a replica that fails more than its siblings."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.serve.ejection import BACKOFF_S, EJECT_AT, MAX_BACKOFF_S, USUAL, Conduct, usual_rate
from plane import World

WELL = Conduct(answered=50)


def test_five_failures_in_a_row_eject_where_siblings_answer():
    health = Conduct()
    states = []
    for _ in range(5):
        health.note(1, 0, [WELL])
        states.append(health.is_sick)
    assert states == [False, False, False, False, True]


def test_half_of_the_requests_failing_ejects_within_some_twenty():
    health, count = Conduct(), 0
    while not health.is_sick:
        health.note(count % 2, 1 - count % 2, [WELL])
        count += 1
    assert count < 25


def test_nobody_is_ejected_where_all_fail():
    both = Conduct(), Conduct()
    for _ in range(50):
        both[0].note(1, 0, [both[1]])
        both[1].note(1, 0, [both[0]])
    rng = np.random.default_rng(1)
    for _ in range(1000):
        for one, other in (both, both[::-1]):
            failed = int(rng.random() < 0.3)
            one.note(failed, 1 - failed, [other])
    assert usual_rate(both[0].failed, both[0].answered) > 0.2
    assert not any(one.is_sick for one in both)


def test_an_only_replica_is_never_ejected():
    health = Conduct()
    for _ in range(100):
        health.note(1, 0, [])
    assert not health.is_sick


@pytest.mark.parametrize("rate", [0.001, 0.02, 0.1])
def test_replicas_alike_are_hardly_ever_ejected(rate):
    """Page's rule: once in exp(EJECT_AT) requests at least, if the siblings' rate is known."""
    rng = np.random.default_rng(3)
    replicas = [Conduct(answered=100) for _ in range(3)]
    for _ in range(3000):
        for one in replicas:
            failed = int(rng.random() < rate)
            one.note(failed, 1 - failed, [other for other in replicas if other is not one])
            assert not one.is_sick


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8)), max_size=60), st.integers(0, 100))
def test_the_score_is_bounded_and_the_memory_forgets(runs, answered):
    health = Conduct()
    for failed, good in runs:
        health.note(failed, good, [Conduct(answered=answered)])
        assert 0 <= health.score <= 2 * EJECT_AT
        assert 0 <= health.failed + health.answered <= 120
    assert USUAL[0] <= usual_rate(health.failed, health.answered) <= USUAL[1]


def test_back_off_doubles_up_to_a_bound():
    health, waits = Conduct(), []
    for _ in range(6):
        health.eject(100.0)
        waits.append(health.back_at - 100.0)
        health.give_chance()
    assert waits == [BACKOFF_S, 2 * BACKOFF_S, 4 * BACKOFF_S, 8 * BACKOFF_S, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert health.score == EJECT_AT / 2


# ---- in the pool


@pytest.fixture
def world():
    return World()


def both_answer(world, bad, good, *, fails):
    world.ask()
    world.ask()
    world.turn()
    if bad.run is not None:
        bad.fail_each() if fails else bad.answer()
    if good.run is not None:
        good.answer()


def test_a_replica_whose_requests_fail_one_by_one_is_set_aside(world):
    bad, good = world.replica(), world.replica()
    world.route()
    for _ in range(6):
        both_answer(world, bad, good, fails=True)
    assert (bad.inside.state, good.inside.state) == ("faulty", "ready")


def test_callers_mistakes_are_not_held_against_a_replica(world):
    one, other = world.replica(), world.replica()
    world.route()
    for _ in range(20):
        world.ask()
        world.ask()
        world.turn()
        one.fail_each(is_callers=True)
        other.answer()
    assert one.inside.state == "ready"


def test_one_that_nobody_replaces_is_tried_again_and_ejected_sooner(world):
    bad, good = world.replica(), world.replica()
    world.route()
    for _ in range(6):
        both_answer(world, bad, good, fails=True)
    world.advance(BACKOFF_S - 1, bad, good)
    assert bad.inside.state == "faulty"
    world.advance(2, bad, good)
    assert bad.inside.state == "ready"
    for _ in range(3):
        both_answer(world, bad, good, fails=True)
    assert bad.inside.state == "faulty"
    world.advance(BACKOFF_S + 2, bad, good)
    assert bad.inside.state == "faulty"
    world.advance(BACKOFF_S, bad, good)
    assert bad.inside.state == "ready"
    for _ in range(40):
        both_answer(world, bad, good, fails=False)
    assert bad.inside.conduct.score == 0


def test_failures_are_told_with_the_name_of_the_replica_that_was_handed_them_first(world):
    stable, sick, well = world.replica("1"), world.replica("2"), world.replica("2")
    world.route(canary="2", share=1.0, rollout="r", window_s=10.0)
    for _ in range(3):
        world.ask()
        world.ask()
        world.turn()
        sick.fail_each()
        well.answer()
        world.turn()
        stable.answer()
    world.advance(11, stable, sick, well)
    (window,) = world.plane.windows.closed({})
    assert window.bad["errors"] == (3.0, 3.0)
    parts = {name: (part.handled, part.bad) for name, part in window.replicas.items()}
    assert parts == {"r2": (3, {"errors": (3.0, 3.0)}), "r3": (3, {})}


def test_mirrored_halves_are_told_with_the_name_of_their_replica(world):
    stable, canary = world.replica("1"), world.replica("2")
    world.route(canary="2", share=0.0, mirror=1.0, rollout="r", window_s=10.0)
    for value in (None, 7.0):
        world.ask()
        world.turn()
        stable.answer()
        canary.answer(value)
    world.advance(11, stable, canary)
    (window,) = world.plane.windows.closed({})
    assert window.bad["agreement"] == (1.0, 2.0)
    (part,) = window.replicas.values()
    assert (part.handled, part.bad) == (2, {"agreement": (1.0, 2.0)})
