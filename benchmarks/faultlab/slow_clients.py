"""Hundreds of connections that only hold on: when they are closed, and what others notice of them."""

import json
import subprocess
import sys
import time
from typing import Any

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


def run(quiet: Quiet, *, rounds: int = 5, connections: int = CONNECTIONS) -> list[Line]:
    """Measure."""
    attacks: list[dict[str, Any]] = []
    heard: list[Heard] = []
    calm: list[tuple[float, float]] = []
    peaks: list[float] = []
    with Deployment() as home:
        for name, model in (("m", told(1, layers=1)), ("wide", told(1, width=_WIDTH))):
            home.shape(name, 1)
            home.deploy(home.file(model), name)
            home.settle(f"{name}:1", 1)
        (gateway,) = home.processes("gateway")
        for at in range(rounds):
            with quiet(), clients(_load(home, at)) as running, _hostile(home, connections) as hostile:
                time.sleep(1.0)
                with Peak(gateway.pid) as peak:
                    begun = time.monotonic()
                    time.sleep(_CALM_S)
                    calm.append((begun, time.monotonic()))
                    attacks.append(_attack(hostile))
                peaks.append(peak.value)
                heard.append(stop_all(running))
    return _lines(attacks, together(heard, same_groups=True), calm, peaks)


def _load(home: Deployment, seed: int) -> list[dict[str, Any]]:
    hour = 3600.0
    return [
        {"kind": kind, "port": home.port, "schedule": [[hour, _RATE / 2]], "seed": seed * 10 + i}
        for i, kind in enumerate(("json", "binary"))
    ]


def _hostile(home: Deployment, connections: int) -> "subprocess.Popen[str]":
    path = home.folder / "hostile.json"
    counts = {kind: connections // len(SLOW) for kind in SLOW} | dict.fromkeys(NEVER_READS, READERS)
    path.write_text(json.dumps({"port": home.port, "counts": counts, "ramp_s": 1.0, "seconds": 20.0}))
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


def _lines(
    attacks: list[dict[str, Any]], heard: Heard, calm: list[tuple[float, float]], peaks: list[float]
) -> list[Line]:
    lines = []
    for name, kinds in (("slow connections of four kinds", SLOW), ("readers that never read", tuple(NEVER_READS))):
        found = [attack["kinds"][kind] for attack in attacks for kind in kinds]
        opened, closed = (sum(one[key] for one in found) for key in ("opened", "closed"))
        last = max((one["last_s"] or float("inf")) for one in found)
        lines.append(
            line(
                f"{opened // len(attacks)} {name}, {len(attacks)} times: closed",
                f"{closed} of {opened}, the last after {last:.1f} s",
                f"all within {_CLOSED_S:g} s",
                closed == opened and last <= _CLOSED_S,
                kinds=[attack["kinds"] for attack in attacks],
                gateway_peak_rss_mb=[round(peak, 1) for peak in peaks],
            )
        )
    before = heard.within(calm)
    during = heard.within([(attack["began"], attack["ended"]) for attack in attacks])
    ratio = during.latency_ms(99) / before.latency_ms(99)
    failed = len(heard.failed)
    lines.append(
        line(
            "good clients' p99 meanwhile",
            f"{during.latency_ms(99):.2f} ms against {before.latency_ms(99):.2f} ms: {ratio:.2f}x; {failed} failed",
            f"{_SLOWER:g}x, none failed",
            ratio <= _SLOWER and not failed,
            requests=[len(before.rows), len(during.rows)],
            p50_ms=[round(before.latency_ms(50), 3), round(during.latency_ms(50), 3)],
            each_round=[
                [round(heard.between(*span).latency_ms(99), 2) for span in (quiet, (attack["began"], attack["ended"]))]
                for quiet, attack in zip(calm, attacks, strict=True)
            ],
            outcomes=heard.outcomes(),
            failures=heard.failures[:20],
        )
    )
    return lines
