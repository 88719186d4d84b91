"""Gathering and scattering in shared memory, with threads as ranks."""

import pytest
import torch

from argosy.core.errors import InvalidInput, Unavailable
from argosy.train.slots import Slots
from argosy.train.transport import MemoryTransport
from ranks import run_ranks

SLOT_BYTES = 600
"""Small, so that most exchanges take several slots, the last one not full."""


def exchange(workers, work):
    return run_ranks(MemoryTransport.group(workers), lambda host: work(Slots(host, SLOT_BYTES), host.rank))


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("length", [0, 1, 16, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
def test_gathering_gives_the_parts_of_all_ranks_in_their_order(workers, length, dtype):
    def work(slots, rank):
        found = []
        for turn in range(3):
            whole = torch.zeros(workers * length, dtype=dtype)
            part = whole[rank * length : (rank + 1) * length]
            part.fill_(rank + turn)
            slots.gather(whole, part)
            found.append(whole)
            apart = torch.zeros(workers * length, dtype=dtype)
            slots.gather(apart, part.clone())
            found.append(apart)
        return found

    expected = [torch.arange(workers).repeat_interleave(length) + turn for turn in range(3) for _ in range(2)]
    for found in exchange(workers, work):
        assert all(torch.equal(one, other.to(dtype)) for one, other in zip(found, expected, strict=True))


def test_a_rank_may_give_without_taking():
    def work(slots, rank):
        whole = torch.zeros(200) if rank == 0 else None
        slots.gather(whole, torch.full((100,), float(rank)))
        return whole

    first, second = exchange(2, work)
    assert first.sum() == 100
    assert second is None


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("length", [1, 1000])
def test_scattering_gives_each_rank_the_sum_of_its_part_to_the_same_bits_as_adding_in_order(workers, length):
    draw = torch.Generator().manual_seed(1)
    given = torch.randn(workers, workers * length, generator=draw)

    def work(slots, rank):
        found = torch.empty(length)
        for _ in range(3):
            slots.reduce_scatter(found, given[rank])
        return found

    total = given[0].clone()
    for row in given[1:]:
        total += row
    assert torch.equal(torch.cat(exchange(workers, work)), total)


def test_ranks_that_exchange_different_things_are_told_so():
    def work(slots, rank):
        slots.gather(None, torch.zeros(10 + rank))

    with pytest.raises(
        InvalidInput, match="rank 0 gathers parts of 40 bytes, rank 1 gathers parts of 44 bytes"
    ) as caught:
        exchange(2, work)
    assert caught.value.code == "ranks_differ"


def test_a_rank_that_waits_for_a_lost_one_is_told_so():
    def work(slots, rank):
        if rank == 0:
            with pytest.raises(Unavailable) as caught:
                slots.gather(None, torch.zeros(10))
            return caught.value.code
        return None

    assert exchange(2, work) == ["rank_lost", None]
