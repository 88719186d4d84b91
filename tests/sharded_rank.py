"""A rank as a process of its own, for tests of `sharded`: torch.distributed has one group per process, not per thread.

Reads what to do from its arguments, and writes what each check found to a file. All checks share the processes.
"""

import contextlib
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path

import torch
from torch import nn

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.train.checkpoint import Checkpoints
from argosy.train.families import load_family
from argosy.train.inputs import ModelInput
from argosy.train.shared_memory import SharedMemoryTransport
from argosy.train.strategy.contract import open_strategy
from argosy.train.strategy.synchronous import Single
from argosy.train.totals import NotFinite
from ranks import classes, config, largest_difference, train_single, training_of


class Tied(nn.Module):
    """Blocks that repeat, a number as a parameter, a shared weight, frozen ones, and one that is never used."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 7)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(7, 7), nn.Tanh()) for _ in range(3))
        self.again = nn.Linear(7, 7, bias=False)
        self.head = nn.Linear(7, 3)
        self.temperature = nn.Parameter(torch.tensor(1.5))
        self.unused = nn.Parameter(torch.ones(5))
        self.register_buffer("seen", torch.zeros(1))
        self.again.weight = self.blocks[0][0].weight
        self.first.weight.requires_grad_(False)

    def forward(self, x):
        self.seen += self.training
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(self.again(x)) * self.temperature


def normed():
    torch.manual_seed(2)
    layers = [nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 700), nn.ReLU(), nn.Linear(700, 400)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Linear(400, 3)).double()


def tied():
    torch.manual_seed(3)
    return Tied().double()


def trained(host, build, samples, settings, checkpoints=None):
    model = build()
    training = training_of(model, samples, settings, open_strategy("sharded", host), checkpoints=checkpoints)
    training.run()
    return training


def difference(host, build, samples, **fields):
    """Return the largest difference to the same training by one process."""
    settings = config(learning_rate=0.02, **fields)
    alone, _ = train_single(build, samples, settings)
    found = trained(host, build, samples, settings)
    assert [type(module) for module in found.model.modules()] == [type(module) for module in alone.modules()]
    assert torch.equal(found.model(samples.x[:2]), found.model(samples.x[:2]))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in found.model.modules())
    return largest_difference(found.model, alone)


def check_totals(host, _):
    return open_strategy("sharded", host).total(1.5, host.rank)


def check_means(host, _):
    """Every rank has rank + 1 samples whose gradients are rank + 1; sgd at rate 1 goes down by their mean."""
    strategy = open_strategy("sharded", host)
    model = nn.Linear(300, 300, bias=False).double()
    nn.init.constant_(model.weight, host.rank)
    count = strategy.rank + 1
    with strategy.attached(model, config(optimizer="sgd")):
        strategy.begin()
        strategy.begin_pass(count)
        whole = strategy.total(count)[0]
        (model(torch.eye(300, dtype=torch.float64)).sum() * count * count / whole).backward()
        totals = strategy.finish(0, 2.0 * count, count, 1.0)
    return [*totals, model.weight.min().item(), model.weight.max().item()]


def check_gd(host, _):
    return difference(host, normed, classes(n=49), optimizer="gd")


def check_adamw(host, _):
    return difference(host, normed, classes(n=49), optimizer="adamw")


def check_clip(host, _):
    return difference(host, tied, classes(n=49), optimizer="momentum", clip=0.05, accumulate=2)


def check_empty_ranks(host, _):
    # The last batch has one sample, so that all other ranks have none.
    return difference(host, normed, classes(n=33), batch_size=16, optimizer="sgd", weight_decay=0.1)


def check_odd_model(host, _):
    return difference(host, tied, classes(n=49), optimizer="rmsprop", clip=0.5, l1=1e-3)


def check_few_validation_rows(host, _):
    """One rank has no row to validate, and another more passes to make than the rest."""
    samples = classes(n=20, validation=host.world_size - 1)
    object.__setattr__(samples, "__class__", type("OneByOne", (type(samples),), {"rows_at_once": 1}))
    return difference(host, normed, samples, patience=1)


FAMILIES = {
    "mlp": ({"hidden": [600, 500]}, ModelInput(shape=(12,))),
    "resnet": ({"width": 4}, ModelInput(shape=(1, 8, 8))),
    "lstm": ({}, ModelInput(shape=(5, 4))),
    "transformer": ({"dropout": 0.0}, ModelInput(shape=(7,), vocabulary=11)),
    "gpt": ({}, ModelInput(shape=(7,), vocabulary=11)),
}


def check_family(host, name):
    """Make three steps with a built-in model, of four samples, and compare with one process."""
    family, (options, given) = load_family(name), FAMILIES[name]
    models = []
    for strategy in (Single(), open_strategy("sharded", host)):
        torch.manual_seed(4)
        model = family.build(family.options(**options), given, given.vocabulary or 3).double()
        inputs = [tensor.repeat(2, *[1] * (tensor.dim() - 1))[:4] for tensor in given.example(torch.float64)]
        with strategy.attached(model, config(learning_rate=0.01)):
            for step in range(3):
                cuts = [4 * number // strategy.world_size for number in range(strategy.world_size + 1)]
                own = [tensor[cuts[strategy.rank] : cuts[strategy.rank + 1]] for tensor in inputs]
                own[0] = own[0] + step if not given.is_text else (own[0] + step) % given.vocabulary
                strategy.begin()
                strategy.begin_pass(len(own[0]))
                (model(*own).square().mean(dim=-1).sum() / 4).backward()
                strategy.finish(step, 1.0, len(own[0]), 0.01)
        models.append(model)
    return largest_difference(*models)


def check_resumes(host, folder):
    """Stop in the midst of an epoch; go on as `sharded` and, from the same checkpoint, as one process."""
    samples = classes(n=49)
    settings = config(epochs=3, learning_rate=0.02, clip=0.5, patience=3, checkpoint_s=1e-9)
    whole = trained(host, tied, samples, settings).model
    stopped = training_of(
        tied(), samples, settings, open_strategy("sharded", host), checkpoints=Checkpoints(Path(folder), "it")
    )
    step = stopped._step

    def stopping(*arguments):
        if stopped.position.step == 6:
            raise InvalidInput("stopped")
        return step(*arguments)

    stopped._step = stopping
    try:
        stopped.run()
    except InvalidInput:
        host.meet()
    kept = Checkpoints(Path(folder), "it").steps()[-1]
    host.meet()
    again = trained(host, tied, samples, settings, Checkpoints(Path(folder), "it")).model
    host.meet()
    return [kept, largest_difference(again, whole)]


def check_from_one(host, folder):
    """Take up the checkpoint of one process; rank 0 has made it."""
    samples, settings = classes(n=49), config(epochs=2, optimizer="adam", learning_rate=0.02, checkpoint_s=1e-9)
    alone, _ = train_single(tied, samples, settings)
    if host.rank == 0:
        first = training_of(tied(), samples, settings, Single(), checkpoints=Checkpoints(Path(folder), "it"))
        first._finish_epoch = lambda: (_ for _ in ()).throw(InvalidInput("stopped"))
        with contextlib.suppress(InvalidInput):
            first.run()
    host.meet()
    return largest_difference(trained(host, tied, samples, settings, Checkpoints(Path(folder), "it")).model, alone)


def check_not_finite(host, _):
    """Infinity in one rank's samples ends the step on all, who name the same parameter; nothing has changed."""
    strategy, model = open_strategy("sharded", host), normed()
    before = model[3].weight.detach().clone()
    with strategy.attached(model, config()):
        strategy.begin()
        strategy.begin_pass(1)
        output = model(torch.randn(4, 6, dtype=torch.float64))
        (output.sum() * (float("inf") if host.rank == 1 else 1.0)).backward()
        try:
            strategy.finish(0, 1.0, 4, 0.1)
        except NotFinite:
            culprit = strategy.first_not_finite()
    return [culprit, torch.equal(model[3].weight, before)]


def check_sparse(host, _):
    model = nn.Sequential(nn.EmbeddingBag(9, 4, sparse=True), nn.Linear(4, 3))
    try:
        with open_strategy("sharded", host).attached(model, config()):
            return "no error"
    except InvalidInput as error:
        return str(error)


def check_sizes(host, _):
    """Return the bytes that this rank holds of parameters, gradients and state, and those of the whole model."""
    model = normed()
    whole = sum(p.numel() * p.element_size() for p in model.parameters())
    strategy = open_strategy("sharded", host)
    with strategy.attached(model, config()):
        strategy.begin()
        strategy.begin_pass(4)
        model(torch.randn(4, 6, dtype=torch.float64)).sum().backward()
        gradients = [strategy._shards.gradient(name) for name in strategy._layout.parameters]
        own = [strategy._shards.own(name) for name in strategy._layout.parameters]
        parts = [*own, *gradients, *strategy.state().values()]
        storages = {part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}
        strategy.finish(0, 1.0, 4, 0.1)
    return [sum(storages.values()), whole]


def check_lost(host, how):
    """Train until rank 1 is gone or frozen; say by which error this one ended, and how long it waited."""
    samples, settings = classes(n=49), config(epochs=10_000)
    training = training_of(normed(), samples, settings, open_strategy("sharded", host))
    step = training._step
    last = [time.monotonic()]

    def stepping(*arguments):
        if training.position.step == 5 and host.rank == 1:
            os.kill(os.getpid(), getattr(signal, how))
        last[0] = time.monotonic()
        return step(*arguments)

    training._step = stepping
    try:
        training.run()
    except ArgosyError as error:
        return [type(error).__name__, error.code, error.context.get("rank"), time.monotonic() - last[0]]


def main(segment, rank, folder, *asked):
    torch.set_num_threads(1)
    host = SharedMemoryTransport.join(segment, int(rank))
    found, failed = {}, False
    for number, name in enumerate(asked):
        check, _, argument = name.partition(":")
        try:
            found[name] = globals()[f"check_{check}"](host, argument or str(Path(folder) / f"work-{number}"))
        except BaseException:  # noqa: BLE001 - the test shows it
            found[name], failed = {"error": traceback.format_exc()}, True
            break
    (Path(folder) / f"rank-{rank}.json").write_text(json.dumps(found))
    host.close(failed=failed)


if __name__ == "__main__":
    main(*sys.argv[1:])
