"""Time, injected: nothing else in Argosy asks the operating system what time it is."""

import time
from typing import Protocol


class Clock(Protocol):
    """Where time comes from."""

    def now(self) -> float:
        """Return seconds since 1970-01-01 UTC; may jump."""
        ...

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; never goes back."""
        ...

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        ...


class SystemClock:
    """The machine's own clock."""

    # The functions themselves: the gateway asks for the time several times per request.
    now = staticmethod(time.time)
    """Return seconds since 1970-01-01 UTC."""
    monotonic = staticmethod(time.monotonic)
    """Return seconds since some fixed moment."""

    def sleep(self, seconds: float) -> None:
        """Wait for `seconds`."""
        time.sleep(seconds)


class FakeClock:
    """A clock that moves only when told, for tests: `sleep` returns at once and moves it."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._monotonic = 0.0

    def now(self) -> float:
        """Return the time that was set."""
        return self._now

    def monotonic(self) -> float:
        """Return the seconds that were advanced so far."""
        return self._monotonic

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds` without waiting."""
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Move both clocks forward."""
        self._now += seconds
        self._monotonic += seconds


class ProcessorClock(Protocol):
    """Where the time that a thread really computed comes from."""

    def cpu(self) -> float:
        """Return the CPU seconds that the calling thread has used: waiting, for a core too, does not count."""
        ...


class SystemProcessorClock:
    """The machine's own count."""

    def process(self) -> float:
        """Return the CPU seconds that this process has used, all threads together."""
        return time.process_time()

    def cpu(self) -> float:
        """Return the CPU seconds that the calling thread has used."""
        return time.thread_time()
