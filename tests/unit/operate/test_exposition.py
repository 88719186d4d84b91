"""What the controller tells Prometheus: counted as it happens, read at its next look, never computed for nobody."""

import threading

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Unavailable
from argosy.core.metrics import METRICS
from argosy.operate import commands, exposition
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.desired import Desired, Ended
from argosy.operate.exposition import ControllerMetrics, Observed
from controller_world import World


class Scene:
    """A controller's state that tests change, and its metrics."""

    def __init__(self):
        self.world = World(1, troubles=False)
        self.metrics = ControllerMetrics(FakeClock())
        self.ready = {}
        self.verdicts = {}

    def desired(self):
        state = Desired()
        self.world.registry.log.refresh()
        state.catch_up(self.world.registry.log)
        return state

    def observed(self):
        return Observed(
            desired=self.desired(),
            wanted={version.digest: 2 for version in [self.world.versions.get("m:1")]},
            ready=self.ready,
            verdicts=self.verdicts,
        )

    def look(self):
        self.metrics.look(self.observed())

    def read(self):
        """Ask from another thread, as the server does, and look until that has its answer."""
        found = []
        asking = threading.Thread(target=lambda: found.append(self.metrics.read()[0].decode()))
        asking.start()
        while asking.is_alive():
            self.look()
            asking.join(0.001)
        lines = [line.rpartition(" ") for line in found[0].splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in lines}

    def promote(self):
        rollout = self.desired().endpoints["m"].rollout
        self.world.registry.log.append(d.ENDED, "m", {"rollout": rollout.id, "outcome": d.PROMOTED})


@pytest.fixture
def scene():
    made = Scene()
    commands.deploy(made.world.registry, "m:1", name="m", endpoint=EndpointConfig(latency_p99="250ms"))
    made.promote()
    return made


@pytest.mark.capability("M1")
def test_replicas_objective_and_an_idle_endpoint_stand_there(scene):
    scene.ready = {scene.world.versions.get("m:1").digest: 1}
    found = scene.read()
    assert found['argosy_endpoint_wanted_replicas{endpoint="m"}'] == 2
    assert found['argosy_endpoint_ready_replicas{endpoint="m"}'] == 1
    assert found['argosy_replicas_ready{version="m:1"}'] == 1
    assert found['argosy_latency_objective_seconds{endpoint="m"}'] == 0.25
    assert found['argosy_rollouts_total{endpoint="m",outcome="rolled_back"}'] == 0
    assert [v for name, v in found.items() if "rollout_phase" in name] == [0] * len(exposition.PHASES)
    assert not any("verdict" in name for name in found)


def test_a_rollout_shows_its_phase_and_the_judges_numbers(scene):
    commands.deploy(scene.world.registry, "m:2", name="m", rollout=RolloutConfig(false_alarm=0.05))
    rollout = scene.desired().endpoints["m"].rollout
    scene.world.registry.log.append(
        d.STARTED, "m", {"rollout": rollout.id, "phase": d.CANARY, "step": 1, "reason": "", "share": 0.25}
    )
    metric = {"weight": 0.5, "evidence": 8.0, "assurance": 3.0, "bad_canary": 1}
    scene.verdicts = {
        rollout.id: {"verdict": "wait", "total": 4.5, "windows": 7, "metrics": {"errors": metric}, "odd": None}
    }
    found = scene.read()
    assert found['argosy_rollout_phase{endpoint="m",phase="canary"}'] == 1
    assert found['argosy_rollout_phase{endpoint="m",phase="warming"}'] == 0
    assert found['argosy_rollout_step{endpoint="m"}'] == 1
    assert found['argosy_rollout_verdict{endpoint="m",verdict="wait"}'] == 1
    assert found['argosy_rollout_evidence{endpoint="m"}'] == 4.5
    assert found['argosy_rollout_evidence_limit{endpoint="m"}'] == 20
    assert found['argosy_rollout_metric_evidence{endpoint="m",metric="errors"}'] == 4
    assert found['argosy_rollout_metric_assurance{endpoint="m",metric="errors"}'] == 3
    assert found['argosy_rollout_windows{endpoint="m"}'] == 7


def test_events_are_counted_when_they_are_reported_not_when_somebody_asks(scene):
    scene.look()
    scene.metrics.note("rollout_step", endpoint="m", to_state=d.CANARY)
    scene.metrics.note("rollout_step", endpoint="m", to_state=d.ROLLED_BACK)
    scene.metrics.note("log_unreadable", error="x", code="y")
    key = scene.world.versions.get("m:1").digest.removeprefix("sha256:")[:12]
    scene.metrics.note("replica_failed", version=key, reason="it ended")
    found = scene.read()
    assert found['argosy_rollouts_total{endpoint="m",outcome="rolled_back"}'] == 1
    assert found['argosy_rollouts_total{endpoint="m",outcome="promoted"}'] == 0
    assert found['argosy_controller_events_total{event="rollout_step"}'] == 2
    assert found['argosy_controller_events_total{event="log_unreadable"}'] == 1
    assert found['argosy_replica_failures_total{version="m:1"}'] == 1


def test_an_endpoint_that_is_gone_is_gone_here_too_and_its_counters_stay(scene):
    scene.read()
    commands.remove(scene.world.registry, "m")
    found = scene.read()
    assert 'argosy_endpoint_wanted_replicas{endpoint="m"}' not in found
    assert 'argosy_rollouts_total{endpoint="m",outcome="promoted"}' in found


def test_a_controller_that_stands_still_says_since_when_and_one_that_never_looked_says_so(scene, monkeypatch):
    monkeypatch.setattr(exposition, "PATIENCE_S", 0.05)
    with pytest.raises(Unavailable):
        scene.metrics.read()
    scene.read()
    scene.metrics._clock.advance(60)
    text = scene.metrics.read()[0].decode()
    assert "argosy_controller_look_age_seconds 60.0" in text


def test_nothing_is_computed_while_nobody_asks(scene, monkeypatch):
    asked = []
    monkeypatch.setattr(scene.metrics, "_gauges", lambda found: asked.append(found) or iter(()))
    for _ in range(5):
        scene.look()
    assert asked == []


def test_every_metric_of_the_controller_is_given_by_something(scene):
    commands.deploy(scene.world.registry, "m:2", name="m", rollout=RolloutConfig())
    rollout = scene.desired().endpoints["m"].rollout
    scene.verdicts = {rollout.id: {"verdict": "wait", "metrics": {"errors": {"evidence": 1, "assurance": 1}}}}
    scene.metrics.note("controller_elected", epoch=1)
    given = {name.partition("{")[0] for name in scene.read()}
    assert given == {name for name, metric in METRICS.items() if metric.part == "controller"}
    assert isinstance(scene.desired().endpoints["m"].last, Ended)
