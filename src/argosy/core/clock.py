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
    """What becomes of time on a machine that others use too."""

    def stood_in_line(self) -> float:
        """Return the seconds that the calling thread could have run since it began, but had no core."""
        ...


class SystemProcessorClock:
    """What the kernel counts."""

    def stood_in_line(self) -> float:
        """Return the seconds that the calling thread could have run since it began, but had no core.

        A kernel that does not count that (CONFIG_SCHED_INFO) says 0.
        """
        try:
            with open("/proc/thread-self/schedstat", "rb") as stream:  # noqa: PTH123 - read between two timed runs
                return int(stream.read().split()[1]) / 1e9
        except (OSError, ValueError, IndexError):
            return 0.0

    def process(self) -> float:
        """Return the CPU seconds that this process has used, all threads together."""
        return time.process_time()
