"""The gRPC port that a gateway took for itself is written down, and wished for again."""

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from controller_world import World


@pytest.fixture
def world():
    found = World(1, troubles=False)
    found.rollout = RolloutConfig()
    commands.deploy(found.registry, "m:1")
    return found


def steps(world, count=4):
    for _ in range(count):
        world.step(1.0)


def bound(world):
    return [entry.data for entry in world.entries if entry.kind == d.BOUND]


def wished(world):
    state = d.Desired()
    state.catch_up(world.registry.log)
    return state


def test_both_ports_are_written_down_in_one_entry(world):
    steps(world)
    assert bound(world) == [{"host": "127.0.0.1", "port": 8080, "grpc_port": 8081}]
    assert wished(world).bound_grpc_port == 8081


def test_nothing_is_written_down_while_grpc_is_being_started(world):
    world.gateway.grpc_port = 0
    steps(world)
    assert bound(world) == []
    world.gateway.grpc_port = 8081
    steps(world)
    assert len(bound(world)) == 1


def test_a_gateway_that_had_to_take_another_port_is_found_there(world):
    steps(world)
    world.gateway.grpc_port = 9000
    steps(world)
    assert [data["grpc_port"] for data in bound(world)] == [8081, 9000]


def test_without_grpc_only_the_port_of_http_is_written_down(world):
    world.gateway.grpc_port = -1
    steps(world)
    assert bound(world) == [{"host": "127.0.0.1", "port": 8080}]


def test_a_port_that_was_asked_for_is_not_written_down_again(world):
    commands.set_gateway(world.registry, port=8080, grpc_port=8081)
    steps(world)
    assert bound(world) == []
