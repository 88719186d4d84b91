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
    "argosy_queue_seconds": Metric("histogram", "Time a request waited for a replica.", ("version",), _LATENCY),
    "argosy_run_seconds": Metric(
        "histogram", "Time a replica took for a batch, preparation and finishing included.", ("version",), _LATENCY
    ),
    "argosy_batch_requests": Metric("histogram", "Requests run together.", ("version",), (1, 2, 4, 8, 16, 32, 64, 128)),
    "argosy_batch_rows": Metric("histogram", "Rows run together.", ("version",), (1, 2, 4, 8, 16, 32, 64, 128, 256)),
    "argosy_text_bytes_total": Metric("counter", "Bytes of the texts that were run, without padding.", ("version",)),
    "argosy_padding_bytes_total": Metric(
        "counter",
        "Bytes by which texts were shorter than the longest of their batch: what padding wasted.",
        ("version",),
    ),
    "argosy_expired_total": Metric(
        "counter",
        "Requests whose time was over: while they waited (nothing was run), or while they ran.",
        ("endpoint", "stage"),
    ),
    "argosy_hedges_total": Metric(
        "counter", "Second copies of slow requests, by whether the copy won.", ("endpoint", "outcome")
    ),
    "argosy_queue_requests": Metric("gauge", "Requests waiting for a replica.", ("version",)),
    "argosy_queue_limit": Metric("gauge", "Requests that may wait for a replica at the present pace.", ("version",)),
    "argosy_replicas": Metric("gauge", "Replicas connected to the gateway, by state.", ("version", "state")),
    "argosy_fronts": Metric("gauge", "Front processes connected to the gateway; 0 where it speaks HTTP itself.", ()),
    "argosy_connections": Metric("gauge", "Open connections of callers.", ()),
    "argosy_replays_total": Metric(
        "counter", "Requests given to another replica or version after a failure.", ("endpoint", "reason")
    ),
    "argosy_refused_total": Metric("counter", "Requests refused before they were queued, by reason.", ("reason",)),
    "argosy_mirrored_pairs_total": Metric("counter", "Requests also answered by the other version.", ("endpoint",)),
    "argosy_failovers_total": Metric(
        "counter",
        "Times that an endpoint's version failed everywhere and another was to answer.",
        ("endpoint", "cause"),
    ),
    "argosy_failover_active": Metric("gauge", "1 while another version answers for the endpoint's own.", ("endpoint",)),
    "argosy_rollout_share": Metric("gauge", "Share of requests drawn for the canary.", ("endpoint",)),
}
