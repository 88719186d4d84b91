"""Latency, measured here and in turns with the original, so that whatever else the machine does hits both alike.

A run during which the kernel gave the processor to somebody else counts by what it computed: a neighbour's time slice
is four milliseconds, forty times what a small model takes, and says nothing about the model.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from argosy.compress.candidate import Timing
from argosy.core.clock import Clock, SystemClock
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.formats.runner import Runner

BATCHES = (1, 32)
"""One sample, as a caller without neighbours sends it, and a batch as a busy endpoint forms it."""

# A turn is as many runs as fill this time, so that changing sides costs nothing beside the work.
_TURN_S = 0.002
_MIN_TURNS = 4
# So many lengths of texts are timed.
_LENGTHS, _LENGTHS_OF_BATCHES = 5, 2
# What takes this many times the time that is given is run half as often.
_FAR_TOO_LONG = 4.0
_LONG_S = 0.2
_WAITED_S = 0.6


def interruptions() -> int:
    """Return how often the kernel took the processor from this process, or 0 where nobody counts that (Windows)."""
    try:
        import resource
    except ModuleNotFoundError:
        return 0
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw


def compare(
    original: Runner,
    candidate: Runner,
    samples: dict[str, np.ndarray],
    *,
    seconds: float,
    batches: Sequence[int] = BATCHES,
    clock: Clock | None = None,
    cpu: Callable[[], float] = time.process_time,
    interrupted: Callable[[], int] = interruptions,
) -> tuple[list[Timing], list[Timing]]:
    """Return the timings of both, one per batch size, from about `seconds` of alternating runs.

    The samples are repeated where a batch needs more than there are. Texts are taken short and long, in batches of like
    length, without needless padding, as an endpoint makes them. `interrupted` counts how often the processor was taken
    away.
    """
    clock = clock or SystemClock()
    found: tuple[list[Timing], list[Timing]] = ([], [])
    for batch in batches:
        feeds = feeds_of(samples, batch)
        sides = [_Side(runner, feeds, clock, cpu, interrupted) for runner in (original, candidate)]
        end = clock.monotonic() + seconds / len(batches)
        turns = 0
        least = _MIN_TURNS if sum(side.once_s for side in sides) < _FAR_TOO_LONG * seconds else _MIN_TURNS // 2
        while turns < least or clock.monotonic() < end:
            # Who begins changes from turn to turn: the first after a change finds the caches cold.
            for side in sides if turns % 2 else reversed(sides):
                side.turn()
            turns += 1
        for timings, side in zip(found, sides, strict=True):
            timings.append(side.timing(batch, sides[0].typical))
    return found


def feeds_of(samples: dict[str, np.ndarray], batch: int) -> list[dict[str, np.ndarray]]:
    """Return what a model is timed with: the first samples; texts of some lengths, from short to long."""
    if ATTENTION_MASK not in samples:
        return [{name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in samples.items()}]
    order = np.argsort(samples[ATTENTION_MASK].sum(axis=1), kind="stable")
    count = min(_LENGTHS if batch == 1 else _LENGTHS_OF_BATCHES, max(1, len(order) // batch))
    feeds = []
    for place in (np.arange(count) + 0.5) / count:
        start = max(0, min(int(place * len(order)) - batch // 2, len(order) - batch))
        rows = np.resize(order[start : start + batch], batch)
        feeds.append(without_padding({name: np.ascontiguousarray(array[rows]) for name, array in samples.items()}))
    return feeds


def batches_for(original: Runner, samples: dict[str, np.ndarray], clock: Clock | None = None) -> tuple[int, int]:
    """Return the batch sizes to time: a smaller one where 32 samples take longer than anybody waits for an answer."""
    clock = clock or SystemClock()
    feeds = feeds_of(samples, 1)
    start = clock.monotonic()
    for feed in feeds:
        original.run(feed)
    each_s = (clock.monotonic() - start) / len(feeds)
    return (1, 32) if 32 * each_s < _WAITED_S else (1, 8)


class _Side:
    def __init__(
        self,
        runner: Runner,
        feeds: list[dict[str, np.ndarray]],
        clock: Clock,
        cpu: Callable[[], float],
        interrupted: Callable[[], int],
    ) -> None:
        self._runner, self._feeds, self._clock, self._cpu, self._interrupted = runner, feeds, clock, cpu, interrupted
        self._times: list[list[float]] = [[] for _ in feeds]
        self._cpu_s = 0.0
        self._taken = 0
        self.once_s = 0.0
        for feed in feeds:
            # The first runs allocate; they are not what a caller sees. Of a long one that is the smaller part.
            for _ in range(2):
                start = clock.monotonic()
                runner.run(feed)
                once_s = clock.monotonic() - start
                if once_s > _LONG_S:
                    break
            self.once_s += once_s
        self._runs = max(1, min(64, round(_TURN_S / max(self.once_s, 1e-6))))

    def turn(self) -> None:
        for _ in range(self._runs):
            for feed, times in zip(self._feeds, self._times, strict=True):
                taken, computed = self._interrupted(), self._cpu()
                start = self._clock.monotonic()
                self._runner.run(feed)
                seconds = self._clock.monotonic() - start
                computed = self._cpu() - computed
                if self._interrupted() != taken:
                    self._taken += 1
                    seconds = min(seconds, computed)
                times.append(seconds)
                self._cpu_s += computed

    @property
    def typical(self) -> float:
        """The sum of the median times of all feeds."""
        return float(sum(np.median(times) for times in self._times))

    def timing(self, batch: int, base: float) -> Timing:
        times = np.concatenate(self._times)
        p50, p95 = (float(value) for value in np.quantile(times, (0.5, 0.95)))
        return Timing(
            batch=batch,
            p50_s=p50,
            p95_s=p95,
            cpu_s=self._cpu_s / len(times),
            ratio=self.typical / base if base else 1.0,
            runs=len(times),
            interrupted=self._taken / len(times),
        )
