"""What every strategy keeps, checked against each of them."""

import msgspec
import pytest
import torch
from torch import nn

from argosy.core.errors import NotFound
from argosy.train.strategy import STRATEGIES
from argosy.train.strategy.contract import open_strategy
from argosy.train.transport import MemoryTransport
from network_ranks import ranks_on_hosts
from ranks import classes, config, largest_difference, run_ranks, train_single, training_of

WORKERS = [
    ("single", 1),
    *((name, workers) for name in ("data-parallel", "parameter-server") for workers in (1, 2, 3)),
    *((name, hosts) for name in ("data-parallel", "parameter-server") for hosts in ((1, 1), (2, 2), (1, 3, 1))),
    ("sharded", 1),  # several of its ranks have to be processes: test_sharded.py
]

ELSEWHERE = {"local-sgd", "sharded"}
"""These don't make each step together, or not between threads: test_local_sgd.py and test_sharded.py."""


def build():
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


@pytest.fixture(params=WORKERS, ids=lambda found: f"{found[0]}-{found[1]}".replace(" ", ""))
def ranks(request):
    """Run `work(strategy, model)` on every rank, of one host or of several with so many ranks each."""
    name, workers = request.param

    def run_on_hosts(work):
        everyone = ranks_on_hosts(workers)
        models = [build() for _ in everyone]
        try:
            return run_ranks(everyone, lambda found: work(open_strategy(name, found.local, found), models[found.rank]))
        finally:
            for transport in everyone:
                transport.close()

    def run(work):
        if isinstance(workers, tuple):
            return run_on_hosts(work)
        models = [build() for _ in range(workers)]
        return run_ranks(
            MemoryTransport.group(workers), lambda found: work(open_strategy(name, found), models[found.rank])
        )

    return run


def test_every_strategy_in_the_table_is_in_this_suite():
    assert {name for name, _ in WORKERS} | ELSEWHERE == set(STRATEGIES.names())


def test_ranks_are_numbered_from_0(ranks):
    found = ranks(lambda strategy, _: (strategy.rank, strategy.world_size))
    assert found == [(rank, len(found)) for rank in range(len(found))]


def test_totals_are_sums_over_all_ranks(ranks):
    found = ranks(lambda strategy, _: strategy.total(1.5, strategy.rank))
    size = len(found)
    assert found == [[1.5 * size, sum(range(size))]] * size


def test_a_step_is_made_of_the_mean_over_the_samples_of_all_ranks(ranks):
    """Every rank has rank + 1 samples whose gradients are rank + 1; sgd at rate 1 goes down by their mean."""

    def work(strategy, _):
        model = nn.Linear(300, 300, bias=False).double()
        nn.init.zeros_(model.weight)
        count = strategy.rank + 1
        with strategy.attached(model, config(optimizer="sgd")):
            strategy.begin()
            strategy.begin_pass(count)
            whole = strategy.total(count)[0]
            (model(torch.eye(300, dtype=torch.float64)).sum() * count * count / whole).backward()
            totals = strategy.finish(0, 2.0 * count, count, 1.0)
        return totals, model.weight

    found = ranks(work)
    counts = range(1, len(found) + 1)
    for totals, weight in found:
        assert totals == (2.0 * sum(counts), sum(counts))
        assert torch.allclose(weight, -torch.full_like(weight, sum(n * n for n in counts) / sum(counts)))


@pytest.mark.capability("T1")
@pytest.mark.capability("T2")
@pytest.mark.parametrize("optimizer", ["gd", "adamw"])
def test_a_training_equals_that_of_one_process(ranks, optimizer):
    samples, settings = classes(n=49), config(optimizer=optimizer, learning_rate=0.02)
    alone, _ = train_single(build, samples, settings)

    def work(strategy, model):
        training_of(model, samples, settings, strategy).run()
        return model

    for model in ranks(work):
        assert largest_difference(model, alone) < 1e-6


def test_the_model_is_an_ordinary_one_again_afterwards(ranks):
    samples = classes()

    def work(strategy, model):
        names = [name for name, _ in model.named_parameters()]
        training_of(model, samples, config(epochs=1), strategy).run()
        assert [name for name, _ in model.named_parameters()] == names
        return model(samples.x[:1])

    for outputs in ranks(work):
        assert outputs.shape == (1, 3)


def test_an_unknown_strategy_is_refused_with_the_known_ones():
    with pytest.raises(NotFound, match="'gossip' is not one of the known strategies: data-parallel, local-sgd, "):
        open_strategy("gossip", MemoryTransport.group(1)[0])


def test_training_settings_survive_the_way_to_a_rank():
    settings = config(workers=2, clip=1.5, schedule="cosine")
    assert msgspec.convert(msgspec.to_builtins(settings), type(settings)) == settings
