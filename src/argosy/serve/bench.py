"""Runs of a loaded version that are timed: alone, and several at once."""

import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from argosy.core.clock import Clock, ProcessorClock
from argosy.serve.calibration import Case, Cost
from argosy.serve.samples import Samples

_LEAST_S = 2e-4
"""Shorter runs are repeated for so long, so that reading the clocks does not count."""
_KEPT = 32


class EngineBench:
    """Times a version's whole computation, preparation and finishing steps included, on made-up rows."""

    def __init__(
        self, compute: Callable[[dict[str, Any]], Any], samples: Samples, clock: Clock, processor: ProcessorClock
    ) -> None:
        self._compute = compute
        self._samples = samples
        self._clock = clock
        self._processor = processor
        self._inputs: dict[Case, dict[str, Any]] = {}
        self._repeats: dict[Case, int] = {}

    def __call__(self, case: Case) -> Cost:
        """Run a batch and return what it took; raises whatever the version raises."""
        inputs = self._inputs.get(case)
        if inputs is None:
            if len(self._inputs) >= _KEPT:
                self._inputs.clear()
            inputs = self._inputs[case] = self._samples.batch(case)
        repeats = self._repeats.get(case, 1)
        line_s, wall_s = self._processor.stood_in_line(), self._clock.monotonic()
        for _ in range(repeats):
            self._compute(inputs)
        wall_s = self._clock.monotonic() - wall_s
        line_s = self._processor.stood_in_line() - line_s
        self._repeats[case] = min(100, max(1, math.ceil(_LEAST_S * repeats / max(wall_s, 1e-9))))
        return Cost(wall_s / repeats, max(0.0, wall_s - line_s) / repeats)


def together(benches: Sequence[Callable[[Case], Cost]], case: Case, runs: int) -> list[list[Cost]]:
    """Run a batch `runs` times on each bench at once, each in a thread of its own; return the costs of each.

    Every bench runs the batch once before any is timed, and goes on until all are done: nobody is timed without the
    others. Raises what a bench raised.
    """
    found: list[list[Cost]] = [[] for _ in benches]
    raised: list[BaseException] = []
    start = threading.Barrier(len(benches))

    def work(index: int) -> None:
        try:
            benches[index](case)
            start.wait()
            found[index] = [benches[index](case) for _ in range(runs)]
            while not all(found) and not raised:
                benches[index](case)
        except threading.BrokenBarrierError:
            return
        except BaseException as error:  # noqa: BLE001 - handed to the thread that asked
            raised.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(len(benches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if raised:
        raise raised[0]
    return found
