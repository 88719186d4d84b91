"""The controller: makes true what the log says should be, and moves rollouts. Kill it anywhere, start it again.

Everything durable is in the log, and every action is computed from the log and from what is observed, never from what
was done before. A move of a rollout is written first and acted on after; only taking requests away from a new version
does not wait for the disk.
"""

import random
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Conflict
from argosy.operate import desired as d
from argosy.operate.desired import Desired, Endpoint, Rollout
from argosy.operate.evidence import MOST_WINDOWS, WRITE_EVERY_S, Evidence, MakeJudge
from argosy.operate.exposition import Observed
from argosy.operate.folding import LogLike
from argosy.operate.front_processes import FrontProcesses, MakeFrontConfig
from argosy.operate.gateway_process import Gateway, GatewayProcess, MakeGatewayConfig
from argosy.operate.layout import (
    Advised,
    Wanted,
    full_replicas,
    needed_replicas,
    no_advice,
    route_of,
    sizes,
    wanted_replicas,
)
from argosy.operate.own_metrics import NoReadings, Readings
from argosy.operate.replicas import MakeConfig, Replicas
from argosy.operate.rollout import Decision, Facts, State, step
from argosy.operate.scalers import Scalers
from argosy.operate.scaling_file import ScalingView
from argosy.operate.sharing import Machine
from argosy.serve.control import Window
from argosy.serve.wire import Advice

IDLE_S = 0.3
"""Time between two looks at processes when nothing is under way: a dead replica is seen so soon. Measured: 1.5 % of a
core with one endpoint."""
BUSY_S = 0.1
POLL_S = 0.25
"""Time between two looks at the log: a return by hand must act within a second, and a look costs one stat."""
RETRY_S = 1.0


class Report(Protocol):
    """Where the controller tells what it does: structlog's form, a constant event and fields."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Take one event."""
        ...


class Deposed(Conflict):
    """Another controller was elected; this one must not act any more."""

    code = "deposed"


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a reconciler works with; everything that touches the world is in here."""

    log: LogLike
    launcher: Launcher
    gateway: Gateway
    clock: Clock
    randomness: random.Random
    gate_missed: Callable[[str], str]
    """What the evaluation of a version (by digest) failed; empty when it passed."""
    make_judge: MakeJudge
    make_replica: MakeConfig
    advised: Advised = no_advice
    """What is stored of a version's calibration on this machine."""
    memory_bytes: int = 0
    """Memory that a replica may take where its endpoint says nothing; 0: no bound."""
    at_once: int = 0
    """How many replicas may be loading at a time; 0: any number."""
    machine: Callable[[], Machine] = Machine
    """What replicas share, as it is now."""
    replica_memory: Callable[[str], int] = lambda digest: 0  # noqa: ARG005 - nothing is known
    """Bytes that a replica of a version (by digest) is expected to take; 0 where that isn't known."""
    publish_scaling: Callable[[Mapping[str, ScalingView]], None] = lambda views: None  # noqa: ARG005
    """Where the controller says how it scales, for whoever looks."""
    make_gateway: MakeGatewayConfig
    make_front: MakeFrontConfig
    report: Report
    readings: Readings = msgspec.field(default_factory=NoReadings)
    """Where metrics of the user's own come from."""
    keep_others: Callable[[], None] = lambda: None
    """Sees to it that the scheduler of jobs and the companions run; never raises."""


class Reconciler:
    """One controller's life. `elect` once, then `tick` for ever; both may raise Deposed."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._log = parts.log
        self._gateway = GatewayProcess(parts.launcher, parts.gateway, parts.clock, parts.make_gateway)
        self._fronts = FrontProcesses(parts.launcher, parts.clock, parts.make_front)
        self._replicas = Replicas(
            parts.launcher,
            parts.clock,
            parts.randomness,
            parts.make_replica,
            memory_bytes=parts.memory_bytes,
            at_once=parts.at_once,
            report=parts.report,
        )
        self._scalers = Scalers(
            parts.clock,
            machine=parts.machine,
            memory_of=parts.replica_memory,
            report=parts.report,
            publish=parts.publish_scaling,
        )
        self._advice: dict[str, Advice] = {}
        """What replicas said their versions' calibrations recommend: it holds while none of them is connected too."""
        self._evidence: dict[str, Evidence] = {}
        self._stopwatch: dict[tuple[str, str, int], tuple[float, float]] = {}
        """Of each phase: seconds until the last look at it, and when that was."""
        self._news_at: dict[str, float] = {}
        """When something was last written about the reading of a rollout's own metrics."""
        self._passed: set[str] = set()
        self._withdrawn: dict[str, str] = {}
        """Rollouts that were decided to end, and why: they get no share again, should writing it down fail."""
        self._epoch = -1
        self._next_look = 0.0
        self._log_trouble = ""
        self.desired = Desired()

    def elect(self, claim: dict[str, str] | None = None) -> int:
        """Become the one controller that acts, and return the entry's number.

        Whoever was it before is refused from the next entry on. `claim` says which home this is.
        """
        self._epoch = self._log.append(d.ELECTED, "controller", dict(claim or {})).seq
        self.desired.catch_up(self._log)
        self._parts.report("controller_elected", epoch=self._epoch)
        return self._epoch

    @property
    def log(self) -> LogLike:
        """The log it reads and writes."""
        return self._log

    def tick(self) -> float:
        """Bring the world one look closer to what is wanted; return after how many seconds to look again.

        Doing it twice changes nothing. Raises Deposed, after which nothing must be done any more.
        """
        changed = self._read_log()
        now = self._clock.monotonic()
        if not changed and now < self._next_look:
            return min(POLL_S, self._next_look - now)
        self._next_look = now
        requeue = self._reconcile()
        self._parts.keep_others()
        self._next_look = self._clock.monotonic() + requeue
        return min(requeue, POLL_S)

    def observed(self) -> Observed:
        """Return what this controller knows now, for whoever counts it."""
        wanted = wanted_replicas(self.desired.endpoints.values(), self._advice.get, self._scalers.counts)
        return Observed(
            desired=self.desired,
            wanted={digest: want.replicas for digest, want in wanted.items()},
            ready={digest: self._replicas.ready(digest) for digest in wanted},
            verdicts={id_: evidence.verdict for id_, evidence in self._evidence.items()},
        )

    def wake(self) -> None:
        """Look at everything at the next tick: a request waits for it."""
        self._next_look = 0.0

    @property
    def is_done(self) -> bool:
        """Whether nothing is wanted and nothing runs, so that the process may end."""
        return not self.desired.is_running and not self._replicas.living and self._gateway.status is None

    def is_wanted_now(self) -> bool:
        """Read the log again and return whether anything should run."""
        self._log.refresh()
        self.desired.catch_up(self._log)
        return self.desired.is_running

    # ---- reading

    def _read_log(self) -> bool:
        """Take in what is new; with a store that fails, go on with what is known."""
        try:
            self._log.refresh()
        except ArgosyError as error:
            if self._log_trouble != error.message:
                self._parts.report("log_unreadable", error=error.message, code=error.code)
            self._log_trouble = error.message
            return False
        self._log_trouble = ""
        changed = self.desired.catch_up(self._log)
        if self.desired.elected != self._epoch:
            raise Deposed(f"another controller was elected by entry {self.desired.elected} of the log")
        return changed

    def _reconcile(self) -> float:
        status = self._gateway.observe()
        self._set_access()
        self._replicas.observe(status)
        self._replicas.stop_sick()
        self._note_advice()
        self._note_health()
        self._scalers.look(self.desired.endpoints.values(), status, self._replicas, self._threads_of)
        requeue = IDLE_S
        self._parts.readings.follow(e.rollout for e in self.desired.endpoints.values() if e.rollout)
        windows = self._take_windows()
        for name in sorted(self.desired.endpoints):
            requeue = min(requeue, self._follow(name, windows))
        self._forget_ended()
        return min(requeue, self._lay_out())

    def _set_access(self) -> None:
        """Have the gateway enforce what was granted and revoked, before anything else that takes time."""
        former = self._gateway.access_error
        self._gateway.set_access(self.desired.access.rules())
        error = self._gateway.access_error
        if error is not None and (former is None or former.message != error.message):
            self._parts.report("access_not_set", error=error.message, code=error.code)

    def _note_advice(self) -> None:
        status = self._gateway.status
        for replica in status.replicas if status is not None else ():
            if replica.advice is not None and self._advice.get(replica.version) != replica.advice:
                self._advice[replica.version] = replica.advice
                advice = msgspec.structs.asdict(replica.advice)
                self._parts.report("version_calibrated", version=replica.ref, **advice)

    def _note_health(self) -> None:
        """Write down that the gateway lets another version answer for one that fails, or the end of that."""
        status = self._gateway.status
        for seen in status.endpoints if status is not None else ():
            endpoint = self.desired.endpoints.get(seen.name)
            if endpoint is None or endpoint.stable is None or endpoint.stable.digest != seen.stable:
                continue
            if bool(endpoint.failing) == bool(seen.failing):
                continue
            kind = d.FAILING if seen.failing else d.HEALED
            version = {"version": endpoint.stable.ref, "digest": endpoint.stable.digest}
            try:
                self._append(kind, seen.name, {**version, "reason": seen.failing, "answers": seen.serving_ref})
            except Deposed:
                raise
            except ArgosyError as error:
                # The gateway acts all the same; the next look tries again.
                self._parts.report("health_not_noted", endpoint=seen.name, error=error.message, code=error.code)

    def _advised(self, digest: str) -> Advice | None:
        if digest not in self._advice:
            found = self._parts.advised(digest)
            if found is None:
                return None
            self._advice[digest] = found
        return self._advice[digest]

    def _take_windows(self) -> list[Window]:
        status = self._gateway.status
        if status is None or not status.windows_waiting:
            return []
        running = {e.rollout.id: e.rollout for e in self.desired.endpoints.values() if e.rollout}
        windows = self._gateway.windows({id_: self._of(rollout).written_index for id_, rollout in running.items()})
        orphans = {w.rollout: w.index for w in windows if w.rollout not in running}
        if orphans:
            self._gateway.windows(orphans)
        return windows

    def _of(self, rollout: Rollout) -> Evidence:
        evidence = self._evidence.get(rollout.id)
        if evidence is None:
            evidence = Evidence(rollout, self._parts.make_judge(rollout), self._clock.monotonic())
            self._evidence[rollout.id] = evidence
        evidence.follow(rollout, self._clock.monotonic())
        return evidence

    def _forget_ended(self) -> None:
        running = {e.rollout.id for e in self.desired.endpoints.values() if e.rollout}
        self._evidence = {id_: evidence for id_, evidence in self._evidence.items() if id_ in running}
        self._stopwatch = {key: since for key, since in self._stopwatch.items() if key[0] in running}
        self._news_at = {id_: since for id_, since in self._news_at.items() if id_ in running}
        self._withdrawn = {id_: reason for id_, reason in self._withdrawn.items() if id_ in running}

    # ---- rollouts

    def _follow(self, name: str, windows: list[Window]) -> float:
        """Move an endpoint's rollout as far as it goes now; a store that fails stops the move, not the service."""
        requeue = IDLE_S
        try:
            for _ in range(8):  # a rollout by hand goes through four phases at once; more is a fault
                endpoint = self.desired.endpoints.get(name)
                if endpoint is None or endpoint.rollout is None:
                    return requeue
                rollout = endpoint.rollout
                own = partial(self._parts.readings.complete, rollout)
                self._of(rollout).take((window for window in windows if window.rollout == rollout.id), own)
                decision = self._decide(endpoint, rollout)
                requeue = min(requeue, decision.requeue_s)
                if not decision.moved:
                    self._write_evidence(rollout)
                    return requeue
                self._move(endpoint, rollout, decision)
        except Deposed:
            raise
        except Conflict:
            return 0.0  # somebody wrote meanwhile: read, and decide again
        except ArgosyError as error:
            self._parts.report("rollout_held_up", endpoint=name, error=error.message, code=error.code)
            return RETRY_S
        return BUSY_S

    def _decide(self, endpoint: Endpoint, rollout: Rollout) -> Decision:
        state = State(kind=rollout.kind, phase=rollout.phase, step=rollout.step, config=rollout.config)
        return step(state, self._facts(endpoint, rollout))

    def _facts(self, endpoint: Endpoint, rollout: Rollout) -> Facts:
        ready = self._replicas.ready
        full = full_replicas(endpoint, self._advised(rollout.to.digest), self._scalers.counts)
        needed = self._scalers.granted(rollout.to.digest, needed_replicas(rollout, full))
        verdict = self._of(rollout).verdict
        base = rollout.base
        return Facts(
            gate_missed=self._gate_missed(rollout.to.digest) if rollout.phase == d.PENDING else "",
            new_is_ready=ready(rollout.to.digest) >= needed,
            new_is_named=self._gateway.is_named(endpoint.name, rollout.to.digest),
            base_is_ready=base is not None and ready(base.digest) > 0,
            base_failed=self._replicas.failed(base.digest) if base else "",
            new_failed=self._replicas.failed(rollout.to.digest) or self._scalers.refused(rollout.to.digest),
            verdict=str(verdict.get("verdict", "")),
            verdict_reason=str(verdict.get("reason", "")),
            held=self._parts.readings.trouble(rollout.id) if rollout.config.metrics else "",
            pairs=self._of(rollout).pairs,
            is_paused=bool(rollout.paused),
            rollback_asked=rollout.rollback_asked or self._withdrawn.get(rollout.id, ""),
            promote_asked=rollout.promote_asked,
            is_unrouted=self._gateway.is_unrouted(
                endpoint.name,
                rollout.to.digest,
                but_backup=endpoint.backup is not None and endpoint.backup.digest == rollout.to.digest,
            ),
            phase_s=self._elapsed(rollout, rollout.phase, rollout.since),
            canary_s=self._elapsed(rollout, "", rollout.first_step) if rollout.first_step else 0.0,
        )

    def _gate_missed(self, digest: str) -> str:
        if digest in self._passed:
            return ""
        missed = self._parts.gate_missed(digest)
        if not missed:
            self._passed.add(digest)
        return missed

    def _elapsed(self, rollout: Rollout, phase: str, since: float) -> float:
        """Return the seconds since a moment of the log, by a clock that does not jump while this process lives.

        What a rollout is paused does not count.
        """
        now = self._clock.monotonic()
        key = (rollout.id, phase, rollout.step if phase else 0)
        known = self._stopwatch.get(key)
        if known is None:
            seconds = max(0.0, (rollout.paused or self._clock.now()) - since)
        else:
            seconds = known[0] + (0.0 if rollout.paused else now - known[1])
        self._stopwatch[key] = seconds, now
        return seconds

    def _move(self, endpoint: Endpoint, rollout: Rollout, decision: Decision) -> None:
        if decision.phase == d.ROLLING_BACK:
            self._withdrawn[rollout.id] = decision.reason
            self._set_routes()
        while len(self._of(rollout).unwritten) > MOST_WINDOWS:
            self._write_evidence(rollout, must=True)
        kind, data = _entry_of(rollout, decision)
        self._append(kind, endpoint.name, {**data, **self._of(rollout).plain(), **self._own(rollout)})
        self._parts.report(
            "rollout_step",
            endpoint=endpoint.name,
            rollout=rollout.id,
            version=rollout.to.ref,
            from_state=data["from_phase"],
            to_state=decision.phase,
            step=decision.step,
            reason=decision.reason,
        )

    def _write_evidence(self, rollout: Rollout, *, must: bool = False) -> None:
        evidence = self._of(rollout)
        if must or evidence.is_due(self._clock.monotonic()) or self._is_news(rollout):
            data = {"rollout": rollout.id, **evidence.plain(), **self._own(rollout)}
            self._append(d.OBSERVED, rollout.endpoint, data)

    def _own(self, rollout: Rollout) -> dict[str, Any]:
        """Return what an entry says about the reading of the rollout's own metrics."""
        return {"own": self._parts.readings.state(rollout.id)} if rollout.config.metrics else {}

    def _is_news(self, rollout: Rollout) -> bool:
        """Return whether it should be written down that a metric can't be read, or can again."""
        if not rollout.config.metrics:
            return False
        now, since = self._clock.monotonic(), self._news_at.get(rollout.id)
        if since is not None and now - since < WRITE_EVERY_S:
            return False
        found = self._parts.readings.state(rollout.id)
        is_other = any(known["trouble"] != rollout.own.get(name, {}).get("trouble") for name, known in found.items())
        if is_other:
            self._news_at[rollout.id] = now
            trouble = self._parts.readings.trouble(rollout.id)
            self._parts.report("rollout_metric", rollout=rollout.id, endpoint=rollout.endpoint, trouble=trouble)
        return is_other

    def _append(self, kind: str, subject: str, data: dict[str, Any]) -> None:
        """Write an entry if nobody wrote about operating since this state was read, and this controller still leads."""

        def check(log: LogLike) -> None:
            for entry in log.entries(after=self.desired.head):
                if entry.kind == d.ELECTED:
                    raise Deposed(f"another controller was elected by entry {entry.seq} of the log")
                if entry.kind in d.KINDS:
                    raise Conflict(f"entry {entry.seq} of the log came first", code="state_moved")

        self._log.append(kind, subject, data, check=check)
        self.desired.catch_up(self._log)

    # ---- the world

    def _lay_out(self) -> float:
        """Start what is missing, set routes, and only then stop what is not routed any more."""
        desired = self.desired
        endpoints = desired.endpoints.values()
        wanted = wanted_replicas(endpoints, self._advised, self._scalers.counts)
        wanted = self._scalers.share(endpoints, wanted, self._replicas)
        self._advice = {digest: advice for digest, advice in self._advice.items() if digest in wanted}
        if desired.is_running:
            # First the fronts: a gateway that is to speak HTTP itself needs the port they hold.
            self._fronts.ensure(desired, self._gateway.status)
            self._gateway.ensure(desired)
            self._note_ports()
        self._replicas.start_missing(wanted)
        is_set = self._set_routes()
        is_busy = False
        if is_set:
            is_busy = self._replicas.stop_extras(wanted, self._gateway.routed or set(), self._gateway.drain)
        elif desired.is_running:
            is_busy = True
        else:
            self._replicas.stop_all()
        if not desired.is_running and not self._replicas.living:
            self._fronts.stop()
            self._gateway.stop()
        self._scalers.publish(desired.endpoints)
        return BUSY_S if is_busy or self._has_short_versions(wanted) else IDLE_S

    def _threads_of(self, endpoint: Endpoint) -> int:
        target = endpoint.stable or (endpoint.rollout.to if endpoint.rollout else None)
        return sizes(endpoint.config, self._advised(target.digest) if target else None)[1]

    def _has_short_versions(self, wanted: Mapping[str, Wanted]) -> bool:
        return any(self._replicas.ready(digest) < want.replicas for digest, want in wanted.items())

    def _note_ports(self) -> None:
        """Write down the ports that were chosen when none was asked for, so that a restarted gateway is found again."""
        status, desired = self._gateway.status, self.desired
        if status is None or status.grpc_port == 0:
            return
        has_http = bool(desired.port or desired.bound_port)
        has_grpc = desired.grpc_port != 0 or status.grpc_port in (-1, desired.bound_grpc_port)
        if has_http and has_grpc:
            return
        ports = {"port": status.port} if status.grpc_port < 0 else {"port": status.port, "grpc_port": status.grpc_port}
        try:
            self._append(d.BOUND, "gateway", {"host": status.host, **ports})
        except Deposed:
            raise
        except ArgosyError as error:
            self._parts.report("port_not_noted", error=error.message)

    def _set_routes(self) -> bool:
        routes = []
        for name in sorted(self.desired.endpoints):
            endpoint = self.desired.endpoints[name]
            is_safe = endpoint.rollout is not None and endpoint.rollout.id in self._withdrawn
            route = route_of(endpoint, self._replicas.ready, is_safe=is_safe)
            if route is not None:
                flags = self._scalers.route_flags(endpoint, self._replicas.ready(route.stable))
                if flags.get("is_on_demand") and self._replicas.failed(route.stable):
                    flags["is_on_demand"] = False  # the next request would not start one either
                routes.append(msgspec.structs.replace(route, **flags))
        return self._gateway.set_routes(routes)


def _entry_of(rollout: Rollout, decision: Decision) -> tuple[str, dict[str, Any]]:
    data: dict[str, Any] = {"rollout": rollout.id, "from_phase": rollout.phase}
    if decision.phase in (d.PROMOTED, d.ROLLED_BACK, d.LEFT):
        data["base"] = rollout.base.ref if rollout.base else ""
        return d.ENDED, {**data, "outcome": decision.phase, "to": rollout.to.ref, "reason": rollout.reason}
    data |= {"phase": decision.phase, "step": decision.step, "reason": decision.reason}
    if decision.phase in (d.CANARY, d.SWITCHED):
        data["share"] = rollout.config.shares[decision.step]
    return (d.STARTED if rollout.phase == d.PENDING else d.STEPPED), data
