"""What operating needs of a log, checked against the registry's and against the fake the schedules run on."""

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Conflict
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.memory import FakeLog
from argosy.registry.backends.memory import MemoryStore
from logs import make_log

DEPLOY = {"action": "deploy", "version": {"digest": "sha256:1", "ref": "m:1"}, "endpoint": {}, "rollout": None}


@pytest.fixture(params=["registry", "fake"])
def open_log(request, tmp_path):
    """A function that opens the same log once more, as another process would."""
    if request.param == "registry":
        store, homes = MemoryStore(), iter(range(99))
        return lambda: make_log(store, tmp_path / f"home-{next(homes)}")
    entries, clock = [], FakeClock()
    return lambda: FakeLog(entries, clock)


def test_an_entry_is_numbered_dated_and_returned_as_it_was_given(open_log):
    log = open_log()
    first = log.append("a.b", "x", {"n": 1, "list": [1, 2.5, "three"], "none": None})
    second = log.append("a.b", "y", {})
    assert (second.seq, log.head) == (first.seq + 1, second.seq)
    assert (first.kind, first.subject, first.actor) == ("a.b", "x", "ada")
    assert first.data == {"n": 1, "list": [1, 2.5, "three"], "none": None}
    assert first.time == FakeClock().now()


def test_others_see_an_entry_after_they_refresh(open_log):
    mine, other = open_log(), open_log()
    mine.append("a.b", "x", {"n": 1})
    before = other.head
    assert other.refresh() == mine.head
    assert other.head >= before
    assert other.last("a.b", "x").data == {"n": 1}


def test_entries_are_given_in_order_and_by_kind_subject_and_place(open_log):
    log = open_log()
    for number in range(6):
        log.append("even" if number % 2 == 0 else "odd", f"s{number % 3}", {"n": number})
    assert [e.data["n"] for e in log.entries(kind="even")] == [0, 2, 4]
    assert [e.data["n"] for e in log.entries(subject="s1")] == [1, 4]
    assert [e.data["n"] for e in log.entries(after=log.head - 2)] == [4, 5]
    assert list(log.entries(after=log.head)) == []
    assert log.last("odd", "s2").data == {"n": 5}
    assert log.last("odd", "nobody") is None


def test_the_check_sees_everything_written_before_and_may_refuse(open_log):
    mine, other = open_log(), open_log()
    mine.refresh()
    other.append("a.b", "x", {"n": 1})

    def refuse(log):
        if log.last("a.b", "x") is not None:
            raise Conflict("somebody was first")

    with pytest.raises(Conflict):
        mine.append("a.b", "y", {}, check=refuse)
    assert mine.refresh() == other.head
    assert mine.last("a.b", "y") is None


def test_data_may_be_computed_from_what_was_checked(open_log):
    log = open_log()
    log.append("count", "x", {"n": 1})
    entry = log.append("count", "x", lambda log: {"n": log.last("count", "x").data["n"] + 1})
    assert entry.data == {"n": 2}


def test_desired_state_is_the_same_folded_at_once_or_entry_by_entry(open_log):
    log, reader = open_log(), open_log()
    stepwise = Desired()
    log.append(d.ENDPOINT, "m", DEPLOY)
    stepwise.catch_up(log)
    rollout = stepwise.endpoints["m"].rollout.id
    for _ in range(70):
        log.append("version.published", "m", {})
    log.append(d.STARTED, "m", {"rollout": rollout, "phase": d.WARMING, "reason": "x"})
    assert stepwise.catch_up(log)
    assert not stepwise.catch_up(log)
    log.append(d.ENDED, "m", {"rollout": rollout, "outcome": d.PROMOTED})
    stepwise.catch_up(log)
    reader.refresh()
    whole = Desired()
    whole.catch_up(reader)
    assert whole.endpoints == stepwise.endpoints
    assert whole.endpoints["m"].stable.ref == "m:1"
    assert whole.head == stepwise.head == log.head
