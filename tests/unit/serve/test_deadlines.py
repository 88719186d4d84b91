import pytest

from argosy.serve.deadlines import SLOT_S, RetryBudget, Wheel


class Thing:
    def __init__(self, due):
        self.due = due
        self.expired = []

    def expire(self, now):
        self.expired.append(now)


@pytest.mark.parametrize("due", [0.0, 0.01, 0.02, 0.999, 5.0])
def test_a_thing_expires_once_when_it_is_due_and_not_before(due):
    wheel, thing = Wheel(0.0), Thing(due)
    wheel.add(thing)
    now = 0.0
    while now < 6.0:
        wheel.turn(now)
        assert not thing.expired or now >= due
        now += 0.007
    assert len(thing.expired) == 1
    assert thing.expired[0] <= max(due, 0.0) + 2 * SLOT_S + 0.007


def test_a_removed_thing_does_not_expire_and_leaves_nothing_behind():
    wheel = Wheel(0.0)
    for i in range(1000):
        thing = Thing(30.0 + i)
        wheel.add(thing)
        wheel.remove(thing)
    assert wheel._slots == {}
    wheel.turn(2000.0)
    assert thing.expired == []


def test_a_wheel_that_stood_still_for_a_day_catches_up_at_once():
    wheel, thing = Wheel(0.0), Thing(5.0)
    wheel.add(thing)
    wheel.turn(86_400.0)
    assert thing.expired == [86_400.0]
    later = Thing(86_400.5)
    wheel.add(later)
    wheel.turn(86_401.0)
    assert later.expired == [86_401.0]


def test_a_thing_may_set_another_deadline_when_it_expires():
    wheel = Wheel(0.0)

    class Again(Thing):
        def expire(self, now):
            super().expire(now)
            if len(self.expired) < 3:
                self.due = now + 1.0
                wheel.add(self)

    thing = Again(1.0)
    wheel.add(thing)
    for step in range(1000):
        wheel.turn(step / 100)
    assert len(thing.expired) == 3


def test_second_attempts_are_a_tenth_of_the_requests_beyond_the_burst():
    budget = RetryBudget(share=0.1, burst=5)
    assert [budget.spend() for _ in range(6)] == [True] * 5 + [False]
    budget.requests += 20
    assert [budget.spend() for _ in range(3)] == [True, True, False]
