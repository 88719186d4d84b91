"""One process of a measurement: it trains as a rank would, a few steps in each way that is to be tried."""

import contextlib
import ctypes
import gc
import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch

from argosy.core.clock import Clock, SystemClock
from argosy.core.config import from_plain
from argosy.core.digest import canonical
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.machine import usable_cores
from argosy.core.progress import silent
from argosy.data.dataset import Dataset
from argosy.train.checkpoint import Checkpoints
from argosy.train.fit import training_loss
from argosy.train.loop import Training, usual_epochs
from argosy.train.losses import loss_for
from argosy.train.measurement import RESULT, ProbeResult, ProbeSetup, Trial, Tried
from argosy.train.models import build_model, users_code
from argosy.train.parameters import Layout
from argosy.train.randomness import own_randomness
from argosy.train.rank import use_threads
from argosy.train.samples import Samples, samples_of
from argosy.train.shared_memory import SharedMemoryTransport
from argosy.train.strategy.contract import open_strategy
from argosy.train.transport import Host, Solo

_WARM_UP = 2
"""Steps that don't count: memory is asked for in the first one."""
_FEWEST, _MOST = 3, 64
_RSS = re.compile(r"^Rss:\s+(\d+) kB", re.MULTILINE)
_PSS = re.compile(r"^Pss:\s+(\d+) kB", re.MULTILINE)


def main(config: dict[str, Any]) -> int:
    """Make the trials of `config`, a `ProbeSetup`; rank 0 leaves a `ProbeResult`."""
    setup = from_plain(config, ProbeSetup, where="probe")
    clock = SystemClock()
    use_threads(1)
    samples = samples_of(Dataset.load(Path(setup.dataset), is_checked=False), getattr(torch, setup.train.dtype))
    made: list[Trial] = []
    known: dict[str, Any] = {}
    for tried in setup.trials:
        if setup.rank >= tried.workers:
            continue
        try:
            found, more = _made(setup, tried, samples, clock)
        except ArgosyError as error:
            if not tried.may_fail:
                raise
            found, more = _trial(tried, error=error.message), {}
        made.append(found)
        known = more | known
        _give_back()
    if setup.rank == 0:
        result = ProbeResult(samples=len(samples), trials=made, **known)
        write_atomic(Path(setup.work) / RESULT, canonical(result))
    return 0


def _made(setup: ProbeSetup, tried: Tried, samples: Samples, clock: Clock) -> tuple[Trial, dict[str, Any]]:
    with _joined(tried, setup.rank) as host:
        probe = _probe(setup, tried, samples, host, clock)
        known = probe.known()
        begun = clock.monotonic()
        with users_code(Path(setup.base), "training the model", only_theirs=True):
            found, more = probe.measure(tried, setup.seconds)
        return found, known | more | {"start_s": begun - setup.launched}


def _trial(tried: Tried, **found: Any) -> Trial:
    return Trial(strategy=tried.strategy, workers=tried.workers, threads=tried.threads, batch=tried.batch, **found)


@contextlib.contextmanager
def _joined(tried: Tried, rank: int) -> Iterator[Host]:
    if tried.workers == 1:
        yield Solo()
        return
    transport = SharedMemoryTransport.join(tried.segment, rank)
    try:
        yield transport
    except BaseException:
        transport.close(failed=True)
        raise
    transport.close()


def _probe(setup: ProbeSetup, tried: Tried, samples: Samples, host: Host, clock: Clock) -> "_Probe":
    torch.set_num_threads(tried.threads)
    train = msgspec.structs.replace(setup.train, strategy=tried.strategy, workers=tried.workers, batch_size=tried.batch)
    model = build_model(setup.model, Path(setup.base), samples.given, samples.outputs, train.seed)
    model.to(samples.x.dtype if samples.x.is_floating_point() else getattr(torch, train.dtype))
    return _Probe(
        model,
        samples,
        train,
        open_strategy(tried.strategy, host),
        training_loss(train, samples),
        clock=clock,
        report=silent,
        checkpoints=Checkpoints(Path(setup.work) / "checkpoints", "measurement") if tried.with_checkpoint else None,
        validation_loss=loss_for(train.loss, samples.task, samples.outputs),
    )


class _Probe(Training):
    """A training that is timed instead of finished."""

    def known(self) -> dict[str, Any]:
        """Return what is the same in all trials."""
        layout = Layout(self.model)
        parameters = sum(parameter.numel() for parameter in layout.parameters.values())
        return {
            "usual_epochs": usual_epochs(self._steps_per_epoch),
            "batch": self._batch_size,
            "parameters": parameters,
            "parameter_bytes": parameters * layout.dtype.itemsize,
        }

    def measure(self, tried: Tried, seconds: float) -> tuple[Trial, dict[str, Any]]:
        """Train for about so many seconds; return the trial, and what else has been found on rank 0."""
        strategy = self.strategy
        with own_randomness(), strategy.attached(self.model, self.config):
            self._started = self._saved = self._clock.monotonic()
            self._started_step, self._seconds_before = 0, 0.0
            self.model.train()
            times = self._times(seconds)
            step_s = strategy.total(_typical(times, every=tried.strategy == "local-sgd"))[0] / strategy.world_size
            memory = self._memory()
            validation_s = self._validation_s()
            memory = [max(pair) for pair in zip(memory, self._memory(), strict=True)]
            more = self._checkpointed(memory[0])
            state = sum(tensor.numel() * tensor.element_size() for tensor in strategy.state().values())
            if tried.strategy in ("single", "data-parallel"):
                more["state_bytes"] = state
        return _trial(
            msgspec.structs.replace(tried, batch=self._batch_size),
            step_s=step_s,
            steps=len(times),
            validation_s=validation_s,
            memory_bytes=max(memory),
            host_bytes=sum(memory),
        ), more

    def _times(self, seconds: float) -> list[float]:
        """Return how long steps took, the first ones left out; as many on every rank."""
        first = [self._timed(number) for number in range(min(_WARM_UP, self._steps))]
        usual_s = self.strategy.total(first[-1])[0] / self.strategy.world_size
        wanted = max(_FEWEST, min(_MOST, math.ceil(seconds / max(usual_s, 1e-6))))
        if self.config.strategy == "local-sgd":
            wanted = max(1, round(wanted / self.config.local.steps)) * self.config.local.steps
        # Not beyond the training's own end, where there is no learning rate. A step that isn't there isn't measured.
        wanted = min(wanted, self._steps - len(first))
        found = [self._timed(len(first) + number) for number in range(wanted)]
        return [taken for taken in found if taken] or first

    def _timed(self, step: int) -> float:
        """Return how long a step took, 0 when others had taken all work of the epoch."""
        begun = self._clock.monotonic()
        self.position.epoch, number = divmod(step, self._steps_per_epoch)
        if len(self.strategy.partners) < self.strategy.world_size and number == 0 and step:
            self.strategy.end_epoch(0.0, 0.0)
        work = self.strategy.next_work(self.position.epoch, number, self._steps_per_epoch)
        if work is None:
            return 0.0
        self._step(*work)
        return self._clock.monotonic() - begun

    @torch.no_grad()
    def _validation_s(self) -> float:
        """Return how long the validation part takes, from one pass."""
        samples, strategy = self.samples, self.strategy
        share = -(-len(samples.validation_y) // strategy.world_size)
        rows = torch.arange(min(samples.rows_at_once, share))
        if not len(rows):
            return 0.0
        self.model.eval()
        for _ in range(2):
            begun = self._clock.monotonic()
            outputs, y = self.model(*samples.validation_batch(rows)), samples.validation_y[rows]
            if self._validation_loss is not None:
                self._validation_loss(outputs, y)
            self._score.sums(outputs, y)
        return (self._clock.monotonic() - begun) * share / len(rows)

    def _memory(self) -> list[int]:
        """Return the bytes of each rank's process, while all are there."""
        strategy = self.strategy
        strategy.total()
        own = [0.0] * strategy.world_size
        # What a process alone has in common with others is only so while it is measured beside them.
        counted = _RSS if strategy.world_size == 1 else _PSS
        found = counted.search(Path("/proc/self/smaps_rollup").read_text())
        own[strategy.rank] = float(found[1]) * 1024 if found else 0.0
        return [int(number) for number in strategy.total(*own)]

    def _checkpointed(self, before: int) -> dict[str, Any]:
        """Write a checkpoint if that is to be tried; return what it took."""
        if self._checkpoints is None:
            return {}
        self._saved = -math.inf
        begun = self._clock.monotonic()
        with self._saving():
            self._maybe_save()
            paused_s = self._clock.monotonic() - begun
        # What is written behind the training takes one of all cores from it.
        taken = paused_s + (self._clock.monotonic() - begun - paused_s) / usable_cores()
        after = self._memory()[0]
        files = [path.stat().st_size for path in self._checkpoints.folder.iterdir()]
        return {
            "checkpoint_s": taken,
            "checkpoint_bytes": sum(files),
            "checkpoint_memory_bytes": max(0, after - before),
        }


def _typical(times: list[float], *, every: bool) -> float:
    """Return the mean of the middle half, which neither a hiccup nor a lucky step moves; with `every` of all."""
    kept = sorted(times)
    if not every and len(kept) >= 4:
        quarter = len(kept) // 4
        kept = kept[quarter : len(kept) - quarter]
    return statistics.fmean(kept)


def _give_back() -> None:
    """Give freed memory back to the system, so that the next trial begins as a new process does."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such function
        ctypes.CDLL(None).malloc_trim(0)
