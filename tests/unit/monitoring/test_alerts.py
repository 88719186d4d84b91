"""What alerts may bring about: at most one end per rollout, whatever is sent how often."""

import datetime as dt
import json
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.core.clock import FakeClock
from argosy.core.errors import ArgosyError, InvalidInput, Unavailable
from argosy.monitoring.alerts import (
    ACTOR,
    HOUR_S,
    MOST_ACTIONS,
    MOST_NOTES,
    RECEIVED,
    Receiver,
    read_notification,
)
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Desired
from argosy.operate.memory import FakeLog
from controller_world import FakeVersions, make_version


class World:
    """A log with an endpoint 'm' that serves m:1, and no controller: rollouts move when told."""

    def __init__(self):
        self.clock = FakeClock()
        self.entries = []
        versions = FakeVersions(*(make_version(n) for n in range(1, 30)))
        self.registry = SimpleNamespace(log=FakeLog(self.entries, self.clock), versions=versions)
        self.alerting = SimpleNamespace(log=FakeLog(self.entries, self.clock, ACTOR), versions=versions)
        self.receiver = Receiver(self.alerting, self.clock)
        commands.deploy(self.registry, "m:1", name="m")
        self.end(d.PROMOTED)

    def state(self):
        state = Desired()
        self.registry.log.refresh()
        state.catch_up(self.registry.log)
        return state

    def rollout(self):
        return self.state().endpoints["m"].rollout

    def start(self, number):
        commands.deploy(self.registry, f"m:{number}", name="m", rollout=RolloutConfig())
        self.clock.advance(1)
        return self.rollout().id

    def end(self, outcome):
        found = self.rollout()
        self.registry.log.append(d.ENDED, "m", {"rollout": found.id, "outcome": outcome})
        self.clock.advance(1)

    def alert(self, fingerprint="f1", *, started=None, status="firing", action="rollback", endpoint="m", **labels):
        time = self.clock.now() if started is None else started
        return {
            "status": status,
            "labels": {"alertname": "Bad", "endpoint": endpoint, "argosy_action": action, **labels},
            "annotations": {"summary": "it is bad"},
            "startsAt": dt.datetime.fromtimestamp(time, dt.UTC).isoformat(),
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "http://x",
            "fingerprint": fingerprint,
        }

    def send(self, *alerts):
        body = json.dumps({"version": "4", "groupKey": "g", "status": "firing", "alerts": list(alerts)}).encode()
        return [done.outcome for done in self.receiver.take(read_notification(body))]

    def rollbacks(self):
        return [e for e in self.entries if e.kind == d.ENDPOINT and e.data["action"] == "rollback"]

    def notes(self):
        return [e for e in self.entries if e.kind == RECEIVED]


@pytest.fixture
def world():
    return World()


def test_an_alert_ends_the_rollout_by_the_entry_that_a_hand_would_write(world):
    running = world.start(2)
    alert = world.alert()
    assert world.send(alert) == ["rolled_back"]
    (entry,) = world.rollbacks()
    assert (entry.actor, entry.subject, entry.data["rollout"]) == (ACTOR, "m", running)
    assert entry.data["alert"]["fingerprint"] == "f1"
    assert world.rollout().rollback_asked == "alert Bad: it is bad"


def test_an_alert_that_is_sent_for_ever_acts_once_even_after_restarts(world):
    world.start(2)
    alert = world.alert()
    assert world.send(alert) == ["rolled_back"]
    for _ in range(20):
        world.receiver = Receiver(world.alerting, world.clock)
        assert world.send(alert, alert) == ["repeated", "repeated"]
    world.end(d.ROLLED_BACK)
    size = len(world.entries)
    assert world.send(alert) == ["no_rollout"]
    assert world.send(alert) == ["repeated"]
    assert (len(world.rollbacks()), len(world.entries) - size) == (1, 1)


def test_an_alert_from_before_a_rollout_leaves_it_alone_and_a_new_one_does_not(world):
    old = world.alert("old")
    world.clock.advance(5)
    world.start(2)
    assert world.send(old) == ["older_than_rollout"]
    assert world.rollout().rollback_asked == ""
    assert world.send(world.alert("new")) == ["rolled_back"]


def test_alerts_end_only_so_many_rollouts_of_an_endpoint_within_an_hour(world):
    said = []
    for number in range(2, 2 + MOST_ACTIONS + 1):
        world.start(number)
        said += world.send(world.alert(f"f{number}"))
        world.end(d.ROLLED_BACK)
    assert said == ["rolled_back"] * MOST_ACTIONS + ["held_back"]
    world.receiver = Receiver(world.alerting, world.clock)
    world.start(20)
    assert world.send(world.alert("again")) == ["held_back"]
    world.clock.advance(HOUR_S)
    assert world.send(world.alert("later")) == ["rolled_back"]


def test_a_return_by_hand_and_a_first_deployment_are_not_ended_by_alerts(world):
    world.start(2)
    world.end(d.PROMOTED)
    commands.rollback(world.registry, "m")
    assert world.rollout().kind == d.UNDO
    assert world.send(world.alert()) == ["no_rollout"]
    commands.deploy(world.registry, "m:3", name="n")
    assert world.send(world.alert("f2", endpoint="n")) == ["no_rollout"]
    assert world.state().endpoints["n"].rollout.rollback_asked == ""


@pytest.mark.parametrize("action", ["none", "failover", ""])
def test_other_alerts_are_noted_once_and_do_nothing(world, action):
    world.start(2)
    alert = world.alert(action=action)
    assert world.send(alert, alert) == ["noted", "repeated"]
    assert world.send(world.alert(status="resolved", started=world.clock.now())) == ["resolved"]
    assert [e.data["outcome"] for e in world.notes()] == ["noted", "resolved"]
    assert world.rollbacks() == []


def test_an_unknown_action_or_endpoint_does_nothing(world):
    world.start(2)
    assert world.send(world.alert(action="reboot")) == ["unknown_action"]
    assert world.send(world.alert("f2", endpoint="")) == ["no_rollout"]
    assert world.send(world.alert("f3", endpoint="../x y")) == ["no_rollout"]
    assert {e.subject for e in world.notes()} == {"m", "alert"}
    assert world.rollbacks() == []


def test_a_storm_of_alerts_writes_only_so_many_entries_an_hour(world):
    for number in range(3 * MOST_NOTES):
        world.send(world.alert(f"f{number}", action="none"))
    assert len(world.notes()) == MOST_NOTES
    world.start(2)
    assert world.send(world.alert("act")) == ["rolled_back"], "what acts is not held up by what is only noted"
    world.clock.advance(HOUR_S)
    assert world.send(world.alert("late", action="none")) == ["noted"]


def test_a_store_that_fails_is_told_so_that_alertmanager_sends_again(world):
    world.start(2)

    def fail(what, kind):
        raise Unavailable("the store answers 500")

    world.alerting.log._hook = fail
    with pytest.raises(Unavailable):
        world.send(world.alert())
    world.alerting.log._hook = lambda what, kind: None
    assert world.send(world.alert()) == ["rolled_back"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"version": "3"}, "version '3'"),
        ({"alerts": "many"}, "Expected `array`"),
        ({"alerts": [{}]}, "missing required field"),
        ({"status": "burning"}, "status 'burning'"),
        ({"fingerprint": ""}, "fingerprint ''"),
        ({"fingerprint": "a/../b"}, "fingerprint"),
        ({"startsAt": "yesterday"}, "startsAt"),
        ({"startsAt": "2026-01-01T00:00:00"}, "without a time zone"),
        ({"labels": {"a": 1}}, "Expected `str`"),
        ({"labels": {f"l{i}": "x" for i in range(100)}}, "more than 64 labels"),
        ({"labels": {"a": "x" * 3000}}, "2000 characters"),
    ],
)
def test_a_malformed_notification_is_refused_with_what_is_wrong(world, change, says):
    alert = world.alert()
    body = {"version": "4", "alerts": [alert]}
    (body if change.keys() & body.keys() else alert).update(change)
    with pytest.raises(InvalidInput, match=says) as refused:
        read_notification(json.dumps(body).encode())
    assert refused.value.code == "bad_notification"


def test_too_many_alerts_at_once_are_refused(world):
    with pytest.raises(InvalidInput, match="at most 200"):
        read_notification(json.dumps({"version": "4", "alerts": [world.alert()] * 201}).encode())


WORDS = st.sampled_from(["version", "alerts", "labels", "status", "startsAt", "fingerprint"])
JSON = st.recursive(
    st.none() | st.booleans() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=5,
)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=300) | JSON.map(lambda found: json.dumps(found).encode()))
def test_whatever_is_sent_is_read_or_refused(body):
    try:
        read_notification(body)
    except ArgosyError as error:
        assert error.code == "bad_notification"  # noqa: PT017


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["alert", "start", "end", "restart", "hour"]),
            st.sampled_from(["a", "b", "c"]),
            st.integers(0, 20),
        ),
        max_size=40,
    )
)
def test_whatever_comes_in_which_order_a_rollout_is_ended_at_most_once_and_seldom(events):
    world, number = World(), 1
    for what, fingerprint, age in events:
        running = world.rollout()
        if what == "alert":
            world.send(world.alert(fingerprint, started=world.clock.now() - age))
        elif what == "start" and running is None and number < 29:
            number += 1
            world.start(number)
        elif what == "end" and running is not None:
            world.end(d.ROLLED_BACK if running.rollback_asked else d.PROMOTED)
        elif what == "restart":
            world.receiver = Receiver(world.alerting, world.clock)
        elif what == "hour":
            world.clock.advance(HOUR_S / 4)
    ended = [entry.data["rollout"] for entry in world.rollbacks()]
    assert len(ended) == len(set(ended))
    for entry in world.rollbacks():
        recent = [e for e in world.rollbacks() if entry.time - HOUR_S < e.time <= entry.time]
        assert len(recent) <= MOST_ACTIONS
        asked = next(e for e in world.entries if f"r{e.seq}" == entry.data["rollout"])
        assert entry.data["alert"]["started"] >= asked.time
