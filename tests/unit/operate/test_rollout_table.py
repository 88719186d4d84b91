"""The table of a rollout: each row, and what holds of all of them."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.rollout import READY_LIMIT_S, TABLE, UNROUTE_LIMIT_S, Facts, State, step

CONFIG = RolloutConfig(steps=(5, 25, 50), dwell="60s", time_limit="30min")


def at(phase, number=0, kind=d.STEPWISE, config=CONFIG):
    return State(kind=kind, phase=phase, step=number, config=config)


def move(state, **facts):
    decision = step(state, Facts(**facts))
    return decision.phase, decision.step, decision.moved


def test_a_good_version_goes_the_whole_way():
    ready = {"new_is_ready": True, "base_is_ready": True}
    assert move(at(d.PENDING)) == (d.WARMING, 0, True)
    assert move(at(d.WARMING), **ready) == (d.CANARY, 0, True)
    assert move(at(d.CANARY, 0), phase_s=60, verdict="promote", **ready) == (d.CANARY, 1, True)
    assert move(at(d.CANARY, 1), phase_s=60, verdict="wait", **ready) == (d.CANARY, 2, True)
    assert move(at(d.CANARY, 2), phase_s=60, verdict="promote", **ready) == (d.PROMOTING, 2, True)
    assert move(at(d.PROMOTING, 2), new_is_named=True, **ready) == (d.PROMOTED, 2, True)


@pytest.mark.parametrize(
    ("phase", "facts"),
    [
        (d.WARMING, {"new_is_ready": True}),
        (d.WARMING, {"base_is_ready": True}),
        (d.CANARY, {"phase_s": 59, "verdict": "promote", "new_is_ready": True}),
        (d.CANARY, {"phase_s": 60, "new_is_ready": False}),
        (d.PROMOTING, {"verdict": "promote", "new_is_named": True}),
        (d.PROMOTING, {"verdict": "promote", "new_is_ready": True}),
        (d.ROLLING_BACK, {"phase_s": UNROUTE_LIMIT_S}),
    ],
)
def test_it_waits_for_what_is_missing(phase, facts):
    assert move(at(phase), **facts) == (phase, 0, False)


@pytest.mark.parametrize("phase", [d.WARMING, d.CANARY, d.PROMOTING])
@pytest.mark.parametrize("facts", [{"rollback_asked": "by ada"}, {"new_failed": "no memory"}])
def test_a_wish_or_a_failing_start_rolls_back_at_any_step(phase, facts):
    for number in range(3):
        assert move(at(phase, number), new_is_ready=True, base_is_ready=True, phase_s=99, **facts)[0] == d.ROLLING_BACK


@pytest.mark.parametrize("phase", [d.CANARY, d.PROMOTING])
def test_the_judge_rolls_back_at_any_step(phase):
    decision = step(at(phase, 2), Facts(verdict="rollback", verdict_reason="errors: 5 of 5", new_is_ready=True))
    assert (decision.phase, decision.reason) == (d.ROLLING_BACK, "errors: 5 of 5")


def test_a_version_that_missed_a_gate_is_never_started():
    decision = step(at(d.PENDING), Facts(gate_missed="accuracy is 0.9"))
    assert (decision.phase, decision.reason) == (d.ROLLING_BACK, "accuracy is 0.9")


def test_only_the_last_step_promotes_and_only_after_its_dwell():
    facts = {"verdict": "promote", "new_is_ready": True}
    assert move(at(d.CANARY, 1), phase_s=60, **facts) == (d.CANARY, 2, True)
    assert move(at(d.CANARY, 2), phase_s=59, **facts)[2] is False


@pytest.mark.parametrize(
    ("undecided", "end"), [("rollback", d.ROLLING_BACK), ("promote", d.PROMOTING), ("ask", d.CANARY)]
)
def test_the_time_limit_does_what_undecided_says(undecided, end):
    config = msgspec.structs.replace(CONFIG, undecided=undecided)
    decision = step(at(d.CANARY, 2, config=config), Facts(verdict="wait", canary_s=1800, phase_s=1000))
    assert decision.phase == end
    assert ("undecided after the time limit of 30 min" in decision.reason) == (undecided != "ask")


def test_what_was_asked_can_be_answered_by_promoting():
    assert move(at(d.CANARY, 0), promote_asked="by ada", verdict="wait") == (d.PROMOTING, 0, True)


@pytest.mark.parametrize("kind", [d.FIRST, d.SWITCH, d.UNDO])
def test_without_steps_it_switches_when_ready(kind):
    assert move(at(d.WARMING, kind=kind), new_is_ready=True) == (d.PROMOTING, 0, True)
    assert move(at(d.WARMING, kind=kind), base_is_ready=True)[2] is False


def test_a_broken_current_version_does_not_hold_up_the_one_that_mends_it():
    decision = step(at(d.WARMING), Facts(new_is_ready=True, base_failed="corrupted blob"))
    assert decision.phase == d.PROMOTING
    assert "corrupted blob" in decision.reason


def test_a_rollback_ends_when_the_gateway_confirms_or_cannot_be_asked():
    assert move(at(d.ROLLING_BACK), is_unrouted=True)[0] == d.ROLLED_BACK
    assert move(at(d.ROLLING_BACK), phase_s=UNROUTE_LIMIT_S + 1)[0] == d.ROLLED_BACK


SHADOW_FIRST = msgspec.structs.replace(CONFIG, shadow="30s", shadow_pairs=100)
SHADOW_ONLY = RolloutConfig(kind="shadow", shadow="30s", time_limit="30min")
BLUE_GREEN = RolloutConfig(kind="blue-green", keep="10min", time_limit="30min")
READY = {"new_is_ready": True, "base_is_ready": True}


@pytest.mark.capability("R2")
def test_a_shadow_phase_comes_before_the_first_step_and_needs_its_time_and_its_pairs():
    assert move(at(d.WARMING, config=SHADOW_FIRST), **READY) == (d.SHADOW, 0, True)
    shadow = at(d.SHADOW, config=SHADOW_FIRST)
    assert move(shadow, phase_s=29, pairs=100, verdict="promote", **READY)[2] is False
    assert move(shadow, phase_s=30, pairs=99, verdict="promote", **READY)[2] is False
    assert move(shadow, phase_s=30, pairs=100, verdict="wait", **READY) == (d.CANARY, 0, True)
    assert move(shadow, verdict="rollback", **READY)[0] == d.ROLLING_BACK
    decision = step(shadow, Facts(phase_s=1800, pairs=7, **READY))
    assert decision.phase == d.ROLLING_BACK
    assert "7 mirrored requests, of 100 that were asked for" in decision.reason


@pytest.mark.parametrize(("after", "end"), [("leave", d.LEAVING), ("promote", d.PROMOTING)])
def test_a_version_only_in_shadow_ends_by_a_verdict_as_the_file_says(after, end):
    config = msgspec.structs.replace(SHADOW_ONLY, after_shadow=after)
    shadow = at(d.SHADOW, kind=d.SHADOW_ONLY, config=config)
    assert move(shadow, phase_s=30, pairs=900, verdict="promote", **READY)[0] == end
    assert move(shadow, phase_s=30, pairs=900, verdict="wait", **READY)[2] is False
    assert move(shadow, phase_s=1800, pairs=900, verdict="wait", **READY)[0] == d.LEAVING
    assert move(shadow, pairs=900, verdict="rollback", **READY)[0] == d.ROLLING_BACK
    assert move(at(d.LEAVING, kind=d.SHADOW_ONLY, config=config), is_unrouted=True)[0] == d.LEFT


def test_blue_green_switches_at_once_and_stands_after_its_time_unless_the_judge_objects():
    assert move(at(d.WARMING, kind=d.BLUE_GREEN, config=BLUE_GREEN), **READY) == (d.SWITCHED, 0, True)
    switched = at(d.SWITCHED, kind=d.BLUE_GREEN, config=BLUE_GREEN)
    assert move(switched, phase_s=599, verdict="promote", **READY)[2] is False
    decision = step(switched, Facts(phase_s=600, verdict="wait", verdict_reason="undecided", **READY))
    assert decision.phase == d.PROMOTING
    assert "found nothing against it (undecided)" in decision.reason
    assert move(switched, phase_s=5, verdict="rollback", **READY)[0] == d.ROLLING_BACK


@pytest.mark.parametrize("undecided", ["rollback", "promote"])
def test_while_a_metric_of_its_own_cannot_be_read_nothing_is_promoted(undecided):
    config = msgspec.structs.replace(CONFIG, undecided=undecided)
    held = {"held": "metric 'sales' cannot be read: gone", "verdict": "promote", "phase_s": 1e4}
    assert move(at(d.CANARY, 2, config=config), **held, **READY)[2] is False
    assert move(at(d.CANARY, 0, config=config), **held, **READY)[2] is False
    decision = step(at(d.CANARY, 2, config=config), Facts(canary_s=1800, **held, **READY))
    assert decision.phase == d.ROLLING_BACK
    assert "cannot be read: gone" in decision.reason
    switched = at(d.SWITCHED, kind=d.BLUE_GREEN, config=msgspec.structs.replace(BLUE_GREEN, undecided=undecided))
    assert move(switched, **held, **READY)[2] is False
    assert move(switched, canary_s=1800, **held, **READY)[0] == d.ROLLING_BACK


def test_a_paused_rollout_moves_back_only():
    paused = {"is_paused": True, "phase_s": 99, **READY}
    assert move(at(d.WARMING), **paused)[2] is False
    assert move(at(d.CANARY, 2), verdict="promote", **paused)[2] is False
    assert move(at(d.CANARY, 1), verdict="rollback", **paused)[0] == d.ROLLING_BACK
    assert move(at(d.CANARY, 1), rollback_asked="by ada", **paused)[0] == d.ROLLING_BACK


def test_promotion_asked_while_replicas_start_skips_the_canary():
    assert move(at(d.WARMING), promote_asked="by ada", base_is_ready=True)[2] is False
    assert move(at(d.WARMING), promote_asked="by ada", **READY) == (d.PROMOTING, 0, True)


facts_of_any_kind = st.builds(
    Facts,
    gate_missed=st.sampled_from(["", "accuracy"]),
    new_is_ready=st.booleans(),
    new_is_named=st.booleans(),
    base_is_ready=st.booleans(),
    base_failed=st.sampled_from(["", "crash"]),
    new_failed=st.sampled_from(["", "crash"]),
    verdict=st.sampled_from(["", "wait", "promote", "rollback"]),
    rollback_asked=st.sampled_from(["", "by ada"]),
    promote_asked=st.sampled_from(["", "by ada"]),
    is_unrouted=st.booleans(),
    held=st.sampled_from(["", "metric 'm' cannot be read"]),
    pairs=st.integers(0, 1000),
    is_paused=st.booleans(),
    phase_s=st.floats(0, 1e6),
    canary_s=st.floats(0, 1e6),
)
states = st.builds(
    at,
    st.sampled_from([d.PENDING, d.WARMING, d.SHADOW, d.CANARY, d.SWITCHED, d.PROMOTING, d.ROLLING_BACK, d.LEAVING]),
    st.integers(0, 2),
    st.sampled_from([d.FIRST, d.STEPWISE, d.SWITCH, d.UNDO, d.SHADOW_ONLY, d.BLUE_GREEN]),
    st.builds(
        lambda undecided: msgspec.structs.replace(CONFIG, undecided=undecided), st.sampled_from(["rollback", "promote"])
    ),
)


@settings(max_examples=300, deadline=None)
@given(states, st.lists(facts_of_any_kind, max_size=20))
def test_whatever_happens_a_rollout_ends_in_bounded_time(state, happenings):
    """Any facts for a while, then none that help: time alone leads to an end."""
    phases = [state.phase]
    for facts in [*happenings, *[Facts(phase_s=1e7, canary_s=1e7)] * 10]:
        decision = step(state, facts)
        state = at(decision.phase, decision.step, state.kind, state.config)
        phases.append(state.phase)
        if state.phase in (d.PROMOTED, d.ROLLED_BACK, d.LEFT):
            break
    assert phases[-1] in (d.PROMOTED, d.ROLLED_BACK, d.LEFT)
    if d.ROLLING_BACK in phases:
        assert phases[-1] == d.ROLLED_BACK


@settings(max_examples=300, deadline=None)
@given(states, facts_of_any_kind)
def test_a_step_is_sane_whatever_the_facts(state, facts):
    decision = step(state, facts)
    assert 0 <= decision.step <= 2
    assert decision.step in (state.step, state.step + 1, 0)
    assert decision.moved == ((decision.phase, decision.step) != (state.phase, state.step))
    if decision.moved and decision.phase == d.ROLLING_BACK and facts.verdict != "rollback":
        assert decision.reason
    if not decision.moved:
        assert 0.05 <= decision.requeue_s <= 0.25
    if facts.verdict == "rollback" and state.phase in (d.SHADOW, d.CANARY, d.SWITCHED, d.PROMOTING):
        assert decision.phase == d.ROLLING_BACK
    if facts.is_paused and decision.moved:
        assert decision.phase in (d.ROLLING_BACK, d.ROLLED_BACK)
    if facts.held and decision.phase == d.PROMOTING and state.phase == d.CANARY:
        assert facts.promote_asked


def test_phases_of_the_table_are_the_phases_there_are():
    assert {row.phase for row in TABLE} == {
        *(d.PENDING, d.WARMING, d.SHADOW, d.CANARY, d.SWITCHED, d.PROMOTING, d.ROLLING_BACK, d.LEAVING)
    }
    assert {row.to for row in TABLE} - {row.phase for row in TABLE} == {d.PROMOTED, d.ROLLED_BACK, d.LEFT}
    assert READY_LIMIT_S >= 60
