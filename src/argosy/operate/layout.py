"""What should run and where requests should go, computed from desired state and readiness. Pure."""

import math
from collections.abc import Callable, Iterable

import msgspec

from argosy.operate import desired as d
from argosy.operate.desired import Endpoint, Rollout, Target
from argosy.serve.control import EndpointRoute

ReadyCount = Callable[[str], int]
"""How many ready replicas a version (by digest) has."""


class Wanted(msgspec.Struct, frozen=True):
    """How many replicas of a version should run, with how many threads and how much memory each."""

    target: Target
    replicas: int
    threads: int
    memory_bytes: int = 0
    """Most memory of its own that a replica may take; 0: as the machine has it."""


def wanted_replicas(endpoints: Iterable[Endpoint]) -> dict[str, Wanted]:
    """Return for each version, by digest, what all endpoints together want of it."""
    found: dict[str, Wanted] = {}
    for endpoint in endpoints:
        for digest, wanted in _of_endpoint(endpoint).items():
            other = found.get(digest)
            # Endpoints that serve the same version share its queue, so their replicas add up.
            found[digest] = (
                wanted
                if other is None
                else Wanted(
                    wanted.target,
                    other.replicas + wanted.replicas,
                    max(other.threads, wanted.threads),
                    min(other.memory_bytes, wanted.memory_bytes) and max(other.memory_bytes, wanted.memory_bytes),
                )
            )
    return found


def _of_endpoint(endpoint: Endpoint) -> dict[str, Wanted]:
    if not endpoint.is_active:
        return {}
    full = endpoint.config.replica_range()[0]
    counts: list[tuple[Target, int]] = []
    if endpoint.stable:
        counts.append((endpoint.stable, full))
    if endpoint.backup:
        counts.append((endpoint.backup, 1))
    rollout = endpoint.rollout
    if rollout and rollout.phase not in (d.PENDING, d.ROLLING_BACK):
        counts.append((rollout.to, planned_replicas(rollout, full)))
    found: dict[str, Wanted] = {}
    for target, count in counts:
        most = max(count, found[target.digest].replicas if target.digest in found else 0)
        found[target.digest] = Wanted(target, most, endpoint.config.threads, endpoint.config.memory_bytes)
    return found


def planned_replicas(rollout: Rollout, full: int) -> int:
    """Return how many replicas of the new version to run now: already those that the next move needs."""
    if rollout.kind != d.STEPWISE or rollout.phase == d.PROMOTING:
        return full
    shares = rollout.config.shares
    following = 0 if rollout.phase == d.WARMING else rollout.step + 1
    return full if following >= len(shares) else max(1, math.ceil(full * shares[following]))


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
    backup = endpoint.backup
    if rollout and _may_stand_in(rollout, share, ready) and (rollout.phase == d.PROMOTING or not _has(backup, ready)):
        backup = rollout.to  # better the new version than none, should the current one die, and the controller too
    route = EndpointRoute(
        name=endpoint.name,
        stable=endpoint.stable.digest,
        stable_ref=endpoint.stable.ref,
        backup=backup.digest if backup else "",
        backup_ref=backup.ref if backup else "",
    )
    if not rollout or not share:
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
