"""What ranks of one machine have beyond a transport: shared memory, a meeting, and parts that others may finish."""

import threading

import numpy as np
import pytest

from argosy.core.errors import ArgosyError
from argosy.train.shared_memory import Segment, SharedMemoryTransport
from argosy.train.transport import MemoryTransport, Solo
from ranks import run_ranks

pytestmark = pytest.mark.capability("T7")


def shared(size):
    segment = Segment.create(size)
    found = [None] * size

    def join(rank):
        found[rank] = SharedMemoryTransport.join(segment.path, rank, deadline_s=20.0)

    threads = [threading.Thread(target=join, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30.0)
    return found


KINDS = {"memory": MemoryTransport.group, "shared-memory": shared}


@pytest.fixture(params=[(kind, size) for kind in KINDS for size in (1, 2, 3)] + [("solo", 1)], ids=str)
def hosts(request):
    kind, size = request.param
    return [Solo()] if kind == "solo" else KINDS[kind](size)


@pytest.fixture(params=KINDS)
def three(request):
    return KINDS[request.param](3)


def test_the_area_begins_with_zeros_and_is_the_same_for_all(hosts):
    def work(host):
        area = host.area(4096)
        assert area.dtype == np.uint8
        host.meet()
        was_zero = not area.any()
        host.meet()
        area[host.rank] = 7 + host.rank
        host.meet()
        return was_zero, area[: host.world_size].tolist()

    size = len(hosts)
    assert run_ranks(hosts, work) == [(True, [7 + rank for rank in range(size)])] * size


def test_nobody_leaves_a_meeting_before_all_have_come(hosts):
    came = []

    def work(host):
        came.append(host.rank)
        host.meet()
        return len(came)

    assert run_ranks(hosts, work) == [len(hosts)] * len(hosts)


def test_nobody_goes_on_before_all_parts_are_done(hosts):
    done = set()

    def work(host):
        host.meet()
        done.add(host.rank)
        host.await_parts(lambda rank: rank not in done, lambda rank: done.add(-rank))
        return len(done)

    assert run_ranks(hosts, work) == [len(hosts)] * len(hosts)


def test_the_part_of_a_lost_rank_is_done_by_the_first_one_that_lives(three):
    done, stood_in = set(), []

    def work(host):
        host.meet()
        if host.rank == 0:
            host.close(failed=True)
            return
        done.add(host.rank)

        def substitute(rank):
            stood_in.append((host.rank, rank))
            done.add(rank)

        host.await_parts(lambda rank: rank not in done, substitute)

    run_ranks(three, work)
    assert stood_in == [(1, 0)]


def test_a_meeting_that_a_lost_rank_has_come_to_takes_place_and_the_next_does_not(three):
    """All who are left must stop at the same place, however late one of them comes there."""
    late = threading.Event()

    def work(host):
        host.meet()
        if host.rank == 1:
            host.close(failed=True)
            late.set()
            return "lost"
        if host.rank == 2:
            assert late.wait(10.0)
        try:
            host.meet()
        except ArgosyError as error:
            return error.code
        return "met"

    assert run_ranks(three, work) == ["rank_lost", "lost", "rank_lost"]


def test_nobody_comes_in_the_place_of_a_rank_that_no_job_watches(hosts):
    def work(host):
        assert not host.is_fresh
        return host.regroup(), host.first_with_state()

    assert run_ranks(hosts, work) == [(False, 0)] * len(hosts)


def test_only_one_rank_at_a_time_holds_a_lock_and_other_locks_are_others(hosts):
    inside, most = [], []

    def work(host):
        for _ in range(200):
            with host.lock(3), host.lock(10 + host.rank):
                inside.append(host.rank)
                most.append(len(inside))
                inside.pop()

    run_ranks(hosts, work)
    assert max(most) == 1


def test_a_rank_waits_its_turn_and_not_for_one_that_is_lost(three):
    done = threading.Event()

    def work(host):
        host.meet()
        if host.rank == 2:
            host.close(failed=True)
            return "lost"
        if host.rank == 1:
            done.set()
        host.await_turn(done.is_set, lambda rank: rank == 1)
        try:
            host.await_turn(lambda: False, lambda rank: rank == 2)
        except ArgosyError as error:
            return error.code
        return "waited"

    assert run_ranks(three, work) == ["rank_lost", "rank_lost", "lost"]
