"""An open loop at up to ten times the capacity: what is answered in time, refused how fast, and run in vain."""

import time
from typing import Any

import numpy as np

from faultlab.deployment import Deployment, until
from faultlab.kills import Quiet
from faultlab.load import Heard, clients, stop_all
from faultlab.models import told
from faultlab.report import Line, line
from faultlab.vitals import cpu_s

LAYERS = 40  # 6 ms and more, so that ten times the capacity is little for gateway and client
DEADLINE_S = 0.25
"""Of every request; a bound of the histogram `argosy_queue_seconds`, so that what was dispatched later can be read."""
FACTORS = (0.5, 1, 2, 3, 5, 7, 10)
_SECONDS = 4.0
_ROUNDS = 3
"""Over all rates, one after the other: others make the machine a fifth faster or slower for seconds at a time."""
_CONNECTIONS = 32
_REFUSED_MS = 5.0


def run(
    quiet: Quiet, *, factors: tuple[float, ...] = FACTORS, seconds: float = _SECONDS, rounds: int = _ROUNDS
) -> list[Line]:
    """Measure."""
    with Deployment() as home:
        home.shape("m", 1)
        home.deploy(home.file(told(1, layers=LAYERS)))
        home.settle("m:1", 1)
        with quiet():
            capacity = _capacity(home, seconds)
            steps = [_step(home, capacity, factor, seconds) for _ in range(rounds) for factor in factors]
    return _lines(capacity, steps)


def _capacity(home: Deployment, seconds: float) -> float:
    """Return the requests per second of a closed loop that always has enough under way."""
    loop = [{"kind": "binary", "port": home.port, "connections": _CONNECTIONS}]
    with clients(loop) as running:
        time.sleep(1.0 + seconds)
        heard = stop_all(running)
    begun = float(heard.rows["due"].min()) + 1.0
    inside = heard.answered[(heard.answered["done"] >= begun) & (heard.answered["done"] < begun + seconds)]
    return len(inside) / seconds


def _step(home: Deployment, capacity: float, factor: float, seconds: float) -> dict[str, Any]:
    """Measure one rate."""
    until(lambda: home.status().endpoints[0].waiting == 0)
    pids = {"gateway": home.processes("gateway")[0].pid, "replica": home.ready("m:1")[0].pid}
    before, used, begun = _counts(home), {name: cpu_s(pid) for name, pid in pids.items()}, time.monotonic()
    loop = [
        {
            "kind": "binary",
            "port": home.port,
            "schedule": [[seconds, capacity * factor]],
            "seed": int(factor * 10),
            "timeout": f"{DEADLINE_S * 1000:.0f}ms",
            "connections": 64,
        }
    ]
    with clients(loop) as running:
        heard = running[0].finished()
    after, took = _counts(home), time.monotonic() - begun
    used = {name: cpu_s(pid) - used[name] for name, pid in pids.items()}
    answered = heard.answered
    in_time = answered[answered["done"] - answered["due"] <= DEADLINE_S]
    refused = heard.rows[heard.rows["status"] == 503]
    waits = (refused["done"] - refused["sent"]) * 1e3
    return {
        "factor": factor,
        "asked_per_s": round(len(heard.rows) / seconds, 1),
        "goodput_per_s": round(len(in_time) / seconds, 1),
        "accepted_p50_ms": round(heard.latency_ms(50), 1),
        "accepted_p99_ms": round(heard.latency_ms(99), 1),
        "refused": len(refused),
        "refused_p50_ms": _percentile(waits, 50),
        "refused_p99_ms": _percentile(waits, 99),
        "refused_longest_ms": _percentile(waits, 100),
        "late": int(np.sum(heard.rows["status"] == 504)),
        "dispatched_after_deadline": after["dispatched_late"] - before["dispatched_late"],
        "run_in_vain": after["run"] - before["run"] - len(answered),
        "outcomes": heard.outcomes(),
        # Of one core: when the replica gets less than one while requests are refused, others took it.
        "replica_cpu_share": round(used["replica"] / took, 3),
        "gateway_cpu_ms_per_request": round(used["gateway"] / len(heard.rows) * 1e3, 4),
        "client_cpu_share": round(heard.cpu_share, 3),
        "client_lag_p99_ms": round(heard.lag_ms(99), 2),
        "no_retry_after": sum(count for name, count in heard.outcomes().items() if "without retry-after" in name),
        "unexplained": _unexplained(heard),
    }


def _percentile(values: "np.ndarray[Any, Any]", percentile: float) -> float:
    return round(float(np.percentile(values, percentile)), 2) if len(values) else 0.0


def _unexplained(heard: Heard) -> list[dict[str, Any]]:
    return [failure for failure in heard.failures if failure["status"] not in (503, 504)][:20]


def _counts(home: Deployment) -> dict[str, float]:
    """Return what the gateway has counted: requests run by replicas, and those handed to one too late."""
    bound = str(DEADLINE_S)
    return {
        "dispatched_late": home.metric("argosy_queue_seconds_bucket", le="+Inf")
        - home.metric("argosy_queue_seconds_bucket", le=bound),
        "run": home.metric("argosy_queue_seconds_count"),
    }


def _lines(capacity: float, steps: list[dict[str, Any]]) -> list[Line]:
    goodputs = {factor: _median(steps, factor, "goodput_per_s") for factor in FACTORS}
    goodput = goodputs[5] / max(goodputs.values())
    hard, even = (_median(steps, factor, "accepted_p99_ms") for factor in (5, 1))
    slower = hard / even
    vain = sum(step["dispatched_after_deadline"] for step in steps)
    over = [step for step in steps if step["factor"] > 1]
    refused_p99 = max(_median(over, factor, "refused_p99_ms") for factor in FACTORS if factor > 1)
    longest = max(step["refused_longest_ms"] for step in over)
    no_hint = sum(step["no_retry_after"] for step in steps)
    strange = [one for step in steps for one in step["unexplained"]]
    curve = ", ".join(f"{factor:g}x {value:.0f}/s" for factor, value in goodputs.items())
    return [
        line(
            "goodput at 5x of the capacity",
            f"{goodput:.1%} of the peak ({curve}; capacity {capacity:.0f}/s)",
            "at least 90 %",
            goodput >= 0.9 and not strange,
            capacity_per_s=round(capacity, 1),
            steps=steps,
        ),
        line(
            "p99 of accepted requests at 5x",
            f"{hard:.0f} ms against {even:.0f} ms at 1x: {slower:.2f}x",
            "2x",
            slower <= 2.0,
        ),
        line(
            "requests handed to a replica after their deadline, at all rates",
            f"{vain:.0f} of {sum(len_asked(step) for step in steps):.0f}",
            "0",
            vain == 0,
            run_in_vain={factor: sum(s["run_in_vain"] for s in steps if s["factor"] == factor) for factor in FACTORS},
        ),
        line(
            "time to refuse, above the capacity",
            f"p99 {refused_p99:.1f} ms, longest {longest:.1f} ms; {no_hint} without Retry-After",
            f"{_REFUSED_MS:g} ms (p99), all with Retry-After",
            refused_p99 <= _REFUSED_MS and not no_hint and all(step["refused"] for step in over),
        ),
    ]


def _median(steps: list[dict[str, Any]], factor: float, name: str) -> float:
    """Return the median of a figure over the rounds at one rate."""
    return float(np.median([step[name] for step in steps if step["factor"] == factor]))


def len_asked(step: dict[str, Any]) -> float:
    """Return how many requests a step sent."""
    return float(sum(step["outcomes"].values()))
