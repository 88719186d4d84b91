"""How long the training of a project will take, from what was measured on this machine; and the measuring."""

import tempfile
from pathlib import Path

import msgspec

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.core.files import resolve_inside
from argosy.core.machine import free_memory
from argosy.core.units import format_time, parse_rate, parse_time
from argosy.pipeline.config import Recipe
from argosy.pipeline.context import StageRecord, link_or_copy
from argosy.registry.registry import Registry
from argosy.train.measure import measure
from argosy.train.measurement import Measurement, MeasurementStore, measurement_key
from argosy.train.network.links import Link
from argosy.train.predict import Prediction, Terms, choose, predictions, reasons

_DESCRIPTION = "dataset/dataset.json"


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """What a training will take. Times are in seconds, of this machine as busy as it was when it was measured."""

    chosen: Prediction
    """What the settings stand for, or `auto` would choose."""
    why: list[str]
    """Three lines."""
    ways: list[Prediction]
    """All that were measured, or put together from what was."""
    impossible: dict[str, str]
    """Strategies that can't train this model, with the reason."""
    epochs: int
    steps_per_epoch: int
    parameters: int
    parameter_bytes: int
    state_bytes: int
    checkpoint_bytes: int
    checkpoint_s: float
    is_at_most: bool
    """Whether it may end earlier, by `patience`."""

    @property
    def steps(self) -> int:
        """Steps of the whole training."""
        return self.epochs * self.steps_per_epoch

    @property
    def line(self) -> str:
        """How much there is to do, and how long it takes."""
        most = "at most " if self.is_at_most else ""
        return (
            f"{most}{self.steps:,} steps in {self.epochs} epochs of {format_time(self.chosen.epoch_s)}, "
            f"{most}{format_time(self.chosen.total_s)} in all"
        )


def parse_link(text: str) -> Link:
    """Read the link between two hosts, such as `100Mbit/s, 5ms`: its bandwidth, and the time there and back.

    >>> parse_link("1 Gbit/s, 2 ms")
    Link(bytes_s=125000000.0, round_trip_s=0.002)
    """
    rate, _, delay = text.partition(",")
    found = Link(bytes_s=parse_rate(rate), round_trip_s=parse_time(delay) if delay.strip() else 0.0005)
    if found.bytes_s <= 0:
        raise InvalidInput(f"{text!r} is no link: nothing gets through", hint="write it as '100Mbit/s, 5ms'")
    return found


class Estimates:
    """Estimates of one home's projects."""

    def __init__(self, home: Path, registry: Registry) -> None:
        self._store, self._registry = MeasurementStore(home), registry

    def find(self, recipe: Recipe, base: Path, data: StageRecord) -> Measurement | None:
        """Return what was measured of this training, if it tells what the settings ask."""
        found = self._store.read(self._key(recipe, base, data))
        return found if found is not None and found.is_complete and _asked(recipe, found) is not None else None

    def measure(
        self, recipe: Recipe, base: Path, data: StageRecord, *, launcher: Launcher, clock: Clock
    ) -> Measurement:
        """Measure for seconds, and keep it. `data` is what stage `data` left. Raises what a training would raise."""
        key = self._key(recipe, base, data)
        with tempfile.TemporaryDirectory(prefix="argosy-data-") as folder:
            for name, digest in data.outputs.items():
                path = resolve_inside(Path(folder), name)
                path.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self._registry.blobs.fetch(digest), path)
            found = measure(
                Path(folder) / "dataset", recipe.model, recipe.train, base, key, launcher=launcher, clock=clock
            )
        self._store.keep(found)
        return self._store.read(key) or found

    def _key(self, recipe: Recipe, base: Path, data: StageRecord) -> str:
        return measurement_key(data.outputs[_DESCRIPTION], recipe.model, recipe.train, base)


def estimate(recipe: Recipe, measurement: Measurement, *, hosts: int = 1, link: Link | None = None) -> Estimate:
    """Return what the training of `recipe` takes; with several `hosts` as if each were this machine."""
    train = recipe.train
    terms = Terms.of(train, measurement, free_memory())
    ways = predictions(measurement, terms, hosts=hosts, link=link)
    if hosts == 1 and (train.strategy != "auto" or train.workers == 1):
        chosen = _asked(recipe, measurement, ways) or choose(ways)
    else:
        chosen = choose([way for way in ways if way.hosts > 1 or way.workers <= max(train.workers, 1)] or ways)
    return Estimate(
        chosen=chosen,
        why=reasons(chosen, ways, terms),
        ways=ways,
        impossible={trial.strategy: trial.error for trial in measurement.trials if trial.error},
        epochs=terms.epochs,
        steps_per_epoch=measurement.steps_per_epoch,
        parameters=measurement.parameters,
        parameter_bytes=measurement.parameter_bytes,
        state_bytes=measurement.state_bytes,
        checkpoint_bytes=measurement.checkpoint_bytes,
        checkpoint_s=measurement.checkpoint_s,
        is_at_most=bool(train.patience),
    )


def _asked(recipe: Recipe, measurement: Measurement, ways: list[Prediction] | None = None) -> Prediction | None:
    """Return the way that the settings name; None when it was not measured."""
    train = recipe.train
    if ways is None:
        ways = predictions(measurement, Terms.of(train, measurement))
    strategy = train.strategy_name
    found = [way for way in ways if (way.strategy, way.workers) == (strategy, train.workers)]
    # One process takes all cores, unless `auto` has found that fewer are faster.
    return max(found, key=lambda way: way.threads, default=None)
