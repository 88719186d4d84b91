"""What was measured of a training on this machine, and where that is kept. No torch here."""

import contextlib
from pathlib import Path

import msgspec

from argosy.core.digest import canonical, digest_of, sha256_file
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.machine import cpu_name, total_memory, usable_cores, version_of
from argosy.core.version import __version__
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.initial import init_digest

_MAX_BYTES = 1 << 20
_ROUND_BYTES = 256 << 20
_DECIDING = ("batch_size", "optimizer", "momentum", "clip", "accumulate", "precision", "loss", "dtype", "l1")
"""Of `[train]`: what decides how long a step takes and what memory it needs."""
_SHARED = ("max_staleness", "local")
"""The same for strategies that work with them."""
RESULT = "measured.json"
"""What processes that measure leave in their folder."""
_REVISION = 1
"""Goes up when measurements mean something else than before."""


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training, as it was tried for some steps."""

    strategy: str
    workers: int
    threads: int
    """Of each worker."""
    batch: int
    """Samples of a step, over all workers."""
    step_s: float = 0.0
    """Seconds for a step of `batch` samples."""
    steps: int = 0
    """Steps that were timed."""
    validation_s: float = 0.0
    """Seconds for all of the validation part."""
    memory_bytes: int = 0
    """Of the largest process: its own and its share of what several have in common."""
    host_bytes: int = 0
    """Of all processes together."""
    error: str = ""
    """Why it can't be done; then nothing else is known of it."""


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """One way of training that is to be tried."""

    strategy: str
    workers: int
    threads: int
    batch: int
    segment: str = ""
    """Path of the memory that its ranks share."""
    may_fail: bool = False
    """Whether the others count without it."""
    with_checkpoint: bool = False


class ProbeSetup(msgspec.Struct, frozen=True, kw_only=True):
    """What a process that measures is told."""

    rank: int
    trials: list[Tried]
    seconds: float
    """About how long the steps of one trial may take."""
    launched: float
    """When the processes were started, on the clock of this machine."""
    dataset: str
    model: ModelConfig
    train: TrainConfig
    base: str
    work: str


class ProbeResult(msgspec.Struct, frozen=True, kw_only=True):
    """What rank 0 of the processes that measure leaves."""

    samples: int
    batch: int
    usual_epochs: int
    parameters: int
    parameter_bytes: int
    start_s: float
    trials: list[Trial]
    state_bytes: int = 0
    checkpoint_s: float = 0.0
    checkpoint_bytes: int = 0
    checkpoint_memory_bytes: int = 0


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of training one model on one data set on this machine. Complete when it was not in a hurry."""

    key: str
    cores: int
    samples: int
    batch: int
    """Samples of a step, over all workers."""
    usual_epochs: int
    """What a training gets that asks for none."""
    parameters: int
    """Numbers that are trained."""
    parameter_bytes: int
    state_bytes: int
    """What the optimizer remembers. Gradients are as many bytes as parameters for each worker."""
    start_s: float
    """From the start of a process to its first step."""
    trials: list[Trial]
    checkpoint_s: float = 0.0
    checkpoint_bytes: int = 0
    checkpoint_memory_bytes: int = 0
    """What writing one adds to the memory of the process that does."""
    is_complete: bool = False
    seconds: float = 0.0
    """What it took."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps of one pass over the training part."""
        return -(-self.samples // self.batch)

    def trial(self, strategy: str, workers: int, *, batch: int = 0) -> Trial | None:
        """Return the fastest trial of that kind that could be done."""
        found = [
            trial
            for trial in self.trials
            if (trial.strategy, trial.workers, trial.batch) == (strategy, workers, batch or self.batch)
            and not trial.error
        ]
        return min(found, key=lambda trial: trial.step_s, default=None)


def measurement_key(data: str, model: ModelConfig, train: TrainConfig, base: Path) -> str:
    """Return a digest of all that a measurement depends on: model, data (its digest), settings, machine, versions.

    Neither epochs nor learning rate nor strategy are among it: a plan with others needs no new measurement.
    """
    code = base.joinpath(*model.build.partition(":")[0].split(".")).with_suffix(".py") if model.build else None
    return digest_of(
        {
            "revision": _REVISION,
            "argosy": __version__,
            "torch": version_of("torch"),
            "machine": [cpu_name(), usable_cores(), round(total_memory() / _ROUND_BYTES)],
            "data": data,
            "model": model,
            "init": init_digest(model, base),
            "code": sha256_file(code) if code is not None and code.is_file() else "",
            "train": {name: getattr(train, name) for name in (*_DECIDING, *_SHARED)},
        }
    )


class MeasurementStore:
    """The measurements of one home: a small file each. Losing one costs some seconds of measuring."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "cache" / "training"

    def read(self, key: str) -> Measurement | None:
        """Return what is known; None too when its file is damaged."""
        with contextlib.suppress(OSError, msgspec.DecodeError), self._path(key).open("rb") as stream:
            found = msgspec.json.decode(stream.read(_MAX_BYTES), type=Measurement)
            return found if found.key == key else None
        return None

    def keep(self, measurement: Measurement) -> None:
        """Keep a measurement beside what was known, unless the disk is full: that is no reason not to train."""
        former = self.read(measurement.key)
        if former is not None:
            measurement = _joined(former, measurement)
        with contextlib.suppress(OSError, ArgosyError):
            write_atomic(self._path(measurement.key), canonical(measurement), mode=0o600)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key.removeprefix('sha256:')}.json"


def _joined(former: Measurement, newer: Measurement) -> Measurement:
    """Return the newer one with what only the former has: trials of other numbers of workers, what a checkpoint is."""
    known = {(trial.strategy, trial.workers, trial.threads, trial.batch): trial for trial in former.trials}
    known |= {(trial.strategy, trial.workers, trial.threads, trial.batch): trial for trial in newer.trials}
    if newer.is_complete or not former.is_complete:
        return msgspec.structs.replace(newer, trials=list(known.values()))
    return msgspec.structs.replace(former, trials=list(known.values()))
