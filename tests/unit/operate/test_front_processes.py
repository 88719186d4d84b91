"""As many fronts run as are wanted, with the settings that are wanted, whatever becomes of them."""

from types import SimpleNamespace

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.operate.front_processes import ROLE, FrontProcesses
from argosy.serve.control import GatewayStatus

STATUS = GatewayStatus(pid=1, host="127.0.0.1", port=8700, started=0.0)


class World:
    def __init__(self):
        self.clock = FakeClock()
        self.launcher = MemoryLauncher(self.clock)
        self.hosts = "one"
        self.fronts = FrontProcesses(
            self.launcher, self.clock, lambda desired, name, port: {"name": name, "port": port, "hosts": self.hosts}
        )

    def look(self, count, status=STATUS):
        self.clock.advance(1.0)
        self.fronts.ensure(SimpleNamespace(gateway=SimpleNamespace(fronts=count)), status)
        return self.alive()

    def alive(self):
        return sorted(info.name for info in self.launcher.list(ROLE) if info.alive)


@pytest.fixture
def world():
    return World()


def test_as_many_run_as_are_wanted(world):
    assert world.look(0) == []
    assert len(world.look(3)) == 3
    assert len(world.look(1)) == 1
    assert world.look(0) == []


def test_none_is_started_before_the_gateway_answers(world):
    assert world.look(2, status=None) == []


def test_the_port_is_free_for_a_gateway_that_is_to_do_without_them(world):
    world.look(2)
    assert world.look(0, status=None) == []


def test_a_dead_one_is_replaced_under_its_name(world):
    names = world.look(2)
    world.launcher.end(names[0])
    assert len(world.alive()) == 1
    for _ in range(3):
        world.look(2)
    assert world.alive() == names


def test_other_settings_start_others_in_their_place(world):
    former = world.look(2)
    world.hosts = "two"
    for _ in range(3):
        world.look(2)
    assert len(world.alive()) == 2
    assert not set(world.alive()) & set(former)


def test_one_that_does_not_start_is_not_started_without_end(world):
    starts = 0
    for _ in range(60):
        for name in world.look(1):
            starts += 1
            world.launcher.end(name)
    assert 3 <= starts <= 15


def test_all_end_with_the_gateway(world):
    world.look(3)
    world.fronts.stop()
    assert world.alive() == []
