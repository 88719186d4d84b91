"""What the tests of training share: ranks that are threads, small data sets, plain torch to compare with."""

import threading

import numpy as np
import torch

from argosy.core.clock import SystemClock
from argosy.core.progress import silent
from argosy.data.config import DataConfig
from argosy.data.dataset import build_dataset
from argosy.train.config import TrainConfig
from argosy.train.fit import training_loss
from argosy.train.loop import Training
from argosy.train.losses import loss_for
from argosy.train.samples import Samples
from argosy.train.strategy.synchronous import DataParallel, Single
from argosy.train.transport import MemoryTransport

torch.set_num_threads(1)


def run_ranks(transports, work, seconds=60.0):
    """Call `work(transport)` in one thread per rank; return the results by rank or raise the first error."""
    results, errors = {}, {}

    def run(transport):
        try:
            results[transport.rank] = work(transport)
            transport.close()
        except BaseException as error:  # noqa: BLE001 - handed on below
            errors[transport.rank] = error
            transport.close(failed=True)

    threads = [threading.Thread(target=run, args=(transport,)) for transport in transports]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "a rank hangs"
    causes = [e for _, e in sorted(errors.items()) if getattr(e, "code", "") != "rank_lost"]
    if errors:
        raise (causes or list(errors.values()))[0]
    return [results[rank] for rank in sorted(results)]


def classes(*, n=50, features=6, outputs=3, validation=12, seed=0, dtype=torch.float64, shape=None):
    """Return samples of a task that can be learned."""
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n + validation, features, generator=draw, dtype=dtype)
    y = (x[:, :outputs] + 0.3 * torch.randn(n + validation, outputs, generator=draw, dtype=dtype)).argmax(dim=1)
    x = x.reshape(-1, *shape) if shape else x
    return Samples(x[:n], y[:n], x[n:], y[n:], "classification", outputs)


def train_ranks(build, samples, config, workers):
    """Train with that many ranks in threads; return the models and positions of all ranks."""
    # Built one after the other: threads share torch's generator.
    models = [build() for _ in range(workers)]

    def work(transport):
        torch.set_num_threads(1)
        training = training_of(models[transport.rank], samples, config, DataParallel(transport))
        return training.model, training.run()

    return run_ranks(MemoryTransport.group(workers), work)


def train_single(build, samples, config, **more):
    training = training_of(build(), samples, config, Single(), **more)
    return training.model, training.run()


def training_of(model, samples, config, strategy, *, report=silent, clock=None, checkpoints=None, loss=None):
    return Training(
        model,
        samples,
        config,
        strategy,
        loss or training_loss(config, samples),
        clock=clock or SystemClock(),
        report=report,
        checkpoints=checkpoints,
        validation_loss=loss_for(config.loss, samples.task, samples.outputs),
    )


def config(**fields):
    found = TrainConfig(**{"epochs": 2, "batch_size": 16, "dtype": "float64", **fields})
    found.check()
    return found


def largest_difference(one, other):
    """Return the largest difference over all parameters and buffers of two models."""
    first, second = one.state_dict(), other.state_dict()
    assert first.keys() == second.keys()
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


def save_table(folder, n=120, features=5, seed=0, **data):
    """Make a small data set of classes on disk and return its folder."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(n, features))
    label = np.array(["red", "green", "blue"])[(x[:, :3] + 0.2 * draw.normal(size=(n, 3))).argmax(axis=1)]
    rows = [",".join([*(f"x{i}" for i in range(features)), "label"])]
    rows += [",".join([*(f"{value:.6f}" for value in row), name]) for row, name in zip(x, label, strict=True)]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    build_dataset(DataConfig(train="table.csv", **data), folder).save(folder / "dataset")
    return folder / "dataset"
