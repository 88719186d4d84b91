"""Scaling through the whole controller, with a fake clock, launcher and gateway."""

import math

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.replicas import key_of, version_key
from argosy.operate.sharing import Machine
from argosy.serve.wire import Advice
from controller_world import ENDPOINT, World

pytestmark = pytest.mark.capability("R6")

GB = 10**9
RANGE = {"replicas": "1..6", "target_concurrency": 1.0, "threads": 1, "scale_down": "60s"}


@pytest.fixture
def world():
    found = World(1, troubles=False)
    found.rollout = RolloutConfig(steps=(25, 50), dwell="20s", window="1s", time_limit="10min")
    return found


def deploy(world, version="m:1", name=ENDPOINT, rollout=None, **endpoint):
    commands.deploy(world.registry, version, name=name, endpoint=EndpointConfig(**endpoint), rollout=rollout)
    for _ in range(12):
        world.step(0.5)


def running(world, version="m:1"):
    key = version_key(world.versions.get(version).digest)
    return sum(1 for info in world.launcher.list("replica") if info.alive and key_of(info.name) == key)


def test_replicas_follow_the_load_up_at_once_and_down_slowly(world):
    deploy(world, **RANGE)
    assert running(world) == 1
    world.load("m:1", 3.5, 90)
    assert running(world) == 4
    found = world.scaling[ENDPOINT]
    assert (found.low, found.high, found.wanted, found.target) == (1, 6, 4, 1.0)
    world.load("m:1", 0.2, 50)
    assert running(world) == 4
    world.load("m:1", 0.2, 300)
    assert running(world) == 1


def test_a_controller_that_is_killed_under_load_gives_nothing_up(world):
    deploy(world, **RANGE)
    world.load("m:1", 4.5, 90)
    assert running(world) == 5
    world.controllers.clear()
    seen = set()
    for _ in range(100):
        world.load("m:1", 0.1, 0.5)
        seen.add(running(world))
    assert seen == {5}
    world.load("m:1", 0.1, 300)
    assert running(world) == 1


def test_a_restarted_gateway_whose_counters_begin_anew_changes_nothing(world):
    deploy(world, **RANGE)
    world.load("m:1", 2.5, 90)
    assert running(world) == 3
    world._trouble_gateway()
    seen = set()
    for _ in range(120):
        world.load("m:1", 2.5, 0.5)
        seen.add(running(world))
    assert seen == {3}


def test_nothing_runs_when_nothing_is_asked_and_the_next_request_starts_one(world):
    deploy(world, replicas="0..3", idle="10s", target_concurrency=1.0)
    world.load("m:1", 0.3, 20)
    assert running(world) == 1
    world.load("m:1", 0.0, 20)
    assert running(world) == 0
    route = world.gateway.routes[ENDPOINT]
    assert (route.is_on_demand, route.is_elastic) == (True, True)
    before = len(world.launcher.started)
    world.load("m:1", 90.0, 1.0, waiting=90)
    world.load("m:1", 0.3, 5.0)
    assert len(world.launcher.started) == before + 1
    assert world.gateway.ready(route.stable) == 1


def test_the_former_version_sleeps_and_wakes_with_the_current_one(world):
    deploy(world, replicas="0..2", idle="10s", target_concurrency=1.0)
    world.load("m:1", 0.2, 2)
    deploy(world, "m:2", replicas="0..2", idle="10s", target_concurrency=1.0)
    assert world.state().endpoints[ENDPOINT].stable.ref == "m:2"
    world.load("m:2", 0.0, 30)
    assert (running(world, "m:1"), running(world, "m:2")) == (0, 0)
    world.load("m:2", 0.2, 8)
    assert (running(world, "m:1"), running(world, "m:2")) == (1, 1)


def test_a_rollout_wakes_an_endpoint_that_sleeps_and_ends(world):
    world.rollout = RolloutConfig(steps=(50,), dwell="2s", window="1s", time_limit="60s")
    deploy(world, replicas="0..2", idle="5s", target_concurrency=1.0)
    world.load("m:1", 0.0, 20)
    assert running(world) == 0
    deploy(world, "m:2", rollout=world.rollout, replicas="0..2", idle="5s", target_concurrency=1.0)
    for _ in range(60):
        world.step(0.5)
    last = world.state().endpoints[ENDPOINT].last
    assert (last.to.ref, last.outcome) == ("m:2", d.PROMOTED)


def test_a_trial_gets_its_share_of_the_replicas_and_its_pile_of_requests_calls_for_none(world):
    world.behaviour = {world.versions.get("m:2").digest: "quiet"}
    deploy(world, **RANGE)
    world.load("m:1", 3.5, 90)
    deploy(world, "m:2", rollout=world.rollout, **RANGE)
    rollout = world.state().endpoints[ENDPOINT].rollout
    assert (rollout.phase, rollout.step) == (d.CANARY, 0)
    # The next step's share, so that it is ready for it.
    assert (running(world), running(world, "m:2")) == (4, math.ceil(4 * 0.5))
    world.at_once[world.versions.get("m:2").digest] = (500.0, 400, 9.0, 0.0)
    for _ in range(20):
        world.load("m:1", 3.5 * (1 - world.gateway.routes[ENDPOINT].share), 0.5)
    assert (running(world), running(world, "m:2")) == (4, 2)


def test_a_crash_loop_is_not_multiplied_by_the_load_behind_it(world):
    deploy(world, **RANGE)
    world.load("m:1", 0.5, 20)
    world.behaviour = {world.versions.get("m:1").digest: "crash"}
    for info in world.launcher.list("replica"):
        world.launcher.end(info.name, 1)
    before = len(world.launcher.started)
    world.load("m:1", 300.0, 60, waiting=300, oldest_s=30.0)
    assert world.scaling[ENDPOINT].wanted == 1
    assert len(world.launcher.started) - before < 20  # one by one, with back-off


def test_two_endpoints_of_one_version_share_its_load_and_its_replicas(world):
    deploy(world, **RANGE)
    deploy(world, name="n", **RANGE)
    assert running(world) == 2
    world.load("m:1", 3.6, 120)
    wanted = {name: found.wanted for name, found in world.scaling.items()}
    assert wanted[ENDPOINT] + wanted["n"] == running(world)
    assert 4 <= running(world) <= 6


def test_a_new_version_without_room_is_rolled_back_with_the_reason(world):
    world.machine = Machine(memory_bytes=4 * GB)
    world.replica_bytes = {world.versions.get("m:1").digest: GB, world.versions.get("m:2").digest: 3 * GB}
    deploy(world, replicas=1)
    deploy(world, "m:2", replicas=1)
    last = world.state().endpoints[ENDPOINT].last
    assert last.outcome == d.ROLLED_BACK
    assert "a replica of m:2 takes 3 GB" in last.reason
    assert running(world) == 1


def test_memory_bounds_what_the_load_calls_for_and_says_so(world):
    world.machine = Machine(memory_bytes=4 * GB)
    world.replica_bytes = {world.versions.get("m:1").digest: GB}
    deploy(world, **RANGE)
    world.load("m:1", 5.5, 90)
    assert running(world) == 3
    found = world.scaling[ENDPOINT]
    assert (found.wanted, found.granted) == (6, 3)
    assert "all together may take 3.2 GB" in found.limit
    assert not world.gateway.routes[ENDPOINT].is_elastic


def test_the_higher_priority_takes_the_room_that_the_lower_can_do_without(world):
    world.machine = Machine(memory_bytes=5 * GB)
    world.replica_bytes = {world.versions.get(v).digest: GB for v in ("m:1", "m:2")}
    deploy(world, **RANGE)
    deploy(world, "m:2", name="n", **RANGE | {"priority": 5})
    world.load("m:1", 3.5, 60)
    assert running(world, "m:1") == 3
    world.load("m:2", 3.5, 90)
    assert (running(world, "m:1"), running(world, "m:2")) == (1, 3)


def test_the_target_follows_from_what_runs_together_and_cores_bound_the_range(world):
    world.machine = Machine(cores=3)
    world.stored = {world.versions.get("m:1").digest: Advice(1, 1, alone=1, most=9)}
    deploy(world, replicas="1..6")
    digest = world.versions.get("m:1").digest
    world.load("m:1", 9.0, 3)
    assert world.scaling[ENDPOINT].target == 0.7
    world.load("m:1", 9.0, 60)
    assert running(world) == 3
    assert world.scaling[ENDPOINT].limit == "this machine has 3 cores"
    assert world.gateway.ready(digest) == 3


def test_an_endpoint_whose_first_version_never_ran_is_left_alone(world):
    world.behaviour = {world.versions.get("m:1").digest: "crash"}
    deploy(world, replicas="0..2")
    for _ in range(40):
        world.step(0.5)
    endpoint = world.state().endpoints[ENDPOINT]
    assert (endpoint.stable, endpoint.last.outcome) == (None, d.ROLLED_BACK)
    assert running(world) == 0
