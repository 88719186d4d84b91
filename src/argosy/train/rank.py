"""One rank of a training: the entry of the processes that a job starts."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from torch import Tensor, nn

from argosy.core.clock import SystemClock
from argosy.core.config import from_plain
from argosy.core.digest import canonical, sha256
from argosy.core.files import write_atomic
from argosy.core.progress import Progress, Reporter, silent
from argosy.data.dataset import Dataset
from argosy.train.agreement import Measured, agreed, measured
from argosy.train.checkpoint import Checkpoints
from argosy.train.config import TrainConfig
from argosy.train.fit import training_loss
from argosy.train.hosts import JOIN_S, common_digest
from argosy.train.loop import BatchLoss, Training, losses_of
from argosy.train.lora import merged_weights, trained_share
from argosy.train.losses import loss_for
from argosy.train.models import build_model, users_code, weights_to_bytes
from argosy.train.network.hierarchy import HierarchicalTransport, as_hosts
from argosy.train.network.transport import TcpTransport
from argosy.train.outcome import AGREEMENT, CHECKPOINTS, NEWS, RESULT, WEIGHTS, Outcome, RankSetup
from argosy.train.samples import Samples, samples_of
from argosy.train.shared_memory import SharedMemoryTransport
from argosy.train.strategy.contract import open_strategy
from argosy.train.transport import Host


def main(config: dict[str, Any]) -> int:
    """Train as the rank that `config`, a `RankSetup`, describes; rank 0 leaves weights and outcome in `work`."""
    setup = from_plain(config, RankSetup, where="rank")
    use_threads(setup.threads)
    work, base = Path(setup.work), Path(setup.base)
    # One look at every byte is enough for all.
    dataset = Dataset.load(Path(setup.dataset), is_checked=setup.rank == 0)
    samples = samples_of(dataset, getattr(torch, setup.train.dtype))
    samples.check(setup.train.workers * setup.hosts.count)
    setup.check_code()
    model = build_model(setup.model, base, samples.given, samples.outputs, setup.train.seed)
    model.to(samples.x.dtype if samples.x.is_floating_point() else getattr(torch, setup.train.dtype))
    report = _news_to(work / NEWS) if setup.rank == 0 else silent
    if setup.model.lora is not None:
        report(Progress(stage="train", message=trained_share(model)))
    loss = training_loss(setup.train, samples)
    with _joined(setup) as (host, everyone):
        train = setup.train
        if everyone is not None:
            train = _agreed(setup, everyone, model, samples, loss=loss, report=report)
        training = Training(
            model,
            samples,
            train,
            open_strategy(train.strategy_name, host, everyone),
            loss,
            clock=SystemClock(),
            report=report,
            checkpoints=Checkpoints(work / CHECKPOINTS, setup.made_by),
            validation_loss=loss_for(train.loss, samples.task, samples.outputs),
        )
        with users_code(base, "training the model", only_theirs=True):
            training.run()
        if setup.rank == 0:
            _leave(training, setup)
    return 0


def _agreed(
    setup: RankSetup,
    everyone: HierarchicalTransport,
    model: nn.Module,
    samples: Samples,
    *,
    loss: BatchLoss,
    report: Reporter,
) -> TrainConfig:
    """Return the settings that all hosts go by, and say why."""
    train = setup.train

    def losses(rows: Tensor) -> Tensor:
        return losses_of(model, samples, loss, rows, train.precision)

    def measure() -> Measured:
        with users_code(Path(setup.base), "training the model", only_theirs=True):
            return measured(everyone, model, train, rows=len(samples), losses=losses, clock=SystemClock())

    found = agreed(Path(setup.work) / AGREEMENT, setup.made_by, everyone, train, measure)
    for line in found.reasons:
        report(Progress(stage="train", message=line, is_note=True))
    if not everyone.is_whole:
        missing = f"going on with {everyone.hosts} of {setup.hosts.count} hosts; the others may come back"
        report(Progress(stage="train", message=missing, is_note=True))
    return found.train


def use_threads(threads: int) -> None:
    """Let this process compute as every rank does: with so many threads, and the same bits each time."""
    # Before other threads are made, which take this over: numbers too small for a normal form, of which optimizers are
    # full, are 0. Computing with them takes up to 50 times as long.
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    # Resuming gives the same bits only if every operation does. This call instead of use_deterministic_algorithms,
    # which imports the compiler (1 CPU second).
    torch.set_deterministic_debug_mode("warn")
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextlib.contextmanager
def _joined(setup: RankSetup) -> Iterator[tuple[Host, HierarchicalTransport | None]]:
    """Meet the other ranks of this host, then those of others if there are any."""
    host = SharedMemoryTransport.join(setup.segment, setup.rank)
    try:
        if setup.hosts.count == 1:
            yield host, None
        else:
            with _network(setup) as network:
                # Hosts that haven't come back are missing, so only the leader knows how many take part, and as which.
                place = np.array([network.world_size, network.rank] if network else [0, 0], np.int64)
                host.broadcast(place)
                count, number = place.tolist()
                everyone = HierarchicalTransport(host, network, [setup.train.workers] * count, number)
                everyone.is_whole = count == setup.hosts.count
                yield host, everyone
    except BaseException:
        host.close(failed=True)
        raise
    host.close()


@contextlib.contextmanager
def _network(setup: RankSetup) -> Iterator[TcpTransport | None]:
    if setup.rank != 0:
        yield None
        return
    hosts = setup.hosts
    with as_hosts():
        found = TcpTransport.join(
            hosts.address,
            hosts.number,
            hosts.count,
            token=hosts.token,
            digest=common_digest(setup.made_by),
            join_s=JOIN_S,
        )
    with found:
        yield found


def _leave(training: Training, setup: RankSetup) -> None:
    """Write the weights and then, as the last act, the outcome."""
    work, position = Path(setup.work), training.position
    data = weights_to_bytes(merged_weights(training.model))
    write_atomic(work / WEIGHTS, data)
    outcome = Outcome(
        made_by=setup.made_by,
        digest=sha256(data),
        history=position.history,
        epochs=position.epoch,
        steps=position.step,
        metric=training.metric_name,
        best_metric=position.best if position.best is not None else 0.0,
        seconds=position.seconds,
    )
    write_atomic(work / RESULT, canonical(outcome))


def _news_to(path: Path) -> Reporter:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def report(news: Progress) -> None:
        os.write(descriptor, msgspec.json.encode(news) + b"\n")

    return report
