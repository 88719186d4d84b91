import pytest
import torch

from argosy.train.config import TrainConfig
from argosy.train.optimizers import Optimizer, clip_factor

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
    ours = Optimizer(TrainConfig(optimizer=name, learning_rate=0.03, momentum=0.8, weight_decay=0.1))
    state = {name: torch.zeros_like(values) for name in ours.state_names}
    torchs = theirs(name, [other])
    for step in range(1, 30):
        gradient = torch.randn(40, generator=draw, dtype=torch.float64)
        other.grad = gradient.clone()
        torchs.step()
        ours.update(values, gradient.clone(), state, 0.03, step)
        assert torch.allclose(values, other.detach(), rtol=0, atol=SAME), step


@pytest.mark.capability("T6")
def test_l1_pulls_every_weight_towards_zero_by_the_same_amount():
    values = torch.tensor([2.0, -3.0, 0.0])
    Optimizer(TrainConfig(optimizer="sgd", l1=0.5)).update(values, torch.zeros(3), {}, 0.1, 1)
    assert values.tolist() == pytest.approx([1.95, -2.95, 0.0])


@pytest.mark.capability("T6")
def test_l2_pulls_weights_towards_zero_in_proportion():
    values = torch.tensor([2.0, -4.0, 0.0])
    Optimizer(TrainConfig(optimizer="sgd", weight_decay=0.5)).update(values, torch.zeros(3), {}, 0.1, 1)
    assert values.tolist() == pytest.approx([1.9, -3.8, 0.0])


@pytest.mark.capability("T6")
def test_clipping_bounds_the_norm_and_leaves_small_ones_alone():
    assert clip_factor(5.0, 1.0) == pytest.approx(0.2)
    assert clip_factor(0.5, 1.0) == 1.0
