"""What should run and where requests should go, computed from desired state and readiness. Pure."""

import math
from collections.abc import Callable, Iterable, Mapping

import msgspec

from argosy.operate import desired as d
from argosy.operate.config import AUTO, EndpointConfig
from argosy.operate.desired import Endpoint, Rollout, Target
from argosy.serve.control import EndpointRoute
from argosy.serve.wire import Advice

ReadyCount = Callable[[str], int]
"""How many ready replicas a version (by digest) has."""
Advised = Callable[[str], Advice | None]
"""What a version's calibration on this machine recommends; None while it is not known."""

UNHURRIED_S = 10.0
"""How long a replica may hold back for its calibration while another version answers."""


class Wanted(msgspec.Struct, frozen=True):
    """How many replicas of a version should run, with how many threads and how much memory each."""

    target: Target
    replicas: int
    threads: int
    memory_bytes: int = 0
    """Most memory of its own that a replica may take; 0: as the machine has it."""
    calibrate_s: float = 0.0
    """How long a replica may hold back for its calibration; 0 where its answers are waited for."""
    is_open: bool = False
    """Whether it is not known yet how many do best, so that those beyond `replicas` are left alone."""


def no_advice(digest: str) -> Advice | None:
    """Know nothing about any version."""
    del digest
    return None


NO_COUNTS: Mapping[str, int] = {}


def wanted_replicas(
    endpoints: Iterable[Endpoint], advised: Advised = no_advice, counts: Mapping[str, int] = NO_COUNTS
) -> dict[str, Wanted]:
    """Return for each version, by digest, what all endpoints together want of it.

    `counts`: for endpoints that follow their load, how many replicas that calls for.
    """
    found: dict[str, Wanted] = {}
    for endpoint in endpoints:
        for digest, wanted in _of_endpoint(endpoint, advised, counts).items():
            other = found.get(digest)
            found[digest] = wanted if other is None else _together(other, wanted)
    return found


def _together(one: Wanted, other: Wanted) -> Wanted:
    """Endpoints that serve the same version share its queue, so their replicas add up."""
    return Wanted(
        one.target,
        one.replicas + other.replicas,
        max(one.threads, other.threads),
        min(one.memory_bytes, other.memory_bytes) and max(one.memory_bytes, other.memory_bytes),
        min(one.calibrate_s, other.calibrate_s),
        one.is_open or other.is_open,
    )


def full_replicas(endpoint: Endpoint, advice: Advice | None, counts: Mapping[str, int] = NO_COUNTS) -> int:
    """Return how many replicas a version of an endpoint gets that serves all of its requests."""
    full = counts.get(endpoint.name, sizes(endpoint.config, advice)[0])
    return max(1, full) if endpoint.rollout is not None else full


def _of_endpoint(endpoint: Endpoint, advised: Advised, counts: Mapping[str, int]) -> dict[str, Wanted]:
    if not endpoint.is_active:
        return {}
    config, rollout = endpoint.config, endpoint.rollout
    found: dict[str, Wanted] = {}

    def want(target: Target, count: Callable[[int], int], calibrate_s: float = 0.0) -> None:
        advice = advised(target.digest)
        _, threads = sizes(config, advice)
        full = full_replicas(endpoint, advice, counts)
        known = found.get(target.digest)
        most = max(count(full), known.replicas if known else 0)
        is_open = config.replicas == AUTO and advice is None
        patience_s = min(calibrate_s, known.calibrate_s) if known else calibrate_s
        found[target.digest] = Wanted(target, most, threads, config.memory_bytes, patience_s, is_open)

    if endpoint.stable:
        want(endpoint.stable, lambda full: full)
    for spare in (endpoint.backup, endpoint.sibling):
        if spare:
            # Who answers for a version that fails has all of its requests.
            want(spare, lambda full: full if endpoint.failing else min(1, full))
    if rollout and rollout.phase not in (d.PENDING, d.ROLLING_BACK, d.LEAVING):
        want(rollout.to, lambda full: planned_replicas(rollout, full), UNHURRIED_S if rollout.base else 0.0)
    return found


def sizes(config: EndpointConfig, advice: Advice | None) -> tuple[int, int]:
    """Return how many replicas a version gets that serves all requests of an endpoint, and how many threads each.

    Before anything is known, one replica with one thread finds out. Of a range this is its lower end, which may be 0.
    """
    if config.replicas != AUTO:
        replicas, most = config.replica_range()
        if config.threads != AUTO:
            return replicas, int(config.threads)
        # Where more threads make one replica faster, several share the cores that it would use. With a range, as many
        # as there may be: another number of threads would mean to start all of them anew.
        return replicas, max(1, advice.alone // most) if advice else 1
    if advice is None:
        return 1, 1 if config.threads == AUTO else int(config.threads)
    if config.threads == AUTO:
        return advice.replicas, advice.threads
    threads = int(config.threads)
    return max(1, min(advice.most, advice.replicas * advice.threads // threads)), threads


def planned_replicas(rollout: Rollout, full: int) -> int:
    """Return how many replicas of the new version to run now: already those that the next move needs."""
    if rollout.kind not in (d.STEPWISE, d.SHADOW_ONLY) or rollout.phase == d.PROMOTING:
        return full
    config = rollout.config
    is_early = rollout.phase in (d.WARMING, d.SHADOW)
    copies = config.mirror / 100 if is_early and config.has_shadow else 0.0
    if rollout.kind == d.SHADOW_ONLY:
        return max(1, math.ceil(full * copies))
    following = 0 if is_early else rollout.step + 1
    if following >= len(config.shares):
        return full
    return max(1, math.ceil(full * max(config.shares[following], copies)))


def needed_replicas(rollout: Rollout, full: int) -> int:
    """Return how many replicas of the new version must be ready before the rollout moves on.

    A return by hand needs one: it is urgent, and the version it leaves may be the worse of the two.
    """
    return 1 if rollout.kind == d.UNDO else planned_replicas(rollout, full)


def route_of(endpoint: Endpoint, ready: ReadyCount, *, is_safe: bool = False) -> EndpointRoute | None:
    """Return where an endpoint's requests go, None while it has no version that ever was ready.

    `is_safe`: without the new version, whatever the rollout's phase is.
    """
    if not endpoint.is_active or endpoint.stable is None:
        return None
    rollout = None if is_safe else endpoint.rollout
    share = rollout.share if rollout else 0.0
    # Which of them is ready at the moment the gateway sees by itself, where there is only one.
    is_sibling = endpoint.backup is None or _has(endpoint.sibling, ready)
    backup = endpoint.sibling if is_sibling else endpoint.backup
    if rollout and _may_stand_in(rollout, share, ready) and (rollout.phase == d.PROMOTING or not _has(backup, ready)):
        backup = rollout.to  # better the new version than none, should the current one die, and the controller too
    route = EndpointRoute(
        name=endpoint.name,
        stable=endpoint.stable.digest,
        stable_ref=endpoint.stable.ref,
        backup=backup.digest if backup else "",
        backup_ref=backup.ref if backup else "",
        hedge_s=endpoint.config.hedge_s,
        failover=endpoint.config.failover,
        may_go_solo=endpoint.config.threads == AUTO,
    )
    if not rollout or not rollout.is_mirrored:
        return route
    return msgspec.structs.replace(
        route,
        canary=rollout.to.digest,
        canary_ref=rollout.to.ref,
        share=share,
        mirror=rollout.config.mirror / 100,
        rollout=rollout.id,
        window_s=rollout.config.window_s,
        sticky=rollout.config.sticky,
        tolerate_latency=rollout.config.tolerate.latency,
    )


def _may_stand_in(rollout: Rollout, share: float, ready: ReadyCount) -> bool:
    return share > 0 or (rollout.phase == d.PROMOTING and ready(rollout.to.digest) > 0)


def _has(target: Target | None, ready: ReadyCount) -> bool:
    return target is not None and ready(target.digest) > 0


def routed_versions(routes: Iterable[EndpointRoute]) -> set[str]:
    """Return the digests that some route names."""
    return {digest for route in routes for digest in (route.stable, route.canary, route.backup) if digest}
