"""The fronts' processes: as many as are wanted, beside a gateway that leaves HTTP to them."""

from collections.abc import Callable
from typing import Any

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.digest import digest_of
from argosy.core.errors import ArgosyError
from argosy.operate.desired import Desired
from argosy.serve.control import GatewayStatus

ROLE = "front"
ENTRY = "argosy.serve.front:main"
MAX_BACKOFF_S = 10.0
_LASTING_S = 10.0
"""One that has lived for so long did not fail to start."""

MakeFrontConfig = Callable[[Desired, str, int], dict[str, Any]]
"""Makes the `config` of a front from what is wanted, its name and the gateway's port."""


class FrontProcesses:
    """Keeps them alive. A front's name holds a digest of its settings, so one with other settings is known by it."""

    def __init__(self, launcher: Launcher, clock: Clock, make_config: MakeFrontConfig) -> None:
        self._launcher = launcher
        self._clock = clock
        self._make_config = make_config
        self._next_start = 0.0
        self._starts = 0

    def ensure(self, desired: Desired, status: GatewayStatus | None) -> None:
        """Start what is missing and stop what is not wanted; none is started while the gateway does not answer."""
        if not desired.gateway.fronts:
            self.stop()
            return
        if status is None:
            return
        wanted = {}
        for number in range(1, desired.gateway.fronts + 1):
            config = self._make_config(desired, "", status.port)
            name = f"{ROLE}-{number}-{digest_of(config).removeprefix('sha256:')[:8]}"
            wanted[name] = config | {"name": name}
        now = self._clock.monotonic()
        living = {info.name: info for info in self._launcher.list(ROLE) if info.alive}
        for name in [name for name in living if name not in wanted]:
            self._launcher.stop(name, 5.0)
            self._launcher.forget(name)
        missing = [name for name in wanted if name not in living]
        if not missing:
            if all(self._clock.now() - info.started > _LASTING_S for info in living.values()):
                self._starts = 0
            return
        if now < self._next_start:
            return
        self._starts += 1
        self._next_start = now + min(MAX_BACKOFF_S, 0.25 * 2.0 ** min(self._starts, 8))
        for name in missing:
            try:
                self._launcher.start(ProcessSpec(name=name, role=ROLE, entry=ENTRY, config=wanted[name], threads=1))
            except ArgosyError:
                return  # tried again after the back-off; its log says why

    def stop(self) -> None:
        """Stop all, after the answers they owe."""
        for info in self._launcher.list(ROLE):
            if info.alive:
                self._launcher.stop(info.name, 5.0)
            self._launcher.forget(info.name)
