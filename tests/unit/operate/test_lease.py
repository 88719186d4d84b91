"""Two homes on one store: one leads, the other waits while it lives, and follows it when it doesn't."""

import pytest

from argosy.core.clock import FakeClock
from argosy.operate.desired import ELECTED
from argosy.operate.lease import BEAT_S, KEY, LEASE_S, Lease
from argosy.registry.backends.memory import MemoryStore
from controller_world import World


class Home:
    """One home on a common store and log, with a clock of its own that may be years off."""

    def __init__(self, name, store, log, ahead_s=0.0):
        self.clock = FakeClock()
        self.clock.advance(ahead_s)
        self.lease = Lease(store, self.clock, name, f"host-of-{name}")
        self.log = log
        self.epoch = 0

    def holder(self, after_s=0.0):
        self.clock.advance(after_s)
        return self.lease.holder(self.log)

    def lead(self):
        self.epoch = self.log.append(ELECTED, "controller", self.lease.claim).seq
        self.lease.lead(self.epoch)
        self.lease.beat()


@pytest.fixture
def homes():
    store, world = MemoryStore(), World(1, troubles=False)
    log = world.registry.log
    return Home("a", store, log), Home("b", store, log, ahead_s=1e8), store


def test_the_first_home_leads_and_its_own_next_controller_needs_no_patience(homes):
    a, _, _ = homes
    assert a.holder() == ""
    a.lead()
    assert a.holder() == ""


def test_another_home_waits_while_the_leader_shows_that_it_lives(homes):
    a, b, _ = homes
    a.lead()
    for _ in range(20):
        assert b.holder(after_s=BEAT_S) == "host-of-a"
        a.clock.advance(BEAT_S)
        a.lease.beat()


def test_it_follows_a_silent_leader_and_that_one_then_waits(homes):
    a, b, _ = homes
    a.lead()
    assert b.holder() == "host-of-a"
    assert b.holder(after_s=LEASE_S - 0.1) == "host-of-a"
    assert b.holder(after_s=0.2) == ""
    b.lead()
    # A frozen leader that thaws writes its sign once more before it is deposed: that is no sign of life.
    a.clock.advance(100.0)
    a.lease.beat()
    assert a.holder() == "host-of-b"
    b.clock.advance(BEAT_S)
    b.lease.beat()
    assert a.holder(after_s=1.0) == "host-of-b"


def test_a_leader_that_stopped_in_order_is_followed_at_once(homes):
    a, b, _ = homes
    a.lead()
    assert b.holder() == "host-of-a"
    a.lease.release()
    assert b.holder() == ""


@pytest.mark.parametrize("content", [b"", b"{", b'{"epoch": "x"}', b'{"epoch": 1, "beat": 1}'])
def test_a_leader_whose_sign_cannot_be_read_is_given_the_same_time(homes, content):
    a, b, store = homes
    a.lead()
    a.lead()
    store.put(KEY, content)
    assert b.holder() == "host-of-a"
    assert b.holder(after_s=LEASE_S / 2) == "host-of-a"
    assert b.holder(after_s=LEASE_S / 2) == ""
