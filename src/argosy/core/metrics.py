"""The names of everything an operator counts, in one table. Prometheus naming: base units, `_total` for counters."""

from typing import Literal

import msgspec


class Metric(msgspec.Struct, frozen=True):
    """One metric: what kind it is, what it says, and its labels, each of a bounded set."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()


_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

METRICS: dict[str, Metric] = {
    "argosy_requests_total": Metric("counter", "Requests answered, by outcome.", ("endpoint", "version", "code")),
    "argosy_request_seconds": Metric(
        "histogram", "Time from the whole request read to its answer written.", ("endpoint", "version"), _LATENCY
    ),
    "argosy_queue_seconds": Metric("histogram", "Time a request waited for a replica.", ("endpoint",), _LATENCY),
    "argosy_batch_requests": Metric(
        "histogram", "Requests run together.", ("endpoint",), (1, 2, 4, 8, 16, 32, 64, 128)
    ),
    "argosy_queue_requests": Metric("gauge", "Requests waiting for a replica.", ("version",)),
    "argosy_replicas": Metric("gauge", "Replicas connected to the gateway.", ("version",)),
    "argosy_replays_total": Metric(
        "counter", "Requests given to another replica or version after a failure.", ("endpoint", "reason")
    ),
    "argosy_refused_total": Metric("counter", "Requests refused before they were queued, by reason.", ("reason",)),
    "argosy_mirrored_pairs_total": Metric("counter", "Requests also answered by the other version.", ("endpoint",)),
    "argosy_rollout_share": Metric("gauge", "Share of requests drawn for the canary.", ("endpoint",)),
}
