import math

import pytest
import torch

from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer, clip, rate_at

SAME = 1e-12
"""float64; the order of a few operations differs from torch's."""


def theirs(name, parameters):
    decay = {"lr": 0.03, "weight_decay": 0.1}
    return {
        "gd": lambda: torch.optim.SGD(parameters, **decay),
        "sgd": lambda: torch.optim.SGD(parameters, **decay),
        "momentum": lambda: torch.optim.SGD(parameters, momentum=0.8, **decay),
        "adagrad": lambda: torch.optim.Adagrad(parameters, **decay),
        "rmsprop": lambda: torch.optim.RMSprop(parameters, **decay),
        "adam": lambda: torch.optim.Adam(parameters, **decay),
        "adamw": lambda: torch.optim.AdamW(parameters, **decay),
    }[name]()


@pytest.mark.capability("T6")
@pytest.mark.parametrize("name", ["gd", "sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw"])
def test_every_optimizer_makes_torchs_steps(name):
    draw = torch.Generator().manual_seed(4)
    values = torch.randn(40, generator=draw, dtype=torch.float64)
    other = values.clone().requires_grad_()
    ours = Optimizer(TrainConfig(optimizer=name, learning_rate=0.03, momentum=0.8, weight_decay=0.1), values)
    torchs = theirs(name, [other])
    for step in range(1, 30):
        gradient = torch.randn(40, generator=draw, dtype=torch.float64)
        other.grad = gradient.clone()
        torchs.step()
        ours.step(gradient.clone(), 0.03, step)
        assert torch.allclose(values, other.detach(), rtol=0, atol=SAME), step


@pytest.mark.capability("T6")
def test_l1_pulls_every_weight_towards_zero_by_the_same_amount():
    values = torch.tensor([2.0, -3.0, 0.0])
    Optimizer(TrainConfig(optimizer="sgd", l1=0.5), values).step(torch.zeros(3), 0.1, 1)
    assert values.tolist() == pytest.approx([1.95, -2.95, 0.0])


@pytest.mark.capability("T6")
def test_l2_pulls_weights_towards_zero_in_proportion():
    values = torch.tensor([2.0, -4.0, 0.0])
    Optimizer(TrainConfig(optimizer="sgd", weight_decay=0.5), values).step(torch.zeros(3), 0.1, 1)
    assert values.tolist() == pytest.approx([1.9, -3.8, 0.0])


@pytest.mark.capability("T6")
def test_clipping_bounds_the_norm_of_the_whole_gradient_and_keeps_its_direction():
    gradient = torch.tensor([3.0, 4.0])
    assert clip(gradient, 1.0) == 5.0
    assert gradient.tolist() == pytest.approx([0.6, 0.8])
    small = torch.tensor([0.3, 0.4])
    clip(small, 1.0)
    assert small.tolist() == pytest.approx([0.3, 0.4])
    values = torch.zeros(2)
    Optimizer(TrainConfig(optimizer="sgd", clip=1.0), values).step(torch.tensor([30.0, 40.0]), 1.0, 1)
    assert values.tolist() == pytest.approx([-0.6, -0.8])


@pytest.mark.capability("T6")
@pytest.mark.parametrize(
    ("schedule", "halfway", "last"),
    [("constant", 0.4, 0.4), ("cosine", 0.2, 0.4 * 0.5 * (1 + math.cos(math.pi * 0.99))), ("linear", 0.2, 0.004)],
)
def test_schedules_go_from_the_rate_down_as_named(schedule, halfway, last):
    config = TrainConfig(learning_rate=0.4, schedule=schedule)
    assert rate_at(config, 0, 100) == pytest.approx(0.4)
    assert rate_at(config, 50, 100) == pytest.approx(halfway)
    assert rate_at(config, 99, 100) == pytest.approx(last)


def test_warm_up_rises_linearly_to_the_rate_in_its_share_of_the_steps():
    config = TrainConfig(learning_rate=0.4, warmup=0.1, schedule="cosine")
    rates = [rate_at(config, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.04 * (step + 1) for step in range(10)])
    assert rates[10] == pytest.approx(0.4)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) > 0
