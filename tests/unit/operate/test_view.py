"""What an operator sees."""

import pytest

from argosy.cluster.launcher import ProcessSpec
from argosy.core.errors import Internal
from argosy.operate import commands
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.controller_process import run
from argosy.operate.lease import Lease
from argosy.operate.view import Observer, describe
from argosy.registry.backends.memory import MemoryStore
from controller_world import ENDPOINT, World


@pytest.fixture
def world():
    found = World(1, troubles=False)
    found.rollout = RolloutConfig(steps=(10, 50), dwell="20s", window="1s", time_limit="5min", judge=("errors",))
    found.observer = Observer(found.registry.log, found.launcher, found.gateway, found.clock.now)

    def look(seconds=1.0, steps=4):
        for _ in range(steps):
            found.step(seconds)
        return found.observer.look()

    found.see = look
    return found


def test_nothing_deployed_is_seen_as_such(world):
    view = world.observer.look()
    assert (view.gateway, view.controller, view.endpoints, view.url) == ("stopped", "down", (), "")


def test_a_first_deployment_is_starting_and_then_ready(world):
    commands.deploy(world.registry, "m:1", endpoint=EndpointConfig(replicas=2))
    found = world.observer.look().endpoints[0]
    assert (found.state, found.rollout.phase, [v.role for v in found.versions]) == ("starting", "pending", ["new"])
    view = world.see()
    found = view.endpoints[0]
    assert (view.url, found.url) == ("http://127.0.0.1:8080", "http://127.0.0.1:8080/predict/m")
    assert view.grpc == "127.0.0.1:8081"
    assert (found.state, found.versions[0].ready, found.versions[0].wanted, found.versions[0].share) == (
        "ready",
        2,
        2,
        1,
    )
    assert [event.text for event in found.events] == [
        "deploy m:1 asked by ada",
        "warming: starting its replicas",
        "promoting: its replicas are ready",
        "m:1 promoted: its replicas are ready",
    ]


def test_a_rollout_shows_its_step_evidence_and_time_left(world):
    commands.deploy(world.registry, "m:1")
    world.see()
    commands.deploy(world.registry, "m:2", rollout=world.rollout)
    world.behaviour[world.versions.get("m:2").digest] = "good"
    found = world.see(steps=6).endpoints[0]
    rollout = found.rollout
    assert (rollout.base, rollout.to, rollout.phase, rollout.steps, rollout.share) == (
        "m:1",
        "m:2",
        "canary",
        (10, 50),
        0.1,
    )
    assert 0 < rollout.step_left_s <= 20
    assert 270 < rollout.left_s <= 300
    assert (rollout.verdict, rollout.threshold, rollout.asks) == ("wait", 100, False)
    assert rollout.windows >= 1  # judged here, from windows nobody has written down yet
    assert [m.name for m in rollout.metrics] == ["errors", "mirrored_errors", "constant"]
    assert [(v.role, round(v.share, 3)) for v in found.versions] == [("current", 0.9), ("new", 0.1)]


def test_a_question_is_shown_when_undecided_asks(world):
    world.rollout = RolloutConfig(steps=(10,), dwell="1s", window="1s", time_limit="3s", undecided="ask", mirror=0)
    commands.deploy(world.registry, "m:1")
    world.see()
    commands.deploy(world.registry, "m:2", rollout=world.rollout)
    world.behaviour[world.versions.get("m:2").digest] = "quiet"
    assert world.see(steps=12).endpoints[0].rollout.asks
    commands.promote(world.registry, ENDPOINT)
    assert world.see().endpoints[0].last.outcome == "promoted"


def test_a_version_that_cannot_start_shows_why(world):
    world.behaviour[world.versions.get("m:2").digest] = "crash"
    commands.deploy(world.registry, "m:2")
    found = world.see(steps=14).endpoints[0]
    assert found.state == "failed"
    assert found.last.reason == "its replicas cannot start: it cannot load"


def test_fewer_replicas_than_wanted_or_none_are_seen(world):
    commands.deploy(world.registry, "m:1", endpoint=EndpointConfig(replicas=2))
    world.see()
    names = [info.name for info in world.launcher.list("replica")]
    world.launcher.end(names[0])
    world.gateway.disconnect(names[0])
    assert world.observer.look().endpoints[0].state == "degraded"
    world.launcher.end(names[1], 1, Internal("out of memory"))
    world.gateway.disconnect(names[1])
    found = world.observer.look().endpoints[0]
    assert (found.state, found.versions[0].error) == ("failed", "out of memory")


def test_a_dead_gateway_and_controller_are_said_with_their_errors(world):
    commands.deploy(world.registry, "m:1")
    world.see()
    world.launcher.end("gateway", 4, Internal("port 8080 is in use"))
    world.gateway.die()
    world.launcher.start(ProcessSpec(name="controller", role="controller", entry="a:b"))
    world.launcher.end("controller", 8, Internal("the log was changed"))
    view = world.observer.look()
    assert (view.gateway, view.gateway_error) == ("down", "port 8080 is in use")
    assert (view.controller, view.controller_error) == ("down", "the log was changed")


def test_after_down_endpoints_are_known_and_stopped(world):
    commands.deploy(world.registry, "m:1")
    world.see()
    commands.stop_all(world.registry)
    view = world.see(steps=8)
    assert (view.gateway, view.endpoints[0].state, view.url) == ("stopped", "stopped", "")
    assert all(not info.alive for info in world.launcher.list())


def test_every_kind_of_entry_about_operating_can_be_described(world):
    commands.deploy(world.registry, "m:1")
    world.see()
    commands.deploy(world.registry, "m:2", rollout=world.rollout)
    world.see()
    commands.rollback(world.registry, ENDPOINT, reason="looks odd")
    world.see()
    texts = [describe(entry) for entry in world.entries if entry.subject == ENDPOINT]
    assert "rollback asked by ada: looks odd" in texts
    assert "m:2 rolled back: looks odd" in texts


class Loop:
    """A reconciler that does what a list says."""

    def __init__(self, *happenings):
        self.happenings = list(happenings)
        self.is_done = False
        self.is_wanted = False
        self.log = World(1, troubles=False).registry.log

    def elect(self, claim):
        assert claim == {"home": "here", "host": "this"}
        self._next()
        return 1

    def tick(self):
        self._next()
        return 0.1

    def is_wanted_now(self):
        found, self.is_wanted = self.is_wanted, False
        return found

    def _next(self):
        found = self.happenings.pop(0) if self.happenings else "done"
        if isinstance(found, Exception):
            raise found
        self.is_done = found == "done"


def test_a_home_that_waits_for_another_ones_controller_says_for_whom(world):
    from rich.console import Console

    from argosy.cli.endpoint_view import picture

    world.observer = Observer(world.registry.log, world.launcher, world.gateway, world.clock.now, home="here")
    commands.deploy(world.registry, "m:1")
    assert world.see().leader == "", "an election that names no home is this one's"
    world.registry.log.append("controller.elected", "controller", {"home": "there", "host": "big-box"})
    seen = world.observer.look()
    assert (seen.leader, seen.controller) == ("big-box", "down")
    world.launcher.start(ProcessSpec(name="controller", role="controller", entry="argosy.x:main"))
    seen = world.observer.look()
    assert (seen.leader, seen.controller) == ("big-box", "waiting")
    console = Console(width=200)
    with console.capture() as text:
        console.print(picture(seen))
    assert "the controller on 'big-box' acts for all homes on this store" in text.get()
    world.registry.log.append("controller.elected", "controller", {"home": "here", "host": "this"})
    assert world.observer.look().leader == ""


class Lock:
    def __init__(self):
        self.log = []

    def acquire(self):
        self.log.append("acquire")
        return True

    def release(self):
        self.log.append("release")


def loop(world, *happenings, wanted=False):
    events, lock, reconciler = [], Lock(), Loop(*happenings)
    reconciler.is_wanted = wanted
    code = run(
        reconciler,
        lock,
        Lease(MemoryStore(), world.clock, "here", "this"),
        clock=world.clock,
        report=lambda event, **_: events.append(event),
        is_stopping=lambda: len(events) > 5,
    )
    return code, events, lock.log


def test_the_loop_survives_whatever_a_look_raises(world):
    assert loop(world, "", ValueError("a bug"), OSError("no disk"), "done") == (
        0,
        ["controller_trouble", "controller_trouble", "controller_done"],
        ["release"],
    )


def test_the_loop_ends_when_deposed(world):
    from argosy.operate.controller import Deposed

    assert loop(world, "", "", Deposed("another one"))[1] == ["controller_deposed"]


def test_a_log_that_was_tampered_with_ends_the_controller_with_that_error(world):
    from argosy.core.errors import IntegrityError

    with pytest.raises(IntegrityError):
        loop(world, IntegrityError("entry 7 was changed"))


def test_a_controller_about_to_end_looks_once_more_after_giving_the_lock_back(world):
    _, events, locks = loop(world, "", "done", ValueError("goes on"), "done", wanted=True)
    assert locks == ["release", "acquire", "release"]
    assert events == ["controller_trouble", "controller_done"]
