"""One rank of a training: the entry of the processes that a job starts."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from argosy.core.clock import SystemClock
from argosy.core.config import from_plain
from argosy.core.digest import canonical, sha256
from argosy.core.files import write_atomic
from argosy.core.progress import Progress, Reporter, silent
from argosy.data.dataset import Dataset
from argosy.train.checkpoint import Checkpoints
from argosy.train.fit import training_loss
from argosy.train.loop import Training
from argosy.train.lora import merged_weights, trained_share
from argosy.train.losses import loss_for
from argosy.train.models import build_model, users_code, weights_to_bytes
from argosy.train.outcome import CHECKPOINTS, NEWS, RESULT, WEIGHTS, Outcome, RankSetup
from argosy.train.samples import samples_of
from argosy.train.shared_memory import SharedMemoryTransport
from argosy.train.strategy.contract import open_strategy


def main(config: dict[str, Any]) -> int:
    """Train as the rank that `config`, a `RankSetup`, describes; rank 0 leaves weights and outcome in `work`."""
    setup = from_plain(config, RankSetup, where="rank")
    use_threads(setup.threads)
    work, base = Path(setup.work), Path(setup.base)
    samples = samples_of(Dataset.load(Path(setup.dataset)), getattr(torch, setup.train.dtype))
    samples.check(setup.train.workers)
    setup.check_code()
    model = build_model(setup.model, base, samples.given, samples.outputs, setup.train.seed)
    model.to(samples.x.dtype if samples.x.is_floating_point() else getattr(torch, setup.train.dtype))
    report = _news_to(work / NEWS) if setup.rank == 0 else silent
    if setup.model.lora is not None:
        report(Progress(stage="train", message=trained_share(model)))
    with _joined(setup) as transport:
        training = Training(
            model,
            samples,
            setup.train,
            open_strategy(setup.train.strategy_name, transport),
            training_loss(setup.train, samples),
            clock=SystemClock(),
            report=report,
            checkpoints=Checkpoints(work / CHECKPOINTS, setup.made_by),
            validation_loss=loss_for(setup.train.loss, samples.task, samples.outputs),
        )
        with users_code(base, "training the model", only_theirs=True):
            training.run()
        if setup.rank == 0:
            _leave(training, setup)
    return 0


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
def _joined(setup: RankSetup) -> Iterator[SharedMemoryTransport]:
    transport = SharedMemoryTransport.join(setup.segment, setup.rank)
    try:
        yield transport
    except BaseException:
        transport.close(failed=True)
        raise
    transport.close()


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
