"""Rollouts simulated side by side in NumPy, and the judge written for arrays; the cells are in `rollouts.py`."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from rollout_peers import Minutes

from argosy.evaluate.evidence import EPOCH_S, RATIOS, odds
from argosy.evaluate.judge import AGREEMENT, ERRORS, LATENCY, MIRRORED_ERRORS, Judge, JudgeConfig, WindowCounts
from argosy.evaluate.siblings import LEAST_SIBLINGS, SPARED_PART, SPELL_AT, SPELL_BAD, SPELL_S, WITNESSED, Part
from argosy.serve.ejection import BACKOFF_S, EJECT_AT, KEPT, PRIOR, SICK, USUAL

CHECKED = 3
"""Rollouts of each cell that also go through the real judge."""

Array = np.ndarray


@dataclass(frozen=True)
class Cell:
    """One kind of rollout, repeated."""

    name: str
    requests_per_min: float = 600
    base: float = 0.005
    """Stable's error rate."""
    ratio: float = 1.0
    """The canary's error rate over stable's."""
    pattern: str = "independent"
    shares: tuple[float, ...] = (0.05, 0.25, 0.5)
    minutes: float = 30
    window_s: float = 10
    metrics: tuple[str, ...] = (ERRORS,)
    disagree: float = 0.01
    """Share of mirrored pairs that differ; tolerated are 2 %."""
    mirror: float = 0.1
    slower: float = 1.0
    """The canary's latency over stable's."""
    cold: tuple[float, float] = (0.0, 1.0)
    """While cold the canary is 1 + a exp(-t / tau) times as slow: a, and tau in seconds."""
    tolerate_latency: float = 1.25
    warm_up_block_s: float = 60.0
    delay_s: float = 0.0
    """The canary's answers to a shared trouble are counted this much later."""
    spell: tuple[float, float] = (0.0, 0.0)
    """Length in seconds of spells in which one of ten replicas fails all, and their number per hour."""
    canary_replicas: tuple[float, ...] = ()
    """At each step, the share of replicas that serve the canary; default one in ten."""
    only_errors_weight: float = 0.0
    """When errors alone are simulated of several metrics: their weight."""
    replicas: int = 0
    """Processes of the canary that are told apart, by the judge and for ejection; 0: they are not."""
    sick: tuple[float, float] = (0.0, 0.0)
    """Share of requests that one of them fails during one spell at a random time, and the spell's seconds."""
    is_told: bool = True
    """Whether the judge hears which process failed."""
    ejects: bool = True
    """Whether the gateway ejects."""
    notes: str = ""
    expect: dict[str, float] = field(default_factory=dict)
    """Values of the specification's table to be met within 3 standard errors."""

    @property
    def windows(self) -> int:
        return round(self.minutes * 60 / self.window_s)

    def share(self, window: int) -> float:
        return self.shares[min(len(self.shares) - 1, window * len(self.shares) // self.windows)]

    @property
    def config(self) -> JudgeConfig:
        return JudgeConfig(metrics=self.metrics, warm_up_block_s=self.warm_up_block_s)


@dataclass
class Counts:
    """One window of all rollouts: for each metric (bad_canary, bad_all), arrays over rollouts."""

    start_s: float
    seconds: float
    share: float
    bad: dict[str, tuple[Array, Array]]
    requests_canary: Array
    failed_canary: Array
    latency_ready: Array | None = None
    """Whether latency is counted, by the gateway's rule and the warm-up."""
    handled: Array | None = None
    """The canary's requests by process, rollouts x processes."""
    bad_by: Array | None = None
    """Those of them that failed."""
    requests_stable: Array | None = None
    """None where nobody asks."""


# --- what happens to requests ---------------------------------------------------------------------------------------


def factors(cell: Cell, rng: np.random.Generator, repeats: int) -> Array:
    """Return how many times as likely as on average a failure is, for both versions: rollouts x windows."""
    shape = (repeats, cell.windows)
    per_min = 60 / cell.window_s
    if cell.pattern == "bad minutes":  # one minute in twenty has ten times the failures
        minutes = rng.random((repeats, math.ceil(cell.minutes))) < 0.05
        index = (np.arange(cell.windows) / per_min).astype(int)
        return np.where(minutes[:, index], 10.0, 1.0) / 1.45
    if cell.pattern == "bursts":  # one window in fifty has thirty times the failures
        return np.where(rng.random(shape) < 0.02, 30.0, 1.0) / 1.58
    if cell.pattern == "autocorrelated":  # the logarithm is an AR(1) process with deviation 1.5 and memory 12 windows
        log, keep, found = rng.normal(0, 1.5, repeats), math.exp(-1 / 12), np.empty(shape)
        for i in range(cell.windows):
            log = keep * log + rng.normal(0, 1.5 * math.sqrt(1 - keep**2), repeats)
            found[:, i] = np.exp(log - 1.5**2 / 2)
        return found
    if cell.pattern == "drift":  # from a third to three times
        return np.broadcast_to(np.geomspace(1 / 3, 3, cell.windows), shape)
    return np.ones(shape)


def errors(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """Requests fail one by one, with a rate that may change together for both versions."""
    rate = np.minimum(1.0, factors(cell, rng, repeats) * cell.base)
    unit = 8 if cell.pattern.startswith("batches") else 1
    late = cell.delay_s / cell.window_s
    carried = np.zeros(repeats, dtype=int)
    for i in range(cell.windows):
        share = cell.share(i)
        n = rng.poisson(cell.requests_per_min * cell.window_s / 60, repeats)
        n_c = rng.binomial(n, share)
        p = rate[:, i] / unit  # a request that takes its whole batch down
        bad_c = rng.binomial(n_c, np.minimum(1, p * cell.ratio))
        bad_s = rng.binomial(n - n_c, p)
        if cell.pattern == "batches, each request counted":
            bad_c, bad_s = bad_c * unit, bad_s * unit
        if late:  # trouble at a random moment of the window: the canary's part may fall into the next one
            moved = np.where(rng.random(repeats) < late, bad_c, 0)
            bad_c, carried = bad_c - moved + carried, moved
        yield Counts(
            i * cell.window_s,
            cell.window_s,
            share,
            {ERRORS: (bad_c, bad_c + bad_s)},
            np.maximum(n_c, bad_c),
            bad_c,
            requests_stable=np.maximum(n - n_c, bad_s),
        )


def sticky(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """200 callers, one of whom sends half of all and fails 20 times as often; each counts once."""
    callers = 200
    position = rng.random((repeats, callers))
    weight = np.full(callers, 0.5 / (callers - 1))
    weight[0] = 0.5
    risk = weight * np.where(np.arange(callers) == 0, 20.0, 1.0)
    per_window = cell.requests_per_min * cell.window_s / 60 * cell.base * risk / 10.5
    fresh = np.ones((repeats, callers), dtype=bool)
    for i in range(cell.windows):
        share = cell.share(i)
        canary = position < share
        fails = rng.random((repeats, callers)) < 1 - np.exp(-per_window * np.where(canary, cell.ratio, 1.0))
        first = fails & fresh
        fresh &= ~fails
        bad = {ERRORS: ((first & canary).sum(1), first.sum(1))}
        requests = rng.poisson(cell.requests_per_min * cell.window_s / 60 * (weight * canary).sum(1))
        failed = np.minimum(requests, rng.poisson((per_window * canary).sum(1) * cell.ratio))
        yield Counts(i * cell.window_s, cell.window_s, share, bad, requests, failed)


def spells(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """Beside the base rate, a replica at times fails all it gets for a while. Nine in ten serve stable."""
    length, per_hour = cell.spell
    tick = min(0.5, cell.window_s)
    ticks = round(cell.window_s / tick)
    left_c, left_s = np.zeros(repeats), np.zeros(repeats)
    for i in range(cell.windows):
        share = cell.share(i)
        part = cell.canary_replicas[cell.shares.index(share)] if cell.canary_replicas else 0.1
        canary_replicas = max(1, round(10 * part))
        bad_c, bad_s = np.zeros(repeats, dtype=int), np.zeros(repeats, dtype=int)
        total_c = np.zeros(repeats, dtype=int)
        for _ in range(ticks):
            n_c = rng.poisson(cell.requests_per_min * tick / 60 * share, repeats)
            n_s = rng.poisson(cell.requests_per_min * tick / 60 * (1 - share), repeats)
            begins = rng.random((2, repeats)) < per_hour * tick / 3600 * np.array([[part], [1 - part]])
            left_c, left_s = np.where(begins[0], length, left_c), np.where(begins[1], length, left_s)
            sick_c = np.where(left_c > 0, 1 / canary_replicas, 0.0)
            sick_s = np.where(left_s > 0, 1 / (10 - canary_replicas), 0.0)
            bad_c += rng.binomial(n_c, cell.base + (1 - cell.base) * sick_c)
            bad_s += rng.binomial(n_s, cell.base + (1 - cell.base) * sick_s)
            total_c += n_c
            left_c, left_s = np.maximum(0, left_c - tick), np.maximum(0, left_s - tick)
        yield Counts(i * cell.window_s, cell.window_s, share, {ERRORS: (bad_c, bad_c + bad_s)}, total_c, bad_c)


def replicated(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """The canary has several processes, one of which may have a spell; the gateway may eject."""
    k, tick = cell.replicas, 1.0
    rate = np.minimum(1.0, factors(cell, rng, repeats) * cell.base)
    begin = rng.uniform(0, max(0.0, cell.minutes * 60 - cell.sick[1]), repeats)
    ward = Ward(repeats, k)
    for i in range(cell.windows):
        share = cell.share(i)
        handled, bad = np.zeros((repeats, k), dtype=int), np.zeros((repeats, k), dtype=int)
        bad_s = np.zeros(repeats, dtype=int)
        for now in np.arange(i * cell.window_s, (i + 1) * cell.window_s, tick):
            per_tick = cell.requests_per_min * tick / 60
            at_work = ~ward.out
            # Who is ejected is replaced by nobody here, so its siblings take its part.
            n = rng.poisson(per_tick * share * at_work / at_work.sum(1, keepdims=True))
            p = np.repeat((rate[:, i] * cell.ratio)[:, None], k, axis=1)
            is_sick = (now >= begin) & (now < begin + cell.sick[1])
            p[:, 0] = np.where(is_sick, np.maximum(p[:, 0], cell.sick[0]), p[:, 0])
            failed = rng.binomial(n, np.minimum(1, p))
            bad_s += rng.binomial(rng.poisson(per_tick * (1 - share), repeats), rate[:, i])
            handled += n
            bad += failed
            if cell.ejects:
                ward.note(failed, n - failed, now)
        bad_c = bad.sum(1)
        found = Counts(i * cell.window_s, cell.window_s, share, {ERRORS: (bad_c, bad_c + bad_s)}, handled.sum(1), bad_c)
        yield replace(found, handled=handled, bad_by=bad) if cell.is_told else found


class Ward:
    """`serve.ejection.Health` and the pool's rule, for arrays: rollouts x processes."""

    def __init__(self, repeats: int, k: int) -> None:
        self.score, self.failed, self.answered = (np.zeros((repeats, k)) for _ in range(3))
        self.out = np.zeros((repeats, k), dtype=bool)
        self.back_at = np.full((repeats, k), np.inf)
        self.ejections = np.zeros((repeats, k))

    def note(self, failed: Array, answered: Array, now: float) -> None:
        """Take in what came of a second; then eject, and let return whose time has come."""
        keep = 1 - np.minimum(1.0, (failed + answered) / KEPT)
        self.failed = self.failed * keep + failed
        self.answered = self.answered * keep + answered
        others_failed = self.failed.sum(1, keepdims=True) - self.failed
        others = others_failed + self.answered.sum(1, keepdims=True) - self.answered
        usual = np.clip((USUAL[0] * PRIOR + others_failed) / (PRIOR + others), *USUAL)
        change = failed * np.log(SICK / usual) + answered * np.log((1 - SICK) / (1 - usual))
        self.score = np.clip(self.score + change, 0, 2 * EJECT_AT)
        back = self.out & (now >= self.back_at)
        self.score[back] = EJECT_AT / 2
        self.out &= ~back
        sick = self.score >= EJECT_AT
        ejected = sick & ~self.out & (~sick & ~self.out).any(1, keepdims=True)
        self.back_at[ejected] = now + BACKOFF_S * 2 ** self.ejections[ejected]
        self.ejections += ejected
        self.out |= ejected


def disagreement(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """Mirrored pairs alone; the rate of differing ones comes from the inputs and may come in bursts."""
    rate = np.minimum(1.0, factors(replace(cell, base=1.0), rng, repeats) * cell.disagree)
    for i in range(cell.windows):
        pairs = rng.poisson(cell.requests_per_min * cell.window_s / 60 * cell.mirror, repeats)
        none = np.zeros(repeats, dtype=int)
        differ = rng.binomial(pairs, rate[:, i])
        yield Counts(i * cell.window_s, cell.window_s, cell.share(i), {AGREEMENT: (differ, pairs)}, none, none)


def everything(cell: Cell, rng: np.random.Generator, repeats: int) -> Iterator[Counts]:
    """All metrics from the same requests: latencies lognormal with shared slow times, the slowest fail."""
    warm = WarmUp(cell, repeats)
    load = np.zeros(repeats)
    recent = np.empty((repeats, 0))
    n = round(cell.requests_per_min * cell.window_s / 60)
    for i in range(cell.windows):
        share, start = cell.share(i), i * cell.window_s
        load = 0.9 * load + rng.normal(0, 0.1, repeats)
        latency = np.exp(0.5 * rng.standard_normal((repeats, n)) + load[:, None])
        canary = rng.random((repeats, n)) < share
        slow = cell.slower * (1 + cell.cold[0] * math.exp(-start / cell.cold[1]))
        latency = np.where(canary, latency * slow, latency)
        failed = rng.random((repeats, n)) < cell.base * np.where(canary, cell.ratio, 1.0) * np.exp(load)[:, None]
        bad: dict[str, tuple[Array, Array]] = {ERRORS: ((failed & canary).sum(1), failed.sum(1))}
        ready = warm.done & (recent.shape[1] >= 200)
        if recent.shape[1] >= 200:
            bounds = np.quantile(recent, (0.5, 0.95), axis=1)
            compared = np.where(canary, latency / cell.tolerate_latency, latency)
            worth = 0.5 * (compared > bounds[0][:, None]) + 0.5 * (compared > bounds[1][:, None])
            bad[LATENCY] = ((worth * canary).sum(1), worth.sum(1))
        pairs = rng.binomial(n, cell.mirror, repeats)
        bad[AGREEMENT] = (rng.binomial(pairs, cell.disagree), pairs)
        alone = rng.binomial(pairs, np.minimum(1, 2 * cell.base))
        bad[MIRRORED_ERRORS] = (rng.binomial(alone, odds(0.5, cell.ratio)), alone)
        yield Counts(start, cell.window_s, share, bad, canary.sum(1), bad[ERRORS][0], ready)
        warm.window(latency, canary, start + cell.window_s)
        # Stable's last 500 answers, as many from each rollout: those few that were the canary's are replaced by others.
        stable = np.where(canary, np.exp(0.5 * rng.standard_normal((repeats, n)) + load[:, None]), latency)
        recent = np.concatenate([recent, stable], axis=1)[:, -500:]


class WarmUp:
    """The judge's rule for the latency warm-up, for many rollouts at once, on exact medians."""

    def __init__(self, cell: Cell, repeats: int) -> None:
        self.done = np.zeros(repeats, dtype=bool)
        self._cell, self._former = cell, np.full(repeats, np.nan)
        self._latency: list[Array] = []
        self._canary: list[Array] = []
        self._seconds = 0.0

    def window(self, latency: Array, canary: Array, end_s: float) -> None:
        self._latency.append(latency)
        self._canary.append(canary)
        self._seconds += self._cell.window_s
        if self._seconds < self._cell.warm_up_block_s:
            return
        all_latency, all_canary = np.concatenate(self._latency, axis=1), np.concatenate(self._canary, axis=1)
        if all_canary.sum(1).min() < 50 and end_s < 600:
            return  # waits for the slowest rollout, a little longer than each alone would
        ratio = np.nanmedian(np.where(all_canary, all_latency, np.nan), axis=1)
        ratio /= np.nanmedian(np.where(all_canary, np.nan, all_latency), axis=1)
        self.done |= (ratio >= 0.95 * self._former) | (end_s >= 600)
        self._former, self._latency, self._canary, self._seconds = ratio, [], [], 0.0


# --- the judge for arrays -------------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of each rollout."""

    highest: Array
    """The greatest total the judge ever held."""
    crossed: dict[float, Array]
    """For each false_alarm, minutes until rollback; infinite if never."""
    failed: Array
    """Failed canary requests until rollback at 1 %."""
    promoted: Array
    """Minutes until every D reached 20 (before a rollback at 1 %); infinite if never."""
    checked: int = 0


class Bets:
    """`Worse` for arrays."""

    def __init__(self, repeats: int) -> None:
        self.logs = np.zeros((repeats, 0, len(RATIOS)))

    def window(self, q0: float | Array, bad_canary: Array, bad_all: Array, epoch: int) -> None:
        while self.logs.shape[1] <= epoch:
            self.logs = np.concatenate([self.logs, np.zeros((len(self.logs), 1, len(RATIOS)))], axis=1)
        self.logs += np.stack([gain(odds(q0, r), q0, bad_canary, bad_all) for r in RATIOS], axis=1)[:, None, :]

    def value(self, row: int | None = None) -> Array:
        logs = self.logs if row is None else self.logs[row : row + 1]
        priors = np.array([0.8 if j == 0 else 0.2 / (j * (j + 1)) for j in range(logs.shape[1])])
        return 1 - priors.sum() + (np.exp(np.minimum(logs, 600)).mean(2) * priors).sum(1)


class SparedArrays:
    """`siblings.Spared` for arrays, for errors alone: rollouts x processes."""

    def __init__(self, repeats: int, k: int, window_s: float) -> None:
        self.past, self.without = Bets(repeats), Bets(repeats * k)
        self.handled = np.zeros((repeats, k))
        self._recent: list[tuple[Counts, int, Array, Array]] = []
        self._keep = round(SPELL_S / window_s)

    def window(self, window: Counts, epoch: int) -> None:
        """Take in one window."""
        assert window.handled is not None
        q0 = self._witness(window, epoch)
        self._recent.append((window, epoch, q0, np.zeros(window.handled.shape, dtype=bool)))
        bad = np.sum([_own(seen) for seen, *_ in self._recent], axis=0).astype(float)
        trials = np.sum([_handled(seen) for seen, *_ in self._recent], axis=0).astype(float)
        out = stand_out(bad, trials, bad.sum(1, keepdims=True) - bad, trials.sum(1, keepdims=True) - trials)
        for seen, *_, marked in self._recent:
            marked[:] = marked | (out & (_handled(seen) > 0))
        while len(self._recent) > self._keep:
            self._count(self.past, *self._recent.pop(0))

    def _witness(self, window: Counts, epoch: int) -> Array:
        handled, own = _handled(window), _own(window)
        taken = handled / np.maximum(1, handled.sum(1, keepdims=True))
        former = self.handled / np.maximum(1, self.handled.sum(1, keepdims=True))
        q0 = odds(window.share, 1 - np.minimum(taken, np.where(former < 1, former, 0.0)))
        bad = [(counts[:, None] - own).ravel() for counts in window.bad[ERRORS]]
        self.without.window(q0.ravel(), *bad, epoch)
        self.handled += handled
        return q0

    def allows(self, weight: float, total: Array, threshold: float) -> Array:
        """Return where a rollback does not rest on one process."""
        everything = self.handled.sum(1, keepdims=True)
        has_siblings = (everything - self.handled >= LEAST_SIBLINGS * everything) & (self.handled > 0)
        least = np.where(has_siblings, weight * self.without.value().reshape(self.handled.shape), np.inf).min(1)
        enough = (total >= threshold) & (weight * self.value() >= SPARED_PART * threshold)
        return enough & (least >= min(WITNESSED, threshold))

    def value(self, row: int | None = None) -> Array:
        rows = slice(None) if row is None else slice(row, row + 1)
        bets = Bets(0)
        bets.logs = self.past.logs[rows].copy()
        for seen, epoch, q0, marked in self._recent:
            self._count(bets, seen, epoch, q0, marked, rows)
        return bets.value()

    @staticmethod
    def _count(bets: Bets, seen: Counts, epoch: int, q0: Array, marked: Array, rows: slice = slice(None)) -> None:  # noqa: PLR0917
        own, marked = _own(seen)[rows], marked[rows]
        bad_canary, bad_all = (counts[rows] for counts in seen.bad[ERRORS])
        every = np.arange(len(own))
        worst = np.where(marked, own, -1).argmax(1)
        is_out = marked.any(1)
        mine = np.where(is_out, own[every, worst], 0)
        against = np.where(is_out, q0[rows][every, worst], seen.share)
        bets.window(against, bad_canary - mine, bad_all - mine, epoch)


def _own(window: Counts) -> Array:
    assert window.bad_by is not None
    return window.bad_by


def _handled(window: Counts) -> Array:
    assert window.handled is not None
    return window.handled


def stand_out(bad: Array, trials: Array, others_bad: Array, others_trials: Array) -> Array:
    """`siblings.stands_out` for arrays."""

    def likelihood(x: Array, n: Array) -> Array:
        return sum(part * np.log(np.where(part > 0, part, 1) / np.where(part > 0, n, 1)) for part in (x, n - x))

    ratio = likelihood(bad, trials) + likelihood(others_bad, others_trials)
    ratio = ratio - likelihood(bad + others_bad, trials + others_trials)
    return (bad >= SPELL_BAD) & (others_trials > 0) & (bad * others_trials > others_bad * trials) & (ratio >= SPELL_AT)


class Assurance:
    """`NotWorse` for arrays, for the ratio that promotion excludes."""

    def __init__(self, repeats: int, singles: int) -> None:
        self.windows = np.zeros((repeats, 2))
        self.singles = np.zeros((repeats, singles))

    def window(self, share: float, bad_canary: Array, bad_all: Array) -> None:
        for i, better in enumerate((1.0, 0.5)):
            self.windows[:, i] += gain(odds(share, better), odds(share, 2), bad_canary, bad_all)

    def single(self, bets: list[float], against: float, bad: Array, trials: Array) -> None:
        for i, bet in enumerate(bets):
            self.singles[:, i] += (trials - bad) * math.log((1 - bet) / (1 - against)) + bad * math.log(bet / against)

    def value(self, row: int | None = None) -> Array:
        rows = slice(None) if row is None else slice(row, row + 1)
        found = np.exp(np.minimum(self.windows[rows], 600)).mean(1)
        if not self.singles.shape[1]:
            return found
        return (found + np.exp(np.minimum(self.singles[rows], 600)).mean(1)) / 2


def gain(bet: float | Array, against: float | Array, bad_canary: Array, bad_all: Array) -> Array:
    """`log_gain` for arrays."""
    s = bad_canary / np.where(bad_all > 0, bad_all, 1)
    stake = np.minimum(1.0, bad_all)
    return np.log1p(stake * (s * bet / against + (1 - s) * (1 - bet) / (1 - against) - 1))


def judge(cell: Cell, windows: Iterator[Counts], repeats: int, alphas: tuple[float, ...] = (0.01, 0.05)) -> Outcome:
    """Give the windows to the judge for arrays, and the first rollouts to the real one too."""
    bets = {name: Bets(repeats) for name in cell.metrics}
    assurance = {name: Assurance(repeats, {ERRORS: 1, AGREEMENT: 2}.get(name, 0)) for name in cell.metrics}
    weights = {ERRORS: cell.only_errors_weight} if cell.only_errors_weight else cell.config.weights()
    real = [Judge(cell.config) for _ in range(min(CHECKED, repeats))]
    spared = SparedArrays(repeats, cell.replicas, cell.window_s) if cell.replicas and cell.is_told else None
    outcome = Outcome(
        highest=np.ones(repeats),
        crossed={alpha: np.full(repeats, np.inf) for alpha in alphas},
        failed=np.zeros(repeats),
        promoted=np.full(repeats, np.inf),
    )
    for index, window in enumerate(windows):
        one(cell, window, bets, assurance)
        total = sum(weights[name] * found.value() for name, found in bets.items())
        check(window, index, real, bets, assurance)
        if spared is not None:
            spared.window(window, int(window.start_s // EPOCH_S))
            check_spared(index, real, spared)
        minute = (window.start_s + window.seconds) / 60
        outcome.highest = np.maximum(outcome.highest, total)
        outcome.failed += np.where(np.isinf(outcome.crossed[alphas[0]]), window.failed_canary, 0)
        for alpha, crossed in outcome.crossed.items():
            found = total >= 1 / alpha if spared is None else spared.allows(weights[ERRORS], total, 1 / alpha)
            crossed[found & np.isinf(crossed)] = minute
        deciding = [a.value() for name, a in assurance.items() if name != MIRRORED_ERRORS]
        sure = np.min(deciding, axis=0) >= 20
        outcome.promoted[sure & np.isinf(outcome.promoted) & np.isinf(outcome.crossed[alphas[0]])] = minute
    outcome.checked = len(real)
    return outcome


def one(cell: Cell, window: Counts, bets: dict[str, Bets], assurance: dict[str, Assurance]) -> None:
    """Let the judge for arrays see one window."""
    for name in bets.keys() & window.bad.keys():
        bad_canary, bad_all = window.bad[name]
        q0 = {AGREEMENT: cell.config.tolerate_disagreement, MIRRORED_ERRORS: 0.5}.get(name, window.share)
        if name == LATENCY:
            bad_canary, bad_all = (np.where(window.latency_ready, counts, 0) for counts in window.bad[name])
        bets[name].window(q0, bad_canary, bad_all, int(window.start_s // EPOCH_S))
        assurance[name].window(q0, bad_canary, bad_all)
        if name == ERRORS:
            assurance[name].single([0.0005], 0.005, window.failed_canary, window.requests_canary)
        if name == AGREEMENT:
            assurance[name].single([odds(q0, 1), odds(q0, 0.5)], odds(q0, 2), bad_canary, bad_all)


def check(
    window: Counts, index: int, real: list[Judge], bets: dict[str, Bets], assurance: dict[str, Assurance]
) -> None:
    """Let the real judge see the same window and compare."""
    for row, actual in enumerate(real):
        actual.state.warm_up.done = True  # the warm-up's start is simulated, see WarmUp
        bad = {name: (float(c[row]), float(a[row])) for name, (c, a) in window.bad.items()}
        if window.latency_ready is not None and not window.latency_ready[row]:
            bad.pop(LATENCY, None)
        actual.take(
            WindowCounts(
                index=index,
                start_s=window.start_s,
                seconds=window.seconds,
                share=window.share,
                bad=bad,
                requests_canary=int(window.requests_canary[row]),
                failed_canary=int(window.failed_canary[row]),
                replicas=_parts(window, row),
            )
        )
        if index % 20 in (0, 19):
            for name, state in actual.state.metrics.items():
                compare(name, index, bets[name].value(row), state.worse.value())
                compare(name, index, assurance[name].value(row), state.not_worse.value())


def _parts(window: Counts, row: int) -> dict[str, Part]:
    if window.handled is None or window.bad_by is None:
        return {}
    pairs = zip(window.handled[row], window.bad_by[row], strict=True)
    return {f"r{i}": Part(int(n), {ERRORS: (float(bad), float(bad))}) for i, (n, bad) in enumerate(pairs) if n}


def check_spared(index: int, real: list[Judge], spared: SparedArrays) -> None:
    """Compare what both judges make of single processes."""
    if index % 20 in (0, 19):
        for row, actual in enumerate(real):
            found = actual.state.metrics[ERRORS].spared
            compare("spared", index, spared.value(row), found.value())
            for name, worse in found.without.items():
                at = row * spared.handled.shape[1] + int(name[1:])
                compare("without", index, spared.without.value(at), worse.value())


def compare(name: str, index: int, here: Array, real: float) -> None:
    """Stop when the judge for arrays is not the judge."""
    if not math.isclose(float(here[0]), real, rel_tol=1e-9):
        raise AssertionError(f"window {index}, {name}: {here[0]} here, {real} in the real judge")


Simulate = Callable[[Cell, np.random.Generator, int], Iterator[Counts]]


def simulator(cell: Cell) -> Simulate:
    if cell.pattern == "hot caller, sticky":
        return sticky
    if cell.replicas:
        return replicated
    if cell.spell[0]:
        return spells
    if cell.metrics == (AGREEMENT,):
        return disagreement
    return everything if len(cell.metrics) > 1 else errors


def run(cell: Cell, repeats: int, seed: int = 2024) -> dict[str, object]:
    """Simulate one cell and sum it up."""
    rng = np.random.default_rng([seed, *cell.name.encode()])
    before = time.perf_counter()
    minutes = Minutes(cell.window_s)
    outcome = judge(cell, minutes.watch(simulator(cell)(cell, rng, repeats)), repeats)
    at = outcome.crossed[0.01]
    found = np.isfinite(at)
    return {
        "name": cell.name,
        "repeats": repeats,
        "rolled_back_1pct": float(found.mean()),
        "rolled_back_5pct": float(np.isfinite(outcome.crossed[0.05]).mean()),
        "median_min": float(np.median(at[found])) if found.any() else None,
        "failed_canary_median": float(np.median(outcome.failed[found])) if found.any() else None,
        "promoted": float(np.isfinite(outcome.promoted).mean()),
        "promoted_median_min": float(np.median(outcome.promoted[np.isfinite(outcome.promoted)]))
        if np.isfinite(outcome.promoted).any()
        else None,
        "checked_against_the_real_judge": outcome.checked,
        "peers": minutes.verdicts(),
        "seconds": round(time.perf_counter() - before, 2),
        "cell": {k: v for k, v in asdict(cell).items() if k != "name"},
    }
