import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.train.checkpoint import Checkpoints
from argosy.train.config import LocalConfig
from argosy.train.models import weights_to_bytes
from argosy.train.strategy.local_sgd import LocalSgd
from argosy.train.transport import MemoryTransport
from ranks import classes, config, largest_difference, run_ranks, train_single, training_of

pytestmark = pytest.mark.capability("T5")


def build(*, norm=False):
    torch.manual_seed(2)
    layers = [nn.Linear(6, 16), *([nn.BatchNorm1d(16)] if norm else []), nn.ReLU(), nn.Linear(16, 3)]
    return nn.Sequential(*layers).double()


def train(samples, settings, workers=2, *, made=build, folder=None, stop=0):
    models = [made() for _ in range(workers)]

    def work(host):
        checkpoints = Checkpoints(folder, "a") if folder else None
        training = training_of(models[host.rank], samples, settings, LocalSgd(host), checkpoints=checkpoints)
        if stop:
            _stop_in(training, stop)
        return training.run(), training.model

    return run_ranks(MemoryTransport.group(workers), work)


class _Killed(BaseException):
    pass


def _stop_in(training, step):
    original = training._step

    def one_step(*arguments):
        if training.position.step == step:
            raise _Killed
        return original(*arguments)

    training._step = one_step


def test_rounds_of_one_step_with_plain_averaging_are_steps_of_the_whole_batch():
    samples = classes(n=64)
    settings = config(optimizer="sgd", learning_rate=0.1, local=LocalConfig(interval=1))
    alone, position = train_single(build, samples, settings)
    for found, model in train(samples, settings):
        assert largest_difference(model, alone) < 1e-12
        assert [e["loss"] for e in found.history] == pytest.approx([e["loss"] for e in position.history])


@pytest.mark.parametrize("local", [LocalConfig(interval=5), LocalConfig(interval=5, outer="diloco")])
@pytest.mark.parametrize("workers", [2, 3])
def test_ranks_end_with_the_same_bits_and_learn_as_well_as_one_process(local, workers):
    """50 samples end in a batch of two, so that some ranks have none."""
    samples = classes(n=194, validation=100)
    settings = config(optimizer="adamw", learning_rate=0.02, epochs=12, local=local)
    _, alone = train_single(build, samples, settings)
    found = train(samples, settings, workers)
    first = weights_to_bytes(found[0][1].state_dict())
    for position, model in found:
        assert weights_to_bytes(model.state_dict()) == first
        assert position.history[-1]["accuracy"] >= alone.history[-1]["accuracy"] - 0.05


@pytest.mark.capability("T7")
@pytest.mark.parametrize("outer", ["average", "diloco"])
def test_resuming_gives_the_same_bits_as_no_break(tmp_path, outer):
    samples = classes(n=130)
    settings = config(checkpoint_s=1e-9, epochs=3, local=LocalConfig(interval=3, outer=outer))
    made = lambda: build(norm=True)  # noqa: E731
    whole = train(samples, settings, made=made)
    for stop in (4, 8, 11, 20):
        folder = tmp_path / str(stop)
        with pytest.raises(_Killed):
            train(samples, settings, made=made, folder=folder, stop=stop)
        assert Checkpoints(folder, "a").newest() > 0
        again = train(samples, settings, made=made, folder=folder)
        for (position, model), (expected, other) in zip(again, whole, strict=True):
            assert weights_to_bytes(model.state_dict()) == weights_to_bytes(other.state_dict()), stop
            assert [e["loss"] for e in position.history] == [e["loss"] for e in expected.history]


@pytest.mark.parametrize("compression", ["fp16", "int8"])
def test_what_is_sent_may_be_compressed(compression):
    samples = classes(n=194, validation=100, dtype=torch.float32)
    settings = config(
        optimizer="adamw",
        learning_rate=0.02,
        epochs=10,
        dtype="float32",
        local=LocalConfig(interval=4),
        compression=compression,
    )
    made = lambda: build().float()  # noqa: E731
    _, alone = train_single(made, samples, settings)
    one, other = train(samples, settings, made=made)
    assert weights_to_bytes(one[1].state_dict()) == weights_to_bytes(other[1].state_dict())
    assert one[0].history[-1]["accuracy"] >= alone.history[-1]["accuracy"] - 0.05


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"interval": 0}, "interval = 0 must be 1 or more"),
        ({"outer": "sum"}, "outer = 'sum' is not known; known are: average, diloco"),
        ({"interval": "often"}, "interval = 'often' must be 1 or more steps"),
        ({"interval": 4, "delay": 5}, "delay = 5 must be a number of steps up to the interval"),
    ],
)
def test_impossible_settings_are_refused(fields, said):
    with pytest.raises(InvalidInput, match=said):
        config(local=LocalConfig(**fields))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "float64", "compression": "int8"}, "needs dtype = 'float32', not 'float64'"),
        ({"dtype": "float32", "compression": "powersgd"}, "'powersgd' is for gradients"),
        ({"compression": "gzip"}, "compression = 'gzip' is not known"),
    ],
)
def test_compression_that_is_impossible_is_refused(fields, said):
    with pytest.raises(InvalidInput, match=said):
        config(strategy="local-sgd", **fields)
