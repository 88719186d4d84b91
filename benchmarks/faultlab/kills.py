"""Replicas killed and frozen under load, always the busiest: what callers notice, and how soon all are back."""

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

from faultlab.deployment import Deployment, until
from faultlab.load import Heard, clients, stop_all
from faultlab.models import told
from faultlab.report import Line, line

Quiet = Callable[[], AbstractContextManager[None]]

REPLICAS = 2
LAYERS = 8  # about 3 ms
RATE = 120.0  # requests per second, some four tenths of what two replicas can do
_PATIENCE_S = 60.0
_BACK_S = 3.0


def run(quiet: Quiet, *, kills: int = 50, freezes: int = 10, gateways: int = 5) -> list[Line]:
    """Measure."""
    lines = []
    with Deployment() as home:
        home.shape("m", REPLICAS)
        home.deploy(home.file(told(1, layers=LAYERS)))
        home.settle("m:1", REPLICAS)
        with quiet():
            load_s = _hit(home, signal.SIGKILL)["started_to_ready_s"]
        for number, count in ((signal.SIGKILL, kills), (signal.SIGSTOP, freezes)):
            lines += _part(home, quiet, number, count, load_s)
        with quiet():
            lines.append(_gateway_part(home, gateways))
    return lines


def _part(home: Deployment, quiet: Quiet, number: int, count: int, load_s: float) -> list[Line]:
    what = "killed" if number == signal.SIGKILL else "frozen"
    hits: list[dict[str, float]] = []
    heard: list[Heard] = []
    # In pieces, so that others who measure on this machine get their turn.
    for piece in _pieces(count, 20 if number == signal.SIGKILL else 5):
        with quiet(), clients(*_load(home)) as running:
            time.sleep(1.0)
            hits += [_hit(home, number) for _ in range(piece)]
            time.sleep(1.0)
            heard.append(stop_all(running))
    requests = sum(len(h.rows) for h in heard)
    failed = sum(len(h.failed) for h in heard)
    outcomes = [h.outcomes() for h in heard]
    back = sorted(hit["back_s"] for hit in hits)
    replayed = home.status().endpoints[0].replayed
    return [
        line(
            f"the busiest of {REPLICAS} replicas {what} {count} times: failed requests",
            f"{failed} of {requests}",
            "0",
            failed == 0,
            outcomes=outcomes,
            replayed=replayed,
            failures=[h.failures[:20] for h in heard if h.failures],
            latency_ms={p: [round(h.latency_ms(p), 2) for h in heard] for p in (50, 99, 100)},
        ),
        line(
            f"{what}: all replicas ready again",
            f"median {back[len(back) // 2]:.2f} s, longest {back[-1]:.2f} s",
            f"{_BACK_S:g} s and the model's {load_s:.2f} s",
            back[-1] <= _BACK_S + load_s,
            model_load_s=load_s,
            hits=hits,
        ),
    ]


def _gateway_part(home: Deployment, count: int) -> Line:
    """Kill the gateway: what it held is lost, as with any server, so what counts is how soon it answers again."""
    moments = []
    with clients([{"kind": "reconnect", "port": home.port, "schedule": [[3600.0, RATE / 2]], "seed": 4}]) as running:
        for _ in range(count):
            until(lambda: len(home.ready("m:1")) >= REPLICAS)
            time.sleep(1.0)
            (gateway,) = home.processes("gateway")
            moments.append(time.monotonic())
            os.kill(gateway.pid, signal.SIGKILL)
            until(lambda: home.status().pid != gateway.pid)  # noqa: B023
        until(lambda: len(home.ready("m:1")) >= REPLICAS)
        time.sleep(1.0)
        heard = stop_all(running)
    answered = heard.answered
    back = sorted(float(answered["done"][answered["sent"] > moment].min() - moment) for moment in moments)
    return line(
        f"the gateway killed {count} times: the first answer after it",
        f"median {back[len(back) // 2]:.2f} s, longest {back[-1]:.2f} s; {len(heard.failed)} requests lost meanwhile",
        f"{_BACK_S:g} s",
        back[-1] <= _BACK_S,
        back_s=[round(seconds, 3) for seconds in back],
        outcomes=heard.outcomes(),
    )


def _load(home: Deployment) -> list[list[dict[str, Any]]]:
    """Return clients of several kinds: connections kept, connections made anew, JSON, binary."""
    hour = 3600.0
    return [
        [
            {"kind": "json", "port": home.port, "schedule": [[hour, RATE / 3]], "seed": 1},
            {"kind": "binary", "port": home.port, "schedule": [[hour, RATE / 3]], "seed": 2},
            {"kind": "reconnect", "port": home.port, "schedule": [[hour, RATE / 3]], "seed": 3},
        ]
    ]


def _hit(home: Deployment, number: int) -> dict[str, float]:
    """Kill or freeze the busiest replica, and time the return of the full count."""
    ready = home.ready("m:1")
    before = {replica.id for replica in home.replicas()}
    victim = max(ready, key=lambda replica: (replica.in_flight, replica.answered))
    begun, begun_wall = time.monotonic(), time.time()
    os.kill(victim.pid, number)

    def others() -> Sequence[object]:
        found = [replica for replica in home.ready("m:1") if replica.pid != victim.pid]
        return found if len(found) >= REPLICAS else ()

    until(others, _PATIENCE_S)
    back = time.monotonic() - begun
    fresh = [info.started for info in home.processes("replica") if info.name not in before]
    started = (min(fresh) if fresh else begun_wall) - begun_wall
    return {
        "in_flight": victim.in_flight,
        "back_s": round(back, 3),
        "hit_to_start_s": round(started, 3),
        "started_to_ready_s": round(back - started, 3),
    }


def _pieces(count: int, most: int) -> list[int]:
    return [min(most, count - at) for at in range(0, count, most)]
