"""Simulated time and traffic through the real queue and the real autoscaler; the scenarios are in `autoscaling.py`.

Simulated are requests, replicas and the clock. The queue is the gateway's own (`serve.batcher.VersionQueue`): it forms
the batches, and refuses what it has no room for. The autoscaler is the controller's own (`operate.scaling.Scaler`),
looked at as often as the controller looks.
"""

import heapq
import itertools
import math
import random
from collections import deque
from dataclasses import dataclass, field

from argosy.core.errors import Unavailable
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate.scaling import USE, Rules, Sample, Scaler
from argosy.serve.batcher import OVER, RUNNING, VersionQueue, Work
from argosy.serve.requests import Inputs

LOOK_S = 0.3
"""Between two looks of the controller."""
DEADLINE_S = 30.0
_SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
_SIGNATURE = Signature(inputs=(_SPEC,), outputs=(_SPEC,))
_INPUTS = Inputs((), 1, (), 16)


@dataclass
class Model:
    """What a replica takes: `run_s` for one row alone, `row_s` for each more, up to `batch` rows together."""

    run_s: float = 0.1
    row_s: float = 0.1
    batch: int = 1
    spread: float = 0.25
    """Standard deviation of the logarithm of a run's time."""
    cold_s: float = 2.0
    """From the start of a replica to its first request."""

    def seconds(self, rows, chance):
        return (self.run_s + self.row_s * (rows - 1)) * math.exp(chance.gauss(-0.5 * self.spread**2, self.spread))

    @property
    def capacity(self):
        """Requests per second of one replica at most."""
        return self.batch / (self.run_s + self.row_s * (self.batch - 1))


@dataclass
class Outcome:
    """What happened in one scenario."""

    asked: int = 0
    answered: int = 0
    refused: int = 0
    late: int = 0
    waits: list = field(default_factory=list)
    numbers: list = field(default_factory=list)
    """(time, replicas wanted) at each change."""
    replica_s: float = 0.0
    reasons: list = field(default_factory=list)

    @property
    def reversals(self):
        """How often the number of replicas that is wanted turned from growing to falling, or back."""
        found, direction = 0, 0
        for (_, former), (_, later) in itertools.pairwise(self.numbers):
            turn = (later > former) - (later < former)
            if turn and direction and turn != direction:
                found += 1
            direction = turn or direction
        return found

    def wait(self, part):
        ordered = sorted(self.waits)
        return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0


class _Request(Work):
    __slots__ = ("arrived_at", "world")

    def expire(self, now):
        del now
        self.world.outcome.late += 1
        self.world.queue.withdraw(self)


class _Replica:
    def __init__(self, world):
        self.world = world
        self.max_batch = world.model.batch
        self.max_bytes, self.padding, self.spare = 0, 1.0, 0.0
        self.works = None
        self.leaves = False

    def run(self, works, now):
        self.works = works
        world = self.world
        world.running += len(works)
        seconds = world.model.seconds(len(works), world.chance)
        world.at(now + seconds, self._done, now)

    def _done(self, now, since):
        world = self.world
        works, self.works = self.works, None
        world.running -= len(works)
        world.busy_s += now - since
        world.queue.ran(len(works), now - since)
        for work in works:
            if work.state == RUNNING:
                work.state = OVER
                world.outcome.answered += 1
                world.outcome.waits.append(now - work.arrived_at)
        if self.leaves:
            world.replicas.remove(self)
        else:
            world.queue.idle.append(self)
            world.queue.dispatch(now)


class Argosy:
    """The autoscaler as the controller drives it."""

    name = "Argosy"
    look_s = LOOK_S

    def __init__(self, model, low, high, start, **rules):
        target = USE * model.batch
        self.rules = Rules(low=low, high=high, target=target, **rules)
        self.scaler = Scaler(start)
        self.high = high

    def wanted(self, seen):
        wish = self.scaler.take(
            Sample(
                at=seen.now,
                concurrency=seen.concurrency,
                arrived=seen.arrived,
                waiting=seen.waiting,
                oldest_s=seen.oldest_s,
                ready=seen.ready,
                pace_s=seen.pace_s,
            ),
            self.rules,
        )
        return wish.replicas, wish.reason


class Utilisation:
    """The rule of Kubernetes' horizontal autoscaler, as documented, on the average use of the replicas.

    Every 15 s: replicas times use over 80 %, nothing within a tolerance of 10 %; upwards by doubling or 4, downwards to
    the highest of the last 300 s. It has no zero.
    """

    name = "use 80 %"
    look_s = 15.0

    def __init__(self, model, low, high, start, **rules):
        del model, rules
        self.low, self.high = max(1, low), high
        self.replicas = max(1, start)
        self.said = deque()

    def wanted(self, seen):
        ratio = seen.use / 0.8
        ready = max(1, seen.ready)
        found = self.replicas if abs(ratio - 1) <= 0.1 else math.ceil(ready * ratio)
        found = min(found, max(2 * self.replicas, self.replicas + 4))
        found = min(max(found, self.low), self.high)
        self.said.append((seen.now, found))
        while self.said[0][0] <= seen.now - 300.0:
            self.said.popleft()
        self.replicas = max(found, max(count for _, count in self.said) if found < self.replicas else found)
        self.replicas = min(max(self.replicas, self.low), self.high)
        return self.replicas, f"use {seen.use:.0%}"


@dataclass
class Seen:
    """What an autoscaler may look at."""

    now: float
    concurrency: float
    arrived: int
    waiting: int
    oldest_s: float
    ready: int
    pace_s: float
    use: float


class World:
    """One scenario with one autoscaler."""

    def __init__(self, model, make, arrivals, *, low=1, high=16, start=1, seed=1, **rules):
        """`arrivals` yields the times of requests, in order."""
        self.model = model
        self.chance = random.Random(seed)
        self.policy = make(model, low, high, start, **rules)
        self.high = high
        self.queue = VersionQueue("d", _SIGNATURE, max_requests=2048, max_bytes=1 << 28)
        self.replicas = [_Replica(self) for _ in range(start)]
        self.queue.idle.extend(self.replicas)
        self.queue.replicas = max(1, start)
        self.outcome = Outcome(numbers=[(0.0, start)])
        self.loading = 0
        self.running = 0
        self._now = 0.0
        self.busy_s = self.load_s = 0.0
        self._before = (0.0, 0.0, 0, 0.0)
        self._arrivals = iter(arrivals)
        self._events = []
        self._order = itertools.count()
        self._arrive()
        self.at(self.policy.look_s, self._look)

    def at(self, when, what, *given):
        heapq.heappush(self._events, (when, next(self._order), what, given))

    def run(self, until):
        while self._events and self._events[0][0] <= until:
            now, _, what, given = heapq.heappop(self._events)
            span, self._now = now - self._now, now
            self.load_s += span * (self.queue.requests + self.running)
            self.outcome.replica_s += span * (len(self.replicas) + self.loading)
            what(now, *given)
        return self.outcome

    def _arrive(self):
        when = next(self._arrivals, None)
        if when is not None:
            self.at(when, self._come)

    def _come(self, now):
        self.outcome.asked += 1
        request = _Request(_INPUTS)
        request.arrived_at, request.world = now, self
        request.due = request.deadline = now + DEADLINE_S
        try:
            self.queue.submit(request, now)
        except Unavailable:
            self.outcome.refused += 1
        else:
            self.queue.dispatch(now)
        self._arrive()

    def _look(self, now):
        since, load_s, asked, busy_s = self._before
        span = now - since
        ready = [replica for replica in self.replicas if not replica.leaves]
        seen = Seen(
            now=now,
            concurrency=(self.load_s - load_s) / span,
            arrived=self.outcome.asked - asked,
            waiting=self.queue.requests,
            oldest_s=now - self.queue.oldest if self.queue.requests else 0.0,
            ready=len(ready),
            pace_s=min(self.queue.pace_s, 1 / self.model.capacity) if self.model.batch > 1 else self.queue.pace_s,
            use=min(1.0, (self.busy_s - busy_s) / span / max(1, len(ready))),
        )
        self._before = (now, self.load_s, self.outcome.asked, self.busy_s)
        wanted, reason = self.policy.wanted(seen)
        if wanted != self.outcome.numbers[-1][1]:
            self.outcome.numbers.append((now, wanted))
            self.outcome.reasons.append((now, wanted, reason))
        for _ in range(wanted - len(ready) - self.loading):
            self.loading += 1
            self.at(now + self.model.cold_s, self._loaded)
        for replica in ready[wanted:]:
            replica.leaves = True
            if replica.works is None:
                self.queue.idle.remove(replica)
                self.replicas.remove(replica)
        self._count(wanted)
        self.at(now + self.policy.look_s, self._look)

    def _count(self, wanted):
        ready = sum(1 for replica in self.replicas if not replica.leaves)
        self.queue.replicas = max(1, ready)
        self.queue.is_elastic = wanted < self.high or ready < wanted

    def _loaded(self, now):
        self.loading -= 1
        wanted = self.outcome.numbers[-1][1]
        if sum(1 for replica in self.replicas if not replica.leaves) >= wanted:
            return
        replica = _Replica(self)
        self.replicas.append(replica)
        self.queue.idle.append(replica)
        self._count(wanted)
        self.queue.dispatch(now)


def poisson(rate, seed, until=math.inf):
    """Times of independent requests; `rate` is per second, or a function of time."""
    chance = random.Random(f"poisson {seed}")
    highest = rate if not callable(rate) else rate.highest
    now = 0.0
    while True:
        now += chance.expovariate(highest)
        if now > until:
            return
        if not callable(rate) or chance.random() < rate(now) / highest:
            yield now


class Step:
    """`before` requests a second until `when`, then `after`, from `back` on `before` again."""

    def __init__(self, before, after, when, back=math.inf):
        self.before, self.after, self.when, self.back = before, after, when, back
        self.highest = max(before, after)

    def __call__(self, now):
        return self.after if self.when <= now < self.back else self.before


class Bursts:
    """Half of `rate` as independent requests, the other half in bursts of `size` within a tenth of a second."""

    def __init__(self, rate, size):
        self.rate, self.size = rate, size

    def times(self, seed, until):
        chance = random.Random(f"bursts {seed}")
        calm = poisson(self.rate / 2, seed, until)
        starts = poisson(self.rate / 2 / self.size, f"{seed} starts", until)
        crowd = (start + chance.random() * 0.1 for start in starts for _ in range(self.size))
        return iter(sorted([*calm, *crowd]))


class Swings:
    """A rate that swings between half and one and a half of its mean, every `period` seconds."""

    def __init__(self, rate, period):
        self.rate, self.period = rate, period
        self.highest = 1.5 * rate

    def __call__(self, now):
        return self.rate * (1.5 if (now // (self.period / 2)) % 2 else 0.5)
