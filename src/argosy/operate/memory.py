"""A gateway and a log that live in memory, for tests and simulations of whatever talks to them.

The gateway keeps the promises of `serve.control.GatewayClient`: routes are replaced at once and survive a restart,
windows stay until they are acknowledged, indexes grow over restarts, a canary without a ready replica gets no share.
Where its replicas come from, and when it is dead, the test says.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.errors import Unavailable
from argosy.serve.access import AccessRules
from argosy.serve.control import EndpointRoute, EndpointStatus, GatewayStatus, ReplicaStatus, VersionLoad, Window
from argosy.serve.wire import Advice


class FakeEntry(msgspec.Struct, frozen=True):
    """One entry of a `FakeLog`."""

    seq: int
    time: float
    actor: str
    kind: str
    subject: str
    data: dict[str, Any]


class FakeLog:
    """The registry's log without bytes and signatures: same calls, same transaction.

    `entries` are shared by all who have the log open. `hook` is called with `"refresh"`, `"before append"` and
    `"after append"`, and may raise.
    """

    def __init__(
        self,
        entries: list[FakeEntry],
        clock: Clock,
        actor: str = "ada",
        hook: Callable[[str, str], None] = lambda what, name: None,  # noqa: ARG005 - nothing happens
    ) -> None:
        self._entries = entries
        self._clock = clock
        self._actor = actor
        self._hook = hook
        self.head = 0

    def refresh(self) -> int:
        """Take in what others have written; return the head."""
        self._hook("refresh", "log")
        self.head = len(self._entries)
        return self.head

    def append(
        self,
        kind: str,
        subject: str,
        data: dict[str, Any] | Callable[[Any], dict[str, Any]],
        *,
        check: Callable[[Any], None] | None = None,
    ) -> FakeEntry:
        """Write an entry if `check` agrees."""
        self._hook("before append", kind)
        self.head = len(self._entries)
        if check is not None:
            check(self)
        found = data(self) if callable(data) else data
        entry = FakeEntry(self.head + 1, self._clock.now(), self._actor, kind, subject, found)
        self._entries.append(entry)
        self.head = entry.seq
        self._hook("after append", kind)
        return entry

    def entries(self, *, after: int = 0, kind: str | None = None, subject: str | None = None) -> Iterator[FakeEntry]:
        """Return entries in order."""
        for entry in self._entries[after : self.head]:
            if kind in (None, entry.kind) and subject in (None, entry.subject):
                yield entry

    def last(self, kind: str, subject: str) -> FakeEntry | None:
        """Return the newest entry of a kind about a subject."""
        for entry in reversed(self._entries[: self.head]):
            if (entry.kind, entry.subject) == (kind, subject):
                return entry
        return None


class FakeGateway:
    """The same calls as `GatewayClient`, without a process."""

    def __init__(self) -> None:
        self.is_alive = True
        self.pid = 1
        self.port = 8080
        self.grpc_port = 8081
        self.started = 0.0
        self.asked: dict[str, Any] = {}
        self.routes: dict[str, EndpointRoute] = {}
        self.rules: AccessRules | None = AccessRules(is_on=False)
        self.replicas: dict[str, ReplicaStatus] = {}
        self.calls: list[str] = []
        self.loads: dict[str, VersionLoad] = {}
        """By digest, what the versions have to do, as the test says."""
        self.arrived: dict[str, int] = {}
        """By endpoint, requests that came."""
        self.waiting: dict[str, int] = {}
        """By endpoint, requests that wait."""
        self._windows: list[Window] = []
        self._next_index = 0

    def status(self) -> GatewayStatus:
        """Return what the gateway sees now."""
        self._answer("status")
        return GatewayStatus(
            pid=self.pid,
            host="127.0.0.1",
            port=self.port,
            grpc_port=self.grpc_port,
            started=self.started,
            asked=self.asked,
            access=self.rules.digest if self.rules is not None else "",
            replicas=tuple(self.replicas[name] for name in sorted(self.replicas)),
            endpoints=tuple(self._endpoint(route) for _, route in sorted(self.routes.items())),
            versions=tuple(self.loads.values()),
            windows_waiting=len(self._windows),
        )

    def set_routes(self, routes: Iterable[EndpointRoute]) -> None:
        """Replace all routes at once."""
        self._answer("set_routes")
        self.routes = {route.name: route for route in routes}

    def set_access(self, rules: AccessRules) -> None:
        """Put these rules in force."""
        self._answer("set_access")
        self.rules = rules

    def windows(self, ack: Mapping[str, int] | None = None) -> list[Window]:
        """Return the closed windows, oldest first, after forgetting the acknowledged ones."""
        self._answer("windows")
        upto = dict(ack or {})
        self._windows = [w for w in self._windows if w.index > upto.get(w.rollout, -1)]
        return list(self._windows)

    def drain(self, replica: str) -> None:
        """Hand the replica nothing new."""
        self._answer("drain")
        self.set_state(replica, "draining")

    # ---- what a test says

    def connect(
        self,
        replica: str,
        digest: str,
        *,
        ref: str = "",
        state: str = "ready",
        threads: int = 0,
        advice: Advice | None = None,
    ) -> None:
        """Let a replica appear, or say hello again."""
        self.replicas[replica] = ReplicaStatus(
            id=replica,
            version=digest,
            ref=ref,
            pid=1,
            state=state,
            in_flight=0,
            answered=0,
            failed=0,
            max_batch=1,
            run_s=0.001,
            threads=threads,
            advice=advice,
        )

    def set_state(self, replica: str, state: str) -> None:
        """Change a replica's state; harmless for one that is not connected."""
        if replica in self.replicas:
            self.replicas[replica] = msgspec.structs.replace(self.replicas[replica], state=state)

    def disconnect(self, replica: str) -> None:
        """Let a replica vanish."""
        self.replicas.pop(replica, None)

    def close_window(self, endpoint: str, start: float, seconds: float, **counts: Any) -> Window | None:
        """Close a window of an endpoint's rollout with these counts; None if it has no rollout with a share."""
        route = self.routes.get(endpoint)
        if route is None or not route.rollout:
            return None
        self._next_index += 1
        window = Window(
            rollout=route.rollout,
            index=self._next_index,
            start=start,
            seconds=seconds,
            share=self._share(route),
            **counts,
        )
        self._windows.append(window)
        return window

    def held(self) -> set[tuple[str, int]]:
        """Return rollout and index of every window that was not acknowledged yet."""
        return {(window.rollout, window.index) for window in self._windows}

    def die(self) -> None:
        """End as by kill -9: replicas lose it, windows that nobody took are lost, routes stay in its file."""
        self.is_alive = False
        self.replicas = {}
        self._windows = []
        self.loads, self.arrived, self.waiting = {}, {}, {}

    def revive(self, pid: int, started: float) -> None:
        """Start again; replicas have to connect anew."""
        self.is_alive, self.pid, self.started = True, pid, started

    def ready(self, digest: str) -> int:
        """Return how many ready replicas a version has."""
        return sum(1 for replica in self.replicas.values() if replica.version == digest and replica.state == "ready")

    def _share(self, route: EndpointRoute) -> float:
        return route.share if route.canary and self.ready(route.canary) else 0.0

    def _endpoint(self, route: EndpointRoute) -> EndpointStatus:
        serving = next((v for v in (route.stable, route.backup, route.canary) if v and self.ready(v)), "")
        note = "" if serving == route.stable else "the current version has no ready replica"
        waiting = self.waiting.get(route.name, 0)
        return EndpointStatus(
            name=route.name,
            serving=serving,
            serving_ref="",
            share=self._share(route),
            note=note,
            requests=0,
            failed=0,
            waiting=waiting,
            arrived=self.arrived.get(route.name, 0),
            held=waiting if not serving else 0,
        )

    def _answer(self, call: str) -> None:
        if not self.is_alive:
            raise Unavailable("the gateway does not answer", code="gateway_unreachable")
        self.calls.append(call)
