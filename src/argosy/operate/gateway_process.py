"""The gateway's process: one that lives, answers, and has the routes that are wanted."""

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Unavailable
from argosy.operate.desired import Desired
from argosy.operate.layout import routed_versions
from argosy.serve.access import AccessRules
from argosy.serve.control import EndpointRoute, GatewayStatus, Window

NAME = "gateway"
ENTRY = "argosy.serve.gateway:main"

SILENT_S = 10.0
"""A living gateway that doesn't answer for so long is replaced."""
MAX_BACKOFF_S = 10.0

MakeGatewayConfig = Callable[[Desired], dict[str, Any]]


class Gateway(Protocol):
    """What the controller needs of the gateway; `serve.control.GatewayClient` has it, `memory.FakeGateway` fakes it."""

    def status(self) -> GatewayStatus:
        """Return what the gateway sees now; Unavailable when it doesn't answer."""
        ...

    def set_routes(self, routes: Iterable[EndpointRoute]) -> None:
        """Replace all routes at once, durably."""
        ...

    def set_access(self, rules: AccessRules) -> None:
        """Put these rules in force at once."""
        ...

    def windows(self, ack: dict[str, int] | None = None) -> list[Window]:
        """Return closed windows after forgetting the acknowledged ones."""
        ...

    def drain(self, replica: str) -> None:
        """Hand the replica nothing new."""
        ...


class GatewayProcess:
    """Keeps the gateway alive, and remembers which routes it has confirmed."""

    def __init__(self, launcher: Launcher, client: Gateway, clock: Clock, make_config: MakeGatewayConfig) -> None:
        self._launcher = launcher
        self._clock = clock
        self._make_config = make_config
        self._confirmed: tuple[int, float, list[EndpointRoute]] | None = None
        self._silent_since: float | None = None
        self._starts = 0
        self._next_start = 0.0
        self.client = client
        self.status: GatewayStatus | None = None
        self.start_error: ArgosyError | None = None
        self._possible: list[EndpointRoute] | None = None
        self._rules: tuple[AccessRules, str] | None = None
        """The rules that are wanted, and their digest."""
        self.access_error: ArgosyError | None = None
        """Why the gateway does not take the rules."""

    def observe(self) -> GatewayStatus | None:
        """Ask the gateway; None when it doesn't answer."""
        now = self._clock.monotonic()
        try:
            self.status = self.client.status()
        except Unavailable:
            self.status = None
            self._silent_since = now if self._silent_since is None else self._silent_since
        else:
            self._silent_since = None
            self._starts = 0
        return self.status

    def ensure(self, desired: Desired) -> None:
        """Start the gateway if it is dead or does not answer, with back-off; on the same ports as before.

        One that was started with other settings is stopped first, after the answers it owes.
        """
        now = self._clock.monotonic()
        if self.status is not None and not fits(self.status, desired):
            self._launcher.stop(NAME, 5.0)
            self.status = None
        if self.status is not None or now < self._next_start:
            return
        info = self._launcher.get(NAME)
        if info is not None and info.alive:
            if self._silent_since is None or now - self._silent_since < SILENT_S:
                return
            self._launcher.stop(NAME, 0.3)
        self._starts += 1
        self._silent_since = None
        self._next_start = now + min(MAX_BACKOFF_S, 0.5 * 2.0 ** min(self._starts, 9))
        spec = ProcessSpec(name=NAME, role=NAME, entry=ENTRY, config=self._make_config(desired), threads=1)
        self.start_error = None
        try:
            self._launcher.start(spec)
        except ArgosyError as error:
            self.start_error = error

    def set_access(self, rules: AccessRules) -> bool:
        """Have the gateway enforce these rules if it has others; return whether it does now."""
        if self._rules is None or self._rules[0] is not rules:
            self._rules = (rules, rules.digest)
        if self.status is None:
            return False
        if self.status.access == self._rules[1]:
            self.access_error = None
            return True
        try:
            self.client.set_access(rules)
        except Unavailable:
            self.status = None
            return False
        except ArgosyError as error:
            self.access_error = error
            if error.code == "unknown_ask" and rules.is_on:
                # An older Argosy's gateway, which would stay open: a new one asks for keys.
                self._launcher.stop(NAME, 5.0)
                self.status = None
            return False
        self.access_error = None
        return True

    def set_routes(self, routes: Sequence[EndpointRoute]) -> bool:
        """Give the gateway these routes if it has others; return whether it has them now."""
        if self.status is None:
            return False
        wanted = list(routes)
        if self._confirmed == (self.status.pid, self.status.started, wanted):
            return True
        # Should the answer get lost, either the former or the new routes hold.
        self._possible = wanted + (self._possible or [])
        try:
            self.client.set_routes(wanted)
        except Unavailable:
            self.status = None
            return False
        self._confirmed = (self.status.pid, self.status.started, wanted)
        self._possible = wanted
        return True

    @property
    def routed(self) -> set[str] | None:
        """Versions that may get requests, by the last routes confirmed or tried; None before the first."""
        return None if self._possible is None else routed_versions(self._possible)

    def is_named(self, endpoint: str, digest: str) -> bool:
        """Return whether the endpoint's route, if it has one, is sure to name this version: it can stand in then."""
        if self.status is None or self._confirmed is None:
            return False
        routes = [route for route in self._confirmed[2] if route.name == endpoint]
        return all(digest in routed_versions([route]) for route in routes)

    def is_unrouted(self, endpoint: str, digest: str, *, but_backup: bool) -> bool:
        """Return whether no request of the endpoint can reach this version as the new one.

        `but_backup`: it is the endpoint's former version and stays its backup whatever becomes of the rollout.
        """
        if self._possible is None:
            return False
        routes = [route for route in self._possible if route.name == endpoint]
        return all(digest != route.canary and (but_backup or digest != route.backup) for route in routes)

    def windows(self, ack: dict[str, int]) -> list[Window]:
        """Return closed windows; none when the gateway doesn't answer."""
        if self.status is None:
            return []
        try:
            return self.client.windows(ack)
        except Unavailable:
            return []

    def drain(self, replica: str) -> None:
        """Ask the gateway to drain a replica; tried again at the next look if it doesn't answer."""
        with contextlib.suppress(Unavailable):
            self.client.drain(replica)

    def stop(self) -> None:
        """Stop the gateway's process."""
        self._launcher.stop(NAME, 5.0)
        self._confirmed = self._possible = self.status = None


def fits(status: GatewayStatus, desired: Desired) -> bool:
    """Return whether a gateway was started with the settings that are wanted now."""
    wanted = desired.gateway.plain() | {"port": desired.bound_port or desired.port}
    asked = status.asked | {"port": status.port} if wanted["port"] else status.asked
    # What an older Argosy's gateway does not tell is taken to be right.
    return all(asked[name] == value for name, value in wanted.items() if name in status.asked)
