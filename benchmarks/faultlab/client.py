"""The load client's process.

    python -m faultlab.client CONFIG.json

It opens its connections, prints `ready`, begins with `go T` (a moment of the monotonic clock) on its input, and ends
with `stop` or when its schedules are over: what is under way is waited for, the tape is written and `done` printed.
A group with `schedule` is an open loop: requests are sent when they are due, whether or not others were answered. One
without is a closed loop: each connection asks again when it was answered.
"""

import asyncio
import contextlib
import gc
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

from faultlab.grpc_client import GrpcGroup
from faultlab.http_client import Group
from faultlab.pacing import Alarm, arrivals
from faultlab.tape import Tape

_SWEEP_S = 0.5


class Driver:
    """Sends one group's requests."""

    def __init__(self, loop: asyncio.AbstractEventLoop, group: Any, asked: dict[str, Any]) -> None:
        self._loop = loop
        self._group = group
        self._pause_s = asked.get("pause_s", 0.0)
        self._schedule = arrivals(asked["schedule"], asked.get("seed", 0)) if "schedule" in asked else None
        self._at = 0
        self._begin = 0.0
        self._is_stopping = False
        self.is_over = False
        self.under_way = 0
        group.on_free = self._freed
        if self._schedule is not None:
            self._alarm = Alarm(loop, self._ring)

    def go(self, begin: float) -> None:
        """Begin at a moment of the monotonic clock."""
        self._begin = begin
        if self._schedule is not None:
            self._ring()
            return
        for _ in range(self._group.connections):
            self._loop.call_later(max(0.0, begin - time.monotonic()), self._again)

    def stop(self) -> None:
        """Send nothing more."""
        self._is_stopping = self.is_over = True

    def _ring(self) -> None:
        now = time.monotonic() - self._begin
        schedule = self._schedule
        while not self._is_stopping and self._at < len(schedule) and schedule[self._at] <= now:
            self.under_way += 1
            self._group.send(self._begin + schedule[self._at])
            self._at += 1
        if self._is_stopping or self._at >= len(schedule):
            self.is_over = True
        else:
            self._alarm.set(self._begin + schedule[self._at])

    def _again(self) -> None:
        if not self._is_stopping:
            self.under_way += 1
            self._group.send(time.monotonic())

    def _freed(self) -> None:
        self.under_way -= 1
        if self._schedule is None and not self._is_stopping:
            if self._pause_s:
                self._loop.call_later(self._pause_s, self._again)
            else:
                self._loop.call_soon(self._again)


async def run(asked: dict[str, Any]) -> None:
    """Do what a config says."""
    loop = asyncio.get_running_loop()
    tape = Tape()
    groups: list[Any] = []
    for number, wanted in enumerate(asked["groups"]):
        kind = GrpcGroup if wanted["kind"] == "grpc" else Group
        groups.append(kind(tape, loop, number, wanted))
    drivers = [Driver(loop, group, wanted) for group, wanted in zip(groups, asked["groups"], strict=True)]
    for group in groups:
        await group.open()
    orders = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(orders), sys.stdin)
    # Collecting garbage would only show as latency that nobody else made.
    gc.collect()
    gc.freeze()
    gc.disable()
    _say("ready")
    begin = float((await orders.readline()).split()[1])
    before = time.process_time()
    for driver in drivers:
        driver.go(begin)
    stop = asyncio.ensure_future(orders.readline())
    while not stop.done() and not all(driver.is_over for driver in drivers):
        await asyncio.wait([stop], timeout=_SWEEP_S)
        for group in groups:
            group.sweep(time.monotonic())
    for driver in drivers:
        driver.stop()
    while any(driver.under_way for driver in drivers):
        await asyncio.sleep(0.02)
        for group in groups:
            group.sweep(time.monotonic())
    used = time.process_time() - before
    for group in groups:
        if isinstance(group, GrpcGroup):
            await group.close()
        else:
            group.finish()
    tape.write(Path(asked["stem"]), cpu_s=used, seconds=time.monotonic() - begin)
    _say("done")


def _say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


def _come_first() -> None:
    """Run before the servers, where this user may: callers are on machines of their own, and don't wait for a core."""
    with contextlib.suppress(OSError):
        os.setsid()
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    with contextlib.suppress(OSError):
        # Where the kernel groups processes by session, the group's weight is what counts.
        Path("/proc/self/autogroup").write_text("-10")


def main() -> None:
    """Run until told to stop."""
    import uvloop

    _come_first()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run(json.loads(Path(sys.argv[1]).read_text())))
    sys.stdout.flush()
    os._exit(0)  # grpcio's threads take their time


if __name__ == "__main__":
    main()
