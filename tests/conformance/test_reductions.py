"""What every reduction keeps, over a transport that compresses and one that does not."""

import numpy as np
import pytest

from argosy.core.errors import InvalidInput, NotFound
from argosy.train.network.reductions import open_reduction
from argosy.train.transport import MemoryTransport
from network_ranks import tcp_ranks
from ranks import run_ranks

SHAPES = [(40, 30), (40,), (20, 5, 3, 3), (7,), ()]
COUNT = 40 * 30 + 40 + 20 * 45 + 7 + 1
NAMES = ["none", "fp16", "int8", "int8:256", "top-k:0.2", "powersgd:2"]


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=[MemoryTransport.group, tcp_ranks], ids=["memory", "tcp"])
def group(request):
    return request.param


def parts(size):
    return np.random.default_rng(size).normal(size=(size, COUNT)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.capability("T5")
def test_all_ranks_get_the_same_bits(group, name, size):
    values = parts(size)

    def work(transport):
        reduction = open_reduction(name, transport, SHAPES)
        found = [values[transport.rank].copy() for _ in range(3)]
        for each in found:
            reduction.sum(each)
        return np.concatenate(found)

    found = run_ranks(group(size), work)
    assert all(each.tobytes() == found[0].tobytes() for each in found)


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.capability("T5")
def test_what_is_lost_comes_later(group, name, size):
    values, rounds = parts(size), 60
    exact = values.astype(np.float64).sum(axis=0)

    def work(transport):
        reduction, total = open_reduction(name, transport, SHAPES), np.zeros(COUNT)
        for _ in range(rounds):
            found = values[transport.rank].copy()
            reduction.sum(found)
            total += found
        return total / rounds

    found = run_ranks(group(size), work)[0]
    # Random matrices are the worst case for factors of low rank: what waits is large there.
    assert np.linalg.norm(found - exact) < 0.4 * np.linalg.norm(exact)
    if "int8" in name or name in {"none", "fp16"}:
        assert np.linalg.norm(found - exact) < 1e-3 * np.linalg.norm(exact)


def test_begun_in_the_background_it_gives_the_same_bits(group, name):
    values = parts(2)

    def work(transport):
        reductions = [open_reduction(name, transport, SHAPES) for _ in range(2)]
        for _ in range(3):
            now, behind = values[transport.rank].copy(), values[transport.rank].copy()
            reductions[0].sum(now)
            reductions[1].start(behind).wait()
            assert now.tobytes() == behind.tobytes()

    run_ranks(group(2), work)


def test_going_on_from_a_state_gives_the_same_bits(group, name):
    values = parts(2)

    def work(transport):
        first = open_reduction(name, transport, SHAPES, seed=1)
        first.sum(values[transport.rank].copy())
        second = open_reduction(name, transport, SHAPES, seed=2)
        state = first.state()
        assert all(isinstance(value, np.ndarray) for value in state.values())
        second.load_state(state)
        found = [values[transport.rank].copy() for _ in range(2)]
        first.sum(found[0])
        second.sum(found[1])
        assert found[0].tobytes() == found[1].tobytes()
        # A state is a copy: what goes on does not change it.
        third = open_reduction(name, transport, SHAPES, seed=3)
        third.load_state(state)
        again = values[transport.rank].copy()
        third.sum(again)
        assert again.tobytes() == found[0].tobytes()

    run_ranks(group(2), work)


def test_fewer_bytes_go_over_the_wire(name):
    plain = open_reduction("none", MemoryTransport.group(1)[0])
    reduction = open_reduction(name, MemoryTransport.group(1)[0], SHAPES)
    assert plain.wire_bytes(COUNT) == 4 * COUNT
    share = {"none": 1.0, "fp16": 0.51, "int8": 0.26, "int8:256": 0.27, "top-k:0.2": 0.31, "powersgd:2": 0.16}[name]
    assert reduction.wire_bytes(COUNT) <= share * 4 * COUNT


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_not_finite_are_refused_by_whatever_loses_some(group, name, bad):
    if name == "none":
        pytest.skip("what is sent as it is may be anything")

    def work(transport):
        values = np.ones(COUNT, np.float32)
        values[3] = bad
        open_reduction(name, transport, SHAPES).sum(values)

    with pytest.raises(InvalidInput, match="infinite or not a number"):
        run_ranks(group(2), work, seconds=10.0)


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(NotFound, match="'zip' is not one of the known codecs: fp16, int8, top-k"):
        open_reduction("zip", MemoryTransport.group(1)[0])


@pytest.mark.parametrize("name", ["int8:many", "top-k:0", "int8:3", "powersgd:0"])
def test_settings_that_make_no_sense_are_refused_by_name(name):
    with pytest.raises(InvalidInput):
        open_reduction(name, MemoryTransport.group(1)[0], SHAPES)
