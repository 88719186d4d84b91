"""Slow clients are looked for a few at a time."""

from argosy.serve.connection import ROUND_S, Rounds

STEP_S = 0.025


class Slow:
    """A client whose time is up at some moment."""

    def __init__(self, connections, until):
        self.connections, self.until = connections, until
        self.looks = []
        connections.add(self)

    def check(self, now):
        self.looks.append(now)
        if now >= self.until:
            self.connections.discard(self)


def test_hundreds_whose_time_is_up_at_once_are_closed_soon_but_never_all_in_one_step():
    connections = set()
    for _ in range(500):
        Slow(connections, until=2.0)
    rounds, now, left, most = Rounds(connections), 0.0, 500, 0
    while now < 2.0 + 2 * ROUND_S:
        rounds.step(now)
        most, left = max(most, left - len(connections)), len(connections)
        now += STEP_S
    assert not connections
    assert 0 < most <= 51


def test_each_is_looked_at_once_a_round_however_few_there_are():
    connections = set()
    clients = [Slow(connections, until=100.0) for _ in range(3)]
    rounds = Rounds(connections)
    for step in range(400):
        rounds.step(step * STEP_S)
    for client in clients:
        assert 38 <= len(client.looks) <= 41


def test_clients_that_come_while_a_round_is_under_way_are_in_the_next_one():
    connections = set()
    for _ in range(100):
        Slow(connections, until=100.0)
    rounds = Rounds(connections)
    rounds.step(0.0)
    late = Slow(connections, until=0.0)
    for step in range(1, 25):
        rounds.step(step * STEP_S)
    assert late.looks
    assert late not in connections
