"""When a version counts as failing, and when it is tried again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.serve.health import AWAY_S, LEAST_FAILURES, MOST_AWAY_S, PROBES, QUIET_S, Health


def failing(share=0.5, at=100.0):
    health = Health(share)
    assert [health.bad(at + 0.01 * i, "nan") for i in range(LEAST_FAILURES)] == [False] * (LEAST_FAILURES - 1) + [True]
    return health


def turn(health, now, last_request=None):
    return health.turn(now, last_request=now if last_request is None else last_request)


def test_five_failures_in_a_row_are_enough_however_far_apart():
    health, found = Health(0.9), []
    for i in range(LEAST_FAILURES):
        turn(health, 20.0 * i)
        found.append(health.bad(20.0 * i, "nan"))
    assert found == [False] * 4 + [True]
    assert "5 requests in a row failed: nan" in health.failing


@pytest.mark.parametrize("between", [lambda health: setattr(health, "good", 1), lambda _: None])
def test_failures_with_answers_between_them_or_minutes_apart_are_no_row(between):
    health = Health(0.9)
    for i in range(40):
        now = (1.0 if between(health) is None and health.good else 61.0) * i
        assert not health.bad(now, "nan")
        turn(health, now + 0.5)


def test_a_share_of_failures_is_seen_within_the_short_time_and_a_smaller_one_within_the_long():
    half = Health(0.5)
    for i in range(40):
        half.good += 1
        if half.bad(0.02 * i, "nan"):
            break
    assert half.failing.startswith("5 of 10 requests failed within 1.5 s")
    tenth = Health(0.1)
    now = 0.0
    while not tenth.failing and now < 60:
        tenth.good += 8
        tenth.bad(now, "nan")
        now += 1.0
        turn(tenth, now)
    assert now == LEAST_FAILURES
    assert "of 45 requests failed within 30 s" in tenth.failing


@given(st.lists(st.integers(1, 9), min_size=1, max_size=200))
def test_below_the_share_a_version_never_fails(goods):
    """At least as many good answers as bad ones in each slice, and good ones first: below one half and a bit."""
    health = Health(0.55)
    for i, good in enumerate(goods):
        for _ in range(good):
            health.good += 1
            assert not health.bad(0.3 * i, "nan")
        turn(health, 0.3 * i + 0.3)


def test_a_batch_counts_once_and_a_share_of_zero_never():
    health = Health(0.5)
    assert not any(health.bad(1.0, "gone", batch=7) for _ in range(50))
    off = Health(0.0)
    assert not any(off.bad(1.0, "nan") for _ in range(50))


def test_losing_the_last_replica_three_times_in_a_minute_is_a_crash_loop():
    health = Health(0.0)
    assert [health.outage(t) for t in (0.0, 70.0, 80.0, 90.0)] == [False, False, False, True]
    assert health.cause == "crashes"


def test_it_comes_back_after_good_copies_and_not_before_its_time():
    health = failing()
    for _ in range(PROBES - 1):
        health.probed(is_good=True)
    assert not turn(health, 100.0 + 2 * AWAY_S)
    health.probed(is_good=False)
    for _ in range(PROBES):
        health.probed(is_good=True)
    assert not turn(health, 100.0 + 0.9 * AWAY_S)
    assert turn(health, 100.0 + 1.1 * AWAY_S)
    assert health.failing == ""


def test_without_requests_it_is_tried_again_after_a_while():
    health = failing()
    assert not turn(health, 100.0 + 0.9 * QUIET_S, last_request=100.0)
    assert turn(health, 100.1 + QUIET_S, last_request=100.0)


def test_each_relapse_doubles_the_time_away():
    health, now, away = Health(0.5), 100.0, []
    for _ in range(10):
        while not health.failing:
            health.bad(now, "nan")
        for _ in range(PROBES):
            health.probed(is_good=True)
        began = now
        while not turn(health, now):
            now += 0.5
        away.append(now - began)
        now += 1.0
    assert away[0] == pytest.approx(AWAY_S, abs=0.6)
    assert away[3] == pytest.approx(8 * AWAY_S, abs=0.6)
    assert max(away) <= MOST_AWAY_S + 1


def test_copies_are_sent_at_a_bounded_pace():
    health = failing()
    assert sum(health.wants_probe(100.0 + i / 1000) for i in range(1000)) == 5
