"""What the controller counts, and the endpoint at which Prometheus reads it.

Events are counted as they are reported, because they would be missed between two scrapes. Everything else is read from
the controller's state, in the controller's own thread, at its first look after somebody asked: nobody asks, nothing is
computed.
"""

import threading
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.core.errors import Unavailable
from argosy.operate import desired as d
from argosy.operate.desired import Desired, Endpoint
from argosy.operate.loopback import Answer, LoopbackServer, monitoring_token
from argosy.operate.replicas import version_key
from argosy.serve.counters import Counters, Labels, expose

PHASES = (d.PENDING, d.WARMING, d.CANARY, d.PROMOTING, d.ROLLING_BACK)
VERDICTS = ("promote", "wait", "rollback")
OUTCOMES = (d.PROMOTED, d.ROLLED_BACK)
PATIENCE_S = 3.0
"""How long a reader waits for the controller's next look; a healthy one takes a third of a second."""
MAX_SAMPLES = 10_000

Sample = tuple[str, Labels, float]


class Observed(msgspec.Struct, frozen=True, kw_only=True):
    """The controller's state at one look. Read only, and only in the controller's thread."""

    desired: Desired
    wanted: Mapping[str, int]
    """For each version's digest, how many replicas are to run."""
    ready: Mapping[str, int]
    """For each version's digest, how many can take requests."""
    verdicts: Mapping[str, Mapping[str, Any]]
    """For each rollout's id, what the judge says."""


class ControllerMetrics:
    """Counters and gauges of one controller."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._counters = Counters()
        self._started = clock.now()
        self._refs: dict[str, str] = {}
        """For each version's key, what people call it."""
        self._known: set[str] = set()
        """Endpoints whose counters stand there."""
        self._looked = clock.monotonic()
        self._samples: tuple[Sample, ...] = ()
        self._number = 0
        self._is_asked = threading.Event()
        self._has_looked = threading.Condition()

    def note(self, event: str, **fields: Any) -> None:
        """Count an event that the controller reports."""
        self._counters.count("argosy_controller_events_total", event)
        if event == "replica_failed":
            key = str(fields.get("version", ""))
            self._counters.count("argosy_replica_failures_total", self._refs.get(key, key))
        elif event == "rollout_step" and fields.get("to_state") in OUTCOMES:
            self._counters.count("argosy_rollouts_total", str(fields["endpoint"]), str(fields["to_state"]))

    def look(self, found: Observed) -> None:
        """Take in what changes between two scrapes; compute the rest if somebody asked."""
        self._looked = self._clock.monotonic()
        self._follow(found)
        if not self._is_asked.is_set():
            return
        self._is_asked.clear()
        samples = tuple(self._gauges(found))[:MAX_SAMPLES]
        with self._has_looked:
            self._samples = (*self._counters.samples(), *samples)
            self._number += 1
            self._has_looked.notify_all()

    def read(self, body: bytes = b"") -> Answer:
        """Return the text for Prometheus; called by the server's threads. Raises Unavailable before the first look."""
        del body
        with self._has_looked:
            before = self._number
            self._is_asked.set()
            self._has_looked.wait_for(lambda: self._number != before, PATIENCE_S)
            samples = self._samples
        if not samples:
            raise Unavailable("the controller has not looked at anything yet", retry_after_s=1.0)
        age = self._clock.monotonic() - self._looked
        return expose("controller", (*samples, ("argosy_controller_look_age_seconds", (), max(0.0, age))))

    def _follow(self, found: Observed) -> None:
        for name, endpoint in found.desired.endpoints.items():
            if name not in self._known:
                self._known.add(name)
                # Counters that begin at 1 would hide their first step from increase().
                for outcome in OUTCOMES:
                    self._counters.count("argosy_rollouts_total", name, outcome, by=0.0)
            for target in (endpoint.stable, endpoint.backup, endpoint.rollout.to if endpoint.rollout else None):
                if target is not None and version_key(target.digest) not in self._refs:
                    self._refs[version_key(target.digest)] = target.ref
                    self._counters.count("argosy_replica_failures_total", target.ref, by=0.0)

    def _gauges(self, found: Observed) -> Iterator[Sample]:
        desired = found.desired
        yield "argosy_controller_started_seconds", (), self._started
        yield "argosy_gateway_wanted", (), float(desired.is_running)
        for digest, count in found.wanted.items():
            ref = self._refs.get(version_key(digest), version_key(digest))
            yield "argosy_replicas_wanted", (ref,), float(count)
            yield "argosy_replicas_ready", (ref,), float(found.ready.get(digest, 0))
        for name, endpoint in sorted(desired.endpoints.items()):
            yield from self._of_endpoint(name, endpoint, found)

    def _of_endpoint(self, name: str, endpoint: Endpoint, found: Observed) -> Iterator[Sample]:
        if endpoint.is_active and endpoint.stable is not None:
            digest = endpoint.stable.digest
            yield "argosy_endpoint_wanted_replicas", (name,), float(found.wanted.get(digest, 0))
            yield "argosy_endpoint_ready_replicas", (name,), float(found.ready.get(digest, 0))
        objective = endpoint.config.latency_p99_s
        if objective:
            yield "argosy_latency_objective_seconds", (name,), objective
        rollout = endpoint.rollout
        for phase in PHASES:
            yield "argosy_rollout_phase", (name, phase), float(rollout is not None and rollout.phase == phase)
        if rollout is None:
            return
        yield "argosy_rollout_step", (name,), float(rollout.step)
        yield "argosy_rollout_evidence_limit", (name,), 1.0 / rollout.config.false_alarm
        verdict = found.verdicts.get(rollout.id) or rollout.verdict
        for word in VERDICTS:
            yield "argosy_rollout_verdict", (name, word), float(verdict.get("verdict") == word)
        yield "argosy_rollout_windows", (name,), _number(verdict.get("windows"))
        yield "argosy_rollout_evidence", (name,), _number(verdict.get("total"), 1.0)
        for metric, numbers in verdict.get("metrics", {}).items():
            evidence = _number(numbers.get("weight"), 1.0) * _number(numbers.get("evidence"))
            yield "argosy_rollout_metric_evidence", (name, metric), evidence
            yield "argosy_rollout_metric_assurance", (name, metric), _number(numbers.get("assurance"))


def _number(found: Any, default: float = 0.0) -> float:
    return float(found) if isinstance(found, int | float) else default


def open_exposition(settings: Settings, metrics: ControllerMetrics) -> LoopbackServer:
    """Have the controller's metrics readable at `/metrics` on a port that its file names. Raises Conflict."""
    token = monitoring_token(settings).read_text()
    routes = {("GET", "/metrics"): metrics.read}
    return LoopbackServer(routes, token=token, place=settings.runtime / "controller-http.json").start()
