"""Sparse gradients: few rows of a table are pushed, and the result is that of dense ones to the last bit."""

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from argosy.train import commons
from argosy.train.commons import Commons
from argosy.train.config import TrainConfig
from argosy.train.marks import Marks
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import FlatParameters, Layout
from argosy.train.served import Served
from argosy.train.strategy.contract import open_strategy
from argosy.train.transport import MemoryTransport, Solo
from mortal import Dies, Mortal
from ranks import classes, config, run_ranks, training_of

pytestmark = pytest.mark.capability("T3")

WORDS, WIDTH = 300, 7


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(commons, "CHUNK", 16)
    monkeypatch.setattr(commons, "_LEAST_CHUNK", 16)


class Reader(nn.Module):
    """Looks up some words of a large table."""

    def __init__(self, *, sparse, tied=False):
        super().__init__()
        self.first = nn.Linear(2, 5)
        self.table = nn.Embedding(WORDS, WIDTH, sparse=sparse)
        self.last = nn.Linear(WIDTH, 3)
        self.tied = tied

    def forward(self, x):
        words = (x[:, :4].abs() * 37).long() % WORDS
        found = self.table(words).mean(dim=1)
        if self.tied:
            found = found + 0.01 * (found @ self.table.weight.T) @ self.table.weight
        return self.last(found) + 0.1 * self.first(x[:, :2]).sum(dim=1, keepdim=True)


def built(**options):
    torch.manual_seed(4)
    return Reader(**options).double()


def trained(ranks, strategy, *, sparse, tied=False, **fields):
    samples, chosen = classes(n=90), config(epochs=2, batch_size=12, **fields)
    models = [built(sparse=sparse, tied=tied) for _ in range(ranks)]

    def work(host):
        training_of(models[host.rank], samples, chosen, open_strategy(strategy, host)).run()
        return models[host.rank].state_dict()

    return run_ranks(MemoryTransport.group(ranks), work)[0]


def assert_same(one, other):
    for name, values in one.items():
        assert torch.equal(values, other[name]), name


@pytest.mark.parametrize("optimizer", ["sgd", "adagrad", "momentum", "adamw"])
@pytest.mark.parametrize(("strategy", "ranks"), [("single", 1), ("data-parallel", 2), ("parameter-server", 3)])
def test_a_table_with_sparse_gradients_is_trained_as_one_with_dense_ones(strategy, ranks, optimizer):
    fields = {"optimizer": optimizer, "learning_rate": 0.1}
    assert_same(trained(ranks, strategy, sparse=True, **fields), trained(ranks, strategy, sparse=False, **fields))


@pytest.mark.parametrize("fields", [{"clip": 0.1}, {"accumulate": 3}, {"weight_decay": 0.1}, {"l1": 0.01}], ids=str)
def test_whatever_else_is_asked_for(fields):
    chosen = {"optimizer": "sgd", "learning_rate": 0.1, **fields}
    sparse, dense = (trained(2, "data-parallel", sparse=flag, **chosen) for flag in (True, False))
    for name, values in dense.items():
        assert torch.allclose(sparse[name], values, rtol=0, atol=1e-12), name


def test_a_table_that_is_a_layer_too_has_dense_gradients_and_learns_the_same():
    fields = {"optimizer": "sgd", "learning_rate": 0.1}
    sparse, dense = (trained(2, "data-parallel", sparse=flag, tied=True, **fields) for flag in (True, False))
    for name, values in dense.items():
        assert torch.allclose(sparse[name], values, rtol=0, atol=1e-12), name


@pytest.mark.parametrize("staleness", [2, "none"])
def test_workers_that_drift_apart_push_rows_and_pull_what_has_changed(staleness):
    """One worker alone is never stale, so it learns what one process on as many shares does."""
    fields = {"optimizer": "sgd", "learning_rate": 0.1, "max_staleness": staleness}
    sparse, dense = (trained(1, "parameter-server", sparse=flag, **fields) for flag in (True, False))
    assert_same(sparse, dense)
    several = trained(3, "parameter-server", sparse=True, **fields)
    assert all(bool(values.isfinite().all()) for values in several.values())


def test_a_step_touches_only_the_chunks_of_the_rows_it_is_about():
    model = built(sparse=True)
    layout = Layout(model)
    found = Commons(Solo(), layout, Optimizer(TrainConfig(optimizer="sgd")))
    values = torch.nn.utils.parameters_to_vector(model.parameters())
    assert len(values)
    with FlatParameters(model, layout, found.values, found.gradients, found.marks()) as flat:
        for step, words in enumerate(([3, 250], [7], [])):
            before = found._versions.copy()
            flat.gradients.begin()
            if words:
                model.table(torch.tensor(words)).sum().backward()
            flat.gradients.end()
            found.apply(step, 1.0, 1.0, 0.1)
            changed = set(np.flatnonzero(found._versions - before).tolist())
            start = layout.places[2].start
            assert layout.places[2].name == "table.weight"
            rows = {(start + word * WIDTH + column) // found._chunk for word in words for column in range(WIDTH)}
            others = {
                chunk
                for place in layout.places
                if place.name != "table.weight"
                for chunk in range(place.start // found._chunk, -(-place.stop // found._chunk))
            }
            edges = {start // found._chunk, (layout.places[2].stop - 1) // found._chunk}
            assert rows <= changed
            assert changed <= rows | others | edges


class _Dying(Mortal, Commons):
    """A rank that dies at a given moment of its part."""


@pytest.mark.capability("T7")
@settings(max_examples=60, deadline=None)
@given(ranks=st.integers(2, 4), victim=st.integers(0, 3), moment=st.integers(0, 40), seed=st.integers(0, 99))
def test_whenever_a_rank_dies_the_others_finish_its_sparse_part_to_the_same_bits(ranks, victim, moment, seed):
    chosen = TrainConfig(optimizer="adagrad")
    layout = Layout(built(sparse=True))
    results = {}

    def gradients(found, rank, step):
        draw = np.random.default_rng([seed, rank, step])
        marks = found.marks()
        marks.begin()
        place = layout.places[2]
        rows = draw.integers(0, WORDS, 3)
        marks.rows(place.start, WIDTH, rows)
        layout.view(found.gradients, place)[torch.from_numpy(rows)] = 1.0 + rank
        for other in layout.places:
            if other.name != "table.weight":
                layout.view(found.gradients, other).fill_(0.5 + rank)

    def make(kind, *, dies):
        def work(host):
            found = kind(host, layout, Optimizer(chosen))
            if host.rank == 0:
                found.values.copy_(torch.arange(layout.size, dtype=torch.float64) / 10)
            host.meet()
            gradients(found, host.rank, 0)
            found.apply(0, 1.0, 2.0, 0.05)
            host.meet()
            gradients(found, host.rank, 1)
            if dies and host.rank == victim % ranks:
                found.moment = moment
            try:
                found.apply(1, 1.0, 2.0, 0.05)
            except Dies:
                host.close(failed=True)
            else:
                results[dies] = found

        run_ranks(MemoryTransport.group(ranks), work)

    make(Commons, dies=False)
    make(_Dying, dies=True)
    assert torch.equal(results[True].values, results[False].values)
    for name, tensor in results[True].state.items():
        assert torch.equal(tensor, results[False].state[name])


@settings(max_examples=200, deadline=None)
@given(
    start=st.integers(0, 60),
    rows=st.integers(1, 40),
    width=st.integers(1, 50),
    chunk=st.integers(1, 64),
    picked=st.lists(st.integers(0, 39), max_size=6),
    tail=st.integers(0, 30),
)
def test_every_element_of_a_marked_row_is_in_a_marked_chunk_and_zero_again_at_the_next_step(  # noqa: PLR0917
    start, rows, width, chunk, picked, tail
):
    stop = start + rows * width
    size = stop + tail
    gradients = torch.zeros(size)
    words = np.zeros(-(-size // chunk), np.uint8)
    marks = Marks(words, chunk, gradients, [(start, stop)])
    marks.begin()
    own = np.array([row % rows for row in picked], np.int64)
    marks.rows(start, width, own)
    gradients[start:stop].view(rows, width)[torch.from_numpy(own)] = 1.0
    gradients[:start] = 2.0
    gradients[stop:] = 2.0
    marked = np.repeat(words, chunk)[:size].astype(bool)
    assert marked[gradients.numpy() != 0].all()
    marks.begin()
    assert not gradients[start:stop].any()
    assert (gradients[:start] == 2.0).all()
    assert (gradients[stop:] == 2.0).all()


def test_a_worker_takes_along_only_what_has_changed():
    layout = Layout(built(sparse=True))

    def work(host):
        served = Served(host, layout, Optimizer(TrainConfig(optimizer="sgd")))
        if host.rank == 0:
            served.values.copy_(torch.arange(layout.size, dtype=torch.float64))
        host.meet()
        cache = torch.empty_like(served.values)
        served.pull(cache)
        assert torch.equal(cache, served.values)
        cache.fill_(-1.0)
        served.pull(cache)
        assert bool((cache == -1.0).all())

    run_ranks(MemoryTransport.group(1), work)


def test_settings_under_which_everything_moves_use_no_marks():
    layout = Layout(built(sparse=True))
    for fields in ({"optimizer": "adamw"}, {"optimizer": "sgd", "l1": 0.1}, {"optimizer": "sgd", "weight_decay": 0.1}):
        chosen = msgspec.structs.replace(TrainConfig(), **fields)
        assert Commons(Solo(), layout, Optimizer(chosen)).marks() is None
    assert Commons(Solo(), Layout(built(sparse=False)), Optimizer(TrainConfig(optimizer="sgd"))).marks() is None
