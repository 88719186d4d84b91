"""Replicas that take more memory than they may: replaced in good order, ended when they run away."""

import random
from types import SimpleNamespace

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import sha256
from argosy.core.errors import InvalidInput
from argosy.operate.config import EndpointConfig
from argosy.operate.desired import Endpoint, Target
from argosy.operate.layout import Wanted, wanted_replicas
from argosy.operate.memory import FakeGateway
from argosy.operate.replicas import FAILED_STARTS, PROVEN_S, RUNAWAY_MEMORY, Replicas

ONE = Target(sha256(b"1"), "m:1")
BOUND = 1000


@pytest.fixture
def it():
    clock = FakeClock()
    launcher = MemoryLauncher(clock)
    told = []
    replicas = Replicas(
        launcher,
        clock,
        random.Random(1),
        lambda name, want: {"id": name, "digest": want.target.digest, "memory_bytes": want.memory_bytes},
        memory_bytes=BOUND,
        report=lambda event, **fields: told.append((event, fields)),
    )
    world = SimpleNamespace(clock=clock, launcher=launcher, gateway=FakeGateway(), replicas=replicas, told=told)

    def look(count=1, seconds=0.1, bound=0):
        clock.advance(seconds)
        for name in list(world.gateway.replicas):
            if not launcher.get(name) or not launcher.get(name).alive:
                world.gateway.disconnect(name)
        replicas.observe(world.gateway.status())
        replicas.stop_sick()
        plan = {ONE.digest: Wanted(ONE, count, 1, bound)}
        replicas.start_missing(plan)
        return replicas.stop_extras(plan, {ONE.digest}, world.gateway.drain)

    def connect():
        for info in launcher.list("replica"):
            if info.alive and info.name not in world.gateway.replicas:
                world.gateway.connect(info.name, launcher.specs[info.name].config["digest"])

    world.look, world.connect = look, connect
    world.alive = lambda: [info.name for info in launcher.list("replica") if info.alive]
    world.state = lambda name: world.gateway.replicas[name].state
    return world


def started(it, count=1):
    it.look(count)
    it.connect()
    it.look(count, seconds=PROVEN_S + 1)
    it.look(count)
    return it.alive()


def test_one_that_has_what_it_may_is_left_alone(it):
    (name,) = started(it)
    it.launcher.grow(name, BOUND)
    for _ in range(5):
        assert not it.look()
    assert it.alive() == [name]
    assert it.told == []


def test_one_that_outgrew_its_bound_serves_until_a_stand_in_is_ready_and_is_drained_then(it):
    (old,) = started(it)
    it.launcher.grow(old, BOUND + 1)
    it.look()
    assert len(it.alive()) == 2
    assert it.state(old) == "ready"
    assert it.replicas.ready(ONE.digest) == 1
    it.look()
    assert len(it.alive()) == 2, "one stand-in is enough"
    it.connect()
    assert it.look()
    assert it.state(old) == "draining"
    assert it.launcher.stopped == []
    it.gateway.set_state(old, "drained")
    it.look()
    assert it.launcher.stopped == [old]
    assert len(it.alive()) == 1
    outgrown = [told for told in it.told if told[0] == "replica_outgrown"]
    assert outgrown == [("replica_outgrown", {"replica": old, "memory_bytes": BOUND + 1, "bound_bytes": BOUND})]


def test_it_goes_also_when_it_has_given_memory_back_meanwhile(it):
    (old,) = started(it)
    it.launcher.grow(old, BOUND + 1)
    it.look()
    it.launcher.grow(old, 1)
    it.connect()
    it.look()
    assert it.state(old) == "draining"


def test_when_all_outgrow_their_bound_they_are_replaced_one_by_one_and_never_fewer_serve(it):
    old = started(it, 2)
    for name in old:
        it.launcher.grow(name, BOUND + 1)
    for _ in range(12):
        it.look(2, seconds=1.0)
        assert len(it.alive()) <= 3
        assert it.replicas.ready(ONE.digest) >= 2
        it.connect()
        for name in [name for name, replica in it.gateway.replicas.items() if replica.state == "draining"]:
            it.gateway.set_state(name, "drained")
    assert len(it.alive()) == 2
    assert not set(it.alive()) & set(old)


def test_the_endpoints_own_bound_wins_and_reaches_the_replica(it):
    it.look(bound=5000)
    it.connect()
    (name,) = it.alive()
    assert it.launcher.specs[name].config["memory_bytes"] == 5000
    it.launcher.grow(name, 4000)
    it.look(bound=5000)
    it.look(bound=5000)
    assert it.alive() == [name]


def test_one_that_runs_away_is_ended_at_once(it):
    (old,) = started(it)
    it.launcher.grow(old, int(RUNAWAY_MEMORY * BOUND) + 1)
    it.look()
    assert it.launcher.stopped == [old]
    assert len(it.alive()) == 1


def test_a_version_that_always_outgrows_its_bound_soon_counts_as_unable_to_run(it):
    it.look()
    for _ in range(2 + 2 * FAILED_STARTS):
        it.connect()
        for name in it.alive():
            it.launcher.grow(name, BOUND + 1)
        for name in [name for name, replica in it.gateway.replicas.items() if replica.state == "draining"]:
            it.gateway.set_state(name, "drained")
        it.look(seconds=1.0)
    assert "1 kB of memory" in it.replicas.failed(ONE.digest)


def test_without_a_bound_nothing_is_replaced(it):
    it.replicas._memory_bytes = 0
    (name,) = started(it)
    it.launcher.grow(name, 10**15)
    for _ in range(3):
        assert not it.look()
    assert it.alive() == [name]


def endpoint(name, **config):
    return Endpoint(name=name, config=EndpointConfig(**config), stable=ONE)


def test_of_two_endpoints_that_share_a_version_the_more_generous_bound_counts():
    for bounds, expected in ((("1GB", "2GB"), 2 * 10**9), (("1GB", ""), 0), (("", ""), 0)):
        found = wanted_replicas([endpoint(str(n), memory=bound) for n, bound in enumerate(bounds)])
        assert found[ONE.digest].memory_bytes == expected


@pytest.mark.parametrize("memory", ["1MB", "plenty", "3 parsecs"])
def test_a_bound_that_makes_no_sense_is_refused(memory):
    with pytest.raises(InvalidInput):
        EndpointConfig(memory=memory).check()
