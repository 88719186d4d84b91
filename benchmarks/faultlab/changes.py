"""Version changes under load, a third of them to versions that can't start: no request may notice."""

import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from argosy.registry.versions import Version
from faultlab.deployment import Deployment
from faultlab.kills import Quiet
from faultlab.load import Heard, clients, stop_all, together
from faultlab.models import told
from faultlab.report import Line, line

GOOD, GARBAGE, DAMAGED, KILLED = "good", "garbage", "damaged", "killed while it loads"
BROKEN = (GARBAGE, DAMAGED, KILLED)
_RATES = {"json": 450.0, "binary": 350.0, "reconnect": 100.0, "grpc": 150.0}
_BEFORE_S, _AFTER_S = 2.0, 1.0
"""Quiet before a change; and what counts as change after the command has ended, when the former version leaves."""
_MOST_SLOWER = 2.0
_LEAST_REQUESTS = 100_000
_PIECE = 7


class Change:
    """One change: to what, when, and what the command said."""

    def __init__(self, version: Version, kind: str) -> None:
        self.version = version
        self.kind = kind
        self.quiet = (0.0, 0.0)
        self.span = (0.0, 0.0)
        self.seconds = 0.0
        self.exit_code = 0
        self.said = ""

    @property
    def is_as_expected(self) -> bool:
        """Whether the command succeeded exactly where the version can run, and gave a reason where it can't."""
        if self.kind == GOOD:
            return self.exit_code == 0
        return self.exit_code == 1 and "rolled back" in self.said and "Traceback" not in self.said


def run(quiet: Quiet, *, count: int = 20, least: int = _LEAST_REQUESTS) -> list[Line]:
    """Measure."""
    with Deployment() as home:
        home.shape("m", 1)
        home.deploy(home.file(told(1)))
        home.settle("m:1", 1)
        changes = [_publish(home, number) for number in range(2, count + 2)]
        heard: list[Heard] = []
        has_grpc = _grpc_port(home) > 0
        for at in range(0, count, _PIECE):
            with quiet(), clients(*_load(home, at)) as running:
                time.sleep(1.0)
                for change in changes[at : at + _PIECE]:
                    _change(home, change)
                heard.append(stop_all(running))
        missing = least - sum(len(h.rows) for h in heard)
        if missing > 0:
            with quiet(), clients(*_load(home, count)) as running:
                time.sleep(missing / sum(_RATES.values()) + 1)
                heard.append(stop_all(running))
    return _lines(changes, heard, least, has_grpc=has_grpc)


def _publish(home: Deployment, number: int) -> Change:
    """Publish the version that the change number `number` - 1 goes to: each third one is broken, in turn."""
    at = number - 2
    kind = GOOD if at % 3 != 1 else BROKEN[at // 3 % len(BROKEN)]
    model = told(number)
    version = home.publish(b"this is no model " * 100 + str(number).encode() if kind == GARBAGE else model)
    if kind == DAMAGED:
        home.damage(model)
    return Change(version, kind)


def _change(home: Deployment, change: Change) -> None:
    begun = time.monotonic()
    time.sleep(_BEFORE_S)
    change.quiet = (begun, time.monotonic())
    with _killer(home, change.version) if change.kind == KILLED else _nobody():
        done = home("deploy", change.version, "--name", "m")
    change.seconds = time.monotonic() - change.quiet[1]
    time.sleep(_AFTER_S)
    change.span = (change.quiet[1], time.monotonic())
    change.exit_code = done.returncode
    change.said = (done.stderr or done.stdout)[-600:]


@contextmanager
def _nobody() -> Iterator[None]:
    yield


@contextmanager
def _killer(home: Deployment, version: Version) -> Iterator[None]:
    """Kill a version's replicas as soon as they are there, as the kernel does when memory is short."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.02):
            for info in home.processes_of(version):
                os.kill(info.pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _grpc_port(home: Deployment) -> int:
    return int(getattr(home.status(), "grpc_port", 0))


def _load(home: Deployment, seed: int) -> list[list[dict[str, Any]]]:
    hour = 3600.0
    http = [
        {"kind": kind, "port": home.port, "schedule": [[hour, _RATES[kind]]], "seed": seed * 10 + i, "base": i}
        for i, kind in enumerate(("json", "binary", "reconnect"))
    ]
    port = _grpc_port(home)
    if port <= 0:
        return [http]
    return [http, [{"kind": "grpc", "port": port, "schedule": [[hour, _RATES["grpc"]]], "seed": seed, "base": 3}]]


def _lines(changes: Sequence[Change], heard: Sequence[Heard], least: int, *, has_grpc: bool) -> list[Line]:
    every = together(heard, same_groups=True)
    broken = [change for change in changes if change.kind != GOOD]
    failed = len(every.failed)
    asked = len(every.rows)
    served = set(every.answered["version"].tolist())
    strays = served & {change.version.number for change in broken}
    slow = max(change.seconds for change in broken)
    wrong = [change for change in changes if not change.is_as_expected]
    told_of = [
        {"to": str(c.version), "kind": c.kind, "seconds": round(c.seconds, 2), "exit": c.exit_code, "said": c.said}
        for c in changes
    ]
    lines = [
        line(
            f"{len(changes)} version changes, {len(broken)} of them to versions that fail to start: failed requests",
            f"{failed} of {asked:,}",
            f"0 of at least {least:,}",
            failed == 0 and asked >= least,
            outcomes=every.outcomes(),
            failures=every.failures[:50],
            changes=told_of,
        ),
        line(
            "every change ends as it should, broken versions never answer and are told of",
            f"{len(changes) - len(wrong)} of {len(changes)}, broken ones after at most {slow:.1f} s",
            "all",
            not wrong and not strays,
            wrong=[told_of[changes.index(change)] for change in wrong],
            strays=sorted(strays),
        ),
    ]
    for name, groups in (("HTTP", (0, 1, 2)), ("gRPC", (3,))):
        if name == "gRPC" and not has_grpc:
            lines.append(line("p99 during a change, gRPC", "-", "2x", None))
            continue
        some = every.of(*groups)
        lines.append(_p99(name, some, changes))
    return lines


def _p99(name: str, heard: Heard, changes: Sequence[Change]) -> Line:
    calm = heard.within([change.quiet for change in changes])
    during = heard.within([change.span for change in changes])
    ratio = during.latency_ms(99) / calm.latency_ms(99)
    return line(
        f"p99 during a change, {name}",
        f"{during.latency_ms(99):.2f} ms against {calm.latency_ms(99):.2f} ms without: {ratio:.2f}x",
        f"{_MOST_SLOWER:g}x",
        ratio <= _MOST_SLOWER,
        requests=[len(calm.rows), len(during.rows)],
        p50_ms=[round(calm.latency_ms(50), 3), round(during.latency_ms(50), 3)],
        longest_ms=[round(calm.latency_ms(100), 2), round(during.latency_ms(100), 2)],
        clients_lag_p99_ms=[round(calm.lag_ms(99), 3), round(during.lag_ms(99), 3)],
        client_cpu_share=round(heard.cpu_share, 3),
    )
