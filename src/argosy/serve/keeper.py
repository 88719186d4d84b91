"""The gateway starts the controller again when that is gone: the two look after each other, so either may be killed."""

import threading

from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.config import from_plain
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.logs import get_logger
from argosy.serve.control import Keeper

log = get_logger()

SILENT_S = 5.0
"""A controller asks three times a second; after so long without a word it is looked for."""
MOST_BACKOFF_S = 60.0


class ControllerKeeper:
    """Notices the controller's silence. One that lives and is silent (frozen, busy) is left alone."""

    def __init__(self, keeper: Keeper, clock: Clock) -> None:
        self._keeper = keeper
        self._clock = clock
        self._backoff_s = SILENT_S
        self._next = clock.monotonic() + SILENT_S

    def heard(self) -> None:
        """Note a word of the controller."""
        self._backoff_s = SILENT_S
        self._next = self._clock.monotonic() + SILENT_S

    def look(self) -> None:
        """Start the controller if it was silent for too long; in a thread, because a start takes milliseconds."""
        now = self._clock.monotonic()
        if not self._keeper.folder or now < self._next:
            return
        self._backoff_s = min(MOST_BACKOFF_S, 2 * self._backoff_s)
        self._next = now + self._backoff_s
        threading.Thread(target=self.start, daemon=True).start()

    def hurry(self) -> None:
        """Start the controller now: a request waits for it, and nobody listens."""
        if self._keeper.folder:
            self._next = self._clock.monotonic() + self._backoff_s
            threading.Thread(target=self.start, daemon=True).start()

    def start(self) -> None:
        """Start it, unless it lives."""
        from pathlib import Path

        from argosy.cluster.local import LocalLauncher

        launcher: Launcher = LocalLauncher(Path(self._keeper.folder), self._clock)
        spec = from_plain(self._keeper.spec, ProcessSpec, where="keeper")
        try:
            launcher.start(spec)
        except Conflict:
            return
        except ArgosyError as error:
            log.warning("controller_not_started", error=error.message, code=error.code)
            return
        log.warning("controller_started_again")
