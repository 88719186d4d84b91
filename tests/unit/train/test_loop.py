import math

import msgspec
import pytest
import torch
from torch import nn

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.data.dataset import batches
from argosy.train.checkpoint import Checkpoints
from argosy.train.families.mlp import MlpOptions
from argosy.train.families.mlp import build as build_mlp
from argosy.train.families.resnet import ResnetOptions
from argosy.train.families.resnet import build as build_resnet
from argosy.train.inputs import ModelInput
from argosy.train.models import weights_to_bytes
from argosy.train.samples import Samples
from argosy.train.strategy.synchronous import DataParallel, Single
from argosy.train.transport import MemoryTransport
from ranks import classes, config, largest_difference, run_ranks, train_ranks, train_single, training_of

PROMISE = 1e-6
"""Ranks equal one process to this in float64 (the issue's number); found are about 1e-13."""


def mlp(features=6, outputs=3, **options):
    torch.manual_seed(1)
    return build_mlp(MlpOptions(hidden=[12, 8], **options), ModelInput(shape=(features,)), outputs).double()


def resnet():
    torch.manual_seed(1)
    return build_resnet(ResnetOptions(width=4, blocks=1), ModelInput(shape=(1, 4, 4)), 3).double()


@pytest.mark.capability("T1")
@pytest.mark.parametrize("optimizer", ["gd", "sgd", "momentum", "adagrad", "rmsprop", "adam", "adamw"])
def test_two_ranks_on_half_batches_equal_one_process_whatever_the_optimizer(optimizer):
    samples, settings = classes(n=50), config(optimizer=optimizer, learning_rate=0.05, weight_decay=0.01)
    alone, position = train_single(mlp, samples, settings)
    assert largest_difference(alone, mlp()) > 1e-3
    for model, found in train_ranks(mlp, samples, settings, 2):
        assert largest_difference(model, alone) < PROMISE
        assert [entry["loss"] for entry in found.history] == pytest.approx([e["loss"] for e in position.history])


@pytest.mark.capability("T1")
@pytest.mark.parametrize("workers", [2, 3])
@pytest.mark.parametrize("n", [48, 49, 50, 33])
def test_ranks_equal_one_process_with_batch_norm_and_uneven_last_batches(workers, n):
    """49 and 33 end in a batch of one sample, so that some ranks have none."""
    samples = classes(n=n, features=16, shape=(1, 4, 4))
    settings = config(optimizer="momentum", learning_rate=0.05, clip=0.5, l1=1e-4, schedule="cosine", warmup=0.2)
    alone, _ = train_single(resnet, samples, settings)
    for model, _ in train_ranks(resnet, samples, settings, workers):
        assert largest_difference(model, alone) < PROMISE


def test_all_ranks_end_with_the_same_bits():
    samples = classes(n=50, features=16, shape=(1, 4, 4))
    (one, _), (other, _) = train_ranks(resnet, samples, config(), 2)
    assert weights_to_bytes(one.state_dict()) == weights_to_bytes(other.state_dict())


def test_one_process_equals_a_plain_torch_loop():
    samples, settings = classes(n=48), config(optimizer="sgd", learning_rate=0.1)
    found, _ = train_single(mlp, samples, settings)
    model = mlp()
    for epoch in range(settings.epochs):
        for rows in batches(48, 16, seed=0, epoch=epoch):
            model.zero_grad()
            nn.functional.cross_entropy(model(samples.x[rows]), samples.y[rows]).backward()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.sub_(0.1 * parameter.grad)
    assert largest_difference(found, model) < 1e-12


def test_gradient_descent_makes_one_step_of_the_whole_training_part_per_epoch():
    _, position = train_single(mlp, classes(n=50), config(optimizer="gd", epochs=5, learning_rate=0.5))
    assert position.step == 5
    losses = [entry["loss"] for entry in position.history]
    assert losses == sorted(losses, reverse=True)


def test_ranks_start_from_the_weights_of_rank_0_even_if_theirs_differ():
    made = iter(range(100))

    def differing():
        torch.manual_seed(next(made))
        return build_mlp(MlpOptions(hidden=[4]), ModelInput(shape=(6,)), 3).double()

    (one, _), (other, _) = train_ranks(differing, classes(), config(epochs=1), 2)
    assert largest_difference(one, other) == 0


class Counting(nn.Module):
    """A model with a buffer of its own that depends on the samples that this rank saw."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.register_buffer("seen", torch.zeros(6))
        self.register_buffer("mask", torch.ones(6, dtype=torch.bool))

    def forward(self, x):
        if self.training:
            self.seen += x.detach().sum(dim=0)
        return self.layer(x * self.mask)


def test_buffers_of_the_users_model_are_those_of_rank_0_everywhere():
    def build():
        torch.manual_seed(0)
        return Counting().double()

    (one, _), (other, _) = train_ranks(build, classes(), config(epochs=1), 2)
    assert float(one.seen.abs().sum()) > 0
    assert torch.equal(one.seen, other.seen)


@pytest.mark.capability("T7")
@pytest.mark.parametrize("optimizer", ["momentum", "adamw"])
def test_resuming_from_any_step_gives_the_same_bits_as_no_break(tmp_path, optimizer):
    samples = classes(n=34)
    settings = config(optimizer=optimizer, checkpoint_s=1e-9, patience=2, schedule="linear", warmup=0.1)
    model_with_chance = lambda: mlp(dropout=0.3, batch_norm=True)  # noqa: E731
    whole, position = train_single(model_with_chance, samples, settings)
    for step in range(1, position.step):
        broken = training_of(
            model_with_chance(), samples, settings, Single(), checkpoints=Checkpoints(tmp_path / str(step), "a")
        )
        with pytest.raises(_Killed):
            _run_until(broken, step)
        again = training_of(
            model_with_chance(), samples, settings, Single(), checkpoints=Checkpoints(tmp_path / str(step), "a")
        )
        found = again.run()
        assert weights_to_bytes(again.model.state_dict()) == weights_to_bytes(whole.state_dict()), step
        assert [e["loss"] for e in found.history] == [e["loss"] for e in position.history]
        assert (found.best, found.waited, found.step) == (position.best, position.waited, position.step)


class _Killed(BaseException):
    pass


def _run_until(training, step):
    """Stop in the middle of the step after `step`, after its checkpoint."""
    original = training._step

    def one_step(*arguments):
        if training.position.step == step:
            raise _Killed
        return original(*arguments)

    training._step = one_step
    training.run()


def test_ranks_resume_together_from_the_checkpoint_that_rank_0_names(tmp_path):
    samples, settings = classes(n=34), config(checkpoint_s=1e-9)

    def train(stop=0):
        models = [mlp(batch_norm=True) for _ in range(2)]

        def work(transport):
            model = models[transport.rank]
            training = training_of(
                model, samples, settings, DataParallel(transport), checkpoints=Checkpoints(tmp_path, "a")
            )
            if stop:
                _run_until(training, stop)
            training.run()
            return weights_to_bytes(model.state_dict())

        return run_ranks(MemoryTransport.group(2), work)

    ranks = train_ranks(lambda: mlp(batch_norm=True), samples, settings, 2)
    with pytest.raises(_Killed):
        train(stop=4)
    assert Checkpoints(tmp_path, "a").newest() == 4
    assert train() == [weights_to_bytes(model.state_dict()) for model, _ in ranks]


@pytest.mark.capability("T6")
def test_a_loss_that_is_no_number_stops_the_training_and_keeps_the_last_checkpoint(tmp_path):
    samples = classes(n=48)
    settings = config(optimizer="sgd", epochs=4, checkpoint_s=1e-9, batch_size=16)
    checkpoints = Checkpoints(tmp_path, "a")

    def loss(outputs, rows):
        values = nn.functional.cross_entropy(outputs, samples.y[rows], reduction="none")
        return values * math.nan if training.position.step == 7 else values

    training = training_of(mlp(), samples, settings, Single(), checkpoints=checkpoints, loss=loss)
    with pytest.raises(InvalidInput, match=r"stopped at step 8 of 12: the loss is nan") as caught:
        training.run()
    assert caught.value.code == "not_finite"
    assert checkpoints.newest() == 7
    tensors, _ = checkpoints.load(7)
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())


def test_a_gradient_that_is_not_finite_is_named_by_its_parameter():
    class Root(nn.Module):
        def __init__(self):
            super().__init__()
            self.safe = nn.Linear(6, 3)
            self.inner = nn.Parameter(torch.zeros(3))

        def forward(self, x):
            return self.safe(x) + self.inner.sqrt()

    with pytest.raises(InvalidInput, match=r"step 1 of .*gradient is not finite, first seen in 'inner'"):
        train_single(lambda: Root().double(), classes(), config())


def test_an_impossible_learning_rate_is_told_by_the_step_at_which_it_blows_up():
    x = torch.linspace(-1, 1, 40, dtype=torch.float64).reshape(-1, 1)
    samples = Samples(x, 3 * x[:, 0], x[:0], x[:0, 0], "regression", 1)
    with pytest.raises(InvalidInput, match="training stopped at step") as caught:
        train_single(lambda: nn.Linear(1, 1).double(), samples, config(optimizer="sgd", learning_rate=1e3, epochs=99))
    assert caught.value.context["step"] > 1
    assert "lower learning_rate" in caught.value.hint


def test_training_stops_early_and_gives_back_the_best_epochs_weights():
    samples = classes(n=40, validation=20)
    wrong = Samples(samples.x, samples.y, samples.validation_x, 2 - samples.validation_y, "classification", 3)
    settings = config(epochs=60, patience=3, learning_rate=0.05)
    model, position = train_single(mlp, wrong, settings)
    assert position.epoch < 60
    scores = [entry["accuracy"] for entry in position.history]
    assert position.best == max(scores)
    assert len(scores) == scores.index(max(scores)) + 1 + 3
    with torch.no_grad():
        right = (model(wrong.validation_x).argmax(dim=1) == wrong.validation_y).double().mean()
    assert float(right) == pytest.approx(position.best)


def test_without_a_validation_part_the_training_loss_decides():
    samples = classes()
    bare = Samples(samples.x, samples.y, samples.x[:0], samples.y[:0], "classification", 3)
    _, position = train_single(mlp, bare, config(epochs=3))
    assert position.best == min(entry["loss"] for entry in position.history)
    assert "accuracy" not in position.history[0]


def test_a_regression_is_judged_in_the_users_unit():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 4, generator=draw, dtype=torch.float64)
    y = x @ torch.tensor([1.0, -2.0, 0.5, 0.0], dtype=torch.float64)
    samples = Samples(x[:60], y[:60], x[60:], y[60:], "regression", 1, unit=100.0)
    model, position = train_single(lambda: mlp(4, 1), samples, config(epochs=30, learning_rate=0.02))
    with torch.no_grad():
        rmse = float((model(x[60:]).flatten() - y[60:]).square().mean().sqrt())
    assert position.history[-1]["rmse"] == pytest.approx(100 * rmse)
    assert position.best < 0.2 * 100


def test_news_tell_loss_metric_speed_and_the_time_left():
    news, clock = [], FakeClock()

    class Slow(Single):
        def finish(self, *step):
            clock.advance(1.0)
            return super().finish(*step)

    training = training_of(mlp(), classes(n=48), config(epochs=2), Slow(), report=news.append, clock=clock)
    training.run()
    assert [(n.done, n.total, n.left_s) for n in news if n.done == 2] == [(2, 6, 4.0)]
    assert news[-1].left_s == 0.0
    assert news[-1].message == "epoch 2/2"
    assert news[0].values["samples_per_s"] == 16.0
    assert {"loss", "accuracy", "validation_loss"} <= news[-1].values.keys()
    assert all(msgspec.json.decode(msgspec.json.encode(n)) for n in news)


def test_a_model_whose_outputs_do_not_depend_on_its_parameters_is_refused():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 3)

        def forward(self, x):
            return self.layer(x).detach()

    with pytest.raises(InvalidInput, match="do not depend on its parameters"):
        train_single(lambda: Cut().double(), classes(), config())


def test_the_callers_random_numbers_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_single(_after_seed, classes(), config(epochs=1))
    assert torch.equal(torch.rand(3), expected)


def _after_seed():
    with torch.random.fork_rng(devices=[]):
        return mlp(dropout=0.5)


def test_parameters_have_memory_of_their_own_after_the_training():
    model, _ = train_single(mlp, classes(), config(epochs=1))
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert all(p.grad is None for p in model.parameters())
    assert not model.training
