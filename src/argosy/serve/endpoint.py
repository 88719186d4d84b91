"""One served name as the gateway knows it now."""

from collections import deque
from collections.abc import Container
from typing import NamedTuple

from argosy.core.tensors import Signature
from argosy.serve.control import EndpointRoute, EndpointStatus, VersionStatus
from argosy.serve.counters import Cell, Histogram
from argosy.serve.deadlines import RetryBudget
from argosy.serve.health import Health
from argosy.serve.router import Choice, Plan, choose, resolve
from argosy.serve.windows import Rollout, Windows, recent_answers


class Answers:
    """What one version answered at one endpoint since it was routed there."""

    __slots__ = ("failed", "recent", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.failed = 0
        self.recent: deque[float] = recent_answers()
        """The latencies of the last successes, in seconds."""

    def status(self, ref: str) -> VersionStatus:
        """Return it as an operator sees it."""
        ordered = sorted(self.recent)
        return VersionStatus(
            ref=ref,
            requests=self.requests,
            failed=self.failed,
            p50_ms=1000 * ordered[len(ordered) // 2] if ordered else 0.0,
            p95_ms=1000 * ordered[int(len(ordered) * 0.95)] if ordered else 0.0,
        )


class Tally(NamedTuple):
    """What is counted for each answer of one version at one endpoint."""

    ok: Cell
    seconds: Histogram
    answers: Answers


class Endpoint:
    """A route, how it can be followed now, and what has happened on it."""

    def __init__(self, route: EndpointRoute) -> None:
        self.route = route
        self.previous = ("", "")
        """The stable version before, while the new one is not ready."""
        self.answers = recent_answers()
        self.rollout: Rollout | None = None
        self.budget = RetryBudget()
        self.requests = 0
        self.failed = 0
        self.replayed = 0
        self.plan: Plan = resolve(route, (), self.previous)
        self.choice: Choice | None = None
        """Where every request goes while no canary is drawn."""
        self.health = Health(route.failover)
        """Of the stable version."""
        self.stand_in = ""
        """Name of the version that answers in place of the stable one; empty while that does."""
        self.last_request = 0.0
        """When the last one came while another version stood in."""
        self._was_ready = False
        self.tallies: dict[str, Tally] = {}
        """What is counted for each version that answers, by its name."""
        self.by_version: dict[str, Answers] = {}
        """What each version in the route has answered, by its name."""

    def set_route(self, route: EndpointRoute) -> None:
        """Follow another route; `refresh` must be called then."""
        if route.stable != self.route.stable:
            self.previous = (self.plan.serving, self.plan.serving_ref)
            self.answers = recent_answers()
        if (route.stable, route.failover) != (self.route.stable, self.route.failover):
            self.health, self._was_ready = Health(route.failover), False
        self.route = route

    def refresh(
        self,
        ready: Container[str],
        signatures: dict[str, Signature],
        windows: Windows,
        *,
        now: float,
        is_settling: bool = False,
    ) -> None:
        """Work out anew how the route can be followed, now that `ready` or the health of its version has changed."""
        is_ready = self.route.stable in ready
        if is_ready:
            self.previous = ("", "")
        elif self._was_ready:
            self.health.outage(now)
        self._was_ready = is_ready
        stable = signatures.get(self.route.stable)
        fits = {d for d in (self.route.stable, self.route.canary) if stable and _fits(stable, signatures.get(d))}
        failing = self.health.failing
        self.plan = resolve(self.route, ready, self.previous, fits, is_settling=is_settling, failing=failing)
        self.stand_in = "" if self.plan.is_held or self.plan.serving == self.route.stable else self.plan.serving_ref
        self.rollout = windows.follow(self.route, self.plan.share, self.answers)
        self.choice = None if self.plan.canary else choose(self.plan, 0.0, 1.0, "")
        self.tallies.clear()
        kept = {*self.refs(), self.previous[1]}
        self.by_version = {ref: answers for ref, answers in self.by_version.items() if ref in kept}

    def digest_of(self, number: str) -> tuple[str, str] | None:
        """Return digest and name of the version of this number, if the route names it."""
        route = self.route
        for digest, ref in (
            (route.stable, route.stable_ref),
            (route.canary, route.canary_ref),
            (route.backup, route.backup_ref),
            self.previous,
        ):
            if digest and version_number(ref) == number:
                return digest, ref
        return None

    def refs(self) -> list[str]:
        """Return the names of the versions in its route."""
        route = self.route
        refs = ((route.stable, route.stable_ref), (route.canary, route.canary_ref), (route.backup, route.backup_ref))
        return list(dict.fromkeys(ref for digest, ref in refs if digest and ref))

    def numbers(self) -> list[str]:
        """Return the numbers of the versions that can be asked for by number."""
        return list(dict.fromkeys(version_number(ref) for ref in self.refs()))

    @property
    def is_available(self) -> bool:
        """Whether it can answer: a replica is ready, or the next request starts one."""
        return not self.plan.is_held or self.route.is_on_demand

    def status(self, waiting: int, *, is_known: bool = True) -> EndpointStatus:
        """Return it as the controller sees it."""
        ordered = sorted(self.answers)
        return EndpointStatus(
            name=self.route.name,
            serving="" if self.plan.is_held else self.plan.serving,
            serving_ref="" if self.plan.is_held else self.plan.serving_ref,
            share=self.plan.share,
            note=self.plan.note,
            stable=self.route.stable,
            failing=self.health.failing,
            requests=self.requests,
            failed=self.failed,
            replayed=self.replayed,
            waiting=waiting,
            arrived=self.budget.requests,
            held=waiting if self.plan.is_held else 0,
            is_known=is_known,
            stable_p50_ms=1000 * ordered[len(ordered) // 2] if ordered else 0.0,
            stable_p95_ms=1000 * ordered[int(len(ordered) * 0.95)] if ordered else 0.0,
            versions=tuple(answers.status(ref) for ref, answers in self.by_version.items()),
        )


def _fits(stable: Signature, other: Signature | None) -> bool:
    """Return whether callers of `stable` can be answered by `other`: same inputs, and all of its outputs."""
    if other is None:
        return False
    outputs = {spec.name for spec in other.outputs}
    return stable.inputs == other.inputs and all(spec.name in outputs for spec in stable.outputs)


def version_number(ref: str) -> str:
    """Return the number of a version's name.

    >>> version_number("digits:2")
    '2'
    """
    return ref.rpartition(":")[2]
