"""Requests that share runs share nothing else: cancelled neighbours, and equal inputs to two versions."""

import time
from typing import Any

import numpy as np

from faultlab.deployment import Deployment, until
from faultlab.kills import Quiet
from faultlab.load import Heard, clients, stop_all
from faultlab.models import told
from faultlab.report import Line, line
from faultlab.tape import CANCELLED, WRONG

_SECONDS = 15.0
_ROLLOUT = """[rollout]
steps = [50]
dwell = "10min"
time_limit = "1h"
judge = ["errors"]
mirror = 20
"""


def run(quiet: Quiet, *, seconds: float = _SECONDS) -> list[Line]:
    """Measure."""
    with Deployment() as home:
        home.shape("m", 1)
        home.deploy(home.file(told(1, layers=4)))
        with quiet():
            cancelled, still_waiting = _cancelling(home, seconds)
        home.deploy(home.file(told(2, layers=4)))
        until(lambda: home.ready("m:1"))
        with quiet():
            pinned = _pinned(home, seconds)
        home.shape("m", 1, _ROLLOUT)
        home.deploy(home.file(told(3, layers=4)), "m", "--detach")
        until(lambda: home.status().endpoints[0].share > 0)
        with quiet():
            drawn = _drawn(home, seconds)
    return [*_cancel_lines(cancelled, still_waiting), _pinned_line(pinned), _drawn_line(drawn)]


def _cancelling(home: Deployment, seconds: float) -> tuple[Heard, int]:
    """Let half of the callers hang up somewhere on the way, while others ask beside them."""
    groups: list[dict[str, Any]] = [
        {"kind": "binary", "port": home.port, "connections": 12, "base": 0},
        {"kind": "json", "port": home.port, "connections": 12, "base": 1, "cancel": 0.5, "cancel_s": 0.06, "seed": 1},
        {"kind": "reconnect", "port": home.port, "connections": 4, "base": 2, "cancel": 0.5, "cancel_s": 0.01},
    ]
    both = [groups]
    grpc = int(getattr(home.status(), "grpc_port", 0))
    if grpc > 0:
        both.append([{"kind": "grpc", "port": grpc, "connections": 4, "base": 3, "cancel": 0.5, "cancel_s": 0.06}])
    with clients(*both) as running:
        time.sleep(seconds)
        heard = stop_all(running)
    until(lambda: home.status().endpoints[0].waiting == 0 and not any(r.in_flight for r in home.replicas()))
    return heard, home.status().endpoints[0].waiting


def _pinned(home: Deployment, seconds: float) -> Heard:
    """Send the same inputs, at the same times, to two versions by their numbers."""
    groups = [
        {"kind": kind, "port": home.port, "schedule": [[seconds, 60.0]], "seed": 1, "base": 0, "version": version}
        for kind in ("binary", "json")
        for version in (1, 2)
    ]
    with clients(groups) as running:
        return running[0].finished()


def _drawn(home: Deployment, seconds: float) -> Heard:
    """Send the same inputs over and over while half of them are drawn for a canary."""
    groups = [
        {"kind": kind, "port": home.port, "connections": 8, "base": 0, "values": 20} for kind in ("binary", "json")
    ]
    with clients(groups) as running:
        time.sleep(seconds)
        return stop_all(running)


def _cancel_lines(heard: Heard, still_waiting: int) -> list[Line]:
    cancelled = int(np.sum(heard.rows["status"] == CANCELLED))
    neighbours = len(heard.answered)
    failed = len(heard.failed)
    return [
        line(
            f"{cancelled:,} requests cancelled while they waited or ran: neighbours that failed or got a wrong answer",
            f"{failed} of {neighbours + failed:,}",
            "0",
            failed == 0 and still_waiting == 0 and cancelled > 0,
            outcomes=heard.outcomes(),
            failures=heard.failures[:20],
        )
    ]


def _pinned_line(heard: Heard) -> Line:
    strays = sum(
        int(np.sum(heard.of(group).answered["version"] != (group % 2) + 1)) for group in np.unique(heard.rows["group"])
    )
    wrong = int(np.sum(heard.rows["status"] == WRONG))
    return line(
        "the same inputs to two versions by number: answers of the other version",
        f"{strays + wrong} of {len(heard.answered):,}, {len(heard.failed)} failed",
        "0",
        strays + wrong == 0 and len(heard.failed) == 0,
        outcomes=heard.outcomes(),
        failures=heard.failures[:20],
    )


def _drawn_line(heard: Heard) -> Line:
    versions = {int(v): int(np.sum(heard.answered["version"] == v)) for v in np.unique(heard.answered["version"])}
    return line(
        "twenty inputs over and over, half drawn for a canary: answers that are not their version's",
        f"{len(heard.failed)} of {len(heard.rows):,} ({', '.join(f'm:{v} {n:,}' for v, n in versions.items())})",
        "0",
        len(heard.failed) == 0 and len(versions) == 2,
        outcomes=heard.outcomes(),
        failures=heard.failures[:20],
    )
