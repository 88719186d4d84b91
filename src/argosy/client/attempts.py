"""Whether and when to ask again: only what can help, later each time, never past the deadline, never a flood."""

import threading
from random import Random

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Unavailable

_FIRST_PAUSE_S, _GROWTH, _MAX_PAUSE_S = 0.1, 3.0, 2.0


class Budget:
    """An allowance of second attempts over all calls of a client: a tenth of them, and 64 in stock.

    The gateway allows itself the same share. Without it, every client of a failing service would ask as often again
    as it retries, just when the service can do least. The stock is what 16 connections need to outlast the restart of
    a gateway, with four attempts each.
    """

    def __init__(self, *, share: float = 0.1, burst: float = 64.0) -> None:
        self._share = share
        self._burst = burst
        self._tokens = burst
        self._lock = threading.Lock()

    def earn(self) -> None:
        """Note a call."""
        with self._lock:
            self._tokens = min(self._burst, self._tokens + self._share)

    def spend(self) -> bool:
        """Take one second attempt, if one is left."""
        with self._lock:
            if self._tokens < 1.0:
                return False
            self._tokens -= 1.0
            return True


class Attempts:
    """The attempts of one call under one deadline."""

    def __init__(
        self, clock: Clock, randomness: Random, budget: Budget, *, timeout_s: float, retries: int, what: str
    ) -> None:
        """`what` names the call in the error, such as "'digits'"."""
        self.deadline = clock.monotonic() + timeout_s
        self._clock = clock
        self._randomness = randomness
        self._budget = budget
        self._timeout_s = timeout_s
        self._retries = retries
        self._tried = 0
        self._what = what
        budget.earn()

    def pause_after(self, error: ArgosyError) -> float:
        """Return the seconds to wait before the next attempt; raise `error` if there is to be none.

        Only Unavailable is worth it: a connection that was refused or lost, 503, 502 and 429. Asking twice does no
        harm, because an inference changes nothing. 504 means that the time is over, everything else that the same
        request will fail again.
        """
        self._tried += 1
        error.context["attempts"] = self._tried
        if not isinstance(error, Unavailable) or self._tried > self._retries:
            raise error
        most = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * _GROWTH ** (self._tried - 1))
        # Half of it by chance, so that clients that failed together don't come back together.
        pause = error.retry_after_s + most * (0.5 + 0.5 * self._randomness.random())
        if self._clock.monotonic() + pause >= self.deadline or not self._budget.spend():
            raise error
        return pause

    def expired(self) -> DeadlineExceeded:
        """Return the error of a call whose time is over."""
        return DeadlineExceeded(
            f"{self._what} did not answer within {self._timeout_s:.3g} s",
            hint="give more time with timeout_s, or see what the endpoint is busy with: argosy watch",
            code="deadline_exceeded",
            attempts=self._tried + 1,
        )
