"""What an operator sees of endpoints and rollouts, as plain values; CLI and page only draw them.

Read from the log, the gateway and the launcher's records, so it works without the controller too, and says when that
is missing. Nothing is changed by looking.
"""

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessInfo
from argosy.core.errors import ArgosyError, Unavailable
from argosy.operate import desired as d
from argosy.operate.desired import Desired, Endpoint, Rollout
from argosy.operate.evidence import Evidence
from argosy.operate.folding import LogEntry, LogLike
from argosy.operate.gateway_process import NAME as GATEWAY
from argosy.operate.gateway_process import Gateway
from argosy.operate.judging import WindowJudge
from argosy.operate.layout import wanted_replicas
from argosy.operate.replicas import key_of, version_key
from argosy.operate.scaling_file import ScalingView
from argosy.serve.control import EndpointStatus, GatewayStatus, ReplicaStatus, VersionStatus, Window

EVENTS = 12
"""How many of the last events are shown."""
_LOOK_BACK = 5000


class ReplicaView(msgspec.Struct, frozen=True, kw_only=True):
    """One replica process."""

    name: str
    pid: int
    state: str
    """starting, ready, draining, drained, frozen, faulty."""
    in_flight: int = 0
    answered: int = 0
    failed: int = 0
    threads: int = 0
    max_batch: int = 0
    """Most rows it runs together."""


class VersionView(msgspec.Struct, frozen=True, kw_only=True):
    """One version an endpoint runs."""

    ref: str
    digest: str
    role: str
    """current, new (in a rollout), former (kept warm), sibling (smaller, kept warm to stand in)."""
    share: float
    """The share of requests it gets."""
    wanted: int
    ready: int
    requests: int = 0
    """Requests it answered since it was routed."""
    failed: int = 0
    """Answers with a 5xx among them."""
    p50_ms: float = 0.0
    p95_ms: float = 0.0
    """Over its last 500 successes; 0 before the first."""
    replicas: tuple[ReplicaView, ...] = ()
    error: str = ""
    """Why its last replica ended, when none is ready."""


class MetricView(msgspec.Struct, frozen=True, kw_only=True):
    """One judged metric."""

    name: str
    bad_new: float
    bad_all: float
    bad_tolerated: float
    """How many of `bad_all` would be the new version's if it were as bad as is tolerated."""
    evidence: float
    """That it is worse, weighted: rollback when the sum over metrics reaches `RolloutView.threshold`."""
    assurance: float
    """That it is not twice as bad: promotion needs 20 of each."""


class RolloutView(msgspec.Struct, frozen=True, kw_only=True):
    """A rollout under way."""

    id: str
    kind: str
    base: str
    to: str
    phase: str
    reason: str
    """Why it is in this phase."""
    steps: tuple[float, ...]
    """Percent."""
    step: int
    share: float
    """The share that is really drawn."""
    verdict: str
    verdict_reason: str
    total: float
    """Evidence that the new version is worse."""
    threshold: float
    metrics: tuple[MetricView, ...]
    windows: int
    step_left_s: float
    """Until the next step at the earliest; 0 when over."""
    left_s: float
    """Until the time limit; 0 when over, -1 while it does not run."""
    asks: bool
    """Whether it waits for somebody to promote it or roll it back."""
    paused_by: str = ""
    """Who paused it; empty while it is not paused."""
    held: str = ""
    """Which metric of its own can't be read, and why; it is not promoted before it can."""
    pairs: int = 0
    """Requests that both versions have answered."""


class EventView(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened, in one line."""

    time: float
    actor: str
    text: str
    seq: int


class EndpointView(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint."""

    name: str
    state: str
    """ready, idle (nothing runs, and the next request starts a replica), degraded (served by another version, or fewer
    replicas than wanted), starting, failed, stopped."""
    url: str
    note: str
    versions: tuple[VersionView, ...]
    rollout: RolloutView | None
    last: d.Ended | None
    """How its last rollout ended."""
    requests: int
    failed: int
    waiting: int
    p50_ms: float
    p95_ms: float
    events: tuple[EventView, ...]
    held: int = 0
    """Requests that wait for a first replica."""
    scaling: ScalingView | None = None
    """How its replicas follow its load; None where they don't, or where no controller has said so."""

    @property
    def current_ready(self) -> int:
        """Ready replicas of its current version."""
        return next((version.ready for version in self.versions if version.role == "current"), 0)


class SystemView(msgspec.Struct, frozen=True, kw_only=True):
    """Everything of a home."""

    time: float
    url: str
    grpc: str
    """Host and port of gRPC, empty when it is off."""
    gateway: str
    """running, down, stopped."""
    gateway_error: str
    controller: str
    """running, down, waiting (it would act, but the controller of another home does)."""
    controller_error: str
    endpoints: tuple[EndpointView, ...]
    leader: str = ""
    """The host of another home on the same store whose controller was elected last; empty when it is this home's."""


class Observer:
    """Looks again and again at one home, reading only what is new."""

    def __init__(
        self,
        log: LogLike,
        launcher: Launcher,
        gateway: Gateway,
        now: Callable[[], float],
        *,
        scaling: Callable[[], Mapping[str, ScalingView]] = dict,
        home: str = "",
    ) -> None:
        """`scaling`: what the controller said last of scaling, by endpoint; `home`: by `lease.home_id`."""
        self._log = log
        self._launcher = launcher
        self._gateway = gateway
        self._now = now
        self._scaling = scaling
        self._home = home
        self.desired = Desired()
        self.windows: list[Window] = []
        """What the gateway held back of running rollouts at the last look: nobody has written it down yet."""

    def look(self) -> SystemView:
        """Return what is there now."""
        self._log.refresh()
        self.desired.catch_up(self._log)
        status, self.windows = _ask(self._gateway)
        processes = self._launcher.list()
        return observe(
            self.desired,
            status,
            self.windows,
            processes,
            now=self._now(),
            error_of=self._launcher.error,
            events_of=lambda name: events(self._log, name),
            scaling=self._scaling(),
            leader=leader(self._log, self._home),
        )


def observe(
    desired: Desired,
    status: GatewayStatus | None,
    windows: Sequence[Window],
    processes: Sequence[ProcessInfo],
    *,
    now: float,
    error_of: Callable[[str], ArgosyError | None],
    events_of: Callable[[str], tuple[EventView, ...]] = lambda _: (),
    scaling: Mapping[str, ScalingView] | None = None,
    leader: str = "",
) -> SystemView:
    """Put together what an operator sees. Pure but for `error_of` and `events_of`."""
    named = {info.name: info for info in processes}
    scene = _Scene(desired, status, windows, processes, now, error_of, scaling or {})
    port = status.port if status else desired.bound_port or desired.port
    grpc_port = status.grpc_port if status else desired.bound_grpc_port or desired.grpc_port
    is_controlled = "controller" in named and named["controller"].alive
    url = desired.gateway.url(port) if desired.is_running and port else ""
    endpoints = (
        _endpoint(endpoint, scene, url, events_of(name)) for name, endpoint in sorted(desired.endpoints.items())
    )
    return SystemView(
        time=now,
        url=url,
        grpc=desired.gateway.url(grpc_port).partition("//")[2] if desired.is_running and grpc_port > 0 else "",
        gateway="running" if status else "down" if desired.is_running else "stopped",
        gateway_error="" if status else _error(named.get(GATEWAY), error_of),
        controller="down" if not is_controlled else "waiting" if leader else "running",
        controller_error=_error(named.get("controller"), error_of),
        endpoints=tuple(endpoints),
        leader=leader,
    )


def leader(log: LogLike, home: str) -> str:
    """Return the host of the home that was elected last, if that is not this one; `home` empty: there is but one."""
    last = log.last(d.ELECTED, "controller") if home else None
    if last is None or last.data.get("home", home) == home:
        return ""
    return str(last.data.get("host") or "another host")


def events(log: LogLike, endpoint: str) -> tuple[EventView, ...]:
    """Return the last things that happened to an endpoint, oldest first."""
    found = log.entries(after=max(0, log.head - _LOOK_BACK), subject=endpoint)
    texts = ((entry, describe(entry)) for entry in found)
    last = deque(((entry, text) for entry, text in texts if text), maxlen=EVENTS)
    return tuple(EventView(time=e.time, actor=e.actor, text=text, seq=e.seq) for e, text in last)


def describe(entry: LogEntry) -> str:
    """Return an entry about operating in one line; empty for one that is no event."""
    data = entry.data
    reason = f": {data['reason']}" if data.get("reason") else ""
    if entry.kind == d.ENDPOINT:
        if data.get("action") == "deploy":
            return f"deploy {data['version']['ref']} asked by {entry.actor}"
        return f"{data.get('action')} asked by {entry.actor}{reason}"
    if entry.kind in (d.STARTED, d.STEPPED):
        return f"{str(data['phase']).replace('_', ' ')}{reason}"
    if entry.kind == d.ENDED:
        return f"{data.get('to')} {str(data['outcome']).replace('_', ' ')}{reason}"
    return ""


class _Scene(msgspec.Struct):
    desired: Desired
    status: GatewayStatus | None
    windows: Sequence[Window]
    processes: Sequence[ProcessInfo]
    now: float
    error_of: Callable[[str], ArgosyError | None]
    scaling: Mapping[str, ScalingView]


def _ask(gateway: Gateway) -> tuple[GatewayStatus | None, list[Window]]:
    try:
        status = gateway.status()
        return status, gateway.windows() if status.windows_waiting else []
    except Unavailable:
        return None, []


def _error(info: ProcessInfo | None, error_of: Callable[[str], ArgosyError | None]) -> str:
    error = error_of(info.name) if info is not None and not info.alive else None
    return error.message if error else ""


def _endpoint(endpoint: Endpoint, scene: _Scene, url: str, happened: tuple[EventView, ...]) -> EndpointView:
    served = next((e for e in scene.status.endpoints if e.name == endpoint.name), None) if scene.status else None
    share = served.share if served else 0.0
    versions = tuple(_versions(endpoint, scene, share))
    rollout = _rollout(endpoint.rollout, scene, share) if endpoint.rollout else None
    note = served.note if served else ""
    return EndpointView(
        name=endpoint.name,
        state=_state(endpoint, versions, served, has_note=bool(note)),
        url=f"{url}/predict/{endpoint.name}" if url else "",
        note=note,
        versions=versions,
        rollout=rollout,
        last=endpoint.last,
        requests=served.requests if served else 0,
        failed=served.failed if served else 0,
        waiting=served.waiting if served else 0,
        p50_ms=served.stable_p50_ms if served else 0.0,
        p95_ms=served.stable_p95_ms if served else 0.0,
        events=happened,
        held=served.held if served else 0,
        scaling=_scaling(endpoint, scene),
    )


def _scaling(endpoint: Endpoint, scene: _Scene) -> ScalingView | None:
    """Return what the controller has said of an endpoint, as far as that is about its present settings."""
    found = scene.scaling.get(endpoint.name)
    config = endpoint.config
    if found is None or not endpoint.is_active or not config.is_scaled:
        return None
    return found if (found.low, found.high) == config.replica_range() else None


def _state(
    endpoint: Endpoint, versions: Iterable[VersionView], served: EndpointStatus | None, *, has_note: bool
) -> str:
    if not endpoint.is_active:
        return "stopped"
    current = next((version for version in versions if version.role == "current"), None)
    if current is None:
        return "starting" if endpoint.rollout else "failed"
    if served is None and current.ready:
        return "starting"  # its replicas are there, and callers would still be told that there is no such endpoint
    if not current.ready and not current.wanted and not (served and served.held):
        return "idle"
    if not current.ready:
        return "degraded" if any(version.ready for version in versions) else "failed" if current.error else "starting"
    return "degraded" if has_note or current.ready < current.wanted else "ready"


def _versions(endpoint: Endpoint, scene: _Scene, share: float) -> Iterable[VersionView]:
    rollout = endpoint.rollout
    targets = [(endpoint.stable, "current", 1.0 - share), (rollout.to if rollout else None, "new", share)]
    targets += [(endpoint.backup, "former", 0.0), (endpoint.sibling, "sibling", 0.0)]
    advice = {r.version: r.advice for r in scene.status.replicas} if scene.status else {}
    scaling = _scaling(endpoint, scene)
    counts = {endpoint.name: scaling.granted} if scaling is not None else {}
    wanted = wanted_replicas([endpoint], advice.get, counts)
    served = next((e for e in scene.status.endpoints if e.name == endpoint.name), None) if scene.status else None
    answered = {v.ref: v for v in served.versions} if served else {}
    shown: set[str] = set()
    for target, role, part in targets:
        if target is None or target.digest in shown:
            continue
        shown.add(target.digest)
        replicas = tuple(_replicas(target.digest, scene))
        ready = sum(1 for replica in replicas if replica.state == "ready")
        want = wanted.get(target.digest)
        counted = answered.get(target.ref) or VersionStatus(ref=target.ref)
        yield VersionView(
            ref=target.ref,
            digest=target.digest,
            role=role,
            share=part,
            wanted=want.replicas if want else 0,
            ready=ready,
            requests=counted.requests,
            failed=counted.failed,
            p50_ms=counted.p50_ms,
            p95_ms=counted.p95_ms,
            replicas=replicas,
            error="" if ready else _last_error(target.digest, scene),
        )


def _replicas(digest: str, scene: _Scene) -> Iterable[ReplicaView]:
    connected: dict[str, ReplicaStatus] = {r.id: r for r in scene.status.replicas} if scene.status else {}
    for info in scene.processes:
        if info.role != "replica" or not info.alive or key_of(info.name) != version_key(digest):
            continue
        found = connected.get(info.name)
        yield ReplicaView(
            name=info.name,
            pid=info.pid,
            state=found.state if found else "starting",
            in_flight=found.in_flight if found else 0,
            answered=found.answered if found else 0,
            failed=found.failed if found else 0,
            threads=found.threads if found else 0,
            max_batch=found.max_batch if found else 0,
        )


def _last_error(digest: str, scene: _Scene) -> str:
    ended = [
        i for i in scene.processes if i.role == "replica" and not i.alive and key_of(i.name) == version_key(digest)
    ]
    ended.sort(key=lambda info: (info.started, info.name))
    if not ended:
        return ""
    # Of those that started last, one may have said why it ended, and another just been killed.
    said = [error for error in (_error(info, scene.error_of) for info in ended[-3:]) if error]
    return said[-1] if said else f"its replica ended with exit code {ended[-1].exit_code}"


def _rollout(rollout: Rollout, scene: _Scene, share: float) -> RolloutView:
    # The controller writes evidence down every few seconds; the gateway still holds what came since.
    evidence = Evidence(rollout, WindowJudge(rollout), 0.0)
    evidence.take(window for window in scene.windows if window.rollout == rollout.id)
    verdict: dict[str, Any] = evidence.verdict or rollout.verdict
    config = rollout.config
    least_s = {d.SHADOW: config.shadow_s, d.CANARY: config.dwell_s, d.SWITCHED: config.keep_s}.get(rollout.phase)
    now = rollout.paused or scene.now
    began = rollout.since if rollout.phase == d.SHADOW else rollout.first_step
    left = max(0.0, config.time_limit_s - (now - began)) if began else -1.0
    return RolloutView(
        id=rollout.id,
        kind=rollout.kind,
        base=rollout.base.ref if rollout.base else "",
        to=rollout.to.ref,
        phase=rollout.phase,
        reason=rollout.reason,
        steps=tuple(round(100 * share, 6) for share in config.shares),
        step=rollout.step,
        share=share,
        verdict=str(verdict.get("verdict", "")),
        verdict_reason=str(verdict.get("reason", "")),
        total=float(verdict.get("total", 1.0)),
        threshold=1 / config.false_alarm,
        metrics=_metrics(verdict),
        windows=int(verdict.get("windows", 0)),
        step_left_s=max(0.0, least_s - (now - rollout.since)) if least_s is not None else 0.0,
        left_s=left,
        asks=least_s is not None and config.undecided == "ask" and left == 0.0,
        paused_by=rollout.paused_by,
        held="; ".join(trouble for found in rollout.own.values() if (trouble := found.get("trouble", ""))),
        pairs=evidence.pairs,
    )


def _metrics(verdict: dict[str, Any]) -> tuple[MetricView, ...]:
    return tuple(
        MetricView(
            name=name,
            bad_new=found["bad_canary"],
            bad_all=found["bad_all"],
            bad_tolerated=found["bad_expected"],
            evidence=found["weight"] * found["evidence"],
            assurance=found["assurance"],
        )
        for name, found in verdict.get("metrics", {}).items()
    )
