import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from argosy.core.errors import ArgosyError
from argosy.train import commons
from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import Layout
from argosy.train.served import Served
from argosy.train.strategy.parameter_server import ParameterServer
from argosy.train.transport import MemoryTransport
from mortal import Dies, Mortal
from ranks import classes, config, run_ranks, train_single, training_of

pytestmark = pytest.mark.capability("T3")

RATE = 0.25


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(commons, "CHUNK", 16)


def layout():
    return Layout(nn.Linear(9, 13).double())


def gradient(piece, size):
    """Multiples of 2**-10, so that sums are exact in any order."""
    draw = torch.Generator().manual_seed(piece)
    return torch.randint(-99, 99, (size,), generator=draw).double() / 1024


def expected(pieces, size):
    return -RATE * sum((gradient(piece, size) for piece in range(pieces)), torch.zeros(size, dtype=torch.float64))


def work_off(served, pieces, ahead, seen):
    cache = torch.empty_like(served.values)
    while (piece := served.claim(0, 0, pieces, ahead)) is not None:
        seen.append((piece, served.oldest()))
        served.gradients.copy_(gradient(piece, len(cache)))
        served.push(RATE, cache)
    return cache


@pytest.mark.parametrize("ranks", [1, 2, 3, 20])
@pytest.mark.parametrize("ahead", [None, 0, 2])
def test_every_piece_of_work_is_done_once_and_none_too_far_ahead(ranks, ahead):
    """20 ranks are more than there are chunks, so some shards are empty."""
    places, seen = layout(), []

    def work(host):
        served = Served(host, places, Optimizer(TrainConfig(optimizer="sgd")))
        host.meet()
        work_off(served, 50, ahead, seen)
        host.meet()
        return served.values.clone()

    for values in run_ranks(MemoryTransport.group(ranks), work):
        assert torch.equal(values, expected(50, places.size))
    assert sorted(piece for piece, _ in seen) == list(range(50))
    if ahead is not None:
        assert max(piece // ranks - min(oldest, piece) // ranks for piece, oldest in seen) <= ahead


def test_a_rank_pulls_with_its_push_what_others_have_pushed():
    places = layout()

    def work(host):
        served = Served(host, places, Optimizer(TrainConfig(optimizer="sgd")))
        cache = torch.empty_like(served.values)
        host.meet()
        if host.rank == 1:
            served.claim(0, 0, 9, None)
            served.gradients.fill_(4.0)
            served.push(RATE, cache)
        host.meet()
        if host.rank == 0:
            served.claim(0, 0, 9, None)
            served.gradients.fill_(2.0)
            served.push(RATE, cache)
        return cache[0].item()

    assert run_ranks(MemoryTransport.group(2), work) == [-1.5, -1.0]


class _Dying(Mortal, Served):
    """A rank that dies at a given moment, also between claiming, starting and finishing a push."""

    def claim(self, *arguments):
        found = super().claim(*arguments)
        self.pass_moment()
        return found

    def _start(self, shard, row):
        self.pass_moment()
        super()._start(shard, row)
        self.pass_moment()

    def _finish(self, shard):
        super()._finish(shard)
        self.pass_moment()


@pytest.mark.capability("T7")
@settings(max_examples=60)
@given(ranks=st.integers(2, 4), moment=st.integers(0, 120), l1=st.booleans())
def test_whenever_a_rank_dies_its_push_counts_once(ranks, moment, l1):
    """The process that comes in its place does what it had begun; the others don't wait for it meanwhile."""
    places, settings_ = layout(), TrainConfig(optimizer="sgd", l1=2**-9 if l1 else 0.0)

    def work(host):
        served = _Dying(host, places, Optimizer(settings_))
        host.meet()
        if host.rank == 0:
            served.moment = moment
        try:
            work_off(served, 24, None, [])
        except Dies:
            served.moment = -1
            served.take_over(torch.empty_like(served.values))
            work_off(served, 24, None, [])
        host.meet()
        return served.values.clone()

    found = run_ranks(MemoryTransport.group(ranks), work)
    assert all(torch.equal(values, found[0]) for values in found)
    if not l1:
        assert torch.equal(found[0], expected(24, places.size))


def test_a_rank_that_waits_for_one_that_is_lost_is_told():
    places = layout()

    def work(host):
        served = Served(host, places, Optimizer(TrainConfig(optimizer="sgd")))
        host.meet()
        if host.rank == 1:
            served.claim(0, 0, 9, 0)
            host.meet()
            host.close(failed=True)
            return None
        host.meet()
        with pytest.raises(ArgosyError) as caught:
            work_off(served, 9, 0, [])
        return caught.value.code

    assert run_ranks(MemoryTransport.group(2), work) == ["rank_lost", None]


@pytest.mark.parametrize("staleness", [1, 3, "none"])
def test_workers_that_drift_apart_learn_as_well_as_one_process(staleness):
    samples = classes(n=200, validation=100)
    settings_ = config(optimizer="adamw", learning_rate=0.02, epochs=12, max_staleness=staleness)

    def build():
        torch.manual_seed(2)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()

    _, alone = train_single(build, samples, settings_)
    models = [build() for _ in range(3)]

    def work(host):
        training = training_of(models[host.rank], samples, settings_, ParameterServer(host))
        return training.run()

    for position in run_ranks(MemoryTransport.group(3), work):
        assert position.history[-1]["accuracy"] >= alone.history[-1]["accuracy"] - 0.05
        assert position.history[-1]["loss"] < position.history[0]["loss"] / 2
        assert position.step == 12 * 13
