"""What an operator can ask for, and what is refused."""

from types import SimpleNamespace

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Conflict, Denied, InvalidInput, NotFound
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, OwnMetric, RolloutConfig
from argosy.operate.desired import Desired
from argosy.operate.memory import FakeLog
from argosy.operate.metric_files import file_metrics
from controller_world import FakeVersions, make_version

OTHER = Signature(
    inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 8, 8)),),
    outputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
)


@pytest.fixture
def registry():
    versions = FakeVersions(
        make_version(1),
        make_version(2),
        make_version(3),
        make_version(4, signature=OTHER),
        make_version(9, passed=False),
    )
    return SimpleNamespace(log=FakeLog([], FakeClock()), versions=versions)


def state(registry):
    found = Desired()
    registry.log.refresh()
    found.catch_up(registry.log)
    return found


def end(registry, outcome, name="m"):
    rollout = state(registry).endpoints[name].rollout
    registry.log.append(d.ENDED, name, {"rollout": rollout.id, "outcome": outcome, "reason": ""})


def serving(registry, *numbers):
    for number in numbers:
        commands.deploy(registry, f"m:{number}")
        end(registry, d.PROMOTED)


def test_deploying_writes_one_entry_and_says_what_happens(registry):
    accepted = commands.deploy(registry, "m:1", endpoint=EndpointConfig(replicas=2))
    assert accepted.is_changed
    assert accepted.summary == "endpoint 'm' will serve 'm:1' as soon as it is ready"
    endpoint = state(registry).endpoints["m"]
    assert (endpoint.rollout.kind, endpoint.rollout.id, endpoint.config.replicas) == (d.FIRST, accepted.rollout, 2)
    assert registry.log.head == 1


def test_deploying_by_steps_or_directly_is_the_callers_choice(registry):
    serving(registry, 1)
    accepted = commands.deploy(registry, "m:2", rollout=RolloutConfig())
    assert accepted.summary == "endpoint 'm' goes from 'm:1' to 'm:2' by steps of 5, 25, 50 % of the requests"
    assert accepted.undo == "argosy rollback m"
    end(registry, d.ROLLED_BACK)
    assert (
        commands.deploy(registry, "m:3").summary == "endpoint 'm' switches from 'm:1' to 'm:3' as soon as it is ready"
    )


def test_deploying_what_is_served_changes_nothing(registry):
    serving(registry, 1)
    before = registry.log.head
    accepted = commands.deploy(registry, "m:1")
    assert (accepted.is_changed, accepted.summary) == (False, "endpoint 'm' serves 'm:1' already")
    assert registry.log.head == before


def test_other_replicas_for_the_same_version_are_no_rollout(registry):
    serving(registry, 1)
    assert commands.deploy(registry, "m:1", endpoint=EndpointConfig(replicas=3)).is_changed
    endpoint = state(registry).endpoints["m"]
    assert (endpoint.rollout, endpoint.config.replicas) == (None, 3)


@pytest.mark.capability("R1")
def test_a_version_that_missed_a_gate_is_denied_with_by_how_much(registry):
    with pytest.raises(Denied) as caught:
        commands.deploy(registry, "m:9")
    assert caught.value.message == (
        "version 'm:9' cannot be released: accuracy is 0.95 and must be >= 0.97, missed by 0.02"
    )
    assert registry.log.head == 0


def test_an_unknown_version_is_not_found(registry):
    with pytest.raises(NotFound):
        commands.deploy(registry, "m:7")


def test_a_rollout_during_a_rollout_is_a_conflict_that_says_what_to_do(registry):
    serving(registry, 1)
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    with pytest.raises(Conflict) as caught:
        commands.deploy(registry, "m:3", rollout=RolloutConfig())
    assert "is in a rollout from 'm:1' to 'm:2' (pending)" in caught.value.message
    assert "argosy watch m" in caught.value.hint
    assert "argosy rollback m" in caught.value.hint


def test_a_version_with_other_inputs_would_break_callers_and_is_refused(registry):
    serving(registry, 1)
    with pytest.raises(InvalidInput) as caught:
        commands.deploy(registry, "m:4")
    assert "image UINT8 [-1, 8, 8] instead of x FP32 [-1, 4]" in caught.value.message
    assert commands.deploy(registry, "m:4", name="other").is_changed


@pytest.mark.parametrize("name", ["a/b", "", "..", "x" * 64, "a b", "-x"])
def test_a_name_that_cannot_stand_in_a_url_is_refused(registry, name):
    if name:
        with pytest.raises(InvalidInput):
            commands.deploy(registry, "m:1", name=name)


@pytest.mark.parametrize("call", [commands.rollback, commands.promote, commands.remove])
def test_an_unknown_endpoint_lists_the_known_ones(registry, call):
    serving(registry, 1)
    with pytest.raises(NotFound, match="no endpoint is called 'n'; known are: 'm'"):
        call(registry, "n")


def test_rolling_back_a_rollout_keeps_the_current_version_and_may_be_repeated(registry):
    serving(registry, 1)
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    assert commands.rollback(registry, "m", reason="looks odd").summary == "endpoint 'm' stays with 'm:1'"
    assert state(registry).endpoints["m"].rollout.rollback_asked == "looks odd"
    assert not commands.rollback(registry, "m").is_changed
    end(registry, d.ROLLED_BACK)
    again = commands.rollback(registry, "m")
    assert not again.is_changed
    assert state(registry).endpoints["m"].stable.ref == "m:1"


def test_rolling_back_at_rest_returns_to_the_former_version_once(registry):
    serving(registry, 1, 2)
    accepted = commands.rollback(registry, "m")
    assert accepted.summary == "endpoint 'm' returns to 'm:1'"
    assert not commands.rollback(registry, "m").is_changed
    end(registry, d.PROMOTED)
    endpoint = state(registry).endpoints["m"]
    assert (endpoint.stable.ref, endpoint.backup) == ("m:1", None)
    repeated = commands.rollback(registry, "m")
    assert (repeated.is_changed, repeated.summary) == (False, "endpoint 'm' was rolled back already; it serves 'm:1'")


def test_without_a_former_version_there_is_nothing_to_roll_back_to(registry):
    serving(registry, 1)
    with pytest.raises(Conflict, match="has no former version to return to; it serves 'm:1'"):
        commands.rollback(registry, "m")


def test_a_new_deployment_can_be_rolled_back_after_an_earlier_rollback(registry):
    serving(registry, 1, 2)
    commands.rollback(registry, "m")
    end(registry, d.PROMOTED)
    serving(registry, 3)
    assert commands.rollback(registry, "m").summary == "endpoint 'm' returns to 'm:1'"


def test_no_backup_is_kept_where_none_is_wanted(registry):
    commands.deploy(registry, "m:1", endpoint=EndpointConfig(backup="none"))
    end(registry, d.PROMOTED)
    serving(registry, 2)
    assert state(registry).endpoints["m"].backup is None


def test_promoting_by_hand_needs_a_rollout(registry):
    serving(registry, 1)
    with pytest.raises(Conflict, match="no rollout to promote"):
        commands.promote(registry, "m")
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    assert commands.promote(registry, "m").is_changed
    assert not commands.promote(registry, "m").is_changed


def test_removing_forgets_the_endpoint_and_its_rollout(registry):
    commands.deploy(registry, "m:1")
    commands.remove(registry, "m")
    assert state(registry).endpoints == {}


def test_stopping_all_ends_rollouts_and_deploying_again_brings_the_endpoint_back(registry):
    serving(registry, 1)
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    commands.stop_all(registry)
    found = state(registry)
    endpoint = found.endpoints["m"]
    assert (found.is_running, endpoint.is_active, endpoint.rollout) == (False, False, None)
    assert endpoint.last.outcome == d.ROLLED_BACK
    assert "stopped by ada" in endpoint.last.reason
    assert not commands.stop_all(registry).is_changed
    assert commands.deploy(registry, "m:1").summary == "endpoint 'm' goes on with 'm:1'"
    assert state(registry).endpoints["m"].is_active


def test_the_gateways_address_is_checked(registry):
    with pytest.raises(InvalidInput, match="without TLS and access control"):
        commands.set_gateway(registry, host="0.0.0.0")
    with pytest.raises(InvalidInput, match="not a port"):
        commands.set_gateway(registry, port=70000)
    assert commands.set_gateway(registry, port=8123).is_changed
    assert not commands.set_gateway(registry, port=8123).is_changed
    assert (state(registry).port, state(registry).is_running) == (8123, True)


def test_the_port_of_grpc_is_checked_and_can_be_turned_off(registry):
    with pytest.raises(InvalidInput, match="not a port for gRPC"):
        commands.set_gateway(registry, port=8123, grpc_port=-2)
    with pytest.raises(InvalidInput, match="can't share port 8123"):
        commands.set_gateway(registry, port=8123, grpc_port=8123)
    assert commands.set_gateway(registry, port=8123, grpc_port=-1).is_changed
    assert not commands.set_gateway(registry, port=8123, grpc_port=-1).is_changed
    assert state(registry).grpc_port == -1
    assert not commands.set_gateway(registry, port=8123).is_changed
    assert commands.set_gateway(registry, grpc_port=0).is_changed
    assert (state(registry).port, state(registry).grpc_port) == (8123, 0)


def test_what_was_checked_still_holds_when_somebody_else_is_faster(registry):
    """Two operators deploy at once: the second sees the first's rollout, though it looked before."""
    serving(registry, 1)
    entries = registry.log._entries
    rival = SimpleNamespace(log=FakeLog(entries, FakeClock(), "bob"), versions=registry.versions)

    def hook(what, kind):
        if what == "before append" and not raced:
            raced.append(1)
            commands.deploy(rival, "m:3", rollout=RolloutConfig())

    raced = []
    registry.log._hook = hook
    with pytest.raises(Conflict, match="to 'm:3'"):
        commands.deploy(registry, "m:2", rollout=RolloutConfig())


def moved(registry, phase, step=0, name="m"):
    rollout = state(registry).endpoints[name].rollout
    registry.log.append(d.STEPPED, name, {"rollout": rollout.id, "phase": phase, "step": step, "reason": ""})


@pytest.fixture
def canary(registry):
    serving(registry, 1)
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    moved(registry, d.CANARY)
    return registry


@pytest.mark.capability("R2", "R3")
def test_pausing_and_resuming_are_written_once_and_the_time_between_does_not_count(canary):
    clock = canary.log._clock
    since = state(canary).endpoints["m"].rollout.since
    clock.advance(10)
    accepted = commands.pause(canary, "m")
    assert accepted.summary == "the rollout of endpoint 'm' is paused (canary, with 5 % of the requests for 'm:2')"
    assert accepted.undo == "argosy resume m"
    clock.advance(1000)
    again = commands.pause(canary, "m")
    assert (again.is_changed, again.summary) == (False, "endpoint 'm' was paused by ada already")
    assert commands.resume(canary, "m").is_changed
    rollout = state(canary).endpoints["m"].rollout
    assert (rollout.paused, rollout.since, rollout.first_step) == (0.0, since + 1000, since + 1000)
    assert commands.resume(canary, "m").summary == "endpoint 'm' is not paused; its rollout is canary"


def test_promoting_a_paused_rollout_goes_on_with_it(canary):
    commands.pause(canary, "m")
    assert commands.promote(canary, "m").summary == "endpoint 'm' goes over to 'm:2'"
    rollout = state(canary).endpoints["m"].rollout
    assert (rollout.paused, rollout.promote_asked) == (0.0, "asked by ada")
    assert not commands.promote(canary, "m").is_changed


def test_a_rollout_that_is_warming_is_promoted_as_soon_as_it_is_ready(registry):
    serving(registry, 1)
    commands.deploy(registry, "m:2", rollout=RolloutConfig())
    assert commands.promote(registry, "m").summary == "endpoint 'm' goes over to 'm:2' as soon as it is ready"


def test_aborting_ends_what_runs_and_never_touches_what_has_ended(canary):
    assert commands.abort(canary, "m").summary == "endpoint 'm' stays with 'm:1'"
    assert state(canary).endpoints["m"].rollout.rollback_asked == "aborted by ada"
    assert commands.abort(canary, "m").summary == "endpoint 'm' is being rolled back already"
    with pytest.raises(Conflict, match="has no rollout that can be paused"):
        commands.pause(canary, "m")
    with pytest.raises(Conflict, match="no rollout to promote any more: it is rolling back; it serves 'm:1'"):
        commands.promote(canary, "m")
    end(canary, d.ROLLED_BACK)
    before = canary.log.head
    with pytest.raises(Conflict, match="no rollout to abort; it serves 'm:1'"):
        commands.abort(canary, "m")
    assert canary.log.head == before


@pytest.mark.parametrize("command", [commands.pause, commands.resume, commands.abort, commands.promote])
def test_actions_on_a_rollout_that_has_ended_or_never_was_are_conflicts(registry, command):
    serving(registry, 1)
    with pytest.raises(Conflict) as caught:
        command(registry, "m")
    assert caught.value.code == "no_rollout"
    with pytest.raises(NotFound):
        command(registry, "nobody")


def test_a_return_by_hand_can_be_aborted_but_not_paused(registry):
    serving(registry, 1, 2)
    commands.rollback(registry, "m")
    with pytest.raises(Conflict):
        commands.pause(registry, "m")
    assert commands.abort(registry, "m").summary == "endpoint 'm' stays with 'm:2'"


def test_undoing_twice_and_undoing_what_was_only_in_shadow_changes_nothing(registry):
    serving(registry, 1, 2)
    commands.deploy(registry, "m:3", rollout=RolloutConfig(kind="shadow"))
    end(registry, d.LEFT)
    found = commands.rollback(registry, "m")
    assert (found.is_changed, found.summary) == (False, "endpoint 'm' was left as it was; it serves 'm:2'")


def test_the_code_of_an_own_metric_goes_into_the_registry(registry, tmp_path):
    serving(registry, 1)
    (tmp_path / "shop.py").write_text("def sales(window):\n    return {'current': 1, 'new': 1}\n")
    config = RolloutConfig(metrics={"sales": OwnMetric(python="shop:sales")})
    with pytest.raises(InvalidInput, match="is not in the registry"):
        commands.deploy(registry, "m:2", rollout=config)
    put = {}
    filed = file_metrics(config, tmp_path, lambda data: put.setdefault("sha256:x", data) and "sha256:x")
    assert filed.metrics["sales"].code == "sha256:x"
    assert b"def sales" in put["sha256:x"]
    assert commands.deploy(registry, "m:2", rollout=filed).is_changed
    for wrong, error in (("shop:sold", InvalidInput), ("store:sales", NotFound)):
        with pytest.raises(error, match=r"sold|store"):
            file_metrics(RolloutConfig(metrics={"sales": OwnMetric(python=wrong)}), tmp_path, len)


@pytest.mark.parametrize(
    ("first", "second", "says"),
    [
        (commands.abort, commands.promote, "no rollout to promote any more: it is rolling back"),
        (commands.abort, commands.pause, "no rollout that can be paused: it is rolling back"),
        (commands.rollback, commands.promote, "no rollout to promote any more: it is rolling back"),
    ],
)
def test_of_two_operators_at_once_the_second_is_told_what_the_first_did(canary, first, second, says):
    """Bob's wish comes between what Ada saw and what she writes."""
    entries, clock = canary.log._entries, canary.log._clock
    bob = SimpleNamespace(log=FakeLog(entries, clock, "bob"), versions=canary.versions)
    wishes = [lambda: first(bob, "m")]

    def meanwhile(what, kind):
        if what == "before append" and wishes:
            wishes.pop()()

    ada = SimpleNamespace(log=FakeLog(entries, clock, "ada", meanwhile), versions=canary.versions)
    before = len(entries)
    with pytest.raises(Conflict, match=says):
        second(ada, "m")
    assert len(entries) == before + 1
    assert entries[-1].actor == "bob"
