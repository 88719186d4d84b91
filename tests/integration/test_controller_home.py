"""The controller with real processes: deployments, rollouts and returns lose no request."""

import time

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from controlled import Controlled, Traffic
from served import constant, logarithm, until

QUICK = RolloutConfig(steps=(20, 50), dwell="1s", window="0.5s", time_limit="40s", judge=("errors",), mirror=0)


@pytest.fixture
def home():
    with_controller = Controlled()
    yield with_controller
    with_controller.close()


def deploy(home, version, **given):
    accepted = commands.deploy(home.registry, str(version), **given)
    home.start()
    return accepted


@pytest.mark.capability("R4")
def test_versions_change_and_return_without_a_lost_request(home):
    """First deployment, direct switch, return by hand within a second: under traffic, nothing fails."""
    first, second = home.publish(constant(1.0)), home.publish(constant(2.0))
    home.ended(deploy(home, first, endpoint=EndpointConfig(replicas=2)).rollout)
    home.serving("m:1")
    with Traffic(home) as traffic:
        home.ended(deploy(home, second).rollout)
        home.serving("m:2")
        switched = time.monotonic()
        until(lambda: len(traffic.since(switched)) > 5)
        assert set(traffic.since(switched)) == {2.0}
        asked = time.monotonic()
        assert commands.rollback(home.registry, "m").summary == "endpoint 'm' returns to 'm:1'"
        until(lambda: 1.0 in traffic.since(asked))
        returned = next(when for when, _, found in traffic.answers if when > asked and found == 1.0)
        until(lambda: len(traffic.since(returned + 0.3)) > 5)
    assert traffic.failed == []
    assert returned - asked < 1.0
    assert set(traffic.since(returned + 0.3)) == {1.0}
    assert [v.ref for v in home.serving("m:1").endpoint().versions] == ["m:1"]


@pytest.mark.capability("R2")
def test_a_version_that_fails_on_live_inputs_is_rolled_back_and_stable_requests_never_fail(home):
    """m:2 gives NaN for negative numbers; the judge sees it, though the controller is killed meanwhile."""
    first, second = home.publish(constant(1.0)), home.publish(logarithm())
    home.ended(deploy(home, first).rollout)
    home.serving("m:1")
    with Traffic(home) as traffic:
        rollout = deploy(home, second, rollout=QUICK).rollout
        until(lambda: home.endpoint().rollout.phase == d.CANARY)
        killed = home.kill("controller")
        until(lambda: not home.is_controlled())
        home.start()
        last = home.ended(rollout)
        over = time.monotonic() + 0.5
        until(lambda: len(traffic.since(over)) > 5)
    assert (last.outcome, last.verdict["verdict"], last.verdict["metric"]) == (d.ROLLED_BACK, "rollback", "errors")
    assert last.reason.startswith("errors: ")
    assert last.verdict["total"] >= last.verdict["threshold"] == 100
    assert set(traffic.since(over)) == {1.0}
    assert home.launcher.get("controller").pid != killed
    canary_requests = [answer for answer in traffic.answers if answer[1] != 200]
    assert len(canary_requests) < 0.5 * len(traffic.answers)
    assert until(lambda: [v.ref for v in home.endpoint().versions] == ["m:1"])


@pytest.mark.capability("R1")
def test_a_good_version_is_promoted_by_evidence_though_everything_is_killed_once(home):
    first, second = home.publish(constant(1.0)), home.publish(constant(2.0))
    home.ended(deploy(home, first, endpoint=EndpointConfig(replicas=2)).rollout)
    home.serving("m:1")
    with Traffic(home) as traffic:
        rollout = deploy(home, second, rollout=QUICK).rollout
        until(lambda: home.endpoint().rollout.phase == d.CANARY)
        home.kill("replica")
        until(lambda: home.endpoint().rollout.step == 1)
        home.kill("controller")
        until(lambda: not home.is_controlled())
        home.start()
        last = home.ended(rollout, 60)
        home.serving("m:2")
    assert (last.outcome, last.verdict["verdict"]) == (d.PROMOTED, "promote")
    assert traffic.failed == []
    roles = {version.role: (version.ref, version.ready) for version in home.endpoint().versions}
    assert roles == {"current": ("m:2", 2), "former": ("m:1", 1)}


def test_an_idle_controller_costs_next_to_nothing_and_brings_a_killed_gateway_back_on_its_port(home):
    home.ended(deploy(home, home.publish(constant(1.0))).rollout)
    home.serving("m:1")
    assert home.rss_bytes("controller") < 45e6
    before, start = home.cpu_s("controller"), time.monotonic()
    until(lambda: time.monotonic() - start > 4)
    # A bound for what would be a fault, such as a loop that does not wait; quiet it takes 1.5 % of a core.
    assert home.cpu_s("controller") - before <= 0.1 * (time.monotonic() - start)
    port, killed = home.look().url, home.kill("gateway")
    until(lambda: home.launcher.get("gateway").pid != killed and home.launcher.get("gateway").alive)
    home.serving("m:1")
    assert home.look().url == port
    assert until(lambda: home.infer([[1.0]])[0] == 200)


def test_a_version_that_cannot_load_fails_with_its_own_error_and_leaves_the_endpoint_alone(home):
    first, second = home.publish(constant(1.0)), home.publish(constant(2.0))
    home.ended(deploy(home, first).rollout)
    home.serving("m:1")
    blob = second.manifest.files["model.onnx"].digest.removeprefix("sha256:")
    damaged = [path for path in home.folder.rglob(f"*{blob[4:]}*") if path.is_file()]
    assert damaged
    for path in damaged:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(data)
    last = home.ended(deploy(home, second, rollout=QUICK).rollout)
    assert last.outcome == d.ROLLED_BACK
    assert "cannot start" in last.reason
    assert blob[:8] in last.reason
    assert home.infer([[1.0]])[2]["outputs"][0]["data"] == [1.0]


def test_down_stops_everything_also_when_the_controller_is_dead(home):
    home.ended(deploy(home, home.publish(constant(1.0))).rollout)
    home.serving("m:1")
    home.kill("controller")
    until(lambda: not home.is_controlled())
    stopped = home.down()
    assert {name.split("-")[0] for name in stopped} == {"gateway", "replica"}
    assert [info.name for info in home.launcher.list() if info.alive] == []
    assert home.look().endpoints[0].state == "stopped"
    again = commands.deploy(home.registry, "m:1")
    assert again.is_changed
    home.start()
    home.serving("m:1")
    home.down()
    assert [info.name for info in home.launcher.list() if info.alive] == []
