import pytest
import torch
from torch import nn

from argosy.train.batchnorm import shared_statistics
from argosy.train.transport import MemoryTransport
from ranks import run_ranks

ROUNDING = 1e-12
"""float64 sums of a few hundred numbers in another order."""


def model_of(kind, **options):
    torch.manual_seed(3)
    if kind == "images":
        return nn.Sequential(
            nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4, **options), nn.ReLU(), nn.Flatten(), nn.Linear(100, 3)
        ).double()
    return nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, **options), nn.Tanh(), nn.Linear(5, 3)).double()


def samples_of(kind, n):
    draw = torch.Generator().manual_seed(n)
    shape = (n, 2, 5, 5) if kind == "images" else (n, 6)
    return torch.randn(shape, generator=draw, dtype=torch.float64) * 3 + 7, torch.arange(n) % 3


class Share:
    """What batch norm asks of a strategy."""

    def __init__(self, transport=None):
        self.transport = transport
        self.is_padding = False


def steps_together(kind, shares, steps=3, **options):
    """Run forward and backward on a batch cut into `shares`; return gradients and buffers of every rank."""
    x, y = samples_of(kind, sum(shares))
    begins = [sum(shares[:rank]) for rank in range(len(shares))]
    # Built one after the other: threads share torch's generator.
    models = [model_of(kind, **options) for _ in shares]

    def work(transport):
        share, model = Share(transport), models[transport.rank]
        rows = slice(begins[transport.rank], begins[transport.rank] + shares[transport.rank])
        own_x, own_y, weight = (x[rows], y[rows], 1.0) if shares[transport.rank] else (x[:1], y[:1], 0.0)
        share.is_padding = shares[transport.rank] == 0
        with shared_statistics(model, share):
            for _ in range(steps):
                model.zero_grad()
                (nn.functional.cross_entropy(model(own_x), own_y, reduction="sum") * weight).backward()
                for parameter in model.parameters():
                    transport.all_reduce(parameter.grad.numpy())
        return model

    return run_ranks(MemoryTransport.group(len(shares)), work)


def steps_alone(kind, n, steps=3, **options):
    x, y = samples_of(kind, n)
    model = model_of(kind, **options)
    with shared_statistics(model, Share()):
        for _ in range(steps):
            model.zero_grad()
            nn.functional.cross_entropy(model(x), y, reduction="sum").backward()
    return model


@pytest.mark.capability("T1")
@pytest.mark.parametrize("kind", ["images", "numbers"])
@pytest.mark.parametrize("shares", [(8, 8), (9, 4), (1, 12), (7, 0), (0, 5, 2)])
@pytest.mark.parametrize("options", [{}, {"affine": False}, {"momentum": None}, {"track_running_stats": False}])
def test_gradients_and_running_statistics_equal_those_of_the_whole_batch(kind, shares, options):
    alone = steps_alone(kind, sum(shares), **options)
    for model in steps_together(kind, shares, **options):
        for (name, found), (_, expected) in zip(model.named_parameters(), alone.named_parameters(), strict=True):
            assert torch.allclose(found.grad, expected.grad, rtol=0, atol=ROUNDING * 100), name
        for (name, found), (_, expected) in zip(model.named_buffers(), alone.named_buffers(), strict=True):
            assert torch.allclose(found.double(), expected.double(), rtol=0, atol=ROUNDING), name


def test_gradients_agree_with_finite_differences():
    """The gradient is that of the whole batch's loss, checked without any code of ours or torch's autograd."""
    x, y = samples_of("numbers", 6)
    models = steps_together("numbers", (4, 2), steps=1)

    def loss(model):
        model.train()
        return float(nn.functional.cross_entropy(model(x), y, reduction="sum"))

    probe = model_of("numbers")
    weight = probe[0].weight
    for place in [(0, 0), (3, 4)]:
        step = 1e-5
        with torch.no_grad():
            weight[place] += step
            above = loss(probe)
            weight[place] -= 2 * step
            below = loss(probe)
            weight[place] += step
        expected = (above - below) / (2 * step)
        assert float(models[0][0].weight.grad[place]) == pytest.approx(expected, rel=1e-6, abs=1e-8)


def test_one_process_gives_what_torch_gives_but_for_the_first_running_statistics():
    ours, theirs = steps_alone("images", 9, steps=1), model_of("images")
    x, y = samples_of("images", 9)
    nn.functional.cross_entropy(theirs(x), y, reduction="sum").backward()
    for (name, found), (_, expected) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert torch.equal(found.grad, expected.grad), name
    # After one step torch still has nine tenths of a mean of 0; ours is the mean of what was seen.
    assert torch.allclose(theirs[1].running_mean, ours[1].running_mean * 0.1)


def test_after_many_steps_the_running_statistics_are_torchs():
    ours, theirs = steps_alone("numbers", 9, steps=250), model_of("numbers")
    x, _ = samples_of("numbers", 9)
    for _ in range(250):
        theirs(x)
    assert torch.allclose(ours[1].running_mean, theirs[1].running_mean, atol=1e-9)
    assert torch.allclose(ours[1].running_var, theirs[1].running_var, atol=1e-9)


@pytest.mark.parametrize("shares", [(1,), (1, 0)])
def test_a_batch_of_one_sample_uses_the_running_statistics(shares):
    together = steps_alone("numbers", 1) if len(shares) == 1 else steps_together("numbers", shares)[0]
    plain = model_of("numbers").eval()
    x, y = samples_of("numbers", 1)
    nn.functional.cross_entropy(plain(x), y, reduction="sum").backward()
    assert torch.allclose(together[0].weight.grad, plain[0].weight.grad, atol=ROUNDING)
    assert int(together[1].num_batches_tracked) == 0


@pytest.mark.parametrize("options", [{}, {"track_running_stats": False}])
def test_inference_exchanges_nothing(options):
    """Ranks look at different numbers of validation batches, so an exchange there would never end."""

    models = [model_of("numbers", **options).eval() for _ in range(2)]

    def work(transport):
        model = models[transport.rank]
        with shared_statistics(model, Share(transport)), torch.no_grad():
            for _ in range(1 + transport.rank):
                found = model(samples_of("numbers", 4)[0])
        return found

    for found in run_ranks(MemoryTransport.group(2, deadline_s=2.0), work):
        assert torch.equal(found, models[0](samples_of("numbers", 4)[0]))


def test_the_model_is_left_as_it_was():
    model = model_of("numbers")
    with shared_statistics(model, Share()):
        assert "forward" in vars(model[1])
    assert "forward" not in vars(model[1])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        model(torch.zeros(1, 6, dtype=torch.float64))
