import threading
import time
from pathlib import Path

import numpy as np
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import ArgosyError, DeadlineExceeded
from argosy.train.shared_memory import Segment, SharedMemoryTransport
from ranks import run_ranks


class Frozen(SharedMemoryTransport):
    """A rank that gives no sign of life after its first, as one that got SIGSTOP."""

    def _beat_until_closed(self, beat_s):
        self._closed.wait()


def test_a_frozen_rank_is_lost_to_the_others_after_the_silence_and_not_before():
    segment = Segment.create(2)
    started = time.monotonic()
    fields = {"silence_s": 0.3, "deadline_s": 60.0, "beat_s": 0.02}

    def join(rank):
        kind = Frozen if rank.rank else SharedMemoryTransport
        transport = kind.join(segment, rank.rank, **fields)
        if rank.rank == 0:
            try:
                transport.all_reduce(np.zeros(3))
            finally:
                transport.close()
        else:
            transport._closed.wait(1.5)
            transport.close()

    with pytest.raises(ArgosyError, match=r"rank 1 gave no sign of life for 0\.\d s") as caught:
        run_ranks([Rank(0), Rank(1)], join, seconds=10.0)
    assert caught.value.code == "rank_lost"
    assert time.monotonic() - started >= 0.3


class Rank:
    def __init__(self, rank):
        self.rank = rank

    def close(self, failed=False):
        pass


def test_joining_ends_with_an_error_when_a_rank_never_comes_up():
    segment = Segment.create(2)
    with pytest.raises(DeadlineExceeded, match=r"waited 0\.1 s for the other ranks to join"):
        SharedMemoryTransport.join(segment, 0, join_s=0.1)
    assert not segment.is_joined()


def test_the_job_sees_how_long_a_rank_has_been_silent():
    clock = FakeClock()
    segment = Segment.create(1)
    assert segment.silent_s(0, clock) == -1.0
    transport = SharedMemoryTransport.join(segment, 0, clock=clock, beat_s=600.0)
    clock.advance(7.5)
    assert segment.silent_s(0, clock) == pytest.approx(7.5)
    transport.close()
    assert segment.silent_s(0, clock) == -1.0
    assert segment.is_left()


def test_a_rank_that_failed_has_not_left():
    segment = Segment.create(1)
    SharedMemoryTransport.join(segment, 0).close(failed=True)
    assert not segment.is_left()


def test_the_memory_has_no_name_that_could_be_left_behind():
    before = set(Path("/dev/shm").iterdir())
    segment = Segment.create(2)
    assert "memfd" in str(Path(segment.path).readlink())
    assert set(Path("/dev/shm").iterdir()) == before


def test_another_process_of_the_machine_finds_the_sizes_in_the_memory():
    segment = Segment.create(3, slot_bytes=8192)
    again = Segment.open(segment.path)
    assert (again.world_size, again.slot_bytes) == (3, 8192)
    segment.slots[1, 2, 5] = 77
    assert again.slots[1, 2, 5] == 77


@pytest.mark.capability("T7")
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_after_a_loss_all_ranks_and_a_new_one_stand_before_the_same_exchange(lost):
    segment = Segment.create(3)
    segment.is_replacing = True
    gone, again = threading.Event(), {}

    def go_on(transport):
        assert transport.regroup()
        told = np.full(2, 40.0 + transport.rank)
        transport.broadcast(told, transport.first_with_state())
        if transport.is_fresh:
            transport.adopted()
        values = np.full(5, 1.0 + transport.rank)
        transport.all_reduce(values)
        return told[0], values[0], transport.first_with_state()

    def work(rank):
        transport = SharedMemoryTransport.join(segment, rank.rank, deadline_s=20.0)
        transport.all_reduce(np.zeros(3))
        if rank.rank == lost:
            transport.close(failed=True)
            gone.set()
            return again["result"] if again["thread"].join(20.0) is None else None
        with pytest.raises(ArgosyError) as caught:
            transport.all_reduce(np.zeros(3))
        assert caught.value.code == "rank_lost"
        found = go_on(transport)
        transport.close()
        return found

    def replace():
        assert gone.wait(20.0)
        segment.lose(lost)
        assert segment.begin_generation() == 1
        transport = SharedMemoryTransport.join(segment, lost)
        assert transport.is_fresh
        again["result"] = go_on(transport)
        transport.close()

    again["thread"] = threading.Thread(target=replace)
    again["thread"].start()
    found = run_ranks([Rank(0), Rank(1), Rank(2)], work, seconds=30.0)
    assert found == [(41.0 if lost == 0 else 40.0, 6.0, 0)] * 3


def test_ranks_stop_waiting_for_a_new_one_when_the_job_gives_up():
    segment = Segment.create(2)
    segment.is_replacing = True

    def work(rank):
        transport = SharedMemoryTransport.join(segment, rank.rank)
        if rank.rank == 1:
            transport.close(failed=True)
            segment.is_replacing = False
            return None
        with pytest.raises(ArgosyError):
            transport.meet()
        found = transport.regroup()
        transport.close(failed=True)
        return found

    assert run_ranks([Rank(0), Rank(1)], work, seconds=30.0) == [False, None]


def test_the_area_outlives_every_rank_and_is_found_through_the_segment():
    segment = Segment.create(1)
    Segment.open(segment.path).area(64)[5] = 9
    assert segment.area(64).tolist() == [0] * 5 + [9] + [0] * 58
