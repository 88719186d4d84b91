"""Versions that cost what a formula says, on a machine as noisy as wished, for tests of calibration."""

import random

from argosy.core.clock import FakeClock
from argosy.serve.calibration import Cost, measure_batching


class SyntheticBench:
    """Runs nothing: a batch costs `seconds(lengths)`, made longer by noise, and the clock moves by it."""

    def __init__(self, seconds, *, noise=0.0, seed=0, clock=None):
        self.seconds = seconds
        self.noise = noise
        self.clock = clock or FakeClock()
        self.cases = []
        self._random = random.Random(seed)

    def __call__(self, case):
        self.cases.append(case)
        true = self.seconds(case)
        # Caches and neighbours make it take a little longer; other processes make it stand in line now and then.
        own = true * (1 + self.noise * abs(self._random.gauss(0, 0.5)))
        wall = own * (1 + 4 * (self._random.random() < self.noise))
        self.clock.advance(wall)
        return Cost(wall, own)


def measured(seconds, *, lengths=(0,), budget_s=1.5, wall_s=60.0, **options):
    """Calibrate a version whose batch costs `seconds(lengths of its rows)`; return what was found and the bench."""
    batched = {name: options.pop(name) for name in ("is_batched", "takes_texts", "in_wall") if name in options}
    bench = SyntheticBench(seconds, **options)
    given = {"is_batched": True, "takes_texts": False} | batched
    return measure_batching(bench, lengths, bench.clock, budget_s=budget_s, wall_s=wall_s, **given), bench


def rows(cost):
    """A cost that depends on the number of rows only."""
    return lambda case: cost(len(case))


def padded(fixed_s, byte_s, *, cache_bytes=1 << 60, slower=1.3):
    """A version that pads its texts: so much per run, so much per padded byte, and more beyond what the cache holds."""

    def seconds(case):
        area = len(case) * max(case)
        return fixed_s + byte_s * (area if area <= cache_bytes else cache_bytes + slower * (area - cache_bytes))

    return seconds
