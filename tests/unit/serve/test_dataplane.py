import gc

import msgspec
import pytest

from argosy.core.errors import DeadlineExceeded, Internal, InvalidInput, NotFound, Unavailable
from argosy.serve import prediction_id, wire
from argosy.serve.pool import DRAINED, FROZEN
from plane import KEY, SIGNATURE, World, digest, values


@pytest.fixture
def world():
    return World()


def test_requests_read_together_run_together_and_each_gets_its_own_answer(world):
    replica = world.replica()
    world.route()
    calls = [world.ask((i, 0.0), (i + 0.5, 0.0)) for i in range(3)]
    world.turn()
    assert replica.run[0].rows == (2, 2, 2)
    replica.answer()
    assert [values(call) for call in calls] == [[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]


def test_an_answer_names_the_version_that_gave_it(world):
    replica = world.replica()
    world.route()
    call = world.send()
    replica.answer()
    found = prediction_id.decode(call.prediction, bytes.fromhex(KEY))
    assert digest("1").removeprefix("sha256:").startswith(found.version)
    assert found.time == pytest.approx(world.clock.now())
    assert (call.ref, call.failover) == ("m:1", "")


def test_each_version_is_told_with_what_it_answered_and_forgotten_when_it_is_routed_no_more(world):
    replica = world.replica("1")
    world.route("1")
    for seconds in (0.004, 0.001, 0.002):
        world.send()
        world.clock.advance(seconds)
        replica.answer()
    (told,) = world.plane.statuses()[0].versions
    assert (told.ref, told.requests, told.failed) == ("m:1", 3, 0)
    assert (told.p50_ms, told.p95_ms) == (pytest.approx(2), pytest.approx(4))
    call = world.send()
    replica.fail_each(is_callers=True)
    assert isinstance(call.error, InvalidInput)
    call = world.send()
    replica.fail_each()
    assert not isinstance(call.error, InvalidInput)
    (told,) = world.plane.statuses()[0].versions
    assert (told.requests, told.failed) == (5, 1)  # a caller's own mistake is no failure
    new = world.replica("2")
    world.route("2", backup="1")
    world.send()
    new.answer()
    assert {v.ref: v.requests for v in world.plane.statuses()[0].versions} == {"m:1": 5, "m:2": 1}
    world.route("2")
    assert [v.ref for v in world.plane.statuses()[0].versions] == ["m:2"]


def test_a_cancelled_request_does_not_hang_or_spoil_its_batch(world):
    replica = world.replica()
    world.route()
    first, second, third = (world.ask((float(i), 0.0)) for i in range(3))
    world.turn()
    second.cancel()
    replica.answer()
    assert values(first) == [0.0]
    assert values(third) == [2.0]
    assert second not in world.calls


def test_a_request_cancelled_while_it_waits_is_not_run(world):
    replica = world.replica(max_batch=1)
    world.route()
    world.send()
    waiting = world.send((5.0, 0.0))
    waiting.cancel()
    last = world.send((6.0, 0.0))
    replica.answer()
    replica.answer()
    assert values(last) == [6.0]
    assert waiting not in world.calls


def test_a_request_whose_time_is_over_is_told_so_and_not_run(world):
    world.replica(max_batch=1)
    world.route()
    world.send()
    late = world.send(timeout_s=0.2)
    world.advance(0.3)
    assert isinstance(late.error, DeadlineExceeded)
    assert world.calls == [late]
    assert world.plane.pool.queues[digest("1")].requests == 0


def test_a_dead_replicas_batch_is_answered_by_another(world):
    dying, living = world.replica(), world.replica()
    world.route()
    calls = [world.ask((float(i), 0.0)) for i in range(2)]
    world.turn()
    assert dying.run
    assert living.run
    dying.die()
    world.turn()
    living.answer()
    living.answer()
    assert sorted(values(call)[0] for call in calls) == [0.0, 1.0]
    assert world.plane.counters.get("argosy_replays_total", "m", "replica_gone") == 1


def test_a_batch_waits_for_a_replacement_when_no_other_replica_is_there(world):
    dying = world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    dying.die()
    world.turn()
    world.advance(2.0)
    assert world.calls == []
    replacement = world.replica()
    replacement.answer()
    assert values(call) == [3.0]


def test_members_of_a_batch_that_took_a_replica_down_are_tried_one_by_one(world):
    dying = world.replica()
    world.route()
    for i in range(3):
        world.ask((float(i), 0.0))
    world.turn()
    dying.die()
    other = world.replica()
    world.turn()
    assert other.run[0].rows == (1,)
    other.answer()
    assert other.run[0].rows == (1,)


def test_a_request_that_takes_down_two_replicas_is_not_given_a_third(world):
    first, second, third = (world.replica() for _ in range(3))
    world.route()
    call = world.send()
    first.die()
    world.turn()
    second.die()
    world.turn()
    assert isinstance(call.error, Unavailable)
    assert call.error.code == "replica_gone"
    assert third.run is None


def test_a_silent_replica_is_frozen_and_its_batch_answered_by_another(world):
    frozen, other = world.replica(), world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    world.advance(2.0, other)
    assert frozen.inside.state == FROZEN
    other.answer()
    assert values(call) == [3.0]


def test_a_frozen_replica_that_comes_back_works_again_and_its_late_answer_is_dropped(world):
    frozen, other = world.replica(), world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    world.advance(2.0, other)
    other.answer(7.0)
    frozen.answer(9.0)
    assert values(call) == [7.0]
    assert frozen.inside.state == "ready"
    assert len(world.calls) == 1


def test_a_gateway_that_stood_still_itself_blames_nobody(world):
    replica = world.replica()
    world.route()
    call = world.send()
    world.clock.advance(20.0)
    world.plane.tick()
    assert replica.inside.state == "ready"
    replica.answer()
    assert call.error is None


def test_a_run_that_never_ends_is_given_to_another_replica(world):
    endless, other = world.replica(), world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    world.advance(11.0, endless, other)
    other.answer()
    assert values(call) == [3.0]


def test_a_failed_run_is_an_error_of_its_requests_only(world):
    replica = world.replica()
    world.route()
    call = world.send()
    replica.fail()
    assert isinstance(call.error, Internal)
    assert call.error.code == "model_run_failed"
    after = world.send((4.0, 0.0))
    replica.answer()
    assert values(after) == [4.0]


def test_a_number_that_is_not_finite_is_an_error_of_that_request_only(world):
    replica = world.replica()
    world.route()
    good, spoiled, also_good = (world.ask((float(i), 0.0)) for i in range(3))
    world.turn()
    replica.answer(failures=[wire.Failure(1, "non_finite_output", "NaN")])
    assert values(good) == [0.0]
    assert spoiled.error.code == "non_finite_output"
    assert values(also_good) == [2.0]


def test_a_replica_that_fails_while_others_work_is_set_aside(world):
    bad, good = world.replica(), world.replica()
    world.route()
    for _ in range(5):
        world.ask()
        world.ask()
        world.turn()
        bad.fail()
        good.answer()
    assert bad.inside.state == "faulty"
    call = world.send()
    good.answer()
    assert call.error is None


def test_a_version_that_fails_everywhere_keeps_its_replicas(world):
    only = world.replica()
    world.route()
    for _ in range(7):
        world.send()
        only.fail()
    assert only.inside.state == "ready"


def test_a_full_queue_refuses_at_once():
    world = World(queue_requests=1)
    world.replica(max_batch=1)
    world.route()
    world.send()
    world.send()
    refused = world.send()
    assert isinstance(refused.error, Unavailable)
    assert refused.error.code == "queue_full"


def test_wrong_inputs_are_refused_before_anything_is_drawn(world):
    from argosy.serve.wire import Tensor

    world.replica()
    world.replica("2")
    world.route(canary="2", share=0.5, rollout="r", window_s=1.0)
    for _ in range(20):
        with pytest.raises(InvalidInput):
            world.plane.infer(world.plane.endpoint("m"), {"x": Tensor("x", "INT8", (1, 2), b"12")}, print)
    world.clock.advance(2.0)
    assert world.windows() == []


def test_an_unknown_endpoint_is_not_found_and_tells_no_others_name(world):
    world.route()
    with pytest.raises(NotFound, match=r"there is no endpoint 'other'$"):
        world.plane.endpoint("other")


def test_a_version_that_was_never_ready_is_unavailable(world):
    world.route()
    with pytest.raises(Unavailable) as caught:
        world.ask()
    assert caught.value.code == "not_ready"


def test_the_same_input_to_two_versions_never_shares_an_answer(world):
    one, two = world.replica("1"), world.replica("2")
    world.route(canary="2", share=0.5, rollout="r")
    calls = [world.ask((1.0, 2.0)) for _ in range(40)]
    world.turn()
    while one.run or two.run:
        for replica, value in ((one, 1.0), (two, 2.0)):
            if replica.run:
                replica.answer(value)
    assert {(call.ref, values(call)[0]) for call in calls} == {("m:1", 1.0), ("m:2", 2.0)}


def test_a_version_can_be_asked_for_by_number(world):
    world.replica("1")
    two = world.replica("2")
    world.route(backup="2")
    call = world.send(number="2")
    two.answer(5.0)
    assert (call.ref, values(call)) == ("m:2", [5.0])
    with pytest.raises(NotFound, match="it serves: 1, 2"):
        world.ask(number="3")


# Failover ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trial(world):
    """A rollout in which every request is drawn for the canary."""
    stable, canary = world.replica("1"), world.replica("2")
    world.route(canary="2", share=1.0, rollout="r", window_s=1.0)
    return world, stable, canary


def only_window(world):
    world.clock.advance(1.01)
    (window,) = world.windows()
    return window


@pytest.mark.parametrize("how", ["fail", "die", "non_finite"])
def test_a_canarys_failure_is_charged_to_it_and_answered_by_stable(trial, how):
    world, stable, canary = trial
    call = world.send((3.0, 0.0))
    {"fail": canary.fail, "die": canary.die, "non_finite": lambda: canary.fail_each("non_finite_output")}[how]()
    world.turn()
    stable.answer()
    assert values(call) == [3.0]
    assert (call.ref, call.failover) == ("m:1", "m:1")
    window = only_window(world)
    assert (window.requests_canary, window.failed_canary, window.bad["errors"]) == (1, 1, (1.0, 1.0))
    assert window.latency_canary == {}


def test_a_canary_that_hangs_is_given_half_of_the_time(trial):
    world, stable, canary = trial
    call = world.send((3.0, 0.0), timeout_s=2.0)
    world.advance(1.1, stable, canary)
    stable.answer()
    assert values(call) == [3.0]
    canary.answer(9.0)
    assert values(call) == [3.0]
    assert len(world.calls) == 1
    assert only_window(world).failed_canary == 1


def test_a_request_waiting_for_a_busy_canary_goes_to_stable_when_half_of_its_time_is_over(trial):
    world, stable, canary = trial
    for _ in range(9):
        world.send(timeout_s=20.0)
    waiting = world.send((4.0, 0.0), timeout_s=2.0)
    world.advance(1.1, stable, canary)
    stable.answer()
    assert values(waiting) == [4.0]
    while canary.run:
        canary.answer()
    assert world.calls.count(waiting) == 1


def test_stable_is_charged_by_the_same_clock_but_may_use_all_of_the_time(world):
    stable = world.replica("1")
    world.replica("2")
    world.route(canary="2", share=0.0, mirror=0.5, rollout="r", window_s=1.0)
    call = world.send((3.0, 0.0), timeout_s=2.0)
    world.advance(1.1, stable)
    stable.answer()
    assert values(call) == [3.0]
    assert only_window(world).failed_stable == 1


def test_whatever_a_canary_fails_stable_answers(trial):
    """Before the rollout it answered all of it alone, so no budget is needed."""
    world, stable, canary = trial
    calls = []
    for _ in range(400):
        calls.append(world.send())
        canary.fail()
        world.turn()
        stable.answer()
    assert {call.error for call in calls} == {None}


def test_the_retry_budget_bounds_second_attempts(trial):
    """What stable fails the version in reserve answers, as far as the budget goes."""
    world, stable, reserve = trial
    world.route(backup="2", failover=0.0)
    saved = 0
    for _ in range(400):
        world.send()
        stable.fail()
        world.turn()
        if reserve.run:
            reserve.answer()
            saved += 1
    # The burst of 256, and a tenth of the 400.
    assert 280 <= saved <= 300


def test_an_input_both_versions_refuse_is_the_callers_mistake_and_not_counted(trial):
    world, stable, canary = trial
    call = world.send()
    canary.fail_each("input_refused", is_callers=True)
    world.turn()
    stable.fail_each("input_refused", is_callers=True)
    assert isinstance(call.error, InvalidInput)
    world.clock.advance(1.01)
    assert world.windows() == []


def test_an_input_only_the_canary_refuses_is_charged_to_it(trial):
    world, stable, canary = trial
    call = world.send((3.0, 0.0))
    canary.fail_each("input_refused", is_callers=True)
    world.turn()
    stable.answer()
    assert values(call) == [3.0]
    assert only_window(world).failed_canary == 1


def test_a_batch_that_fails_together_counts_once(trial):
    world, stable, canary = trial
    for _ in range(4):
        world.ask()
    world.turn()
    canary.die()
    while stable.run:
        stable.answer()
        world.turn()
    window = only_window(world)
    assert (window.failed_canary, window.bad["errors"]) == (4, (1.0, 1.0))


def test_requests_waiting_for_a_dead_canary_go_to_stable_uncounted(trial):
    world, stable, canary = trial
    calls = [world.send() for _ in range(3)]
    canary.die()
    world.turn()
    while stable.run:
        stable.answer()
        world.turn()
    assert all(call.error is None for call in calls)
    world.clock.advance(1.01)
    (window,) = world.windows()
    assert (window.failed_canary, window.requests_canary) == (1, 1)


def test_a_canarys_death_does_not_end_the_window_and_its_absence_is_not_counted(trial):
    world, stable, canary = trial
    world.send()
    canary.die()
    world.turn()
    stable.answer()
    for _ in range(5):
        call = world.send()
        stable.answer()
        assert call.ref == "m:1"
    back = world.replica("2")
    world.send()
    back.answer()
    window = only_window(world)
    assert (window.share, window.requests_canary, window.failed_canary) == (1.0, 2, 1)


# Routes --------------------------------------------------------------------------------------------------------------


def test_a_version_change_loses_no_request(world):
    old = world.replica("1", max_batch=1)
    world.route("1")
    waiting = [world.send((float(i), 0.0)) for i in range(3)]
    world.replica("2")
    world.route("2")
    world.plane.pool.drain(old.inside)
    for _ in waiting:
        old.answer()
    world.advance(0.1, old)
    assert [values(call) for call in waiting] == [[0.0], [1.0], [2.0]]
    assert {call.ref for call in waiting} == {"m:1"}
    assert old.inside.state == DRAINED


def test_the_former_version_answers_until_the_new_one_is_ready(world):
    old = world.replica("1")
    world.route("1")
    world.route("2")
    call = world.send()
    old.answer()
    assert call.ref == "m:1"
    assert "m:2 has no ready replica; m:1 answers" in world.plane.statuses()[0].note
    new = world.replica("2")
    call = world.send()
    new.answer()
    assert call.ref == "m:2"


def test_the_backup_answers_while_stable_has_no_replica(world):
    stable, backup = world.replica("1"), world.replica("9")
    world.route("1", backup="9")
    first = world.send((3.0, 0.0))
    stable.die()
    world.turn()
    backup.answer()
    assert (values(first), first.ref, first.failover) == ([3.0], "m:9", "m:9")
    world.replica("1")
    assert world.send().ref == "m:1"


def test_a_replica_told_to_stop_finishes_what_it_has_and_is_let_go(world):
    replica = world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    world.plane.pool.leaving(replica.inside)
    assert not any(isinstance(frame, wire.Bye) for frame, _ in replica.wire.frames)
    replica.answer()
    world.advance(0.1, replica)
    assert values(call) == [3.0]
    assert sum(isinstance(frame, wire.Bye) for frame, _ in replica.wire.frames) == 1


def test_a_canary_with_other_inputs_gets_nothing(world):
    from argosy.core.tensors import Signature, TensorSpec

    world.replica("1")
    other = Signature(inputs=(TensorSpec(name="z", datatype="FP32", shape=(-1, 2)),), outputs=SIGNATURE.outputs)
    world.replica("2", signature=other)
    world.route(canary="2", share=1.0, rollout="r")
    assert world.send().ref == "m:1"
    assert "takes other inputs" in world.plane.statuses()[0].note


def test_setting_the_same_routes_again_changes_nothing(world):
    world.replica("1")
    world.replica("2")
    for _ in range(3):
        world.route(canary="2", share=0.5, rollout="r", window_s=10.0)
    world.send()
    segment = world.plane.endpoints["m"].rollout.segment
    world.route(canary="2", share=0.5, rollout="r", window_s=10.0)
    assert world.plane.endpoints["m"].rollout.segment is segment


def test_garbage_from_a_replica_costs_no_request(world):
    liar, other = world.replica(), world.replica()
    world.route()
    call = world.send((3.0, 0.0))
    order, _ = liar.run
    with pytest.raises(InvalidInput):
        liar.inside.done(wire.Done(order.batch, 0.0, (wire.Output("y", "FP32", (1, 1)),)), memoryview(b"12"))
    liar.die()
    world.turn()
    other.answer()
    assert values(call) == [3.0]


# Mirroring -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirrored(world):
    stable, canary = world.replica("1"), world.replica("2")
    world.route(canary="2", share=0.0, mirror=1.0, rollout="r", window_s=1.0)
    return world, stable, canary


@pytest.mark.parametrize(("other", "bad"), [(3.0, (0.0, 1.0)), (3.001, (0.0, 1.0)), (4.0, (1.0, 1.0))])
def test_copies_are_compared_and_never_answer_anybody(mirrored, other, bad):
    world, stable, canary = mirrored
    call = world.send((3.0, 0.0))
    canary.answer(other)
    assert world.calls == []
    stable.answer()
    assert values(call) == [3.0]
    assert only_window(world).bad["agreement"] == bad


@pytest.mark.parametrize("late", ["stable", "canary"])
def test_a_pair_is_counted_whoever_comes_first(mirrored, late):
    world, stable, canary = mirrored
    world.send((3.0, 0.0))
    for replica in (canary, stable) if late == "stable" else (stable, canary):
        replica.answer()
    assert only_window(world).bad["agreement"] == (0.0, 1.0)


def test_a_copy_that_fails_is_a_mirrored_error_and_no_error(mirrored):
    world, stable, canary = mirrored
    call = world.send()
    canary.fail_each()
    stable.answer()
    window = only_window(world)
    assert call.error is None
    assert window.bad["mirrored_errors"] == (1.0, 1.0)
    assert window.bad["errors"] == (0.0, 0.0)
    assert "agreement" not in window.bad


def test_a_copy_that_takes_too_long_counts_as_failed(mirrored):
    world, stable, canary = mirrored
    world.send(timeout_s=1.0)
    stable.answer()
    world.advance(1.2, stable, canary)
    world.clock.advance(1.01)
    assert [w.bad["mirrored_errors"] for w in world.windows() if "mirrored_errors" in w.bad] == [(1.0, 1.0)]


def test_a_pair_whose_caller_went_away_says_nothing(mirrored):
    world, stable, canary = mirrored
    world.send().cancel()
    canary.answer()
    stable.answer()
    world.clock.advance(1.01)
    assert world.windows() == []


def test_a_failing_caller_of_on_done_does_not_disturb_its_neighbours(world):
    replica = world.replica()
    world.route()
    bad, good = world.ask(), world.ask()

    def explode(_):
        raise RuntimeError("the transport is broken")

    bad.on_done = explode
    world.turn()
    replica.answer()
    assert world.calls == [good]


def restart(world):
    """What a gateway does before it follows the routes it finds from its former life."""
    world.plane.signatures[digest("1")] = SIGNATURE
    world.plane.settle(3.0)


@pytest.mark.parametrize("role", ["backup", "canary"])
def test_after_a_restart_requests_wait_for_stable_rather_than_for_whoever_is_back_first(world, role):
    """A restarted gateway must not take "not connected yet" for "gone"."""
    first_back = world.replica("2")
    restart(world)
    world.route("1", **{role: "2"})
    call = world.send()
    world.advance(1.0, first_back)
    assert first_back.run is None
    stable = world.replica("1")
    world.advance(0.1, first_back, stable)
    stable.answer()
    assert (call.ref, call.failover) == ("m:1", "")


def test_stable_that_is_not_back_in_time_after_a_restart_is_taken_for_gone(world):
    backup = world.replica("2")
    restart(world)
    world.route("1", backup="2")
    call = world.send()
    world.advance(3.2, backup)
    backup.answer()
    assert call.ref == "m:2"


def hedged(world, hedge_s=0.1):
    world.route("1", hedge_s=hedge_s)
    return world.replica("1"), world.replica("1")


def test_a_slow_request_is_given_to_an_idle_replica_and_the_first_answer_counts(world):
    slow, quick = hedged(world)
    call = world.send()
    world.advance(0.3, slow, quick)
    assert slow.run
    assert quick.run
    quick.answer(5.0)
    assert values(call) == [5.0]
    slow.answer(7.0)
    assert values(call) == [5.0]
    assert len(world.calls) == 1
    assert world.plane.counters.get("argosy_hedges_total", "m", "won") == 1


def test_a_hedge_that_loses_changes_nothing(world):
    slow, quick = hedged(world)
    call = world.send()
    world.advance(0.3, slow, quick)
    slow.answer(7.0)
    quick.answer(5.0)
    assert values(call) == [7.0]
    assert len(world.calls) == 1
    assert world.plane.counters.get("argosy_hedges_total", "m", "lost") == 1


def test_a_quick_request_is_not_hedged(world):
    first, second = hedged(world)
    call = world.send()
    first.answer(7.0)
    world.advance(0.3, first, second)
    assert values(call) == [7.0]
    assert second.run is None


def test_no_request_is_hedged_while_others_wait_or_no_replica_is_idle(world):
    world.route("1", hedge_s=0.1)
    only = world.replica("1", max_batch=1)
    world.send()
    waiting = world.send()
    world.advance(0.3, only)
    assert waiting.hedge is None
    only.answer(1.0)
    world.turn()
    only.answer(2.0)
    assert [values(call) for call in world.calls] == [[1.0], [2.0]]


def test_a_cancelled_request_takes_its_hedge_along(world):
    slow, quick = hedged(world)
    call = world.send()
    world.advance(0.3, slow, quick)
    call.cancel()
    quick.answer(5.0)
    slow.answer(7.0)
    assert world.calls == []
    assert values(_sent(world, slow, quick)) == [9.0]


def _sent(world, *replicas):
    call = world.send((9.0, 0.0))
    next(replica for replica in replicas if replica.run).answer()
    return call


def test_a_request_that_waited_too_long_is_not_run(world):
    world.route("1")
    only = world.replica("1", max_batch=1)
    world.send(timeout_s=9.0)
    late = world.send(timeout_s=0.5)
    world.clock.advance(0.6)  # no tick in between: the queue itself must see it
    only.beat()
    only.answer(1.0)
    world.turn()
    assert late.error is not None
    assert late.error.code == "deadline_exceeded"
    assert only.run is None
    assert world.plane.counters.get("argosy_expired_total", "m", "queue") == 1


# Calibration ----------------------------------------------------------------------------------------------------------


def test_a_replica_that_was_calibrated_meanwhile_is_fed_as_it_says_from_the_next_batch_on(world):
    replica = world.replica(max_batch=1)
    world.route()
    for _ in range(5):
        world.send()
    replica.answer()
    assert len(replica.run[0].rows) == 1
    hello = msgspec.structs.replace(replica.inside.hello, max_batch=8, advice=wire.Advice(2, 1, 2, 9), threads=1)
    replica.inside.greeted(hello)
    replica.answer()
    assert len(replica.run[0].rows) == 3
    found = replica.inside.status()
    assert (found.max_batch, found.threads, found.advice) == (8, 1, wire.Advice(2, 1, 2, 9))


ADVICE = wire.Advice(2, 1, 2, 9, solo=4)


@pytest.fixture
def duo(world):
    """Two replicas of a version of which runs that come alone gain from more threads; the second has the engine."""
    world.route()
    world.first, world.second = world.replica(), world.replica()
    world.second.says(advice=ADVICE, threads=1)
    world.first.says(advice=ADVICE, threads=1)
    assert (world.first.asked_solo, world.second.asked_solo) == ([], [4])
    world.second.says(solo=4)
    return world


def test_one_replica_of_a_version_gets_the_engine_for_requests_that_come_alone(duo):
    duo.replica().says(advice=ADVICE, threads=1)
    duo.route()
    assert [found.asked_solo for found in (duo.first, duo.second)] == [[], [4]]
    assert [found.solo for found in (duo.first.inside.status(), duo.second.inside.status())] == [0, 4]
    duo.second.die()
    assert duo.first.asked_solo == [4]


def test_a_request_that_comes_alone_has_the_machine_to_itself(duo):
    for _ in range(3):
        duo.send()
        assert (duo.second.run[0].is_solo, duo.first.run) == (True, None)
        duo.second.answer()


def test_requests_that_come_together_share_the_machine(duo):
    alone, beside = duo.send(), duo.send()
    assert (duo.second.run[0].is_solo, duo.first.run[0].is_solo) == (True, False)
    duo.second.answer()
    duo.send()
    assert duo.second.run[0].is_solo is False
    duo.second.answer()
    duo.first.answer()
    duo.send()
    assert duo.second.run[0].is_solo is True, "whoever ended last"
    duo.second.answer()
    waiting = [duo.ask((1.0, 2.0)) for _ in range(2)]
    duo.turn()
    assert (duo.second.run[0].is_solo, duo.first.run[0].is_solo) == (False, False)
    for replica in (duo.first, duo.second):
        replica.answer()
    assert all(call.outputs is not None for call in (alone, beside, *waiting))


def test_a_run_of_another_version_counts_too(duo):
    duo.first.die()
    other = duo.replica("2")
    signature = other.inside.hello.signature
    duo.plane.pool.queue(digest("2"), signature)
    duo.send()
    assert duo.second.run[0].is_solo
    duo.second.answer()
    other.inside.owed = 7
    duo.send()
    assert not duo.second.run[0].is_solo


@pytest.mark.parametrize("changes", [{"may_go_solo": False}, {"canary": "2", "share": 0.1}])
def test_nobody_goes_solo_where_threads_are_given_or_versions_are_compared(duo, changes):
    new = duo.replica("2")
    duo.route(**changes)
    for _ in range(20):
        duo.send()
        for replica in (duo.first, duo.second, new):
            if replica.run is not None:
                assert not replica.run[0].is_solo
                replica.answer()
    duo.route()
    duo.send()
    assert duo.second.run[0].is_solo


def test_without_a_gain_nobody_is_asked(world):
    world.route()
    replica = world.replica()
    replica.says(advice=wire.Advice(2, 1, 2, 9, solo=1), threads=1)
    replica.says(advice=wire.Advice(1, 4, 4, 9, solo=4), threads=4)
    assert replica.asked_solo == []


@pytest.mark.parametrize("change", [{"replica": "other"}, {"digest": "sha256:" + "0" * 64}])
def test_a_replica_that_claims_to_be_another_one_is_refused(world, change):
    replica = world.replica()
    with pytest.raises(InvalidInput, match="all at once"):
        replica.inside.greeted(msgspec.structs.replace(replica.inside.hello, **change))
    assert replica.inside.hello.replica == "r1"


def refused_by_a_full_queue(world):
    world.replica()
    for _ in range(2):
        world.send()
    return world.send


def refused_as_too_late(world):
    world.replica(max_batch=1)
    for _ in range(4):
        world.send()
    queue = world.plane.pool.queues[digest("1")]
    queue.ran(1, 10.0)
    return lambda: world.send(timeout_s=0.1)


def answered(world):
    replica = world.replica()

    def go():
        call = world.send()
        replica.answer()
        assert call.error is None

    return go


def failed(world):
    replica = world.replica()

    def go():
        world.send()
        replica.fail()

    return go


def expired(world):
    replica = world.replica(max_batch=1)
    world.send()

    def go():
        world.send(timeout_s=0.05)
        world.advance(0.2, replica)

    return go


def cancelled(world):
    world.replica(max_batch=1)
    world.send()
    return lambda: world.send().cancel()


@pytest.mark.parametrize(
    "kind",
    [answered, failed, expired, cancelled, refused_by_a_full_queue, refused_as_too_late],
    ids=lambda k: k.__name__,
)
def test_no_request_however_it_ends_leaves_work_for_the_garbage_collector(kind):
    """Collecting thousands of refused requests takes tens of milliseconds, in which nobody is answered."""
    world = World(**({"queue_requests": 1} if kind is refused_by_a_full_queue else {}))
    world.route()
    go = kind(world)
    go()
    world.calls.clear()
    gc.collect()
    gc.disable()
    try:
        for _ in range(50):
            go()
        world.calls.clear()
        assert gc.collect() == 0
    finally:
        gc.enable()
