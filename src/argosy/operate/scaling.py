"""How many replicas an endpoint wants for its load. Pure: samples in, a number and its reason out; no clock, no chance.

In the spirit of Knative's published autoscaler: the load is the requests that are there at the same time, averaged over
a stable and a panic window. Beyond that: what queues is told apart from what arrives, so that a backlog does not call
for replicas that come when it is gone; the age of the oldest request is a second signal; and a replica is only given up
when nothing that was seen for a whole delay would have asked for it back.
"""

import math
from collections import deque

import msgspec

from argosy.core.units import format_time

STABLE_S = 60.0
"""Time over which the load is averaged when there is no hurry. Source: Knative's default."""
PANIC_S = 6.0
"""Time over which it is averaged in a hurry: a tenth of the former, as Knative's default has it."""
PANIC_RATIO = 2.0
"""There is a hurry when the load is so many times what the ready replicas are for. Source: Knative's default."""
USE = 0.7
"""Part of its time that a replica should be busy; a queue of random arrivals grows steeply beyond. As Knative's."""
AGED_S = 0.5
"""A request that has waited longer is old: `GatewayConfig.queue_wait_s` sizes queues for half a second."""
AGED_FOR_S = 3.0
"""Requests must be old for so long before another replica is wanted for it."""
MOST_ADDED = 4
"""So many replicas are added at once where doubling gives fewer; more only when those are ready. Source: the default
policy of Kubernetes' horizontal autoscaler, which waits 15 s instead."""
MOST_DELAY = 8.0
"""A delay of scaling down that proved too short is made four times as long, up to so many times what was asked for."""
_SETTLED_S = 30.0
"""An average over less says little about a load that is not in a hurry."""
_NOISE = 0.3
"""Replicas beyond the load of independent requests that are kept, times the root of their number: chance moves the mean
of n busy replicas by some root of n."""
_GAP_S = 10.0
"""After so long without a sample what was seen before counts no more."""
_PARTS = 60
"""Parts of the delay whose highest load is kept."""


class Rules(msgspec.Struct, frozen=True, kw_only=True):
    """What an endpoint's settings and its version's calibration say about scaling it."""

    low: int
    high: int
    target: float
    """Requests at the same time, waiting or running, that one replica is for."""
    use: float = USE
    """Part of its time that a replica is busy at `target`."""
    idle_s: float = 300.0
    """With a lower end of 0: seconds without any request until the last replica is stopped."""
    delay_s: float = 300.0
    """Seconds for which the load must have been low before fewer replicas are wanted."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """What was seen of an endpoint since the sample before."""

    at: float
    """Monotonic seconds."""
    concurrency: float
    """Requests waiting or running, averaged over the time since the sample before."""
    arrived: int
    """Requests that came since then."""
    waiting: int
    """Requests that wait now."""
    oldest_s: float
    """How long the oldest of them has waited."""
    ready: int
    """Replicas that take requests."""
    pace_s: float = 0.0
    """Seconds of a replica that a request takes when replicas have their hands full; 0 while that is not known."""


class Wish(msgspec.Struct, frozen=True):
    """How many replicas are wanted, and why."""

    replicas: int
    reason: str
    is_panic: bool = False


class _Window:
    """Sums over the last seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._parts: deque[tuple[float, float, float, float, int]] = deque()
        self.clear()

    def add(self, span: float, sample: Sample) -> None:
        part = (sample.at, span, sample.concurrency * span, sample.pace_s * sample.arrived, sample.arrived)
        self._parts.append(part)
        self._count(part, 1)
        while self._parts and self._parts[0][0] <= sample.at - self.seconds:
            self._count(self._parts.popleft(), -1)

    def _count(self, part: tuple[float, float, float, float, int], sign: int) -> None:
        _, span, area, work, arrived = part
        self._covered += sign * span
        self._area += sign * area
        self._work += sign * work
        self._arrived += sign * arrived

    def clear(self) -> None:
        self._parts.clear()
        self._area = self._covered = self._work = 0.0
        self._arrived = 0

    @property
    def concurrency(self) -> float:
        return max(0.0, self._area) / self._covered if self._covered > 0 else 0.0

    @property
    def work(self) -> float:
        """Seconds of a replica that arrived in each second."""
        return max(0.0, self._work) / self._covered if self._covered > 0 else 0.0


class _Peaks:
    """The highest values of the last `delay` seconds, in so many parts at most."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, float]] = deque()

    def add(self, at: float, delay_s: float, value: float) -> None:
        if self._parts and at - self._parts[-1][0] < delay_s / _PARTS:
            self._parts[-1] = (self._parts[-1][0], max(self._parts[-1][1], value))
        else:
            self._parts.append((at, value))
        # A part counts until the last moment it may hold is over.
        while self._parts and self._parts[0][0] + delay_s / _PARTS <= at - delay_s:
            self._parts.popleft()

    def clear(self) -> None:
        self._parts.clear()

    @property
    def highest(self) -> float:
        return max((part[1] for part in self._parts), default=0.0)


class Scaler:
    """One endpoint's autoscaler. After a restart its memory is rebuilt: until then it gives nothing up."""

    def __init__(self, replicas: int) -> None:
        """`replicas`: how many there are."""
        self.replicas = replicas
        self._reason = "it has just been started"
        self._stable = _Window(STABLE_S)
        self._panic = _Window(PANIC_S)
        self._peaks = _Peaks()
        self._last = self._since = self._active = -math.inf
        self._panic_until = -math.inf
        self._aged_since: float | None = None
        self._aged_at = -math.inf
        self._fell_at = -math.inf
        self._patience = 1.0
        self._delay_s = 0.0
        self._was_ready = False

    def take(self, sample: Sample, rules: Rules) -> Wish:
        """Take in what was seen, and return what is wanted from now on."""
        self._note(sample)
        if not rules.low <= self.replicas <= rules.high:
            bounded = min(max(self.replicas, rules.low), rules.high)
            self._set(bounded, sample.at, f"{rules.low} to {rules.high} are allowed")
        if self.replicas == 0:
            if sample.arrived or sample.waiting:
                # One, whatever waits: what is not known to run is not multiplied.
                self._set(1, sample.at, "a request has come, and nothing ran")
        elif sample.ready == 0 and not self._is_idle(sample, rules):
            pass  # it is being started, or can't: more of it would not help
        else:
            self._weigh(sample, rules)
        return Wish(self.replicas, self._reason, sample.at < self._panic_until)

    @property
    def concurrency(self) -> float:
        """Requests at the same time, over the stable window."""
        return self._stable.concurrency

    @property
    def busy(self) -> float:
        """Replicas that the highest load of the last delay was for."""
        return self._peaks.highest

    def _note(self, sample: Sample) -> None:
        span = sample.at - self._last
        if not 0.0 <= span <= _GAP_S:
            # The first sample, a clock that jumped, or a gateway that was away: begin anew, with what runs.
            self._stable.clear()
            self._panic.clear()
            self._peaks.clear()
            self._since = self._active = sample.at
            self._panic_until = self._fell_at = self._aged_at = -math.inf
            self._aged_since = None
            span = 0.0
        self._last = sample.at
        is_served, self._was_ready = self._was_ready and sample.ready > 0, sample.ready > 0
        if span > 0.0:
            # What waited for a first replica says nothing of how many would do.
            counted = sample if is_served else msgspec.structs.replace(sample, concurrency=0.0)
            self._stable.add(span, counted)
            self._panic.add(span, counted)
        if sample.arrived or sample.waiting or sample.concurrency > 0.0:
            self._active = sample.at
        limit = max(AGED_S, sample.pace_s)
        if sample.waiting and sample.oldest_s > limit:
            self._aged_since = sample.at if self._aged_since is None else self._aged_since
            self._aged_at = sample.at
        else:
            self._aged_since = None

    def _is_idle(self, sample: Sample, rules: Rules) -> bool:
        return rules.low == 0 and sample.at - self._active >= rules.idle_s

    def _weigh(self, sample: Sample, rules: Rules) -> None:
        now, ready = sample.at, sample.ready
        if self._is_idle(sample, rules):
            self._set(0, now, f"no request for {format_time(rules.idle_s)}")
            return
        mean, short = _need(self._stable, sample, rules), _need(self._panic, sample, rules)
        delay_s = self._delay_s = rules.delay_s * self._patience
        self._peaks.add(now, delay_s, max(mean, short))
        covered = now - self._since
        most = min(rules.high, max(self.replicas, 2 * ready, ready + MOST_ADDED))
        if covered >= PANIC_S / 2 and self._panic.concurrency >= PANIC_RATIO * rules.target * max(1, ready):
            self._panic_until = now + STABLE_S
        if now < self._panic_until and math.ceil(short) > self.replicas:
            wanted = min(most, math.ceil(short))
            self._up(wanted, now, f"{self._panic.concurrency:.3g} requests at once in the last {PANIC_S:g} s", rules)
        if covered >= _SETTLED_S and math.ceil(mean) > self.replicas:
            wanted = min(most, math.ceil(mean))
            self._up(wanted, now, f"{self._stable.concurrency:.3g} requests at once in the last minute", rules)
        self._heed_age(sample, rules, most)
        self._ease(now, rules, delay_s)

    def _heed_age(self, sample: Sample, rules: Rules, most: int) -> None:
        now = sample.at
        if self._aged_since is None or now - self._aged_since < AGED_FOR_S or sample.ready < self.replicas:
            return
        self._aged_since = now  # the one that is added gets its time to help
        if self.replicas < min(most, rules.high):
            self._up(self.replicas + 1, now, f"the oldest request has waited {format_time(sample.oldest_s)}", None)

    def _ease(self, now: float, rules: Rules, delay_s: float) -> None:
        """Give up what nothing that was seen for a whole delay would have asked back, half of it at a time."""
        least = max(1, rules.low)
        is_early = now - self._since < delay_s or now - self._fell_at < STABLE_S
        if self.replicas <= least or is_early or now < self._panic_until or now - self._aged_at < delay_s:
            return
        peak = self._peaks.highest
        fewer = next((n for n in range(least, self.replicas) if peak <= n - _NOISE * math.sqrt(n)), self.replicas)
        fewer = max(fewer, math.ceil(self.replicas / 2))
        if fewer < self.replicas:
            at_once = peak * rules.target
            self._set(fewer, now, f"at most {at_once:.3g} requests at once for {format_time(delay_s)}")

    def _up(self, wanted: int, now: float, reason: str, rules: Rules | None) -> None:
        if wanted <= self.replicas:
            return
        if rules is not None:
            reason = f"{reason}, a replica is for {rules.target:.3g}"
        if now - self._fell_at < 2 * self._delay_s:
            # The last fall was a mistake: what comes and goes more slowly than the delay needs a longer one.
            self._patience = min(MOST_DELAY, 4 * self._patience)
            self._fell_at = -math.inf
        self._set(wanted, now, reason)

    def _set(self, wanted: int, now: float, reason: str) -> None:
        if wanted < self.replicas:
            self._fell_at = now
        self.replicas = wanted
        self._reason = reason


def _need(window: _Window, sample: Sample, rules: Rules) -> float:
    """Return how many replicas a load is for.

    Requests at once count a backlog as if it were there for ever. What arrives, times what each takes of a replica,
    does not; with that known, a backlog is worth the replicas that work it off within the panic window.
    """
    by_count = window.concurrency / rules.target
    if sample.pace_s <= 0.0:
        return by_count
    return min(by_count, window.work / rules.use + sample.waiting * sample.pace_s / PANIC_S)
