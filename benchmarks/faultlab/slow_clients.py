"""Hundreds of connections that only hold on: when they are closed, and what others notice of them."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from faultlab.deployment import Deployment
from faultlab.hostile import NEVER_READS, SLOW
from faultlab.kills import Quiet
from faultlab.load import FOLDER, Heard, clients, stop_all, together
from faultlab.models import told
from faultlab.report import Line, line
from faultlab.vitals import Peak

CONNECTIONS = 500
READERS = 12  # of each size
_WIDTH = 4096
_CALM_S = 10.0
_CLOSED_S = 10.0
_SLOWER = 1.2
_RATE = 300.0
_IDLE_CLOSES_S = 8.5


class _Round(NamedTuple):
    """A while of calm, and an attack after it."""

    heard: Heard
    calm: tuple[float, float]
    attack: dict[str, Any]
    peak_mb: float

    @property
    def spans(self) -> tuple[tuple[float, float], tuple[float, float]]:
        return self.calm, (self.attack["began"], self.attack["ended"])


def run(quiet: Quiet, *, rounds: int = 6, connections: int = CONNECTIONS) -> list[Line]:
    """Measure. Each attack is made on another server, too, one that does nothing: attackers are computed on the same
    cores as whom they attack, so that is what good clients notice of them in any case.
    """
    ours: list[_Round] = []
    idle: list[_Round] = []
    with Deployment() as home, _idle_server() as idle_port:
        for name, model in (("m", told(1, layers=1)), ("wide", told(1, width=_WIDTH))):
            home.shape(name, 1)
            home.deploy(home.file(model), name)
            home.settle(f"{name}:1", 1)
        for at in range(rounds):
            for found, port in ((ours, home.port), (idle, idle_port)):
                with quiet():
                    found.append(_round(home, at, port, connections))
    return _lines(ours, idle)


def _round(home: Deployment, at: int, port: int, connections: int) -> _Round:
    (gateway,) = home.processes("gateway")
    with clients(_load(home, at)) as running, _hostile(home, port, connections) as hostile:
        time.sleep(1.0)
        with Peak(gateway.pid) as peak:
            begun = time.monotonic()
            time.sleep(_CALM_S)
            calm = (begun, time.monotonic())
            attack = _attack(hostile)
        return _Round(stop_all(running), calm, attack, peak.value)


@contextmanager
def _idle_server() -> Iterator[int]:
    command = [sys.executable, "-m", "faultlab.idle_server", str(_IDLE_CLOSES_S)]
    with subprocess.Popen(command, cwd=FOLDER, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def _load(home: Deployment, seed: int) -> list[dict[str, Any]]:
    hour = 3600.0
    return [
        {"kind": kind, "port": home.port, "schedule": [[hour, _RATE / 2]], "seed": seed * 10 + i}
        for i, kind in enumerate(("json", "binary"))
    ]


def _hostile(home: Deployment, port: int, connections: int) -> "subprocess.Popen[str]":
    path = home.folder / "hostile.json"
    counts = {kind: connections // len(SLOW) for kind in SLOW} | dict.fromkeys(NEVER_READS, READERS)
    path.write_text(json.dumps({"port": port, "counts": counts, "ramp_s": 1.0, "seconds": 20.0}))
    return subprocess.Popen(
        [sys.executable, "-m", "faultlab.hostile", str(path)],
        cwd=FOLDER,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _attack(hostile: "subprocess.Popen[str]") -> dict[str, Any]:
    hostile.stdin.write("go\n")
    hostile.stdin.flush()
    found: dict[str, Any] = json.loads(hostile.stdout.readline())
    hostile.stdin.close()
    return found


def _lines(ours: list[_Round], idle: list[_Round]) -> list[Line]:
    lines = []
    for name, kinds in (("slow connections of four kinds", SLOW), ("readers that never read", tuple(NEVER_READS))):
        found = [one.attack["kinds"][kind] for one in ours for kind in kinds]
        opened, closed = (sum(one[key] for one in found) for key in ("opened", "closed"))
        last = max((one["last_s"] or float("inf")) for one in found)
        lines.append(
            line(
                f"{opened // len(ours)} {name}, {len(ours)} times: closed",
                f"{closed} of {opened}, the last after {last:.1f} s",
                f"all within {_CLOSED_S:g} s",
                closed == opened and last <= _CLOSED_S,
                kinds=[one.attack["kinds"] for one in ours],
                gateway_peak_rss_mb=[round(one.peak_mb, 1) for one in ours],
            )
        )
    before, during = _pooled(ours)
    ratio = during.latency_ms(99) / before.latency_ms(99)
    idle_before, idle_during = _pooled(idle)
    elsewhere = idle_during.latency_ms(99) / idle_before.latency_ms(99)
    failures = [failure for one in ours + idle for failure in one.heard.failures]
    failed = sum(len(one.heard.failed) for one in ours + idle)
    lines.append(
        line(
            "good clients' p99 meanwhile",
            f"{during.latency_ms(99):.2f} ms against {before.latency_ms(99):.2f} ms: {ratio:.2f}x"
            f" ({elsewhere:.2f}x while another server is attacked the same way); {failed} failed",
            f"{_SLOWER:g}x, none failed",
            ratio <= _SLOWER and not failed,
            requests=[len(before.rows), len(during.rows)],
            p50_ms=[round(before.latency_ms(50), 3), round(during.latency_ms(50), 3)],
            each_round=_each(ours),
            each_round_elsewhere=_each(idle),
            outcomes=together([before, during], same_groups=True).outcomes(),
            failures=failures[:20],
        )
    )
    return lines


def _pooled(rounds: list[_Round]) -> tuple[Heard, Heard]:
    """Return what good clients heard in calm and during attacks, over all rounds."""
    calm, attacked = ([one.heard.between(*one.spans[at]) for one in rounds] for at in (0, 1))
    return together(calm, same_groups=True), together(attacked, same_groups=True)


def _each(rounds: list[_Round]) -> list[list[float]]:
    return [[round(one.heard.between(*span).latency_ms(99), 2) for span in one.spans] for one in rounds]
