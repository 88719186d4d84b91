"""Schedules against torch's own, step by step."""

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from argosy.core.errors import InvalidInput
from argosy.train.config import SCHEDULE_NAMES, TrainConfig
from argosy.train.schedules import rate_at

STEPS = 100


def rates(steps=STEPS, **fields):
    config = TrainConfig(learning_rate=0.4, **fields)
    config.check()
    return [rate_at(config, step, steps) for step in range(steps)]


def torchs(make):
    optimizer = SGD([torch.zeros(1, requires_grad=True)], lr=0.4)
    schedule = make(optimizer)
    found = []
    for _ in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.capability("T6")
@pytest.mark.parametrize(
    ("fields", "make"),
    [
        ({"schedule": "constant"}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
        ({"schedule": "cosine"}, lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS)),
        ({"schedule": "linear"}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=STEPS)),
        (
            {"schedule": "exponential", "decay": 0.05},
            lambda o: lr_scheduler.ExponentialLR(o, gamma=0.05 ** (1 / STEPS)),
        ),
        ({"schedule": "step", "decay": 0.3, "drops": 3}, lambda o: lr_scheduler.StepLR(o, STEPS // 4, gamma=0.3)),
        ({"schedule": "one-cycle"}, lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.4, total_steps=STEPS + 1)),
    ],
    ids=lambda value: value["schedule"] if isinstance(value, dict) else "",
)
def test_a_schedule_is_torchs(fields, make):
    steps = STEPS + 1 if fields["schedule"] == "one-cycle" else STEPS
    expected = torchs(make)
    found = [rate_at(TrainConfig(learning_rate=0.4, **fields), step, steps) for step in range(STEPS)]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-15)


def test_a_one_cycle_rises_for_the_share_that_warmup_says():
    found = rates(schedule="one-cycle", warmup=0.5)
    assert found.index(max(found)) == 49
    assert max(found) == pytest.approx(0.4)
    assert found[0] == pytest.approx(0.4 / 25, rel=0.02)
    assert found[-1] == pytest.approx(0.4 / 25e4, rel=0.02)


@pytest.mark.parametrize("schedule", [name for name in SCHEDULE_NAMES if name != "one-cycle"])
def test_after_a_linear_warm_up_the_schedule_takes_the_rest(schedule):
    found = rates(schedule=schedule, warmup=0.2)
    assert found[:20] == pytest.approx([0.4 * (n + 1) / 20 for n in range(20)])
    assert found[20:] == pytest.approx([r for n, r in enumerate(rates(80, schedule=schedule))])


@pytest.mark.parametrize("schedule", SCHEDULE_NAMES)
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_of_few_steps_has_rates_above_zero_at_its_start(schedule, steps):
    found = rates(steps, schedule=schedule)
    assert all(0 <= rate <= 0.4 for rate in found)
    assert found[0] > 0


@pytest.mark.parametrize("fields", [{"decay": 0.0}, {"decay": 1.5}, {"drops": 0}])
def test_an_impossible_decay_is_refused(fields):
    with pytest.raises(InvalidInput, match=r"is impossible; it must be"):
        TrainConfig(**fields).check()
