"""Ranks on several hosts: who is who, what crosses the network, and what is said when a host is lost."""

import numpy as np
import pytest

from argosy.core.errors import ArgosyError
from argosy.train.network.codecs import BlockInt8
from argosy.train.network.outer import AVERAGING, LocalRounds
from argosy.train.network.reductions import open_reduction
from network_ranks import ranks_on_hosts
from ranks import run_ranks

HOSTS = [[1], [3], [1, 1], [2, 2], [1, 3], [3, 1, 2]]


@pytest.mark.parametrize("sizes", HOSTS, ids=str)
@pytest.mark.capability("T1")
def test_all_ranks_of_all_hosts_get_the_same_sum_in_front_and_behind(sizes):
    count = 50_000
    values = np.random.default_rng(0).normal(size=(sum(sizes), count)).astype(np.float32)

    def work(transport):
        assert transport.world_size == sum(sizes)
        assert transport.hosts == len(sizes)
        front, behind = values[transport.rank].copy(), values[transport.rank].copy()
        pending = transport.start_all_reduce(behind)
        transport.all_reduce(front)
        pending.wait()
        assert pending.is_done()
        pending.wait()
        assert front.tobytes() == behind.tobytes()
        return front

    found = run_ranks(ranks_on_hosts(sizes), work)
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    assert np.abs(found[0] - values.astype(np.float64).sum(axis=0)).max() < 1e-5


@pytest.mark.parametrize("sizes", HOSTS, ids=str)
def test_a_broadcast_may_come_from_any_rank(sizes):
    def work(transport):
        found = []
        for root in range(transport.world_size):
            values = np.full(1000, transport.rank)
            transport.broadcast(values, root)
            found.append(set(values.tolist()))
        return found

    for found in run_ranks(ranks_on_hosts(sizes), work):
        assert found == [{root} for root in range(sum(sizes))]


@pytest.mark.capability("T5")
def test_only_what_crosses_the_network_is_coded():
    values = np.random.default_rng(1).normal(size=(4, 5000)).astype(np.float32)

    def work(transport):
        error, found = np.zeros(5000, np.float32), values[transport.rank].copy()
        transport.all_reduce(found, codec=BlockInt8(), error=error)
        return found, error

    results = run_ranks(ranks_on_hosts([2, 2]), work)
    assert all(found.tobytes() == results[0][0].tobytes() for found, _ in results)
    assert [bool(error.any()) for _, error in results] == [True, False, True, False]
    kept = results[0][1] + results[2][1]
    assert np.abs(results[0][0] + kept - values.sum(axis=0)).max() < 1e-5


@pytest.mark.capability("T5")
def test_local_rounds_work_over_hosts():
    def work(transport):
        parameters = np.zeros(4, np.float32)
        rounds = LocalRounds(
            parameters,
            open_reduction("fp16", transport),
            world_size=4,
            interval=2,
            step=AVERAGING,
            overlap="delayed",
            delay=1,
        )
        for _ in range(6):
            parameters += 1.0 + transport.rank
            rounds.step_done(parameters)
        rounds.settle(parameters)
        return parameters.tolist()

    assert run_ranks(ranks_on_hosts([2, 2]), work) == [[15.0] * 4] * 4


@pytest.mark.capability("T7")
def test_a_host_that_fails_is_named_as_a_host_and_all_ranks_are_told():
    told = {}

    def work(transport):
        if transport.rank == 2:
            raise ZeroDivisionError
        try:
            transport.all_reduce(np.ones(5))
        except ArgosyError as error:
            told[transport.rank] = error
            raise

    with pytest.raises(ZeroDivisionError):
        run_ranks(ranks_on_hosts([2, 2]), work, seconds=15.0)
    assert sorted(told) == [0, 1, 3]
    assert {error.code for error in told.values()} == {"rank_lost"}
    assert "host 1 stopped with an error" in str(told[0])
    assert told[0].context["host"] == 1
