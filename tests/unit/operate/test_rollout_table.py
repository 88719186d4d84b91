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
    phase_s=st.floats(0, 1e6),
    canary_s=st.floats(0, 1e6),
)
states = st.builds(
    at,
    st.sampled_from([d.PENDING, d.WARMING, d.CANARY, d.PROMOTING, d.ROLLING_BACK]),
    st.integers(0, 2),
    st.sampled_from([d.FIRST, d.STEPWISE, d.SWITCH, d.UNDO]),
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
        if state.phase in (d.PROMOTED, d.ROLLED_BACK):
            break
    assert phases[-1] in (d.PROMOTED, d.ROLLED_BACK)
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
    if facts.verdict == "rollback" and state.phase in (d.CANARY, d.PROMOTING):
        assert decision.phase == d.ROLLING_BACK


def test_phases_of_the_table_are_the_phases_there_are():
    assert {row.phase for row in TABLE} == {d.PENDING, d.WARMING, d.CANARY, d.PROMOTING, d.ROLLING_BACK}
    assert {row.to for row in TABLE} - {row.phase for row in TABLE} == {d.PROMOTED, d.ROLLED_BACK}
    assert READY_LIMIT_S >= 60
