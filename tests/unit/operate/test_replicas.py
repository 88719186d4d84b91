"""The supervisor of replica processes, one look at a time."""

import random
from types import SimpleNamespace

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, Internal
from argosy.operate.desired import Target
from argosy.operate.layout import Wanted
from argosy.operate.memory import FakeGateway
from argosy.operate.replicas import (
    DRAIN_S,
    FROZEN_S,
    LOADING_S,
    LOST_S,
    PROVEN_S,
    READY_LIMIT_S,
    Replicas,
    key_of,
    replica_name,
    version_key,
)

ONE, TWO = (Target(sha256(str(n).encode()), f"m:{n}") for n in (1, 2))


@pytest.fixture
def it():
    clock = FakeClock()
    launcher = MemoryLauncher(clock)
    replicas = Replicas(
        launcher,
        clock,
        random.Random(1),
        lambda name, want: {"id": name, "digest": want.target.digest, "threads": want.threads},
        memory_bytes=1000,
    )
    world = SimpleNamespace(clock=clock, launcher=launcher, gateway=FakeGateway(), replicas=replicas)

    def look(*wanted, routed=(), seconds=0.1, connect=True):
        clock.advance(seconds)
        if connect:
            for info in launcher.list("replica"):
                if info.alive and info.name not in world.gateway.replicas:
                    world.gateway.connect(info.name, launcher.specs[info.name].config["digest"])
        for name in list(world.gateway.replicas):
            if not launcher.get(name) or not launcher.get(name).alive:
                world.gateway.disconnect(name)
        replicas.observe(world.gateway.status())
        replicas.stop_sick()
        plan = {target.digest: Wanted(target, count, 1) for target, count in wanted}
        replicas.start_missing(plan)
        return replicas.stop_extras(plan, {target.digest for target in routed}, world.gateway.drain)

    world.look = look
    world.alive = lambda: [info.name for info in launcher.list("replica") if info.alive]
    return world


@pytest.mark.parametrize("ref", ["digits:2", "a.b-c_d:17", "x" * 63 + ":1", "..weird..", "Ä:1"])
def test_a_name_says_its_version(ref):
    name = replica_name(Target(ONE.digest, ref), "0a1b2c")
    MemoryLauncher().start(SimpleNamespace(name=name, role="r", entry="a:b", config={}, threads=0))
    assert key_of(name) == version_key(ONE.digest)


def test_as_many_run_as_are_wanted(it):
    it.look((ONE, 2), (TWO, 1))
    it.look((ONE, 2), (TWO, 1))
    assert (it.replicas.ready(ONE.digest), it.replicas.ready(TWO.digest), len(it.launcher.started)) == (2, 1, 3)


def test_replicas_load_a_few_at_a_time_those_first_of_which_none_is_ready(it):
    """Two that load on the same core are both ready late; one after the other, the first answers in half the time."""
    it.replicas._at_once = 1
    counts = []
    for _ in range(4):
        it.look((ONE, 2), (TWO, 1))
        counts.append((it.replicas.ready(ONE.digest), it.replicas.ready(TWO.digest), len(it.launcher.started)))
    assert counts == [(0, 0, 1), (1, 0, 2), (1, 1, 3), (2, 1, 3)]


def test_one_that_never_gets_ready_does_not_hold_up_the_others(it):
    it.replicas._at_once = 1
    it.look((ONE, 1), (TWO, 1), connect=False)
    it.look((ONE, 1), (TWO, 1), connect=False)
    assert len(it.launcher.started) == 1
    it.look((ONE, 1), (TWO, 1), connect=False, seconds=LOADING_S)
    assert len(it.launcher.started) == 2


def test_looking_twice_changes_nothing(it):
    it.look((ONE, 2))
    before = list(it.launcher.started)
    for _ in range(5):
        assert not it.look((ONE, 2), routed=[ONE])
    assert (it.launcher.started, it.launcher.stopped) == (before, [])


def test_a_dead_one_is_replaced_at_once(it):
    it.look((ONE, 2))
    it.look((ONE, 2))
    it.launcher.end(it.alive()[0])
    it.look((ONE, 2))
    assert len(it.alive()) == 2


def test_a_crash_loop_slows_down_and_is_told_with_the_childs_own_error(it):
    starts = []
    for _ in range(200):
        it.look((ONE, 1), connect=False)
        starts.append(len(it.launcher.started))
        for name in it.alive():
            it.launcher.end(name, 1, Internal("no such operator 'Frobnicate'"))
    assert it.replicas.failed(ONE.digest) == "no such operator 'Frobnicate'"
    assert starts[20] >= 3
    assert starts[-1] <= 8  # in 20 seconds, with 0.5 s doubling in between


def test_an_error_that_the_next_start_would_repeat_is_hopeless_at_once(it):
    it.look((ONE, 1), connect=False)
    it.launcher.end(it.alive()[0], 8, IntegrityError("blob sha256:ab is not what was signed"))
    it.look((ONE, 1), connect=False)
    assert it.replicas.failed(ONE.digest) == "blob sha256:ab is not what was signed"


def test_without_an_error_the_reason_is_the_signal_or_the_last_line(it):
    for exit_code, said in ((-9, "signal 9"), (3, "exit code 3: out of memory")):
        for _ in range(8):
            it.look((ONE, 1), connect=False, seconds=40)
            for name in it.alive():
                it.launcher.write(name, "starting\nout of memory\n\n")
                it.launcher.end(name, exit_code)
        assert said in it.replicas.failed(ONE.digest)


def test_one_killed_while_it_serves_is_replaced_within_a_second_also_the_fiftieth_time(it):
    it.look((ONE, 2))
    it.look((ONE, 2))
    for _ in range(50):
        it.launcher.end(it.alive()[0], -9)
        killed = it.clock.monotonic()
        while it.look((ONE, 2)) or it.replicas.ready(ONE.digest) < 2:
            assert it.clock.monotonic() - killed < 1.2


def test_after_service_a_start_that_fails_again_and_again_slows_down_too(it):
    it.look((ONE, 1))
    it.look((ONE, 1))
    it.launcher.end(it.alive()[0], -9)
    before = len(it.launcher.started)
    for _ in range(200):
        it.look((ONE, 1), connect=False)
        for name in it.alive():
            it.launcher.end(name, -9)
    assert 3 <= len(it.launcher.started) - before <= 8


def test_one_that_proved_itself_starts_with_a_clean_slate(it):
    for _ in range(6):
        it.look((ONE, 1))
        it.look((ONE, 1), seconds=PROVEN_S + 1)
        it.look((ONE, 1), seconds=PROVEN_S + 1)
        it.launcher.end(it.alive()[0])
        it.look((ONE, 1))
        assert len(it.alive()) == 1
    assert it.replicas.failed(ONE.digest) == ""


def test_a_superfluous_one_is_drained_and_then_stopped(it):
    it.look((ONE, 2))
    it.look((ONE, 2))
    assert it.look((ONE, 1), routed=[ONE])
    draining = [name for name, r in it.gateway.replicas.items() if r.state == "draining"]
    assert len(draining) == 1
    assert it.look((ONE, 1), routed=[ONE])
    assert it.launcher.stopped == []
    it.gateway.set_state(draining[0], "drained")
    it.look((ONE, 1), routed=[ONE])
    assert it.launcher.stopped == draining
    assert not it.look((ONE, 1), routed=[ONE])


def test_a_drain_that_never_ends_is_cut(it):
    it.look((ONE, 1))
    it.look((ONE, 1))
    it.look()
    it.look()
    assert it.launcher.stopped == []
    it.look(seconds=DRAIN_S + 1)
    assert len(it.launcher.stopped) == 1


def test_a_routed_version_is_left_alone_though_nobody_wants_it(it):
    it.look((ONE, 1))
    it.look((ONE, 1))
    for _ in range(3):
        assert it.look(routed=[ONE])
    assert it.gateway.replicas[it.alive()[0]].state == "ready"


def test_the_ready_one_is_kept_and_the_starting_one_goes(it):
    it.look((ONE, 1))
    it.look((ONE, 1))
    ready = it.alive()[0]
    it.look((ONE, 2), connect=False)
    it.look((ONE, 1), routed=[ONE], connect=False)
    assert it.alive() == [ready]


@pytest.mark.parametrize(("state", "after"), [("frozen", FROZEN_S), ("faulty", 0.0)])
def test_one_that_lives_but_does_not_work_is_replaced(it, state, after):
    it.look((ONE, 2))
    it.look((ONE, 2))
    sick = it.alive()[0]
    it.gateway.set_state(sick, state)
    it.look((ONE, 2), routed=[ONE])
    it.look((ONE, 2), routed=[ONE], seconds=after + 0.2)
    it.look((ONE, 2), routed=[ONE])
    assert sick not in it.alive()
    assert len(it.alive()) == 2


def test_a_frozen_one_has_a_stand_in_at_once_and_is_stopped_when_that_is_ready(it):
    it.look((ONE, 2))
    it.look((ONE, 2))
    frozen = it.alive()[0]
    it.gateway.set_state(frozen, "frozen")
    it.look((ONE, 2), routed=[ONE], connect=False)
    assert len(it.alive()) == 3
    it.look((ONE, 2), routed=[ONE], connect=False)
    assert (len(it.alive()), it.launcher.stopped) == (3, [])
    it.look((ONE, 2), routed=[ONE])
    it.look((ONE, 2), routed=[ONE])
    assert (it.launcher.stopped, it.replicas.ready(ONE.digest)) == ([frozen], 2)


def test_a_version_whose_replicas_freeze_again_and_again_cannot_run(it):
    it.look((ONE, 1))
    for _ in range(3):
        it.look((ONE, 1))
        it.gateway.set_state(it.alive()[0], "frozen")
        until_replaced = set(it.alive())
        while set(it.alive()) & until_replaced:
            it.look((ONE, 1), routed=[ONE])
    assert "silent" in it.replicas.failed(ONE.digest)


def test_a_frozen_one_that_thaws_in_time_goes_on_and_its_stand_in_leaves(it):
    it.look((ONE, 2))
    it.look((ONE, 2))
    before = it.alive()
    it.gateway.set_state(before[0], "frozen")
    it.look((ONE, 2), routed=[ONE], connect=False)
    it.gateway.set_state(before[0], "ready")
    it.look((ONE, 2), routed=[ONE], connect=False)
    assert it.alive() == before


def test_when_all_are_frozen_stand_ins_come_one_by_one_because_it_may_be_the_machine(it):
    it.look((ONE, 4))
    it.look((ONE, 4))
    for name in it.alive():
        it.gateway.set_state(name, "frozen")
    for _ in range(5):
        it.look((ONE, 4), routed=[ONE], connect=False)
    assert len(it.alive()) == 5


def test_one_that_lost_the_gateway_is_replaced_but_not_when_the_gateway_is_gone(it):
    it.look((ONE, 1))
    it.look((ONE, 1))
    lost = it.alive()[0]
    it.gateway.disconnect(lost)
    it.gateway.die()
    it.clock.advance(LOST_S * 3)
    it.replicas.observe(None)
    it.gateway.revive(2, 0.0)
    it.look((ONE, 1), connect=False)
    assert it.alive() == [lost]
    it.look((ONE, 1), connect=False, seconds=LOST_S + 1)
    assert it.alive() != [lost]


def test_one_that_never_gets_ready_is_given_up_after_a_while(it):
    it.look((ONE, 1), connect=False)
    stuck = it.alive()
    it.look((ONE, 1), connect=False)
    it.look((ONE, 1), connect=False, seconds=READY_LIMIT_S + 1)
    assert it.alive() != stuck


def test_logs_of_the_last_failures_stay_and_older_ones_go(it):
    for _ in range(12):
        it.look((ONE, 1), connect=False, seconds=40)
        for name in it.alive():
            it.launcher.end(name, 1)
    it.look((ONE, 1), connect=False, seconds=40)
    assert len([info for info in it.launcher.list("replica") if not info.alive]) == 5


def test_what_ended_before_this_controller_is_not_held_against_its_version(it):
    it.look((ONE, 1), connect=False)
    it.launcher.end(it.alive()[0], 1, IntegrityError("from before"))
    fresh = Replicas(it.launcher, it.clock, random.Random(2), lambda *_: {})
    fresh.observe(it.gateway.status())
    assert fresh.failed(ONE.digest) == ""
