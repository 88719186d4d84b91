"""How a replica wants to be fed: a short measurement of batches, and the rules that follow from it.

The promise is that no batch runs slower than its rows would one by one. So a size is allowed only if it, and every size
below it, was measured or bounded: a run of more rows takes no less time, so what a run of n rows takes bounds all
smaller ones. Sizes are compared inside the same round of an interleaved measurement, by the median and by the fastest,
without the time that a run stood in line for a core: other processes make it wait, but that is not what it takes.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from argosy.core.clock import Clock
from argosy.serve.profile import Batching, Point

MAX_BATCH = 128
HOP_S = 1e-4
"""CPU seconds that a batch costs gateway and replica beyond what its rows do: two frames over the socket, and waking up
both. Measured on one 2-core machine: 0.08 to 0.15 ms."""
MAX_RUN_S = 0.1
"""A longer run of several rows holds up whoever comes next, for however little it saves."""
_WORTH = 0.98
"""A batch must bring rows at least so much cheaper; less is noise."""
_NEAR_BEST = 1.05
"""Of the sizes that are as good as the best up to noise, the smallest is taken: it delays the fewest."""
_ROUNDS = 3
_MOST_ROUNDS = 9
_SPARE_PART = 0.5
"""The part of a saved run that may be spent on padding; the rest is the gain."""
_FREE_PADDING = 1e6
# Parts of the budget: for finding out which sizes are worth measuring, and for measuring them often.
_EXPLORING, _REPEATING = 0.4, 0.5

Case = tuple[int, ...]
"""A batch: the length of each row in bytes, 0 where all rows are alike."""


class Cost(NamedTuple):
    """What one run took."""

    wall_s: float
    own_s: float
    """Without the time for which the thread that ran it stood in line for a core."""


Bench = Callable[[Case], Cost]
"""Runs a batch once, and may raise whatever a version raises on made-up inputs."""


class Found(NamedTuple):
    """What a measurement of batches ended with."""

    batching: Batching
    points: tuple[Point, ...]
    is_complete: bool
    """Whether everything was measured that had to be; otherwise the budget was used up, and the rest is left out."""
    error: str = ""
    """What the version said about made-up inputs, when it takes none."""


class Meter:
    """Runs batches in rounds, and says what they take."""

    def __init__(self, bench: Bench, clock: Clock, *, budget_s: float, wall_s: float, in_wall: bool = False) -> None:
        self._bench = bench
        self._clock = clock
        self._budget_s = budget_s
        self._until = clock.monotonic() + wall_s
        self._in_wall = in_wall
        self._spent_s = 0.0
        self._first: dict[Case, Cost] = {}
        self._costs: dict[Case, dict[int, Cost]] = {}
        self._round = 0

    def warm(self, case: Case) -> None:
        """Run a batch for the first time: it allocates, so its time counts only if there is no other."""
        self._first[case] = self._run(case)

    def round(self, cases: Iterable[Case]) -> bool:
        """Run each batch once more, one after the other, as far as the budget goes; return whether any was run."""
        self._round += 1
        has_run = False
        for case in cases:
            if self.is_over(self.seconds(case) if case in self._costs else 0.0):
                break
            self._costs.setdefault(case, {})[self._round] = self._run(case)
            has_run = True
        return has_run

    def is_over(self, next_s: float = 0.0, *, part: float = 1.0) -> bool:
        """Return whether a run of `next_s` more seconds is beyond this part of the budget, or it is too late."""
        return self._spent_s + next_s > part * self._budget_s or self._clock.monotonic() > self._until

    def rounds(self, case: Case) -> int:
        """Return how often a batch was run, its first time apart."""
        return len(self._costs.get(case, ()))

    def knows(self, case: Case) -> bool:
        """Return whether a batch was run in as many rounds as a decision needs."""
        return self.rounds(case) >= _ROUNDS

    def seconds(self, case: Case) -> float:
        """Return what a run of this batch takes on a machine of its own: the fastest seen."""
        found = self._costs.get(case)
        return min(map(self._of, found.values())) if found else self._of(self._first[case])

    def ratio(self, case: Case) -> float:
        """Return how a run compares with its rows one by one (1: alike), by the less favourable of two estimates."""
        single, rows = case[:1], len(case)
        alone = self._costs[single]
        paired = [
            (self._of(cost) + HOP_S) / (rows * (self._of(alone[number]) + HOP_S))
            for number, cost in self._costs[case].items()
            if number in alone
        ]
        fastest = (self.seconds(case) + HOP_S) / (rows * (self.seconds(single) + HOP_S))
        return max(statistics.median(paired), fastest) if paired else math.inf

    def points(self) -> tuple[Point, ...]:
        """Return what was measured of equal rows."""
        cases = sorted((case[0], len(case), case) for case in self._costs if len(set(case)) == 1)
        return tuple(Point(rows=n, length_bytes=size, seconds=self.seconds(case)) for size, n, case in cases)

    def _run(self, case: Case) -> Cost:
        cost = self._bench(case)
        self._spent_s += self._of(cost)
        return cost

    def _of(self, cost: Cost) -> float:
        return cost.wall_s if self._in_wall else cost.own_s


def measure_batching(
    bench: Bench,
    lengths: Sequence[int],
    clock: Clock,
    *,
    is_batched: bool,
    takes_texts: bool,
    budget_s: float,
    wall_s: float,
    in_wall: bool = False,
) -> Found:
    """Measure batches of rows of these lengths, and return how the version wants to be fed.

    `budget_s` leaves out the time for which runs stood in line for a core; after `wall_s` it ends anyway. The very
    first run is made however long it takes. `in_wall`: compare by the clock on the wall, as runs of several threads
    need, which wait for each other. Nothing is raised: a version that takes no made-up inputs is fed one by one.
    """
    meter = Meter(bench, clock, budget_s=budget_s, wall_s=wall_s, in_wall=in_wall)
    usable: list[int] = []
    error = ""
    for length in lengths:
        if usable and meter.is_over(part=_EXPLORING):
            break
        try:
            meter.warm((length,))
            usable.append(length)
        except Exception as raised:  # noqa: BLE001 - a version may raise anything on made-up inputs
            error = error or _said(raised)
    if not usable:
        return Found(Batching(), (), is_complete=True, error=error)
    try:
        return _measured(meter, usable, is_batched=is_batched, takes_texts=takes_texts)
    except Exception as raised:  # noqa: BLE001 - as above, on several rows
        row_s = meter.seconds((usable[len(usable) // 2],))
        return Found(Batching(run_s=row_s, row_s=row_s), meter.points(), is_complete=True, error=_said(raised))


def _measured(meter: Meter, lengths: list[int], *, is_batched: bool, takes_texts: bool) -> Found:
    singles: list[Case] = [(length,) for length in lengths]
    meter.round(singles)
    cases = _explored(meter, lengths) if is_batched else []
    everything = [*singles, *cases]
    for _ in range(_MOST_ROUNDS):
        is_enough = all(meter.knows(case) for case in everything)
        if meter.is_over(part=_REPEATING if is_enough else 1.0) or not meter.round(everything):
            break
    known = [length for length in lengths if meter.knows((length,))]
    if not known:
        # So slow that not even one row could be run three times: nothing speaks for batches of it.
        row_s = max(meter.seconds(case) for case in singles)
        return Found(Batching(run_s=row_s, row_s=row_s), meter.points(), is_complete=True)
    rules = _Rules(meter, known, cases)
    batching = rules.decide(takes_texts=takes_texts)
    return Found(batching, meter.points(), is_complete=not rules.is_short)


def _explored(meter: Meter, lengths: Sequence[int]) -> list[Case]:
    """Double the rows at each length for as long as that may bring something; return the batches worth measuring."""
    found: list[Case] = []
    for length in lengths:
        best_s, vain = meter.seconds((length,)) + HOP_S, 0
        rows = 2
        while rows <= MAX_BATCH and vain < 2:
            case = (length,) * rows
            expected_s = rows * best_s
            if expected_s > MAX_RUN_S or meter.is_over(2 * expected_s, part=_EXPLORING):
                break
            meter.warm(case)
            meter.round([case])
            row_s = (meter.seconds(case) + HOP_S) / rows
            vain = 0 if row_s < _WORTH * best_s else vain + 1
            best_s = min(best_s, row_s)
            found.append(case)
            rows *= 2
    return found


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".partition("\n")[0][:200]


class _Rules:
    """From measured batches to bounds that keep the promise."""

    def __init__(self, meter: Meter, lengths: list[int], cases: list[Case]) -> None:
        self._meter = meter
        self._lengths = lengths
        self._rows = {
            length: [1, *sorted(len(case) for case in cases if case[0] == length and meter.knows(case))]
            for length in lengths
        }
        self.is_short = False
        """Whether something was left out for want of time."""

    def decide(self, *, takes_texts: bool) -> Batching:
        """Return the bounds."""
        useful = {length: self._useful(length) for length in self._lengths}
        max_batch = max(useful.values())
        max_bytes = 0
        if max_batch > 1:
            safe = {length: self._safe(length, max_batch) for length in self._lengths}
            short = [rows * length for length, rows in safe.items() if rows < max_batch]
            max_bytes = min(short, default=0)
            if not any(self._lengths):
                max_batch, max_bytes = min(max_batch, *safe.values()), 0
        middle = self._lengths[len(self._lengths) // 2]
        bounded = Batching(
            max_batch=max_batch,
            run_s=max(self._longest(length, max_batch, max_bytes) for length in self._lengths),
            row_s=self._meter.seconds((middle,)),
            max_bytes=max_bytes,
        )
        return self._with_padding(bounded) if takes_texts and max_batch > 1 else bounded

    def _useful(self, length: int) -> int:
        """Return the smallest size that is as cheap per row as any, if that is a gain and all below it do no harm."""
        rows = self._rows[length]
        while len(rows) > 1:
            costs = {n: (self._meter.seconds((length,) * n) + HOP_S) / n for n in rows}
            best = min(cost for n, cost in costs.items() if n > 1)
            chosen = min(n for n, cost in costs.items() if n > 1 and cost <= _NEAR_BEST * best)
            if self._meter.ratio((length,) * chosen) > _WORTH:
                return 1
            safe = self._safe(length, chosen)
            if safe >= chosen:
                return chosen
            rows = [n for n in rows if n <= safe]
        return 1

    def _safe(self, length: int, most: int) -> int:
        """Return up to which size, `most` at most, no batch of this length is slower than its rows one by one."""
        known = set(self._rows[length])
        low, upper = 1, most
        while low < upper:
            high = min((n for n in known if low < n <= upper), default=0)
            if not high:
                break
            # Sizes from here up to `high` take no more than a run of `high` rows does.
            covered = math.ceil(self._meter.ratio((length,) * high) * high - 1e-9)
            if covered <= low + 1:
                low = high
                continue
            if covered > high:
                upper = high - 1
                wanted = (low + upper + 1) // 2
            else:
                wanted = covered - 1
            if wanted <= low or not self._measure(length, wanted):
                break
            known.add(wanted)
        return low

    def _measure(self, length: int, rows: int) -> bool:
        """Measure a size that was left out between two; return whether there was time."""
        case, single = (length,) * rows, (length,)
        if not self._meter.knows(case):
            if self._meter.is_over(_ROUNDS * self._meter.seconds(single) * (rows + 1)):
                self.is_short = True
                return False
            self._meter.warm(case)
            for _ in range(_ROUNDS):
                self._meter.round([single, case])
            if not self._meter.knows(case):
                self.is_short = True
                return False
            self._rows[length] = sorted({*self._rows[length], rows})
        return True

    def _longest(self, length: int, max_batch: int, max_bytes: int) -> float:
        bound = min(max_batch, max(1, max_bytes // length)) if max_bytes and length else max_batch
        rows = max(n for n in self._rows[length] if n <= bound)
        return self._meter.seconds((length,) * rows) * bound / rows

    def _with_padding(self, batching: Batching) -> Batching:
        """Add how much padding may cost, after trying a batch that uses it up."""
        spare = _SPARE_PART * self._saved(batching)
        for _ in range(3):
            if spare <= 0 or spare >= _FREE_PADDING or self._pays(batching, spare):
                break
            spare /= 2
        else:
            spare = 0.0
        return Batching(
            max_batch=batching.max_batch,
            run_s=batching.run_s,
            row_s=batching.row_s,
            max_bytes=batching.max_bytes,
            spare=spare,
            padding=min((_ratio(n, length, spare) for n, length in self._allowed(batching)), default=1.0),
        )

    def _allowed(self, batching: Batching) -> list[tuple[int, int]]:
        """Return the sizes of more than one row inside the bounds, with their length."""
        return [
            (n, length)
            for length in self._lengths
            for n in range(2, min(batching.max_batch, self._rows[length][-1]) + 1)
            if not batching.max_bytes or n * length <= batching.max_bytes
        ]

    def _saved(self, batching: Batching) -> float:
        """Return what saving one run is worth in bytes of padding: the least over all sizes."""
        allowed = self._allowed(batching)
        saved = [_FREE_PADDING / _SPARE_PART if allowed else 0.0]
        for n, length in allowed:
            gain_s = n * self._meter.seconds((length,)) - self._between(n, length) + (n - 1) * HOP_S
            slope = self._slope(length)
            if slope > 0:
                saved.append(gain_s / slope / (n - 1))
        return max(0.0, min(saved))

    def _between(self, n: int, length: int) -> float:
        """Return the seconds of a run of n rows, between those that were measured."""
        rows = self._rows[length]
        low, high = max(k for k in rows if k <= n), min(k for k in rows if k >= n)
        part = (n - low) / (high - low) if high > low else 0.0
        low_s, high_s = (self._meter.seconds((length,) * k) for k in (low, high))
        return (1 - part) * low_s + part * high_s

    def _slope(self, length: int) -> float:
        """Return the seconds that a byte more costs a row near this length, by the steepest of the others."""
        here = self._meter.seconds((length,))
        others = [(other, self._meter.seconds((other,))) for other in self._lengths if other != length]
        return max(((here - there) / (length - other) for other, there in others), default=0.0)

    def _pays(self, batching: Batching, spare: float) -> bool:
        """Try a batch in which all rows but one are padded by `spare`; return whether its rows alone take longer."""
        allowed = self._allowed(batching)
        # Several rows of some length: where padding costs most.
        rows, length = max(allowed, key=lambda pair: (min(pair[0], 4), pair[1]))
        rows = min(rows, 4)
        shorter = max(1, round(length - spare))
        mixed: Case = (length, *[shorter] * (rows - 1))
        cases: list[Case] = [(length,), (shorter,), mixed]
        if self._meter.is_over(_ROUNDS * (2 * rows + 1) * self._meter.seconds((length,))):
            self.is_short = True
            return False
        for case in cases:
            self._meter.warm(case)
        for _ in range(_ROUNDS):
            self._meter.round(cases)
        if not all(self._meter.knows(case) for case in cases):
            return False
        alone = self._meter.seconds((length,)) + (rows - 1) * self._meter.seconds((shorter,)) + rows * HOP_S
        return self._meter.seconds(mixed) + HOP_S <= alone


def _ratio(rows: int, length: int, spare: float) -> float:
    """Return the padded over the real length of rows that use `spare` up."""
    real = rows * length - (rows - 1) * spare
    return min(1e6, rows * length / real) if real > 0 else 1e6
