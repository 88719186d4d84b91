"""Requests that wait for a replica to be started, and what the gateway tells of its load."""

import math

import pytest

from argosy.core.errors import DeadlineExceeded, Unavailable
from plane import World, digest, values

pytestmark = pytest.mark.capability("R6")


def asleep(**changes):
    """A world whose only endpoint has run, and has no replica now."""
    world = World(**changes)
    replica = world.replica("1")
    world.route("1", is_on_demand=True, is_elastic=True)
    replica.die()
    world.woken = 0

    def wake():
        world.woken += 1

    world.plane.on_held = wake
    return world


def test_a_request_is_held_wakes_whoever_starts_replicas_and_is_answered():
    world = asleep()
    call = world.send((5.0, 2.0))
    assert world.woken == 1
    assert world.plane.holds
    assert world.plane.statuses()[0].held == 1
    world.advance(3.0)
    replica = world.replica("1")
    world.turn()
    replica.answer()
    assert values(call) == [5.0]
    assert not world.plane.holds
    world.send()
    assert world.woken == 1


def test_when_nobody_comes_it_is_refused_at_its_deadline_with_a_time_to_retry():
    world = asleep()
    call = world.send(timeout_s=2.0)
    world.advance(2.5)
    assert isinstance(call.error, Unavailable)
    assert (call.error.code, call.error.retry_after_s) == ("not_ready", 5.0)
    other = World()
    replica = other.replica("1")
    other.route("1")
    replica.die()
    call = other.send(timeout_s=2.0)
    other.advance(2.5)
    assert isinstance(call.error, DeadlineExceeded)


def test_what_is_held_is_bounded_in_number_and_bytes():
    world = asleep(queue_requests=5)
    calls = [world.send() for _ in range(7)]
    assert [call.error.code if call.error else "" for call in calls] == [""] * 5 + ["queue_full"] * 2
    small = asleep(queue_bytes=20)
    assert [bool(small.send().error) for _ in range(4)] == [False, False, True, True]


def test_an_endpoint_that_sleeps_is_ready_and_one_that_cant_be_started_is_not():
    world = asleep()
    endpoint = world.plane.endpoint("m")
    assert endpoint.is_available
    assert world.plane.is_version_ready(endpoint, digest("1"))
    assert "the next request starts one" in world.plane.statuses()[0].note
    world.route("1", is_on_demand=False)
    assert not endpoint.is_available
    assert not world.plane.is_version_ready(endpoint, digest("1"))


def test_a_request_for_what_no_replica_has_told_about_wakes_too():
    world = World()
    world.route("1", is_on_demand=True)
    rung = []
    world.plane.on_held = lambda: rung.append(1)
    with pytest.raises(Unavailable, match="has been ready yet"):
        world.ask()
    assert rung
    assert not world.plane.statuses()[0].is_known


def test_a_queue_may_grow_while_replicas_can_be_added_and_not_beyond_deadlines():
    world = World()
    replica = world.replica("1", max_batch=1)
    world.route("1")
    queue = world.plane.pool.queues[digest("1")]
    world.send()
    queue.ran(1, 0.05)
    tight = [world.send(timeout_s=600) for _ in range(100)]
    assert sum(call.error is not None for call in tight) == 100 - queue.limit
    world.route("1", is_elastic=True)
    assert all(world.send(timeout_s=600).error is None for _ in range(100))
    late = world.send(timeout_s=1.0)
    assert late.error.code == "too_late"
    assert replica.run is not None


def test_the_load_is_the_requests_at_once_summed_over_time():
    world = World()
    replica = world.replica("1", max_batch=1)
    world.route("1")
    world.send()
    world.send()
    world.send()
    world.advance(4.0, replica)
    found = world.plane.pool.statuses()[0]
    assert (found.waiting, found.in_flight) == (2, 1)
    assert math.isclose(found.load_s, 12.0, rel_tol=0.05)
    assert math.isclose(found.oldest_wait_s, 4.0, rel_tol=0.05)
    replica.answer()
    world.turn()
    world.advance(1.0, replica)
    found = world.plane.pool.statuses()[0]
    assert math.isclose(found.load_s, 14.0, rel_tol=0.05)
    assert found.rows == 1.0
    assert found.pace_s > 0
    assert world.plane.statuses()[0].arrived == 3
