"""Latency, measured here and in turns with the original, so that whatever else the machine does hits both alike."""

import time
from collections.abc import Callable, Sequence

import numpy as np

from argosy.compress.candidate import Timing
from argosy.core.clock import Clock, SystemClock
from argosy.formats.runner import Runner

BATCHES = (1, 32)
"""One sample, as a caller without neighbours sends it, and a batch as a busy endpoint forms it."""

# A turn is as many runs as fill this time, so that changing sides costs nothing beside the work.
_TURN_S = 0.002
_MIN_TURNS = 4


def compare(
    original: Runner,
    candidate: Runner,
    samples: dict[str, np.ndarray],
    *,
    seconds: float,
    batches: Sequence[int] = BATCHES,
    clock: Clock | None = None,
    cpu: Callable[[], float] = time.process_time,
) -> tuple[list[Timing], list[Timing]]:
    """Return the timings of both, one per batch size, from about `seconds` of alternating runs.

    The samples are repeated where a batch needs more than there are.
    """
    clock = clock or SystemClock()
    found: tuple[list[Timing], list[Timing]] = ([], [])
    for batch in batches:
        feed = {name: np.resize(array[:batch], (batch, *array.shape[1:])) for name, array in samples.items()}
        sides = [_Side(runner, feed, clock, cpu) for runner in (original, candidate)]
        end = clock.monotonic() + seconds / len(batches)
        turns = 0
        while turns < _MIN_TURNS or clock.monotonic() < end:
            # Who begins changes from turn to turn: the first after a change finds the caches cold.
            for side in sides if turns % 2 else reversed(sides):
                side.turn()
            turns += 1
        base = float(np.median(sides[0].times))
        for timings, side in zip(found, sides, strict=True):
            timings.append(side.timing(batch, base))
    return found


class _Side:
    def __init__(self, runner: Runner, feed: dict[str, np.ndarray], clock: Clock, cpu: Callable[[], float]) -> None:
        self._runner, self._feed, self._clock, self._cpu = runner, feed, clock, cpu
        self.times: list[float] = []
        self._cpu_s = 0.0
        # The first runs allocate; they are not what a caller sees.
        runner.run(feed)
        start = clock.monotonic()
        runner.run(feed)
        once = clock.monotonic() - start
        self._runs = max(1, min(64, round(_TURN_S / max(once, 1e-6))))

    def turn(self) -> None:
        before = self._cpu()
        for _ in range(self._runs):
            start = self._clock.monotonic()
            self._runner.run(self._feed)
            self.times.append(self._clock.monotonic() - start)
        self._cpu_s += self._cpu() - before

    def timing(self, batch: int, base: float) -> Timing:
        p50, p95 = (float(value) for value in np.quantile(self.times, (0.5, 0.95)))
        return Timing(
            batch=batch,
            p50_s=p50,
            p95_s=p95,
            cpu_s=self._cpu_s / len(self.times),
            ratio=p50 / base if base else 1.0,
            runs=len(self.times),
        )
