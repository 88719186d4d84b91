"""Deadlines of requests without a timer each, and the allowance for second attempts."""

from typing import Protocol

from argosy.core.errors import InvalidInput
from argosy.core.units import parse_time

SLOT_S = 0.02
"""Deadlines are kept to this precision."""
MAX_TIMEOUT_S = 600.0


def timeout_of(value: bytes | str | None) -> float:
    """Return the seconds that a caller's `argosy-timeout` gives, 0 when there is none: "2", "250ms".

    Raises InvalidInput for anything else than a time of up to ten minutes.
    """
    if value is None:
        return 0.0
    text = (value[:40].decode("latin-1") if isinstance(value, bytes) else value[:40]).strip()
    try:
        seconds = float(text)
    except ValueError:
        seconds = parse_time(text)
    if not 0.0 < seconds <= MAX_TIMEOUT_S:
        raise InvalidInput(
            f"argosy-timeout is {text!r}; give more than 0 and at most {MAX_TIMEOUT_S:.0f} seconds", code="bad_timeout"
        )
    return seconds


class Timed(Protocol):
    """What can run out of time."""

    due: float
    """Monotonic seconds; must not change while it is in the wheel."""

    def expire(self, now: float) -> None:
        """Take the news that `due` has passed."""
        ...


class Wheel:
    """What is due when, in slots: adding and removing cost a set operation, however many wait.

    A timer of the event loop or a heap entry per request would live until its deadline, long after the answer.
    """

    def __init__(self, now: float) -> None:
        self._slots: dict[int, set[Timed]] = {}
        self._done = int(now / SLOT_S)

    def add(self, timed: Timed) -> None:
        """Call `expire` when it is due."""
        slot = max(int(timed.due / SLOT_S) + 1, self._done + 1)
        found = self._slots.get(slot)
        if found is None:
            self._slots[slot] = {timed}
        else:
            found.add(timed)

    def remove(self, timed: Timed) -> None:
        """Forget it; harmless if it is not there."""
        slot = int(timed.due / SLOT_S) + 1
        found = self._slots.get(slot)
        if found is not None:
            found.discard(timed)
            if not found:
                del self._slots[slot]

    def turn(self, now: float) -> None:
        """Expire everything that is due."""
        last = int(now / SLOT_S)
        # A process that stood still for an hour need not walk through its slots one by one.
        due = range(self._done + 1, last + 1) if last - self._done <= len(self._slots) else sorted(self._slots)
        self._done = max(last, self._done)
        for slot in list(due):
            if slot <= last:
                for timed in self._slots.pop(slot, ()):
                    timed.expire(now)


class RetryBudget:
    """An allowance of second attempts: a tenth of the requests, and a burst for the batch of a dying replica.

    Without it, a failing service would be asked twice as much just when it can do least.
    """

    __slots__ = ("_burst", "_seen", "_share", "_tokens", "requests")

    def __init__(self, *, share: float = 0.1, burst: float = 256.0) -> None:
        self.requests = 0
        """Requests so far, for whoever takes one to count up."""
        self._share = share
        self._burst = burst
        self._tokens = burst
        self._seen = 0

    def spend(self) -> bool:
        """Take one second attempt, if one is left."""
        earned = self._share * (self.requests - self._seen)
        self._seen = self.requests
        self._tokens = min(self._burst, self._tokens + earned)
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True
