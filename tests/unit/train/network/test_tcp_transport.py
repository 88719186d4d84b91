"""What the TCP transport has beyond the Protocol: parts, single ranks, codecs, the background."""

import socket
import threading

import numpy as np
import pytest

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.train.network import mesh
from argosy.train.network.codecs import BlockInt8, Half
from network_ranks import tcp_ranks
from ranks import run_ranks

COUNTS = [0, 1, 2, 5, 8193, 1_000_001]


@pytest.fixture
def narrow(monkeypatch):
    """Let the kernel keep little, so that everything goes through in small pieces, at changing times."""
    tune = mesh._tune

    def narrow_too(connection):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32768)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)
        tune(connection)

    monkeypatch.setattr(mesh, "_tune", narrow_too)


@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("codec", [None, BlockInt8], ids=["plain", "coded"])
def test_narrow_connections_change_no_bit_and_stop_nobody(narrow, size, codec):
    count = 400_000
    values = np.random.default_rng(1).normal(size=(size, count)).astype(np.float32)

    def work(transport):
        found, behind = values[transport.rank].copy(), values[transport.rank].copy()
        pending = transport.start_all_reduce(behind, codec=codec and codec())
        transport.all_reduce(found, codec=codec and codec())
        pending.wait()
        transport.broadcast(behind, size - 1)
        return found, behind

    results = run_ranks(tcp_ranks(size), work)
    expected = results[0][0].tobytes()
    assert all(found.tobytes() == behind.tobytes() == expected for found, behind in results)
    if codec is None:
        exact = values[0]
        for more in values[1:]:
            exact = exact + more
        assert exact.tobytes() == expected


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("size", [2, 3, 5])
def test_parts_that_are_summed_and_gathered_give_the_bits_of_a_whole_sum(size, count):
    values = np.random.default_rng(count).normal(size=(size, count)).astype(np.float32)

    def work(transport):
        whole, parts = values[transport.rank].copy(), values[transport.rank].copy()
        transport.all_reduce(whole)
        mine = transport.reduce_scatter(parts)
        assert parts[mine].tobytes() == whole[mine].tobytes()
        transport.all_gather(parts)
        return whole, parts

    for whole, parts in run_ranks(tcp_ranks(size), work):
        assert whole.tobytes() == parts.tobytes()


@pytest.mark.parametrize("count", [1, 9000, 700_001])
@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.capability("T5")
def test_coded_sums_have_the_same_bits_on_all_ranks_and_lose_no_more_than_the_codec(size, count):
    values = np.random.default_rng(size).normal(size=(size, count)).astype(np.float32)

    def work(transport):
        found = values[transport.rank].copy()
        transport.all_reduce(found, codec=BlockInt8(256))
        return found

    found = run_ranks(tcp_ranks(size), work)
    assert all(each.tobytes() == found[0].tobytes() for each in found)
    exact = values.astype(np.float64).sum(axis=0)
    # Every rank's numbers and, when parts are summed, the sums are rounded once, each by 1/254 of the largest at most.
    bound = (np.abs(values).max() * size + np.abs(exact).max()) / 254
    assert np.abs(found[0] - exact).max() <= bound


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.capability("T5")
def test_with_error_feedback_nothing_is_lost_for_good(size):
    count, rounds = 20_000, 30
    values = np.random.default_rng(3).normal(size=(size, count)).astype(np.float32)

    def work(transport):
        error, total = np.zeros(count, np.float32), np.zeros(count)
        for _ in range(rounds):
            found = values[transport.rank].copy()
            transport.all_reduce(found, codec=BlockInt8(1024), error=error)
            total += found
        return total, error

    found = run_ranks(tcp_ranks(size), work)
    exact = rounds * values.astype(np.float64).sum(axis=0)
    errors = np.sum([error for _, error in found], axis=0)
    # What has come and what still waits is all there was, up to float32's rounding of the sums.
    assert np.abs(found[0][0] + errors - exact).max() < 1e-3
    assert np.abs(found[0][0] - exact).max() < np.abs(exact).max() / 100


def test_ranks_with_other_codecs_are_told_apart():
    def work(transport):
        transport.all_reduce(np.ones(10, np.float32), codec=Half() if transport.rank else BlockInt8())

    with pytest.raises(InvalidInput, match="different things") as caught:
        run_ranks(tcp_ranks(2), work)
    assert caught.value.code == "ranks_differ"


def test_numbers_that_cannot_be_coded_stop_all_ranks():
    told = []

    def work(transport):
        values = np.ones(100, np.float32)
        values[7] = np.nan if transport.rank else 1.0
        try:
            transport.all_reduce(values, codec=Half())
        except ArgosyError as error:
            told.append((transport.rank, error.code))
            raise

    with pytest.raises(InvalidInput, match="infinite or not a number"):
        run_ranks(tcp_ranks(2), work, seconds=10.0)
    assert sorted(told) == [(0, "rank_lost"), (1, "not_finite")]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.capability("T5")
def test_an_exchange_in_the_background_lets_others_pass(size):
    large = 2_000_000
    may_go_on = threading.Event()

    def work(transport):
        values = np.full(large, transport.rank + 1.0, np.float32)
        if transport.rank == size - 1:
            # This rank is late with its large sum; meanwhile all exchange small ones.
            small = np.ones(3)
            for _ in range(20):
                transport.all_reduce(small)
            may_go_on.set()
            pending = transport.start_all_reduce(values)
        else:
            pending = transport.start_all_reduce(values)
            small = np.ones(3)
            for _ in range(20):
                transport.all_reduce(small)
            assert not pending.is_done() or may_go_on.is_set()
        pending.wait()
        return values, small

    for values, small in run_ranks(tcp_ranks(size), work):
        assert (values == size * (size + 1) / 2).all()
        assert small.tolist() == [float(size) ** 20] * 3


def test_exchanges_in_the_background_keep_their_order_and_may_be_many():
    def work(transport):
        arrays = [np.full(1 + 1000 * number, transport.rank + number, np.float64) for number in range(40)]
        pending = [transport.start_all_reduce(values) for values in arrays]
        for each in pending:
            each.wait()
        return arrays

    for arrays in run_ranks(tcp_ranks(2), work):
        assert all((values == 2 * number + 1).all() for number, values in enumerate(arrays))


def test_leaving_waits_for_what_goes_on_in_the_background():
    arrays = [np.full(500_000, rank + 1.0, np.float32) for rank in range(2)]

    def work(transport):
        transport.start_all_reduce(arrays[transport.rank])

    run_ranks(tcp_ranks(2), work)
    assert all((values == 3.0).all() for values in arrays)


@pytest.mark.capability("T7")
def test_an_exchange_in_the_background_with_a_rank_that_fails_fails():
    def work(transport):
        if transport.rank == 1:
            raise ZeroDivisionError
        pending = transport.start_all_reduce(np.ones(10))
        with pytest.raises(ArgosyError, match="rank 1 stopped with an error") as caught:
            pending.wait()
        assert caught.value.code == "rank_lost"

    with pytest.raises(ZeroDivisionError):
        run_ranks(tcp_ranks(2), work, seconds=10.0)


@pytest.mark.capability("T7")
def test_a_rank_that_failed_because_of_another_names_the_other_one():
    told = {}

    def work(transport):
        if transport.rank == 2:
            transport.close(failed=True)
            raise ZeroDivisionError
        if transport.rank == 0:
            # Not in an exchange: hears of rank 2 only when it comes to one.
            told["ready"] = True
        try:
            transport.all_reduce(np.ones(4))
        except ArgosyError as error:
            told[transport.rank] = str(error)
            raise

    with pytest.raises(ZeroDivisionError):
        run_ranks(tcp_ranks(3), work, seconds=10.0)
    assert "rank 2 stopped with an error" in told[0]
    assert "rank 2 stopped with an error" in told[1]


def test_single_ranks_send_and_receive():
    def work(transport):
        values = np.arange(300_000.0) * (transport.rank + 1)
        if transport.rank == 0:
            transport.send(values, 2)
            transport.receive(values, 1)
        elif transport.rank == 1:
            transport.send(values, 0)
        else:
            transport.receive(values, 0)
        return values[1]

    assert run_ranks(tcp_ranks(3), work) == [2.0, 2.0, 1.0]


@pytest.mark.parametrize("root", range(7))
def test_broadcasts_reach_all_ranks_of_a_deep_tree(root):
    def work(transport):
        values = np.full(100_000, transport.rank)
        transport.broadcast(values, root)
        return set(values.tolist())

    assert run_ranks(tcp_ranks(7), work) == [{root}] * 7


def test_after_an_error_no_exchange_is_tried_again():
    def work(transport):
        with pytest.raises(InvalidInput, match="different things") as first:
            transport.all_reduce(np.zeros(3 + transport.rank))
        with pytest.raises(InvalidInput, match="different things") as second:
            transport.all_reduce(np.zeros(3))
        assert second.value is first.value

    run_ranks(tcp_ranks(2), work)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: t.all_reduce(np.ones(3), codec=Half()), "takes float32, not float64"),
        (lambda t: t.all_reduce(np.ones(3, "f4"), codec=Half(), error=np.ones(2, "f4")), "not 2"),
        (lambda t: t.send(np.ones(3), t.rank), "can't exchange numbers with rank"),
        (lambda t: t.receive(np.ones(3), 9), "can't exchange numbers with rank 9"),
    ],
)
def test_calls_that_make_no_sense_are_refused(call, message):
    with pytest.raises(InvalidInput, match=message):
        run_ranks(tcp_ranks(2), call)


def test_a_training_of_one_rank_needs_no_network():
    def work(transport):
        values = np.ones(3, np.float32)
        transport.all_reduce(values, codec=Half())
        transport.start_all_reduce(values).wait()
        transport.broadcast(values)
        assert transport.reduce_scatter(values) == slice(0, 3)
        transport.all_gather(values)
        return values.tolist()

    assert run_ranks(tcp_ranks(1), work) == [[1.0, 1.0, 1.0]]
