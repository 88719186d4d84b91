"""The autoscalers of all endpoints: what the gateway tells becomes samples, what they wish becomes numbers of replicas.

Nothing here is durable. After a restart each begins with what runs, and gives nothing up until it has seen enough.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import msgspec

from argosy.core.clock import Clock
from argosy.operate import sharing
from argosy.operate.config import AUTO
from argosy.operate.desired import Endpoint
from argosy.operate.layout import Wanted
from argosy.operate.replicas import Replicas, version_key
from argosy.operate.scaling import USE, Rules, Sample, Scaler, Wish
from argosy.operate.scaling_file import ScalingView
from argosy.operate.sharing import Ask, Grant, Machine, share
from argosy.serve.control import EndpointStatus, GatewayStatus, VersionLoad

_PUBLISH_S = 2.0
"""Between two writings of it while only figures change."""


class _Seen(NamedTuple):
    """What one look brings."""

    now: float
    served: dict[str, EndpointStatus]
    loads: dict[str, VersionLoad]
    before: "_Before | None"
    """None at the first look."""


class _Before(NamedTuple):
    """The counters at the last look."""

    at: float
    arrived: dict[str, int]
    load_s: dict[str, float]


class Scalers:
    """What follows the load of every endpoint with a range. `look` once per tick, then `counts` and `share`."""

    def __init__(
        self,
        clock: Clock,
        *,
        machine: Callable[[], Machine] = Machine,
        memory_of: Callable[[str], int] = lambda digest: 0,  # noqa: ARG005 - nothing is known
        report: Callable[..., None] = lambda event, **fields: None,  # noqa: ARG005 - nobody listens
        publish: Callable[[Mapping[str, ScalingView]], None] = lambda views: None,  # noqa: ARG005 - nobody looks
    ) -> None:
        """`memory_of`: bytes that a replica of a version (by digest) is expected to take; 0 where that isn't known."""
        self._clock = clock
        self._machine = machine
        self._memory_of = memory_of
        self._report = report
        self._publish = publish
        self._scalers: dict[str, Scaler] = {}
        self._wishes: dict[str, Wish] = {}
        self._rules: dict[str, Rules] = {}
        self._batches: dict[str, tuple[int, float]] = {}
        """For each version: rows it runs together, and seconds of such a run."""
        self._memory: dict[str, int] = {}
        """For each version's key, the most memory that a replica of it was seen to take."""
        self._before: _Before | None = None
        self._gateway: tuple[int, float] | None = None
        self._grants: dict[str, Grant] = {}
        self._published: tuple[float, dict[str, ScalingView]] = (0.0, {})
        self.counts: dict[str, int] = {}
        """By endpoint with a range: replicas that a version which serves all of its requests gets."""

    # ---- the load

    def look(
        self,
        endpoints: Iterable[Endpoint],
        status: GatewayStatus | None,
        replicas: Replicas,
        threads_of: Callable[[Endpoint], int],
    ) -> None:
        """Take in what the gateway says, and work out `counts`; without it, they stay."""
        scaled = {e.name: e for e in endpoints if e.is_active and e.config.is_scaled}
        for table in (self._scalers, self._wishes, self._rules, self.counts):
            for name in [name for name in table if name not in scaled]:
                del table[name]
        self._note_memory(replicas)
        for name, endpoint in scaled.items():
            if name not in self._scalers:
                self._begin(endpoint, replicas)
        if status is not None:
            self._take(scaled, status, replicas, threads_of)
        self.counts = {name: wish.replicas for name, wish in self._wishes.items()}

    def _begin(self, endpoint: Endpoint, replicas: Replicas) -> None:
        low, high = endpoint.config.replica_range()
        target = endpoint.stable or (endpoint.rollout.to if endpoint.rollout else None)
        living = _staying(replicas, target.digest) if target else 0
        # A controller that was restarted goes on with what runs.
        start = min(max(living, low, int(endpoint.rollout is not None)), high)
        self._scalers[endpoint.name] = Scaler(start)
        self._wishes[endpoint.name] = Wish(start, "so many ran already" if living else "it has just been started")

    def _take(
        self,
        scaled: Mapping[str, Endpoint],
        status: GatewayStatus,
        replicas: Replicas,
        threads_of: Callable[[Endpoint], int],
    ) -> None:
        now = self._clock.monotonic()
        served = {found.name: found for found in status.endpoints}
        loads = {found.digest: found for found in status.versions}
        for replica in status.replicas:
            if replica.max_batch >= 1:
                self._batches[replica.version] = (replica.max_batch, replica.run_s)
        before, gateway = self._before, (status.pid, status.started)
        self._before = _Before(now, {n: e.arrived for n, e in served.items()}, {d: v.load_s for d, v in loads.items()})
        if before is None or gateway != self._gateway or now <= before.at:
            # The counters of a gateway that was restarted begin at 0.
            before = None if before is None else _Before(before.at, {}, {})
        self._gateway = gateway
        seen = _Seen(now, served, loads, before)
        for name, endpoint in scaled.items():
            rules = self._rules[name] = self._rules_of(endpoint, loads, threads_of(endpoint))
            sample = self._sample(endpoint, scaled, seen, replicas)
            former = self._wishes[name]
            wish = self._wishes[name] = self._scalers[name].take(sample, rules)
            if wish.replicas != former.replicas:
                self._report(
                    "endpoint_scaled",
                    endpoint=name,
                    from_replicas=former.replicas,
                    to_replicas=wish.replicas,
                    reason=wish.reason,
                )
        known = {e.stable.digest for e in scaled.values() if e.stable} | {r.version for r in status.replicas}
        self._batches = {digest: found for digest, found in self._batches.items() if digest in known}

    def _rules_of(self, endpoint: Endpoint, loads: Mapping[str, VersionLoad], threads: int) -> Rules:
        config = endpoint.config
        low, high = config.replica_range()
        if endpoint.rollout is not None:
            low = max(1, low)  # a rollout needs both versions
        cores = self._machine().cores
        if cores:
            high = max(1, low, min(high, cores // max(1, threads)))
        natural = USE * self._together(endpoint, loads)
        target = natural if config.target_concurrency == AUTO else float(config.target_concurrency)
        return Rules(
            low=low,
            high=high,
            target=target,
            use=min(1.0, USE * target / natural),
            idle_s=config.idle_s,
            delay_s=config.scale_down_s,
        )

    def _together(self, endpoint: Endpoint, loads: Mapping[str, VersionLoad]) -> float:
        """Return how many requests a replica of the version that serves runs together."""
        digest = endpoint.stable.digest if endpoint.stable else ""
        batch, _ = self._batches.get(digest, (1, 0.0))
        load = loads.get(digest)
        return max(1.0, batch / max(1.0, load.rows if load else 1.0))

    def _sample(
        self,
        endpoint: Endpoint,
        scaled: Mapping[str, Endpoint],
        seen: _Seen,
        replicas: Replicas,
    ) -> Sample:
        """Return what was seen of an endpoint.

        The load is that of the versions that are not on trial, made up for the share that is: a new version that hangs
        piles up requests, and to start replicas for those would neither help nor be fair to compare with.
        """
        now, loads, before = seen.now, seen.loads, seen.before
        served = seen.served.get(endpoint.name)
        arrived = _grown(before.arrived, endpoint.name, served.arrived) if before and served else 0
        part = _part(endpoint, scaled, self.counts)
        digests = [endpoint.stable.digest] if endpoint.stable else []
        if endpoint.stable is None and endpoint.rollout is not None:
            digests = [endpoint.rollout.to.digest]
        elif digests and (endpoint.failing or not replicas.ready(digests[0])):
            # Others answer in place of the current one.
            digests += [spare.digest for spare in (endpoint.backup, endpoint.sibling) if spare]
        found = [loads[digest] for digest in digests if digest in loads]
        share_left = 1.0
        if served is not None and endpoint.stable is not None and served.serving == endpoint.stable.digest:
            share_left = max(0.05, 1.0 - served.share)
        span = now - before.at if before else 0.0
        grown = sum(_grown(before.load_s, load.digest, load.load_s) for load in found) if before else 0.0
        ready = max((replicas.ready(digest) for digest in digests), default=0)
        main = found[0] if found else None
        is_missed = served is None or not served.is_known
        return Sample(
            at=now,
            concurrency=part * grown / span / share_left if span > 0 else 0.0,
            # Requests for what nothing is known of are refused before they are counted.
            arrived=max(arrived, int(is_missed)),
            waiting=served.waiting if served is not None else 0,
            oldest_s=max((load.oldest_wait_s for load in found), default=0.0),
            ready=min(ready, max(1, round(part * ready))) if ready else 0,
            pace_s=self._pace(main) if main is not None else 0.0,
        )

    def _pace(self, load: VersionLoad) -> float:
        """Return the seconds of a replica that a request takes when as many as possible run together."""
        batch, run_s = self._batches.get(load.digest, (1, 0.0))
        if batch <= 1 or run_s <= 0.0 or load.pace_s <= 0.0:
            return load.pace_s
        return min(load.pace_s, max(1.0, load.rows) * run_s / batch)

    # ---- the machine

    def share(
        self, endpoints: Iterable[Endpoint], wanted: Mapping[str, Wanted], replicas: Replicas
    ) -> dict[str, Wanted]:
        """Return what is wanted as far as this machine has room for it."""
        if not wanted:
            self._grants = {}
            return {}
        active = [endpoint for endpoint in endpoints if endpoint.is_active]
        asks = [self._ask(want, active, replicas) for want in wanted.values()]
        former, self._grants = self._grants, share(asks, self._machine())
        for digest, grant in self._grants.items():
            if grant.limit and not (digest in former and former[digest].limit):
                self._report(
                    "replicas_limited", version=wanted[digest].target.ref, granted=grant.replicas, why=grant.limit
                )
        return {
            digest: msgspec.structs.replace(want, replicas=self._grants[digest].replicas)
            for digest, want in wanted.items()
        }

    def granted(self, digest: str, wanted: int) -> int:
        """Return how many of so many replicas of a version there is room for, and at least one."""
        grant = self._grants.get(digest)
        return wanted if grant is None or not grant.limit else max(1, min(wanted, grant.replicas))

    def refused(self, digest: str) -> str:
        """Return why there is no room for a single replica of a version; empty when there is."""
        grant = self._grants.get(digest)
        return grant.limit if grant is not None and not grant.replicas else ""

    def _ask(self, want: Wanted, endpoints: Iterable[Endpoint], replicas: Replicas) -> Ask:
        digest = want.target.digest
        purpose, least, priority, busy, is_scaled = sharing.BACKUP, 0, None, 0.0, False
        for endpoint in endpoints:
            role = _purpose(endpoint, digest)
            if role is None:
                continue
            config = endpoint.config
            purpose = min(purpose, role)
            priority = config.priority if priority is None else max(priority, config.priority)
            if role == sharing.STABLE:
                least += config.replica_range()[0]
                if endpoint.name in self._scalers:
                    is_scaled = True
                    busy += self._scalers[endpoint.name].busy * self._rules[endpoint.name].use if self._rules else 0.0
        return Ask(
            digest=digest,
            ref=want.target.ref,
            replicas=want.replicas,
            least=min(want.replicas, least),
            purpose=purpose,
            priority=priority or 0,
            memory_bytes=self._memory.get(version_key(digest), 0) or self._memory_of(digest),
            threads=max(1, want.threads),
            running=_staying(replicas, digest),
            busy=busy,
            is_scaled=is_scaled,
        )

    def _note_memory(self, replicas: Replicas) -> None:
        for replica in replicas.living:
            if replica.memory_bytes > self._memory.get(replica.key, 0) and replica.is_ready:
                self._memory[replica.key] = replica.memory_bytes
        if len(self._memory) > 4096:
            living = {replica.key for replica in replicas.living}
            self._memory = {key: size for key, size in self._memory.items() if key in living}

    # ---- for gateway and people

    def route_flags(self, endpoint: Endpoint, ready: int) -> dict[str, bool]:
        """Return the fields of an endpoint's route that tell the gateway what may be held."""
        config = endpoint.config
        if not config.is_scaled or endpoint.stable is None:
            return {}
        wish = self._wishes.get(endpoint.name)
        grant = self._grants.get(endpoint.stable.digest)
        granted = grant.replicas if grant is not None else wish.replicas if wish is not None else 0
        rules = self._rules.get(endpoint.name)
        high = rules.high if rules is not None else config.replica_range()[1]
        can_grow = wish is not None and wish.replicas < high and not (grant is not None and grant.limit)
        return {"is_on_demand": config.is_on_demand, "is_elastic": can_grow or ready < granted}

    def publish(self, endpoints: Mapping[str, Endpoint]) -> None:
        """Say what is wanted and why, when that has changed."""
        now = self._clock.monotonic()
        views = {name: self._view(endpoints[name]) for name in sorted(self._scalers) if name in endpoints}
        at, former = self._published
        if views == former:
            return
        is_new = {n: (v.wanted, v.granted, v.limit) for n, v in views.items()} != {
            n: (v.wanted, v.granted, v.limit) for n, v in former.items()
        }
        if is_new or now - at >= _PUBLISH_S or now < at:
            self._publish(views)
            self._published = (now, views)

    def _view(self, endpoint: Endpoint) -> ScalingView:
        wish = self._wishes[endpoint.name]
        rules = self._rules.get(endpoint.name)
        low, high = endpoint.config.replica_range()
        target = endpoint.stable or (endpoint.rollout.to if endpoint.rollout else None)
        grant = self._grants.get(target.digest) if target else None
        limit = grant.limit if grant is not None else ""
        if not limit and rules is not None and rules.high < high and wish.replicas == rules.high:
            limit = f"this machine has {self._machine().cores} cores"
        return ScalingView(
            low=low,
            high=high,
            wanted=wish.replicas,
            granted=min(wish.replicas, grant.replicas) if grant is not None else wish.replicas,
            reason=wish.reason,
            limit=limit,
            target=round(rules.target, 3) if rules is not None else 0.0,
            at_once=float(f"{self._scalers[endpoint.name].concurrency:.2g}"),
            priority=endpoint.config.priority,
            is_hurried=wish.is_panic,
        )


def _purpose(endpoint: Endpoint, digest: str) -> int | None:
    """Return what a version is for in an endpoint, None when it has nothing to do with it."""
    rollout = endpoint.rollout
    if endpoint.stable is not None and endpoint.stable.digest == digest:
        return sharing.STABLE
    if rollout is not None and rollout.to.digest == digest:
        return sharing.CANARY if endpoint.stable is not None else sharing.STABLE
    spares = {spare.digest for spare in (endpoint.backup, endpoint.sibling) if spare is not None}
    if digest not in spares:
        return None
    return sharing.STABLE if endpoint.failing else sharing.BACKUP


def _part(endpoint: Endpoint, scaled: Mapping[str, Endpoint], counts: Mapping[str, int]) -> float:
    """Return which part of its version's load and replicas is an endpoint's, where several serve the same one."""
    if endpoint.stable is None:
        return 1.0
    sharers = [e.name for e in scaled.values() if e.stable is not None and e.stable.digest == endpoint.stable.digest]
    if len(sharers) < 2:
        return 1.0
    total = sum(max(1, counts.get(name, 1)) for name in sharers)
    return max(1, counts.get(endpoint.name, 1)) / total


def _grown(former: Mapping[str, Any], name: str, now: Any) -> Any:
    """Return by how much a counter has grown; one that has fallen began anew."""
    before = former.get(name, 0)
    return now - before if now >= before else now


def _staying(replicas: Replicas, digest: str) -> int:
    key = version_key(digest)
    return sum(1 for replica in replicas.living if replica.key == key and replica.is_staying)
