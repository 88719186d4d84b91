import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from argosy.train import commons
from argosy.train.commons import Commons
from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import Layout
from argosy.train.totals import NotFinite
from argosy.train.transport import MemoryTransport, Solo
from mortal import Dies, Mortal
from ranks import run_ranks

SMALL = 16


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch):
    monkeypatch.setattr(commons, "CHUNK", SMALL)


def layout():
    return Layout(nn.Linear(9, 13).double())


def gradient(rank, step, size):
    return torch.randn(size, generator=torch.Generator().manual_seed(100 * step + rank), dtype=torch.float64)


def made(config, ranks, steps, *, hosts=None):
    """Make steps with `ranks` threads; return values and state of the first."""
    places = layout()

    def work(host):
        found = Commons(host, places, Optimizer(config), clip=config.clip)
        if host.rank == 0:
            found.values.copy_(torch.arange(places.size, dtype=torch.float64) / 10)
        host.meet()
        for step in range(steps):
            found.gradients.copy_(gradient(host.rank, step, places.size))
            found.apply(step, 1.0, 2.0, 0.05)
        return found.values.clone(), {name: tensor.clone() for name, tensor in found.state.items()}

    return run_ranks(hosts or MemoryTransport.group(ranks), work)[0]


@pytest.mark.capability("T1")
@pytest.mark.parametrize("ranks", [2, 3, 5, 20])
@pytest.mark.parametrize("clip", [0.0, 0.7])
def test_ranks_make_the_step_of_the_sum_of_their_gradients(ranks, clip):
    """20 ranks are more than there are chunks, so some have no part."""
    config = TrainConfig(optimizer="adamw", weight_decay=0.1, l1=0.01, clip=clip)
    values, state = made(config, ranks, 3)
    expected, alone = torch.arange(layout().size, dtype=torch.float64) / 10, Optimizer(config)
    expected_state = {name: torch.zeros_like(expected) for name in alone.state_names}
    for step in range(3):
        mean = sum(gradient(rank, step, len(expected)) for rank in range(ranks))
        norm = float(mean.norm())
        if clip:
            assert norm > 0
            mean *= min(1.0, clip / norm)
        alone.update(expected, mean, expected_state, 0.05, step + 1)
    assert torch.allclose(values, expected, rtol=0, atol=1e-12)
    for name, tensor in state.items():
        assert torch.allclose(tensor, expected_state[name], rtol=0, atol=1e-12)


def test_one_rank_alone_works_in_place():
    places, config = layout(), TrainConfig(optimizer="sgd")
    found = Commons(Solo(), places, Optimizer(config))
    found.gradients.fill_(3.0)
    assert found.apply(0, 1.5, 3, 0.1) == (1.5, 3)
    assert torch.allclose(found.values, torch.full_like(found.values, -0.3))


class _Dying(Mortal, Commons):
    """A rank that dies at a given moment of its part."""


@pytest.mark.capability("T7")
@settings(max_examples=60)
@given(
    ranks=st.integers(2, 4),
    victim=st.integers(0, 3),
    moment=st.integers(0, 25),
    optimizer=st.sampled_from(["sgd", "momentum", "adamw"]),
)
def test_whenever_a_rank_dies_the_others_finish_its_part_to_the_same_bits(ranks, victim, moment, optimizer):
    config, places = TrainConfig(optimizer=optimizer), layout()
    expected, expected_state = made(config, ranks, 2)
    results = {}

    def work(host):
        found = _Dying(host, places, Optimizer(config))
        if host.rank == 0:
            found.values.copy_(torch.arange(places.size, dtype=torch.float64) / 10)
        host.meet()
        found.gradients.copy_(gradient(host.rank, 0, places.size))
        found.apply(0, 1.0, 2.0, 0.05)
        found.gradients.copy_(gradient(host.rank, 1, places.size))
        if host.rank == victim % ranks:
            found.moment = moment
        try:
            found.apply(1, 1.0, 2.0, 0.05)
        except Dies:
            host.close(failed=True)
        else:
            results[host.rank] = found

    run_ranks(MemoryTransport.group(ranks), work)
    found = next(iter(results.values()))
    assert torch.equal(found.values, expected)
    for name, tensor in found.state.items():
        assert torch.equal(tensor, expected_state[name])


@pytest.mark.capability("T6")
@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_a_number_that_is_not_finite_on_one_rank_stops_all_of_them(where):
    places, config = layout(), TrainConfig(optimizer="sgd")
    stopped = []

    def work(host):
        found = Commons(host, places, Optimizer(config))
        found.gradients.fill_(1.0)
        is_bad = host.rank == 1
        if is_bad and where == "gradient":
            found.gradients[3] = np.inf
        try:
            found.apply(0, np.nan if is_bad and where == "loss" else 1.0, 1, 0.1)
        except NotFinite:
            stopped.append((host.rank, bool(torch.isfinite(found.values).all())))

    run_ranks(MemoryTransport.group(3), work)
    assert sorted(stopped) == [(0, True), (1, True), (2, True)]
