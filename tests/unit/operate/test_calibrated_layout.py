"""How many replicas and threads a version gets, before and after its calibration is known."""

import random
from types import SimpleNamespace

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import sha256
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.desired import Endpoint, Rollout, Target
from argosy.operate.layout import UNHURRIED_S, Wanted, sizes, wanted_replicas
from argosy.operate.memory import FakeGateway
from argosy.operate.replicas import Replicas
from argosy.serve.wire import Advice

ONE, TWO = (Target(sha256(str(n).encode()), f"m:{n}") for n in (1, 2))
TINY = Advice(replicas=1, threads=1, alone=1, most=64)
SPREAD = Advice(replicas=4, threads=1, alone=4, most=8)
WIDE = Advice(replicas=1, threads=4, alone=4, most=3)


@pytest.mark.parametrize(
    ("replicas", "threads", "advice", "found"),
    [
        ("auto", "auto", None, (1, 1)),
        ("auto", "auto", TINY, (1, 1)),
        ("auto", "auto", SPREAD, (4, 1)),
        ("auto", "auto", WIDE, (1, 4)),
        ("auto", 2, SPREAD, (2, 2)),
        ("auto", 8, SPREAD, (1, 8)),
        ("auto", 1, WIDE, (3, 1)),  # as memory allows
        ("auto", 3, None, (1, 3)),
        (2, "auto", None, (2, 1)),
        (2, "auto", SPREAD, (2, 2)),
        (1, "auto", SPREAD, (1, 4)),
        (4, "auto", SPREAD, (4, 1)),
        (6, "auto", SPREAD, (6, 1)),
        (2, "auto", TINY, (2, 1)),
        (2, 3, SPREAD, (2, 3)),
        ("2..4", "auto", SPREAD, (2, 1)),  # as many threads as the highest number leaves each
        ("0..2", "auto", SPREAD, (0, 2)),
    ],
)
def test_what_is_said_counts_and_the_rest_follows_from_calibration(replicas, threads, advice, found):
    assert sizes(EndpointConfig(replicas=replicas, threads=threads), advice) == found


def endpoint(**changes):
    return Endpoint(**{"name": "m", "config": EndpointConfig(), "stable": ONE} | changes)


def rollout(kind, base, phase=d.WARMING, to=TWO):
    config = RolloutConfig()
    return Rollout(
        id="r1", endpoint="m", kind=kind, base=base, to=to, config=config, actor="", asked=0, since=0, phase=phase
    )


def test_the_number_stays_open_until_calibration_is_known():
    unknown = wanted_replicas([endpoint()])[ONE.digest]
    known = wanted_replicas([endpoint()], lambda _: SPREAD)[ONE.digest]
    said = wanted_replicas([endpoint(config=EndpointConfig(replicas=1))])[ONE.digest]
    assert (unknown.replicas, unknown.is_open) == (1, True)
    assert (known.replicas, known.is_open) == (4, False)
    assert (said.replicas, said.is_open) == (1, False)


def test_each_version_of_a_rollout_gets_what_its_own_calibration_says():
    advice = {ONE.digest: SPREAD, TWO.digest: WIDE}
    found = wanted_replicas([endpoint(rollout=rollout(d.SWITCH, ONE))], advice.get)
    assert (found[ONE.digest].replicas, found[ONE.digest].threads) == (4, 1)
    assert (found[TWO.digest].replicas, found[TWO.digest].threads) == (1, 4)


def test_a_version_holds_back_for_its_calibration_only_while_another_one_answers():
    first = endpoint(stable=None, rollout=rollout(d.FIRST, None))
    later = endpoint(rollout=rollout(d.STEPWISE, ONE))
    again = endpoint(rollout=rollout(d.SWITCH, ONE, to=ONE))
    assert wanted_replicas([first])[TWO.digest].calibrate_s == 0
    assert wanted_replicas([later])[TWO.digest].calibrate_s == UNHURRIED_S
    assert wanted_replicas([later])[ONE.digest].calibrate_s == 0
    assert wanted_replicas([again])[ONE.digest].calibrate_s == 0
    assert wanted_replicas([later, endpoint(name="n", stable=TWO)])[TWO.digest].calibrate_s == 0


def test_replicas_of_endpoints_that_share_a_version_add_up():
    found = wanted_replicas([endpoint(), endpoint(name="n", config=EndpointConfig(replicas=2))], lambda _: SPREAD)
    assert (found[ONE.digest].replicas, found[ONE.digest].threads) == (6, 2)


@pytest.fixture
def it():
    clock = FakeClock()
    launcher = MemoryLauncher(clock)
    gateway = FakeGateway()
    replicas = Replicas(launcher, clock, random.Random(1), lambda name, want: {"threads": want.threads})

    def look(count, threads=1, *, is_open=False, connect=True):
        clock.advance(0.1)
        for info in launcher.list("replica"):
            if info.alive and connect and info.name not in gateway.replicas:
                gateway.connect(info.name, ONE.digest, threads=launcher.specs[info.name].config["threads"])
            elif not info.alive:
                gateway.disconnect(info.name)
        for name, status in list(gateway.replicas.items()):
            if launcher.get(name) is None:
                gateway.disconnect(name)
            elif status.state == "draining":
                gateway.set_state(name, "drained")
        replicas.observe(gateway.status())
        replicas.stop_sick()
        plan = {ONE.digest: Wanted(ONE, count, threads, is_open=is_open)}
        replicas.start_missing(plan)
        replicas.stop_extras(plan, {ONE.digest}, gateway.drain)
        return sorted(r.threads for r in gateway.replicas.values() if r.state == "ready")

    return SimpleNamespace(look=look, launcher=launcher, gateway=gateway, replicas=replicas)


def test_more_replicas_are_added_and_those_that_serve_stay(it):
    it.look(1)
    it.look(1)
    (first,) = it.gateway.replicas
    for _ in range(4):
        it.look(3)
    assert it.look(3) == [1, 1, 1]
    assert it.gateway.replicas[first].state == "ready"
    assert it.launcher.stopped == []


def test_other_threads_come_with_new_replicas_and_the_old_ones_go_one_by_one_when_those_are_ready(it):
    for _ in range(3):
        it.look(2)
    seen = [it.look(2, 4) for _ in range(12)]
    assert seen[-1] == [4, 4]
    assert all(len(ready) >= 2 for ready in seen)
    assert max(len(ready) for ready in seen) <= 3
    assert len(it.launcher.started) == 4
    assert it.replicas.failed(ONE.digest) == ""


def test_a_replica_with_other_threads_stays_while_its_stand_in_does_not_get_ready(it):
    it.look(1)
    it.look(1)
    for _ in range(20):
        assert it.look(1, 2, connect=False) == [1]
    assert len(it.launcher.started) == 2


def test_what_runs_from_before_is_kept_until_calibration_is_known(it):
    for _ in range(4):
        it.look(3)
    assert it.look(1, is_open=True) == [1, 1, 1]
    assert it.look(1, is_open=True) == [1, 1, 1]
    for _ in range(4):
        it.look(2)
    assert it.look(2) == [1, 1]


@pytest.mark.parametrize("threads", [0, -1, 300, "many", 1.5, True])
def test_impossible_threads_are_refused(threads):
    from argosy.core.errors import InvalidInput
    from argosy.operate.config import endpoint_config

    with pytest.raises(InvalidInput, match="threads"):
        endpoint_config({"threads": threads}, where="argosy.toml")
