"""Measured links, and what is predicted from them."""

import math

import pytest

from argosy.train.network.links import Link, Links, all_reduce_s, measure_links
from network_ranks import tcp_ranks
from ranks import run_ranks


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_ranks_get_the_same_figures_of_all_links(ranks):
    found = run_ranks(tcp_ranks(ranks), measure_links)
    assert all(each == found[0] for each in found)
    assert len(found[0].between) == ranks * (ranks - 1)
    for link in found[0].between.values():
        assert link.bytes_s > 1e6
        assert 0 < link.round_trip_s < 1


def test_the_worst_link_bounds_an_exchange_of_all():
    links = Links(
        world_size=3,
        between={"0>1": Link(bytes_s=5.0, round_trip_s=0.1), "1>2": Link(bytes_s=9.0, round_trip_s=0.3)},
    )
    assert links.worst() == Link(bytes_s=5.0, round_trip_s=0.3)
    assert links.link(1, 2).bytes_s == 9.0
    assert links.all_reduce_s(30.0) == pytest.approx(4 / 3 * 30 / 5 + 0.3)


def test_predictions_are_the_bytes_a_rank_sends_and_the_delays():
    link = Link(bytes_s=100.0, round_trip_s=1.0)
    assert all_reduce_s(link, 1000.0, 1) == 0.0
    assert all_reduce_s(link, 1000.0, 2) == pytest.approx(10.5)
    assert all_reduce_s(link, 1000.0, 4) == pytest.approx(16.0)
    assert link.transfer_s(50.0) == pytest.approx(1.0)


def test_one_rank_alone_has_a_link_that_bounds_nothing():
    assert Links(world_size=1, between={}).worst() == Link(bytes_s=math.inf, round_trip_s=0.0)
