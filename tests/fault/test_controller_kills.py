"""`kill -9` of the controller at every step of a rollout: it ends as it should, and callers notice nothing."""

import contextlib
import os
import signal
import threading
import time

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from controlled import Controlled
from load import Load
from served import constant, logarithm, until

ENDPOINT = EndpointConfig(replicas=1, threads=1)
ROLLOUT = RolloutConfig(
    steps=(20, 50), dwell="1s", window="0.5s", time_limit="6s", judge=("errors",), mirror=0, undecided="promote"
)
SEEN = {
    d.PENDING: ("pending", 0),
    d.WARMING: (d.WARMING, 0),
    "first step": (d.CANARY, 0),
    "second step": (d.CANARY, 1),
    d.PROMOTING: (d.PROMOTING, 1),
}
AGAIN = [pytest.param(n, marks=pytest.mark.slow) if n else n for n in range(3)]


@pytest.fixture
def home():
    found = Controlled()
    try:
        yield found
    finally:
        found.close()


def deployed(home, model):
    version = home.publish(model)
    commands.deploy(home.registry, str(version), endpoint=ENDPOINT)
    home.start()
    home.serving(str(version))
    home.look()
    return version


class Killer:
    """Kills the controller as soon as the log says that a rollout has come to a point."""

    def __init__(self, home, phase, step):
        self.home, self.phase, self.step = home, phase, step
        self.killed = threading.Event()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        # One that goes on looking would do so during the tests after this one.
        self._is_over.set()
        self._thread.join()

    def _watch(self):
        while not self._is_over.is_set() and not self.killed.is_set():
            rollout = self._rollout()
            if rollout is not None and (rollout.phase, rollout.step) == (self.phase, self.step):
                with contextlib.suppress(StopIteration, ProcessLookupError):
                    self.home.kill("controller")
                    self.killed.set()
            self._is_over.wait(0.005)

    def _rollout(self):
        desired = d.Desired()
        log = self.home.registry.log
        log.refresh()
        desired.catch_up(log)
        endpoint = desired.endpoints.get("m")
        return endpoint.rollout if endpoint else None


def revived(home, seconds=40.0):
    """The gateway starts it again by itself; nobody else does here."""
    until(home.is_controlled, seconds)


@pytest.mark.capability("R2", "R7")
@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("at", [pytest.param(at, marks=pytest.mark.slow) if at != "second step" else at for at in SEEN])
def test_a_good_version_is_promoted_though_the_controller_is_killed(home, at, again):
    former = deployed(home, constant(1.0))
    new = home.publish(constant(2.0))
    phase, step = SEEN[at]
    with Load(home, callers=2) as load:
        load.answered(20)
        killer = Killer(home, phase, step)
        if at == d.PENDING:
            # Nothing but the wish is written: a controller that sees it is already one step further.
            home.kill("controller")
            killer.killed.set()
        rollout = commands.deploy(home.registry, str(new), endpoint=ENDPOINT, rollout=ROLLOUT).rollout
        with killer:
            assert killer.killed.wait(60), f"it never came to {at}"
        ended = home.ended(rollout, 90.0)
        load.answered(20)
    assert (ended.outcome, load.problems) == (d.PROMOTED, [])
    assert load.versions == {str(former), str(new)}
    home.serving(str(new))


OTHER_KINDS = {
    d.SHADOW: RolloutConfig(
        kind="shadow", shadow="1s", after_shadow="promote", window="0.5s", time_limit="60s", judge=("agreement",),
        mirror=50,
    ),
    d.SWITCHED: RolloutConfig(
        kind="blue-green", keep="6s", window="0.5s", judge=("errors",), mirror=50
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.capability("R2", "R7")
@pytest.mark.parametrize("again", range(3))
@pytest.mark.parametrize("phase", OTHER_KINDS)
def test_rollouts_of_other_kinds_end_as_they_should_though_the_controller_is_killed(home, phase, again):
    deployed(home, constant(1.0))
    new = home.publish(constant(1.0 + 1e-6))
    with Load(home, callers=2) as load:
        load.answered(20)
        with Killer(home, phase, 0) as killer:
            rollout = commands.deploy(home.registry, str(new), endpoint=ENDPOINT, rollout=OTHER_KINDS[phase]).rollout
            assert killer.killed.wait(60), f"it never came to {phase}"
        ended = home.ended(rollout, 90.0)
        load.answered(20)
    assert (ended.outcome, load.problems) == (d.PROMOTED, []), ended.reason
    home.serving(str(new))


@pytest.mark.capability("R2", "R3")
@pytest.mark.parametrize("again", AGAIN)
@pytest.mark.parametrize("at", [pytest.param("first step", marks=pytest.mark.slow), d.ROLLING_BACK])
def test_a_bad_version_is_rolled_back_though_the_controller_is_killed(home, at, again):
    """Its answers to what callers send are no numbers, so they get the former version's, and never a failure."""
    former = deployed(home, constant(1.0))
    bad = home.publish(logarithm())
    rollout = RolloutConfig(steps=(50,), dwell="30s", window="0.5s", time_limit="5min", judge=("errors",), mirror=0)
    phase, step = SEEN.get(at, (d.ROLLING_BACK, 0))
    with Load(home, callers=2, value=-1.0) as load:
        load.answered(20)
        with Killer(home, phase, step) as killer:
            asked = commands.deploy(home.registry, str(bad), endpoint=ENDPOINT, rollout=rollout).rollout
            ended = home.ended(asked, 90.0)
        load.answered(20)
    assert killer.killed.is_set() or at == d.ROLLING_BACK, "that phase may be over before anyone can look"
    assert (ended.outcome, load.problems) == (d.ROLLED_BACK, [])
    assert load.versions == {str(former)}
    home.serving(str(former))


@pytest.mark.capability("R7", "K1")
def test_a_killed_controller_is_started_again_by_the_gateway_and_a_killed_gateway_by_it(home):
    deployed(home, constant(1.0))
    with Load(home, callers=2) as load:
        load.answered(20)
        home.kill("controller")
        until(lambda: not home.is_controlled())
        load.answered(20)
        revived(home)
        load.answered(20)
    assert load.problems == []
    home.kill("gateway")
    until(lambda: home.client.status().endpoints, 20)


@pytest.mark.capability("R7")
@pytest.mark.parametrize("seconds", [3, pytest.param(60, marks=pytest.mark.slow)])
def test_while_the_controller_stands_still_requests_are_answered(home, seconds):
    version = deployed(home, constant(1.0))
    pid = next(info.pid for info in home.launcher.list("controller") if info.alive)
    os.kill(pid, signal.SIGSTOP)
    try:
        with Load(home, callers=2) as load:
            began = time.monotonic()
            while time.monotonic() - began < seconds:
                load.answered(50)
        assert (load.problems, load.versions) == ([], {str(version)})
    finally:
        os.kill(pid, signal.SIGCONT)
    home.serving(str(version))
