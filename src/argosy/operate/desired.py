"""Desired state: what the log's entries about endpoints, rollouts and the gateway add up to.

Everything the controller decides from is here or observed; nothing else outlives it. The fold takes every entry in
order, never fails on one, and gives the same state however often it was interrupted.
"""

from typing import Any

import msgspec

from argosy.operate import grants
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.folding import Fold, LogEntry
from argosy.operate.gateway_settings import GatewaySettings
from argosy.operate.grants import Grants

ENDPOINT = "endpoint.desired"
GATEWAY = "gateway.desired"
BOUND = "gateway.bound"
STARTED = "rollout.started"
STEPPED = "rollout.stepped"
OBSERVED = "rollout.observed"
ENDED = "rollout.ended"
FAILING = "endpoint.failed"
HEALED = "endpoint.healed"
ELECTED = "controller.elected"
KINDS = (ENDPOINT, GATEWAY, BOUND, STARTED, STEPPED, OBSERVED, ENDED, FAILING, HEALED, ELECTED, *grants.KINDS)

# Phases of a rollout, in the words of the table in `rollout.py`.
PENDING, WARMING, CANARY, PROMOTING, ROLLING_BACK = "pending", "warming", "canary", "promoting", "rolling_back"
SHADOW, SWITCHED, LEAVING = "shadow", "switched", "leaving"
PROMOTED, ROLLED_BACK, LEFT = "promoted", "rolled_back", "left"

# Kinds of a rollout: the first version of an endpoint, one by canary steps, a direct switch, a return by hand, one that
# is judged by copies alone, and a switch that is watched with the former version whole beside it.
FIRST, STEPWISE, SWITCH, UNDO = "first", "canary", "switch", "undo"
SHADOW_ONLY, BLUE_GREEN = "shadow", "blue-green"


class Target(msgspec.Struct, frozen=True):
    """A version as an endpoint knows it."""

    digest: str
    ref: str

    def __str__(self) -> str:
        return self.ref


class Ended(msgspec.Struct, frozen=True, kw_only=True):
    """How the last rollout of an endpoint ended."""

    rollout: str
    kind: str
    outcome: str
    reason: str
    base: Target | None
    to: Target
    time: float
    seq: int
    verdict: dict[str, Any]


class Rollout(msgspec.Struct, kw_only=True):
    """One change of an endpoint from `base` to `to`, under way."""

    id: str
    endpoint: str
    kind: str
    base: Target | None
    to: Target
    config: RolloutConfig
    actor: str
    asked: float
    phase: str = PENDING
    step: int = 0
    since: float
    """When this phase and step were entered."""
    first_step: float = 0.0
    """When the new version got its first share; 0 before."""
    reason: str = ""
    """Why this phase was entered."""
    verdict: dict[str, Any] = {}
    """What the judge said last, as far as it was written down."""
    windows: list[dict[str, Any]] = []
    """Every window that was judged and written down, oldest first."""
    rollback_asked: str = ""
    promote_asked: str = ""
    sibling: Target | None = None
    """What stands in for the new version, once it serves."""
    paused: float = 0.0
    """Since when it is paused; 0: it is not. `since` and `first_step` are moved on by what it was paused."""
    paused_by: str = ""
    own: dict[str, dict[str, Any]] = {}
    """What was last written down about the reading of each of its own metrics."""

    @property
    def share(self) -> float:
        """The share of requests the new version is to answer in this phase; once it has one, it never falls."""
        shares = self.config.shares if self.kind in (STEPWISE, BLUE_GREEN) and self.first_step else ()
        if shares and self.phase in (CANARY, SWITCHED, PROMOTING):
            return shares[min(self.step, len(shares) - 1)]
        return 0.0

    @property
    def is_mirrored(self) -> bool:
        """Whether the new version is to get copies of requests."""
        return self.phase == SHADOW or self.share > 0

    def go_on(self, now: float) -> None:
        """End a pause: time that was paused does not count."""
        if self.paused:
            away = max(0.0, now - self.paused)
            self.since += away
            self.first_step += away if self.first_step else 0.0
        self.paused, self.paused_by = 0.0, ""


class Endpoint(msgspec.Struct, kw_only=True):
    """What one endpoint is to be."""

    name: str
    config: EndpointConfig
    stable: Target | None = None
    """The current version; it was ready once, or it would not be here."""
    backup: Target | None = None
    """The former version, kept warm."""
    sibling: Target | None = None
    """A smaller version of the same training, kept warm where the config asks for it."""
    former_sibling: Target | None = None
    """The former version's."""
    failing: str = ""
    """Why the gateway lets another version answer for the current one; empty while it doesn't."""
    rollout: Rollout | None = None
    last: Ended | None = None
    is_active: bool = True
    """False after `down`: known, but nothing of it runs."""


class Desired(Fold):
    """The fold. `catch_up` reads what is new; the attributes are read by whoever holds it."""

    folds = KINDS

    def __init__(self) -> None:
        super().__init__()
        self.endpoints: dict[str, Endpoint] = {}
        self.access = Grants()
        self.gateway = GatewaySettings()
        self.bound_port = 0
        """The port the gateway got when none was asked for; it keeps it when it is restarted."""
        self.bound_grpc_port = 0
        """The gRPC port the gateway got when none was asked for; it takes it again when it is restarted."""
        self.is_running = False
        """Whether a gateway is wanted."""
        self.elected = 0
        """The number of the entry by which the present controller was elected: its epoch."""

    @property
    def host(self) -> str:
        """The address the gateway is to listen on."""
        return self.gateway.host

    @property
    def port(self) -> int:
        """The port it is to have; 0: any free one."""
        return self.gateway.port

    @property
    def grpc_port(self) -> int:
        """The port it is to have for gRPC; 0: any free one, -1: no gRPC."""
        return self.gateway.grpc_port

    def apply(self, entry: LogEntry) -> None:
        """Take in one entry; an entry that fits nothing changes nothing."""
        if entry.kind == ELECTED:
            self.elected = entry.seq
        elif entry.kind == BOUND:
            self.bound_port = int(entry.data["port"])
            self.bound_grpc_port = int(entry.data.get("grpc_port", self.bound_grpc_port))
        elif entry.kind == GATEWAY:
            self._gateway(entry)
        elif entry.kind == ENDPOINT:
            self._endpoint(entry)
        elif entry.kind in grants.KINDS:
            self.access.apply(entry.kind, entry.subject, entry.data, time=entry.time, actor=entry.actor)
        elif entry.kind in (FAILING, HEALED):
            self._health(entry)
        elif entry.kind in (STARTED, STEPPED, OBSERVED, ENDED):
            endpoint = self.endpoints.get(entry.subject)
            rollout = endpoint.rollout if endpoint else None
            if endpoint and rollout and rollout.id == entry.data.get("rollout"):
                _advance(endpoint, rollout, entry)

    def _health(self, entry: LogEntry) -> None:
        endpoint = self.endpoints.get(entry.subject)
        if endpoint and endpoint.stable and entry.data.get("digest") == endpoint.stable.digest:
            endpoint.failing = str(entry.data.get("reason", "")) if entry.kind == FAILING else ""

    def _gateway(self, entry: LogEntry) -> None:
        running = entry.data.get("running", True)
        if running is not False:
            self._settle(self.gateway.updated(entry.data))
        if running is None:  # only the settings were changed
            return
        if running:
            self.is_running = True
            if entry.data.get("resume"):
                for endpoint in self.endpoints.values():
                    endpoint.is_active = endpoint.stable is not None
            return
        self.is_running = False
        for endpoint in self.endpoints.values():
            endpoint.is_active = False
            _end(endpoint, entry, ROLLED_BACK, f"everything was stopped by {entry.actor}")

    def _settle(self, wanted: GatewaySettings) -> None:
        former, self.gateway = self.gateway, wanted
        if (wanted.host, wanted.port) != (former.host, former.port):
            self.bound_port = 0
        if (wanted.host, wanted.grpc_port) != (former.host, former.grpc_port):
            self.bound_grpc_port = 0

    def _endpoint(self, entry: LogEntry) -> None:
        action = entry.data.get("action")
        if action == "deploy":
            self._deploy(entry)
            return
        endpoint = self.endpoints.get(entry.subject)
        if endpoint is None:
            return
        rollout = endpoint.rollout
        if action == "remove":
            del self.endpoints[entry.subject]
        elif action == "rollback" and rollout and entry.data.get("rollout") == rollout.id:
            rollout.rollback_asked = str(entry.data.get("reason") or f"asked by {entry.actor}")
        elif action == "abort" and rollout and entry.data.get("rollout") == rollout.id:
            rollout.rollback_asked = f"aborted by {entry.actor}"
        elif action == "promote" and rollout and entry.data.get("rollout") == rollout.id:
            rollout.promote_asked = f"asked by {entry.actor}"
            rollout.go_on(entry.time)
        elif action == "pause" and rollout and entry.data.get("rollout") == rollout.id and not rollout.paused:
            rollout.paused, rollout.paused_by = entry.time, entry.actor
        elif action == "resume" and rollout and entry.data.get("rollout") == rollout.id:
            rollout.go_on(entry.time)
        elif action == "rollback" and not rollout and endpoint.backup:
            endpoint.rollout = _new_rollout(endpoint, entry, UNDO, endpoint.backup, RolloutConfig(kind="all-at-once"))
            endpoint.rollout.sibling = endpoint.former_sibling

    def _deploy(self, entry: LogEntry) -> None:
        config = msgspec.convert(entry.data.get("endpoint", {}), EndpointConfig)
        endpoint = self.endpoints.get(entry.subject)
        if endpoint is None:
            endpoint = self.endpoints[entry.subject] = Endpoint(name=entry.subject, config=config)
        if endpoint.rollout:
            return
        endpoint.config = config
        endpoint.is_active = self.is_running = True
        if config.backup == "none":
            endpoint.backup = None
        to = msgspec.convert(entry.data["version"], Target)
        plain = entry.data.get("rollout")
        rollout = msgspec.convert(plain, RolloutConfig) if plain is not None else RolloutConfig(steps=())
        found = entry.data.get("sibling")
        sibling = msgspec.convert(found, Target) if found else None
        if endpoint.stable is None:
            endpoint.rollout = _new_rollout(endpoint, entry, FIRST, to, rollout)
        elif endpoint.stable.digest != to.digest:
            endpoint.rollout = _new_rollout(endpoint, entry, rollout.style, to, rollout)
        else:
            endpoint.sibling = sibling
        if endpoint.rollout:
            endpoint.rollout.sibling = sibling


def _new_rollout(endpoint: Endpoint, entry: LogEntry, kind: str, to: Target, config: RolloutConfig) -> Rollout:
    return Rollout(
        id=f"r{entry.seq}",
        endpoint=endpoint.name,
        kind=kind,
        base=endpoint.stable,
        to=to,
        config=config,
        actor=entry.actor,
        asked=entry.time,
        since=entry.time,
    )


def _advance(endpoint: Endpoint, rollout: Rollout, entry: LogEntry) -> None:
    data = entry.data
    rollout.windows.extend(data.get("windows", ()))
    rollout.verdict = data.get("verdict") or rollout.verdict
    rollout.own = data.get("own") or rollout.own
    if entry.kind == ENDED:
        _end(endpoint, entry, str(data["outcome"]), str(data.get("reason", "")))
    elif entry.kind != OBSERVED:
        rollout.phase = str(data["phase"])
        rollout.step = int(data.get("step", 0))
        rollout.since = entry.time
        rollout.reason = str(data.get("reason", ""))
        rollout.paused, rollout.paused_by = 0.0, ""
        if rollout.phase in (CANARY, SWITCHED) and not rollout.first_step:
            rollout.first_step = entry.time


def _end(endpoint: Endpoint, entry: LogEntry, outcome: str, reason: str) -> None:
    rollout = endpoint.rollout
    if rollout is None:
        return
    endpoint.rollout = None
    endpoint.last = Ended(
        rollout=rollout.id,
        kind=rollout.kind,
        outcome=outcome,
        reason=reason,
        base=rollout.base,
        to=rollout.to,
        time=entry.time,
        seq=entry.seq,
        verdict=rollout.verdict,
    )
    if outcome == PROMOTED:
        keeps_former = endpoint.config.backup != "none" and rollout.kind != UNDO
        # After a return by hand the version that was left is not kept as something to fall back to.
        endpoint.backup = endpoint.stable if keeps_former else None
        endpoint.former_sibling = endpoint.sibling if keeps_former else None
        endpoint.stable, endpoint.sibling, endpoint.failing = rollout.to, rollout.sibling, ""
