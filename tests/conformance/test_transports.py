"""What every transport keeps, checked against each of them."""

import threading

import numpy as np
import pytest

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.train.shared_memory import Segment, SharedMemoryTransport
from argosy.train.transport import MemoryTransport
from network_ranks import ranks_on_hosts, tcp_ranks
from ranks import run_ranks


def in_memory(size, deadline_s=30.0):
    return MemoryTransport.group(size, deadline_s=deadline_s)


def in_shared_memory(size, deadline_s=30.0):
    segment = Segment.create(size, slot_bytes=64 * 1024)
    found = [None] * size

    def join(rank):
        # Opened again by its path, as another process would.
        found[rank] = SharedMemoryTransport.join(
            segment.path, rank, join_s=30.0, silence_s=5.0, deadline_s=deadline_s, beat_s=0.05
        )

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    segment.close()
    return found


def over_tcp(size, deadline_s=30.0):
    return tcp_ranks(size, deadline_s=deadline_s)


def on_hosts_of_two(size, deadline_s=30.0):
    """The first host has up to two ranks, so sums of three are still added in the order of ranks."""
    return ranks_on_hosts([2, 1] if size == 3 else [size], deadline_s=deadline_s)


@pytest.fixture(params=[in_memory, in_shared_memory, over_tcp, on_hosts_of_two])
def transports(request):
    return request.param


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_all_ranks_get_the_sum_of_all(transports, size, dtype):
    def work(transport):
        values = (np.arange(7) * (transport.rank + 1)).astype(dtype)
        transport.all_reduce(values)
        return values

    for values in run_ranks(transports(size), work):
        assert values.dtype.name == dtype
        assert values.tolist() == [number * sum(range(1, size + 1)) for number in range(7)]


@pytest.mark.parametrize("count", [0, 1, 4096, 8192, 8193, 100_001])
def test_sums_of_any_length_are_exact_and_the_same_bits_on_every_rank(transports, count):
    parts = np.random.default_rng(count).normal(size=(3, count))

    def work(transport):
        values = parts[transport.rank].copy()
        transport.all_reduce(values)
        return values

    found = run_ranks(transports(3), work)
    assert np.array_equal(found[0], parts[0] + parts[1] + parts[2])
    assert all(values.tobytes() == found[0].tobytes() for values in found)


def test_many_exchanges_in_a_row_of_changing_sizes_never_mix(transports):
    sizes = [3, 20_000, 1, 0, 9_000, 5] * 15

    def work(transport):
        sums = []
        for number, size in enumerate(sizes):
            values = np.full(size, number * 10.0 + transport.rank)
            transport.all_reduce(values)
            sums.append(set(values.tolist()))
        return sums

    for sums in run_ranks(transports(2), work):
        assert sums == [{number * 20.0 + 1} if size else set() for number, size in enumerate(sizes)]


@pytest.mark.parametrize("root", [0, 1])
@pytest.mark.parametrize("count", [5, 30_000])
def test_a_broadcast_gives_all_ranks_the_values_of_the_root(transports, root, count):
    def work(transport):
        values = np.full((count, 2), float(transport.rank + 5))
        transport.broadcast(values, root)
        return values

    for values in run_ranks(transports(2), work):
        assert (values == root + 5).all()


def test_exchanges_of_different_sizes_are_told_apart(transports):
    def work(transport):
        transport.all_reduce(np.zeros(3 + transport.rank))

    with pytest.raises(InvalidInput, match=r"rank 0 .*3 float64.*rank 1 .*4 float64") as caught:
        run_ranks(transports(2), work)
    assert caught.value.code == "ranks_differ"


def test_a_sum_on_one_rank_and_a_broadcast_on_the_other_are_told_apart(transports):
    def work(transport):
        values = np.zeros(3)
        if transport.rank:
            transport.all_reduce(values)
        else:
            transport.broadcast(values)

    with pytest.raises(InvalidInput, match="different things"):
        run_ranks(transports(2), work)


@pytest.mark.capability("T7")
def test_ranks_that_wait_for_one_that_failed_are_told_at_once(transports):
    told = []

    def work(transport):
        if transport.rank == 1:
            raise ZeroDivisionError
        try:
            transport.all_reduce(np.zeros(3))
        except ArgosyError as error:
            told.append(error)
            raise

    with pytest.raises(ZeroDivisionError):
        run_ranks(transports(2), work, seconds=5.0)
    assert told[0].code == "rank_lost"
    assert "rank 1" in str(told[0])


def test_ranks_that_wait_for_one_that_has_left_are_told_at_once(transports):
    def work(transport):
        if transport.rank == 0:
            transport.all_reduce(np.zeros(3))

    with pytest.raises(ArgosyError, match="rank 1 has left") as caught:
        run_ranks(transports(2), work, seconds=5.0)
    assert caught.value.code == "rank_lost"


def test_no_rank_waits_longer_than_the_deadline_for_one_that_lives_but_does_not_come(transports):
    released = threading.Event()

    def work(transport):
        if transport.rank == 1:
            released.wait(20.0)
            return
        try:
            transport.all_reduce(np.zeros(3))
        finally:
            released.set()

    with pytest.raises(ArgosyError) as caught:
        run_ranks(transports(2, deadline_s=0.2), work, seconds=10.0)
    assert caught.value.code == "rank_lost"


def test_a_rank_may_leave_right_after_its_last_exchange(transports):
    def work(transport):
        values = np.ones(4)
        transport.all_reduce(values)
        return values.tolist()

    for _ in range(10):
        assert run_ranks(transports(2), work) == [[2.0] * 4] * 2


@pytest.mark.parametrize("values", [np.zeros(4, np.float16), np.zeros((4, 4))[:, 1], np.zeros(3, complex)])
def test_arrays_that_no_transport_takes_are_refused(transports, values):
    with pytest.raises(InvalidInput, match="contiguous arrays of float32"):
        run_ranks(transports(1), lambda transport: transport.all_reduce(values))
