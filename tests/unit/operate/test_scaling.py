"""The autoscaler by itself: samples in, a number and its reason out."""

import math

import pytest

from argosy.operate.scaling import MOST_ADDED, PANIC_S, STABLE_S, Rules, Sample, Scaler

pytestmark = pytest.mark.capability("R6")


class Feed:
    """A scaler and the time, fed with a load that holds for a while."""

    def __init__(self, replicas=1, **rules):
        self.scaler = Scaler(replicas)
        self.rules = Rules(**{"low": 1, "high": 20, "target": 1.0} | rules)
        self.now = 1000.0
        self.seen = [replicas]
        self.reason = ""

    def load(self, concurrency, seconds, *, ready=None, waiting=0, oldest_s=0.0, arrived=None, pace_s=0.0, step=0.5):
        """Hold this load for so long; `ready` replicas take requests, all that are wanted if None."""
        for _ in range(max(1, round(seconds / step))):
            self.now += step
            found = self.scaler.replicas if ready is None else ready
            came = int(concurrency > 0) if arrived is None else arrived
            wish = self.scaler.take(
                Sample(
                    at=self.now, concurrency=concurrency, arrived=came, waiting=waiting, oldest_s=oldest_s,
                    ready=found, pace_s=pace_s,
                ),
                self.rules,
            )  # fmt: skip
            self.seen.append(wish.replicas)
            self.reason = wish.reason
        return self.seen[-1]


def test_the_number_follows_the_requests_at_once():
    feed = Feed()
    assert feed.load(0.9, 120) == 1
    assert feed.load(3.4, 120) == 4
    assert "requests at once in the last minute, a replica is for 1" in feed.reason


def test_a_load_that_grows_a_little_is_averaged_and_one_that_doubles_is_not():
    calm, hurried = Feed(replicas=4), Feed(replicas=4)
    calm.load(3.5, 60)
    hurried.load(3.5, 60)
    assert calm.load(5.0, PANIC_S) == 4
    assert hurried.load(20.0, PANIC_S) > 4
    assert calm.load(5.0, STABLE_S) == 5


def test_what_runs_is_at_most_doubled_or_four_more_until_that_is_ready():
    feed = Feed()
    feed.load(0.5, 60)
    assert feed.load(100.0, 20, ready=1) == 1 + MOST_ADDED
    assert feed.load(100.0, 5, ready=5) == 10
    assert feed.load(100.0, 5, ready=10) == 20


def test_from_nothing_it_goes_to_one_whatever_waits():
    feed = Feed(replicas=0, low=0)
    assert feed.load(0.0, 10) == 0
    assert feed.load(200.0, 0.5, ready=0, waiting=200, arrived=200) == 1
    assert feed.load(200.0, 60, ready=0, waiting=200, oldest_s=30.0) == 1
    assert feed.load(200.0, 10, ready=1, waiting=200) == 1 + MOST_ADDED


def test_replicas_that_crash_are_not_multiplied():
    feed = Feed(replicas=2)
    feed.load(1.5, 60)
    assert feed.load(500.0, 600, ready=0, waiting=500, oldest_s=30.0) == 2
    assert feed.load(500.0, 600, ready=1, waiting=500, oldest_s=30.0) <= 1 + MOST_ADDED


def test_a_backlog_calls_for_what_works_it_off_not_for_a_replica_each():
    knowing, guessing = (Feed(replicas=4, high=64) for _ in range(2))
    # 40 requests a second of 0.05 s each: 2.9 replicas at 70 %, and 60 in the queue, which are 3 s of work.
    assert knowing.load(60.0, 10, ready=4, waiting=60, arrived=20, pace_s=0.05) == 4
    assert guessing.load(60.0, 10, ready=4, waiting=60, arrived=20) == 4 + MOST_ADDED


def test_requests_that_wait_long_call_for_one_more_even_below_the_target():
    feed = Feed(replicas=2, target=50.0)
    feed.load(10.0, 60)
    assert feed.load(10.0, 2, waiting=3, oldest_s=0.9) == 2
    assert feed.load(10.0, 3, waiting=3, oldest_s=0.9) == 3
    assert "the oldest request has waited 900 ms" in feed.reason
    # Not another one before that one is there.
    assert feed.load(10.0, 60, ready=2, waiting=3, oldest_s=0.9) == 3


def test_requests_that_take_long_may_wait_long():
    feed = Feed(replicas=2, target=50.0)
    assert feed.load(10.0, 60, waiting=3, oldest_s=3.0, pace_s=4.0) == 2


def test_replicas_are_given_up_slowly_and_by_halves():
    feed = Feed(replicas=8, delay_s=300.0)
    feed.load(7.0, 120)
    assert feed.load(0.2, 290) == 8
    feed.load(0.2, 600)
    fallen = [n for n, former in zip(feed.seen[1:], feed.seen, strict=False) if n < former]
    assert fallen[-3:] == [4, 2, 1]
    assert all(n >= former / 2 for n, former in zip(fallen[1:], fallen, strict=False))
    assert "at most 0.2 requests at once for 5 min" in feed.reason


def test_one_busy_moment_within_the_delay_keeps_the_replicas():
    feed = Feed(replicas=4, delay_s=300.0)
    feed.load(0.5, 250)
    feed.load(3.9, PANIC_S)
    assert feed.load(0.5, 280) == 4
    assert feed.load(0.5, 120) < 4


def test_a_fall_that_was_a_mistake_makes_the_delay_longer():
    feed = Feed(replicas=4, delay_s=60.0)
    feed.load(0.5, 200)
    assert feed.scaler.replicas == 1
    feed.load(4.0, 60)
    raised = feed.scaler.replicas
    assert feed.load(0.5, 200) == raised > 1
    assert feed.load(0.5, 400) == 1


def test_nothing_runs_after_an_idle_time_and_only_then():
    feed = Feed(replicas=3, low=0, idle_s=100.0, delay_s=300.0)
    assert feed.load(0.0, 99, arrived=0) == 3
    assert feed.load(0.0, 2, arrived=0) == 0
    assert feed.reason == "no request for 1 min 40 s"
    busy = Feed(replicas=1, low=0, idle_s=100.0)
    for _ in range(10):
        busy.load(0.0, 90, arrived=0)
        assert busy.load(0.01, 0.5) == 1


def test_a_restarted_controller_gives_nothing_up_before_it_has_seen_a_whole_delay():
    feed = Feed(replicas=6, low=0, idle_s=300.0, delay_s=300.0)
    feed.load(0.1, 295)
    assert set(feed.seen) == {6}


def test_the_range_holds_and_a_new_range_is_followed_at_once():
    feed = Feed(replicas=3, high=4)
    assert feed.load(90.0, 60) == 4
    feed.rules = Rules(low=1, high=2, target=1.0)
    assert feed.load(90.0, 0.5) == 2
    feed.rules = Rules(low=5, high=5, target=1.0)
    assert feed.load(0.0, 0.5) == 5


@pytest.mark.parametrize("jump", [-5000.0, 2 * 86400.0])
def test_a_clock_that_jumps_and_a_gateway_that_was_away_change_nothing(jump):
    feed = Feed(replicas=4, low=0, idle_s=60.0, delay_s=60.0)
    feed.load(3.5, 50)
    feed.now += jump
    assert feed.load(3.5, 1) == 4
    assert feed.load(0.3, 55) == 4  # what was seen before says nothing now
    assert math.isfinite(feed.scaler.concurrency)
