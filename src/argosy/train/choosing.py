"""What `strategy = "auto"` does with more than one worker: it looks, measures if that pays, chooses, and says why.

A training begins with data-parallel. Its first steps tell how long it will take. Only where measuring is a small share
of that it is stopped, everything is measured for seconds, and it begins anew in the fastest way. What was chosen stands
in the training's folder, so that a resumed training goes on with it, to the same bits.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.digest import canonical
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.machine import free_memory
from argosy.core.progress import Progress, Reporter
from argosy.core.units import format_time
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.measure import measure
from argosy.train.measurement import Measurement, MeasurementStore, measurement_key
from argosy.train.outcome import CHECKPOINTS
from argosy.train.predict import Terms, choose, predictions, reasons

CHOICE = "choice.json"
_COST_S = 8.0
"""Measuring takes some 5 s, and beginning anew 3 s."""
_SHARE = 0.05
"""The most that choosing may add to a training."""
_LOOK_STEPS = 3
"""Steps after which a training's speed says how long it will take."""

T = TypeVar("T")


class Choice(msgspec.Struct, frozen=True, kw_only=True):
    """How a training is carried out."""

    made_by: str
    """The training that it is of."""
    strategy: str
    workers: int
    threads: int
    """Of each worker; 0: cores are shared out."""
    reasons: list[str]
    """In plain words, three lines at most."""
    is_measured: bool = False

    def applied(self, train: TrainConfig) -> TrainConfig:
        """Return the settings with this choice in them."""
        return msgspec.structs.replace(train, strategy=self.strategy, workers=self.workers)


class _IsLong(Exception):
    """Stops a training that is worth measuring."""

    def __init__(self, left_s: float) -> None:
        super().__init__()
        self.left_s = left_s


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """A training as it was asked for."""

    dataset: Path
    data: str
    """Digest of the data set."""
    model: ModelConfig
    train: TrainConfig
    base: Path
    work: Path
    made_by: str

    @property
    def is_open(self) -> bool:
        """Whether there is anything to choose."""
        return self.train.strategy == "auto" and self.train.workers > 1


def read_choice(work: Path, made_by: str) -> Choice | None:
    """Return what was chosen for the training in this folder."""
    try:
        found = msgspec.json.decode((work / CHOICE).read_bytes(), type=Choice)
    except (OSError, msgspec.DecodeError):
        return None
    return found if found.made_by == made_by else None


class Chooser:
    """Chooses how one training is carried out, and has it carried out so."""

    def __init__(
        self,
        asked: Asked,
        store: MeasurementStore | None,
        *,
        launcher: Launcher,
        clock: Clock,
        report: Reporter,
    ) -> None:
        self._asked, self._store = asked, store
        self._launcher, self._clock, self._report = launcher, clock, report

    def run(self, train: Callable[[Choice, Reporter], T]) -> T:
        """Call `train` with what is chosen, and return what it does. It may be stopped by its reporter, once."""
        asked = self._asked
        choice = read_choice(asked.work, asked.made_by)
        if not asked.is_open:
            return train(self._choice([], strategy=asked.train.strategy_name), self._report)
        if choice is not None:
            return train(choice, self._report)
        if any((asked.work / CHECKPOINTS).glob("step-*.json")):
            # Of a training that was ended before it had looked; it began so.
            return train(self._kept([f"{self._usual()}, as it began"]), self._report)
        stored = self._stored()
        if stored is not None:
            return train(self._chosen(stored, "measured before"), self._report)
        try:
            return train(self._choice([]), self._look)
        except _IsLong as found:
            choice = self._measured(found.left_s)
        return train(choice, self._report)

    def _look(self, news: Progress) -> None:
        """Hand news on; after some steps decide whether measuring pays."""
        asked = self._asked
        if read_choice(asked.work, asked.made_by) is None and news.total and news.done >= _LOOK_STEPS:
            left_s = max(0.0, news.left_s)
            if left_s * _SHARE >= _COST_S:
                raise _IsLong(left_s)
            pays = f"measuring pays from {format_time(_COST_S / _SHARE)} on"
            self._kept([f"{self._usual()}, not measured: about {format_time(left_s)} to go, and {pays}"])
        self._report(news)

    def _measured(self, left_s: float) -> Choice:
        """Measure, within the share of the time that is left, and choose; what was trained so far is dropped."""
        asked = self._asked
        self._say(f"{format_time(left_s)} to go as data-parallel; measuring for some seconds what is fastest here")
        key = self._key()
        try:
            found = measure(
                asked.dataset,
                asked.model,
                asked.train,
                asked.base,
                key,
                launcher=self._launcher,
                clock=self._clock,
                is_quick=True,
                limit_s=max(_COST_S, _SHARE * left_s),
            )
        except ArgosyError as error:
            # The training itself will say what is wrong, if it is.
            return self._kept([f"{self._usual()}, not measured: {error.message}"])
        if self._store is not None:
            self._store.keep(found)
        shutil.rmtree(asked.work / CHECKPOINTS, ignore_errors=True)
        return self._chosen(found, f"measured in {format_time(found.seconds)}")

    def _stored(self) -> Measurement | None:
        found = self._store.read(self._key()) if self._store is not None else None
        workers = min(self._asked.train.workers, self._asked.train.batch_size)
        return found if found is not None and found.trial("data-parallel", workers) is not None else None

    def _key(self) -> str:
        asked = self._asked
        return measurement_key(asked.data, asked.model, asked.train, asked.base)

    def _chosen(self, measurement: Measurement, how: str) -> Choice:
        train = self._asked.train
        terms = Terms.of(train, measurement, free_memory())
        ways = [way for way in predictions(measurement, terms) if way.workers <= train.workers]
        way = choose(ways)
        first, *more = reasons(way, ways, terms)
        return self._kept(
            [f"{first} ({how})", *more],
            strategy=way.strategy,
            workers=way.workers,
            threads=way.threads,
            is_measured=True,
        )

    def _kept(
        self,
        lines: list[str],
        *,
        strategy: str = "data-parallel",
        workers: int = 0,
        threads: int = 0,
        is_measured: bool = False,
    ) -> Choice:
        """Write a choice down, and say it."""
        choice = self._choice(lines, strategy=strategy, workers=workers, threads=threads, is_measured=is_measured)
        write_atomic(self._asked.work / CHOICE, canonical(choice))
        for number, line in enumerate(lines):
            self._say(line if number else f"auto: {line}")
        return choice

    def _choice(
        self,
        lines: list[str],
        *,
        strategy: str = "data-parallel",
        workers: int = 0,
        threads: int = 0,
        is_measured: bool = False,
    ) -> Choice:
        train = self._asked.train
        return Choice(
            made_by=self._asked.made_by,
            strategy=strategy,
            workers=workers or train.workers,
            threads=threads,
            reasons=lines,
            is_measured=is_measured,
        )

    def _usual(self) -> str:
        return f"data-parallel with {self._asked.train.workers} workers"

    def _say(self, message: str) -> None:
        self._report(Progress(stage="train", message=message, is_note=True))
