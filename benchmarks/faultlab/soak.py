"""Minutes of load with kills and version changes: what the lasting processes hold must not grow."""

import os
import signal
import time
from typing import Any

from faultlab.deployment import Deployment
from faultlab.kills import Quiet
from faultlab.load import clients, stop_all
from faultlab.models import told
from faultlab.report import Line, line
from faultlab.vitals import MEASURES, Course

SECONDS = 300.0
_WARM_UP_SHARE = 0.25
_EVENT_S = 8.0
"""A kill or a version change, in turn."""
_MOST_SHARE, _MOST_MB = 0.03, 1.5
"""Memory is flat when it grows by less than the greater of these in the time measured; 100 bytes per request that are
never given back would be 12 MB in five minutes."""
_RATE = 400.0


def run(quiet: Quiet, *, seconds: float = SECONDS) -> list[Line]:
    """Measure. What grows does so beside others, too: no lock is held for so long."""
    del quiet
    with Deployment() as home:
        for name, replicas in (("steady", 1), ("m", 2)):
            home.shape(name, replicas)
            home.deploy(home.file(told(1, layers=1)), name)
            home.settle(f"{name}:1", replicas)
        number = 1
        pids = {role: home.processes(role)[0].pid for role in ("gateway", "controller")}
        pids["replica"] = home.ready("steady:1")[0].pid
        course = Course(pids)
        with clients(_load(home)) as running:
            begun = time.monotonic()
            events = 0
            while (now := time.monotonic()) < begun + seconds:
                course.look()
                if now - begun > (events + 1) * _EVENT_S:
                    events += 1
                    number += _event(home, events, number)
                time.sleep(0.5)
            heard = stop_all(running)
        alive = {name: os.path.exists(f"/proc/{pid}") for name, pid in pids.items()}  # noqa: PTH110
    lines = [
        line(
            f"{seconds / 60:g} minutes with {events - events // 2} kills and {events // 2} version changes: failed",
            f"{len(heard.failed)} of {len(heard.rows):,}",
            "0",
            len(heard.failed) == 0 and all(alive.values()),
            outcomes=heard.outcomes(),
            failures=heard.failures[:20],
        )
    ]
    return lines + [_flat(course, name, begun + seconds * _WARM_UP_SHARE) for name in pids]


def _load(home: Deployment) -> list[dict[str, Any]]:
    hour = 3600.0
    return [
        {"kind": kind, "port": home.port, "model": model, "schedule": [[hour, _RATE / 4]], "seed": i, "base": i}
        for i, (kind, model) in enumerate((k, m) for k in ("json", "binary") for m in ("m", "steady"))
    ] + [{"kind": "reconnect", "port": home.port, "schedule": [[hour, 20.0]], "seed": 9, "base": 9, "cancel": 0.3}]


def _event(home: Deployment, count: int, number: int) -> int:
    """Kill the busiest replica, or change the version; return how many versions were added."""
    if count % 2:
        ready = home.ready(f"m:{number}")
        if ready:
            os.kill(max(ready, key=lambda replica: (replica.in_flight, replica.answered)).pid, signal.SIGKILL)
        return 0
    home.deploy(home.file(told(number + 1, layers=1)), "m", "--detach")
    return 1


def _flat(course: Course, name: str, after: float) -> Line:
    found = {measure: course.growth(name, measure, after=after) for measure in MEASURES}
    memory = found["anonymous_mb"]
    most = max(_MOST_SHARE * memory["mean"], _MOST_MB)
    is_flat = memory["growth"] - 2 * memory["error"] <= most and all(
        found[measure]["growth"] - 2 * found[measure]["error"] < 1.0 for measure in ("descriptors", "threads")
    )
    return line(
        f"{name}: growth over {memory['seconds']:.0f} s after the warm-up",
        f"{memory['growth']:+.2f} MB of {memory['mean']:.1f} (PSS {found['pss_mb']['mean']:.1f}), "
        f"{found['descriptors']['growth']:+.1f} of {found['descriptors']['mean']:.0f} descriptors, "
        f"{found['threads']['growth']:+.1f} of {found['threads']['mean']:.0f} threads",
        f"{most:.1f} MB, no descriptor, no thread",
        is_flat,
        **found,
    )
