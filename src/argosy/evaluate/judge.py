"""The rollout judge: counts in, `promote | wait | rollback` and the numbers behind it out.

It keeps one promise: if the canary is no worse than stable, the probability that the judge *ever* says rollback, over
all steps, all metrics and however often it is asked, is at most `false_alarm`. The promise rests on the router, which
draws the version at random with a known share before it looks at anything else: if the versions behave alike, a bad
request is the canary's with probability exactly that share, whatever made it bad.

Pure: no clock, no randomness. A judge is a fold over windows, so it can be replayed from stored ones.
Specified, with sources, in docs/decisions/0003-judge.md.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.core.units import format_time
from argosy.evaluate.evidence import EPOCH_S, EXCLUDABLE, NotWorse, Worse, odds
from argosy.evaluate.siblings import SPARED_PART, WITNESSED, Part, Spared

ERRORS, LATENCY, AGREEMENT, MIRRORED_ERRORS = "errors", "latency", "agreement", "mirrored_errors"
CONSTANT = "constant"

PROMOTE_AT = 20.0
"""Evidence needed against "twice as bad": such a version is promoted with probability at most 1/20."""
LATENCY_GROWTH = 1.02
"""Ratio of one bucket of a latency histogram to the one before."""
_SINGLES = {ERRORS: 1, AGREEMENT: 2}  # `NotWorse.rare` and `NotWorse.pairs`
_WARM_ANYWAY_S = 600.0
_WARM_ANSWERS = 50
_WARM_RATIO = 0.95


class JudgeConfig(Config, frozen=True):
    """What is judged and how strictly. Fixed for a rollout: the promise is about all of it together."""

    metrics: tuple[str, ...] = (ERRORS, LATENCY, AGREEMENT)
    """errors, latency, agreement, mirrored_errors, constant, or metrics of the user's own."""
    false_alarm: float = 0.01
    """Greatest probability that a version that is no worse is ever rolled back."""
    tolerate: dict[str, float] = msgspec.field(default_factory=dict)
    """Tolerated ratio of badness, canary to stable; 1 where absent. Latency's is applied where latencies are
    compared (the gateway divides the canary's by it), agreement's is `tolerate_disagreement`."""
    tolerate_disagreement: float = 0.02
    """Share of mirrored requests on which the versions may differ: 1 - `evaluate.parity`."""
    warm_up_block_s: float = 60.0
    """Latency is not counted before the canary stops getting faster from one block of this length to the next."""

    def check(self) -> None:
        """Raise InvalidInput when a value is impossible."""
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise InvalidInput(f"the judge's metrics are {list(self.metrics)}; name at least one, and none twice")
        _within("false_alarm", self.false_alarm, 1e-6, 0.5)
        _within("tolerate_disagreement", self.tolerate_disagreement, 1e-6, 0.9)
        _within("warm_up_block_s", self.warm_up_block_s, 1e-3, _WARM_ANYWAY_S)
        for name, ratio in self.tolerate.items():
            _within(f"tolerate.{name}", ratio, 1, 100)

    def weights(self) -> dict[str, float]:
        """Return each metric's share of the money: half for errors, the others share the other half."""
        others = [name for name in self.metrics if name != ERRORS]
        if ERRORS not in self.metrics:
            return {name: 1 / len(others) for name in others}
        if not others:
            return {ERRORS: 1.0}
        return {name: 0.5 if name == ERRORS else 0.5 / len(others) for name in self.metrics}


class WindowCounts(Config, frozen=True):
    """What the judge needs of one stretch of a rollout with a constant share."""

    index: int
    """Strictly increasing; a window that was seen already changes nothing."""
    start_s: float
    """Seconds since the rollout's first step. Only the ten-minute epochs and the warm-up look at it."""
    seconds: float
    share: float
    """Probability with which a request was drawn for the canary."""
    bad: dict[str, tuple[float, float]] = msgspec.field(default_factory=dict)
    """For each metric that had its say: (bad_canary, bad_all), sums of badness in [0, 1] over what was drawn.

    errors: first attempts that failed. latency: slow answers, half for stable's p50 and half for its p95.
    agreement: (pairs that differ, pairs). mirrored_errors: pairs in which only one failed. constant: pairs in which
    only one version answered as it had answered another input before. Own: (x - low)/(high - low).
    """
    requests_stable: int = 0
    requests_canary: int = 0
    failed_canary: int = 0
    """Of `requests_canary`; unlike `bad`, each counts, also of one caller."""
    latency_stable: dict[int, int] = msgspec.field(default_factory=dict)
    """Answers per bucket of latency, each bucket LATENCY_GROWTH times the one before. Used until latency is warm."""
    latency_canary: dict[int, int] = msgspec.field(default_factory=dict)
    replicas: dict[str, Part] = msgspec.field(default_factory=dict)
    """Which process of the canary handled how much of it, by its name. Empty where that is not known: then no process
    can be told from the version."""


class MetricVerdict(Config, frozen=True):
    """One metric's part of a verdict."""

    weight: float
    evidence: float
    """That the canary is worse than tolerated; `weight * evidence` of all metrics is added up."""
    assurance: float
    """That it is not twice as bad; promotion needs PROMOTE_AT of every metric."""
    bad_canary: float
    bad_all: float
    bad_expected: float
    """Of `bad_all`, how many would be the canary's if it were just as bad as is tolerated."""
    excluded: float | None
    """The smallest ratio, canary to stable, that is excluded already."""


class Verdict(Config, frozen=True):
    """What the judge says after a window, and why."""

    verdict: Literal["promote", "wait", "rollback"]
    """Promote is said whenever the evidence suffices; whether the last step is reached is the controller's business."""
    reason: str
    metric: str
    """The metric that decided, or that promotion waits for; empty before the first window."""
    total: float
    """Weighted evidence that the canary is worse than tolerated; rollback at `threshold`."""
    threshold: float
    windows: int
    """Windows judged so far."""
    seconds: float
    """From the first step to the end of the last window."""
    metrics: dict[str, MetricVerdict]
    excluded: float | None
    """The smallest ratio that is excluded for every metric."""
    warming: bool
    """Latency is judged but not counted yet, because the canary may still be warming up."""
    spared: float = 1.0
    """The same total without what single processes did while they failed more than their siblings; it must reach half
    of `threshold` too."""
    witnessed: float | None = None
    """The least total without any one process; it must reach 3 too. None: there are no siblings to be witnesses."""
    spells: dict[str, float] = msgspec.field(default_factory=dict)
    """Those processes, and how much that was bad is left out of `spared` for each."""


class _Metric(msgspec.Struct):
    worse: Worse
    spared: Spared
    not_worse: NotWorse
    bad_canary: float = 0.0
    bad_all: float = 0.0
    bad_expected: float = 0.0


class _WarmUp(msgspec.Struct):
    done: bool = False
    seconds: float = 0.0
    stable: dict[int, int] = {}
    canary: dict[int, int] = {}
    former: float | None = None
    """Ratio of medians, canary to stable, in the block before."""


class JudgeState(msgspec.Struct):
    """Everything a judge knows, to be stored and restored."""

    metrics: dict[str, _Metric]
    warm_up: _WarmUp
    index: int = -1
    windows: int = 0
    seconds: float = 0.0
    rolled_back: tuple[str, float] | None = None
    """Metric and total at which rollback was first said: it is never taken back."""


class Judge:
    """A fold over windows.

    >>> judge = Judge(JudgeConfig(metrics=("errors",)))
    >>> for i in range(4):
    ...     window = WindowCounts(index=i, start_s=10 * i, seconds=10, share=0.1, bad={"errors": (1, 1)})
    ...     verdict = judge.observe(window)
    >>> verdict.verdict, round(verdict.total, 3)
    ('rollback', 649.748)
    """

    def __init__(self, config: JudgeConfig, state: JudgeState | None = None) -> None:
        config.check()
        self.config = config
        self.state = state or JudgeState(
            metrics={
                name: _Metric(Worse(), Spared(Worse()), NotWorse.new(_singles(name, config))) for name in config.metrics
            },
            warm_up=_WarmUp(done=LATENCY not in config.metrics),
        )
        self._weights = config.weights()

    @classmethod
    def replay(cls, config: JudgeConfig, windows: Iterable[WindowCounts]) -> "Judge":
        """Return the judge that has seen `windows`."""
        judge = cls(config)
        for window in windows:
            judge.take(window)
        return judge

    def observe(self, window: WindowCounts) -> Verdict:
        """Take in one window and say what follows; InvalidInput for counts that can't be."""
        self.take(window)
        return self.verdict()

    def take(self, window: WindowCounts) -> None:
        """Take in one window; one that was seen already changes nothing. InvalidInput for counts that can't be."""
        _check(window)
        state = self.state
        if window.index <= state.index:
            return
        state.index = window.index
        state.windows += 1
        state.seconds = max(state.seconds, window.start_s + window.seconds)
        for name, counts in window.bad.items():
            if name in state.metrics and (name != LATENCY or state.warm_up.done):
                self._count(name, window, *counts)
        if ERRORS in state.metrics and window.requests_canary:
            state.metrics[ERRORS].not_worse.rare(window.failed_canary, window.requests_canary)
        elif MIRRORED_ERRORS in state.metrics and ERRORS not in state.metrics:
            failed, either = window.bad.get(MIRRORED_ERRORS, (0.0, 0.0))
            state.metrics[MIRRORED_ERRORS].not_worse.rare(failed, either + window.bad.get(AGREEMENT, (0.0, 0.0))[1])
        if not state.warm_up.done:
            _warm_up(state.warm_up, window, self.config.warm_up_block_s)
        self._settle()

    def verdict(self) -> Verdict:
        """Return what follows from the windows so far."""
        metrics = {name: self._metric(name) for name in self.config.metrics}
        total = self._total()
        threshold = 1 / self.config.false_alarm
        said, metric = self._decide(metrics)
        ratios = [found.excluded for name, found in metrics.items() if self._decides(name)]
        excluded = None if None in ratios else max(ratios, key=lambda ratio: ratio or 0.0)
        warming = not self.state.warm_up.done
        return Verdict(
            verdict=said,
            reason=_reason(said, metric, metrics, max(total, (self.state.rolled_back or ("", 0.0))[1]), self),
            metric=metric,
            total=total,
            threshold=threshold,
            windows=self.state.windows,
            seconds=self.state.seconds,
            metrics=metrics,
            excluded=excluded,
            warming=warming,
            spared=self._spared(),
            witnessed=self._witnessed(),
            spells=self.spells(),
        )

    def _count(self, name: str, window: WindowCounts, bad_canary: float, bad_all: float) -> None:
        share = self._alike(name, window.share)
        if not 0 < share < 1:  # nobody was drawn, so nothing can be learned
            return
        ratio = 1.0 if name in (LATENCY, AGREEMENT) else self._tolerated(name)
        q0 = odds(share, ratio)
        epoch = max(0, int(window.start_s // EPOCH_S))
        is_paired = name in (AGREEMENT, MIRRORED_ERRORS, CONSTANT)
        metric = self.state.metrics[name]
        metric.spared.window(
            metric.worse,
            window.replicas,
            name,
            (bad_canary, bad_all),
            end_s=window.start_s + window.seconds,
            epoch=epoch,
            # What is left out of pairs has no other half; of drawn requests, the canary's share shrinks.
            q0=lambda part: q0 if is_paired else odds(share, ratio * part),
            is_paired=name == AGREEMENT,
        )
        metric.worse.window(q0, bad_canary, bad_all, epoch)
        metric.not_worse.window(share, bad_canary, bad_all)
        if name == AGREEMENT:
            metric.not_worse.pairs(share, bad_canary, bad_all)
        metric.bad_canary += bad_canary
        metric.bad_all += bad_all
        metric.bad_expected += q0 * bad_all

    def _alike(self, name: str, share: float) -> float:
        """Return the probability that something bad is the canary's when the versions are alike."""
        alike = {AGREEMENT: self.config.tolerate_disagreement, MIRRORED_ERRORS: 0.5, CONSTANT: 0.5}
        return alike.get(name, share)

    def _tolerated(self, name: str) -> float:
        return self.config.tolerate.get(ERRORS if name == MIRRORED_ERRORS else name, 1.0)

    def _total(self) -> float:
        return sum(self._weights[name] * metric.worse.value() for name, metric in self.state.metrics.items())

    def _settle(self) -> None:
        if self.state.rolled_back is None and self._is_enough():
            self.state.rolled_back = self._heaviest(), self._total()

    def _is_enough(self) -> bool:
        threshold = 1 / self.config.false_alarm
        if self._total() < threshold or self._spared() < SPARED_PART * threshold:
            return False
        witnessed = self._witnessed()
        return witnessed is None or witnessed >= min(WITNESSED, threshold)

    def _witnessed(self) -> float | None:
        """Return the least total without any one process that has siblings."""
        metrics = self.state.metrics
        names = {name for metric in metrics.values() for name in metric.spared.witnessed()}
        return min(
            (
                sum(
                    self._weights[m] * found.spared.without.get(name, found.worse).value()
                    for m, found in metrics.items()
                )
                for name in names
            ),
            default=None,
        )

    def _spared(self) -> float:
        return sum(self._weights[name] * metric.spared.value() for name, metric in self.state.metrics.items())

    def spells(self) -> dict[str, float]:
        """Return which of the canary's processes failed more than their siblings, and with how much that was bad."""
        found: dict[str, float] = {}
        for metric in self.state.metrics.values():
            for name, bad in metric.spared.spells().items():
                found[name] = found.get(name, 0.0) + bad
        return found

    def _heaviest(self) -> str:
        return max(self.config.metrics, key=lambda name: self._weights[name] * self.state.metrics[name].worse.value())

    def _decides(self, name: str) -> bool:
        return decides(name, self.config.metrics)

    def _decide(self, metrics: Mapping[str, MetricVerdict]) -> tuple[Literal["promote", "wait", "rollback"], str]:
        if self.state.rolled_back is not None:
            return "rollback", self.state.rolled_back[0]
        if self.state.windows == 0:
            return "wait", ""
        least = min((name for name in metrics if self._decides(name)), key=lambda name: metrics[name].assurance)
        if metrics[least].assurance >= PROMOTE_AT:
            return "promote", least
        return "wait", (self._heaviest() if self._total() >= 1 / self.config.false_alarm else least)

    def _metric(self, name: str) -> MetricVerdict:
        found = self.state.metrics[name]
        return MetricVerdict(
            weight=self._weights[name],
            evidence=found.worse.value(),
            assurance=found.not_worse.value(),
            bad_canary=found.bad_canary,
            bad_all=found.bad_all,
            bad_expected=found.bad_expected,
            excluded=next((ratio for ratio in EXCLUDABLE if found.not_worse.value(ratio) >= PROMOTE_AT), None),
        )


def _singles(name: str, config: JudgeConfig) -> int:
    """Return how many bets a metric makes request by request."""
    if name == MIRRORED_ERRORS and ERRORS not in config.metrics:
        return 1  # of a version that gets copies only, nothing else says that it hardly ever fails
    return _SINGLES.get(name, 0)


def decides(name: str, metrics: Sequence[str]) -> bool:
    """Return whether promotion waits for a metric; some can only take back, and be found sooner than others."""
    # That its answers vary is never shown by a count: they do, or there is evidence that they don't.
    if name == CONSTANT:
        return tuple(metrics) == (CONSTANT,)
    # Whether the canary fails is answered by the drawn requests; mirrored ones only find a fault sooner. A service
    # without failures would otherwise wait for evidence that never comes.
    return name != MIRRORED_ERRORS or ERRORS not in metrics


def _warm_up(state: _WarmUp, window: WindowCounts, block_s: float) -> None:
    """Note whether the canary has stopped getting faster, relative to stable, from one block to the next."""
    state.seconds += window.seconds
    for total, found in ((state.stable, window.latency_stable), (state.canary, window.latency_canary)):
        for bucket, count in found.items():
            total[bucket] = total.get(bucket, 0) + count
    enough = min(sum(state.stable.values()), sum(state.canary.values())) >= _WARM_ANSWERS
    if state.seconds >= block_s and enough:
        ratio = LATENCY_GROWTH ** (median_bucket(state.canary) - median_bucket(state.stable))
        state.done = state.former is not None and ratio >= _WARM_RATIO * state.former
        state.former, state.seconds, state.stable, state.canary = ratio, 0.0, {}, {}
    state.done = state.done or window.start_s + window.seconds >= _WARM_ANYWAY_S


def median_bucket(histogram: Mapping[int, int]) -> float:
    """Return the median of a histogram in buckets, interpolated inside the bucket it falls into."""
    half, seen = sum(histogram.values()) / 2, 0
    for bucket in sorted(histogram):
        if seen + histogram[bucket] >= half:
            return bucket + (half - seen) / histogram[bucket]
        seen += histogram[bucket]
    raise InvalidInput("an empty histogram has no median")


def _reason(said: str, metric: str, metrics: Mapping[str, MetricVerdict], total: float, judge: Judge) -> str:
    if not metric:
        return "nothing was counted yet"
    found, state = metrics[metric], judge.state
    after = format_time(state.seconds)
    if said == "rollback":
        return (
            f"{metric}: {found.bad_canary:.4g} of {found.bad_all:.4g} {_WORDS.get(metric, 'bad')} where about "
            f"{found.bad_expected:.3g} were tolerated (evidence {total:.4g}, needed {1 / judge.config.false_alarm:g})"
        )
    if said == "promote":
        return f"after {after} no metric can be twice as bad (least assurance {found.assurance:.3g}, for {metric})"
    if said == "wait" and total >= 1 / judge.config.false_alarm:
        spells = ", ".join(f"; {bad:.3g} bad in spells of '{name}'" for name, bad in sorted(judge.spells().items()))
        return (
            f"undecided after {after}; {metric}: {found.bad_canary:.4g} of {found.bad_all:.4g} bad ones are the new "
            f"version's, but one replica may be all there is to it; waiting whether its siblings fail too{spells}"
        )
    waits = f"waiting for {metric}: assurance {found.assurance:.3g} of {PROMOTE_AT:g} that it is not twice as bad"
    if metric == LATENCY and not state.warm_up.done:
        waits = "waiting for the new version to warm up before latency is compared"
    return f"undecided after {after}; {waits}"


_WORDS = {
    ERRORS: "failed requests were the new version's",
    LATENCY: "slow answers were the new version's",
    AGREEMENT: "mirrored answers differed",
    MIRRORED_ERRORS: "failures of mirrored requests were the new version's alone",
    CONSTANT: "answers that did not change with the input were the new version's alone",
}


def _check(window: WindowCounts) -> None:
    for name, (bad_canary, bad_all) in window.bad.items():
        if not 0 <= bad_canary <= bad_all * (1 + 1e-9) or not math.isfinite(bad_all):
            raise InvalidInput(f"window {window.index} counts {bad_canary} of {bad_all} bad for '{name}'")
    if not 0 <= window.share <= 1 or not math.isfinite(window.start_s) or not 0 <= window.seconds < math.inf:
        raise InvalidInput(
            f"window {window.index} has share {window.share}, start {window.start_s} and length {window.seconds}"
        )
    if not 0 <= window.failed_canary <= window.requests_canary or window.requests_stable < 0:
        raise InvalidInput(f"window {window.index} counts {window.failed_canary} failed of {window.requests_canary}")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{name} is {value:g}; it must be between {low:g} and {high:g}")
