"""When requests are due: a seeded Poisson process with rates by schedule, kept to within some tens of microseconds."""

import asyncio
import ctypes
import os
import random
import struct
import time
from collections.abc import Callable, Sequence

_LIBC = ctypes.CDLL(None, use_errno=True)
_TFD_NONBLOCK, _TFD_TIMER_ABSTIME = os.O_NONBLOCK, 1


class Alarm:
    """Calls `ring` at a moment of the monotonic clock. Event loops' own timers are only right to a millisecond."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], None]) -> None:
        self._descriptor = _LIBC.timerfd_create(time.CLOCK_MONOTONIC, _TFD_NONBLOCK)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._ring = ring
        loop.add_reader(self._descriptor, self._rang)

    def set(self, when: float) -> None:
        """Ring at `when`; at once if it has passed."""
        whole = max(1, int(when * 1e9))  # 0 would switch it off
        spec = struct.pack("@4q", 0, 0, *divmod(whole, 1_000_000_000))
        if _LIBC.timerfd_settime(self._descriptor, _TFD_TIMER_ABSTIME, spec, None):
            raise OSError(ctypes.get_errno(), "timerfd_settime failed")

    def _rang(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._ring()


def arrivals(schedule: Sequence[tuple[float, float]], seed: int) -> "list[float]":
    """Return moments from 0 on, in order; `schedule` holds (seconds, requests per second) one after the other."""
    chance = random.Random(seed)
    found: list[float] = []
    begin = 0.0
    for seconds, rate in schedule:
        at = begin
        while rate and (at := at + chance.expovariate(rate)) < begin + seconds:
            found.append(at)
        begin += seconds
    return found
