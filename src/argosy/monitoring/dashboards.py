"""The dashboards: what each panel shows, in one table, and their form for Grafana.

tests/integration/test_dashboards.py runs every query against a real Prometheus under load; one without data fails it.
"""

from typing import Any, Literal

import msgspec


class Panel(msgspec.Struct, frozen=True):
    """One picture: what it is called, its queries with their legends, and its unit as Grafana calls it."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: Literal["timeseries", "stat"] = "timeseries"
    is_wide: bool = False


class Dashboard(msgspec.Struct, frozen=True):
    """One page."""

    title: str
    panels: tuple[Panel, ...]


def _ratio(over: str, under: str) -> str:
    return f"{over} / ({under})"


def _quantile(q: float, metric: str, by: str) -> str:
    return f"histogram_quantile({q}, sum by ({by}, le) (rate({metric}_bucket[$__rate_interval])))"


ENDPOINTS = Dashboard(
    "Argosy: endpoints",
    (
        Panel("Gateway", (("up{job='argosy-gateway'}", "up"),), kind="stat"),
        Panel("Controller", (("up{job='argosy-controller'}", "up"),), kind="stat"),
        Panel(
            "Requests per second",
            (
                (
                    "sum by (endpoint, version) (rate(argosy_requests_total[$__rate_interval]))",
                    "{{endpoint}} {{version}}",
                ),
            ),
            "reqps",
            is_wide=True,
        ),
        Panel(
            "Failed, of all",
            (
                (
                    _ratio(
                        "sum by (endpoint) (rate(argosy_failed_total[$__rate_interval]))",
                        "sum by (endpoint) (rate(argosy_requests_total[$__rate_interval])) > 0",
                    ),
                    "{{endpoint}}",
                ),
            ),
            "percentunit",
        ),
        Panel(
            "Answers by code",
            (("sum by (code) (rate(argosy_requests_total[$__rate_interval]))", "{{code}}"),),
            "reqps",
        ),
        Panel(
            "Time to answer",
            (
                (_quantile(0.5, "argosy_request_seconds", "endpoint"), "{{endpoint}} p50"),
                (_quantile(0.99, "argosy_request_seconds", "endpoint"), "{{endpoint}} p99"),
                ("argosy_latency_objective_seconds", "{{endpoint}} objective"),
            ),
            "s",
        ),
        Panel(
            "Waiting, and how many may",
            (("argosy_queue_requests", "{{version}}"), ("argosy_queue_limit", "{{version}} limit")),
        ),
        Panel("Failover", (("argosy_failover_active", "{{endpoint}}"),), kind="stat"),
        Panel("Connections", (("argosy_connections", "open"),)),
    ),
)

ROLLOUT = Dashboard(
    "Argosy: rollouts",
    (
        Panel("Phase", (("argosy_rollout_phase == 1", "{{endpoint}} {{phase}}"),), kind="stat"),
        Panel("Verdict", (("argosy_rollout_verdict == 1", "{{endpoint}} {{verdict}}"),), kind="stat"),
        Panel("Share of the new version", (("argosy_rollout_share", "{{endpoint}}"),), "percentunit"),
        Panel("Step", (("argosy_rollout_step", "{{endpoint}}"),)),
        Panel(
            "Evidence that the new version is worse, and where it is rolled back",
            (("argosy_rollout_evidence", "{{endpoint}}"), ("argosy_rollout_evidence_limit", "{{endpoint}} limit")),
            is_wide=True,
        ),
        Panel("Evidence by metric", (("argosy_rollout_metric_evidence", "{{endpoint}} {{metric}}"),)),
        Panel("Assurance by metric", (("argosy_rollout_metric_assurance", "{{endpoint}} {{metric}}"),)),
        Panel("Windows judged", (("argosy_rollout_windows", "{{endpoint}}"),)),
        Panel(
            "Requests failed at first, by version",
            (
                (
                    "sum by (endpoint, version) (rate(argosy_first_failures_total[$__rate_interval]))",
                    "{{endpoint}} {{version}}",
                ),
            ),
            "reqps",
        ),
        Panel(
            "Time to answer by version",
            ((_quantile(0.99, "argosy_request_seconds", "endpoint, version"), "{{endpoint}} {{version}} p99"),),
            "s",
        ),
        Panel(
            "Ended in the last day",
            (("sum by (outcome) (increase(argosy_rollouts_total[1d]))", "{{outcome}}"),),
            kind="stat",
        ),
    ),
)

REPLICAS = Dashboard(
    "Argosy: replicas",
    (
        Panel(
            "Wanted and ready",
            (("argosy_replicas_wanted", "{{version}} wanted"), ("argosy_replicas_ready", "{{version}} ready")),
        ),
        Panel("By state", (("sum by (version, state) (argosy_replicas)", "{{version}} {{state}}"),)),
        Panel(
            "Ended unasked, in ten minutes",
            (("increase(argosy_replica_failures_total[10m])", "{{version}}"),),
        ),
        Panel("Time of a batch", ((_quantile(0.95, "argosy_run_seconds", "version"), "{{version}} p95"),), "s"),
        Panel("Time in the queue", ((_quantile(0.95, "argosy_queue_seconds", "version"), "{{version}} p95"),), "s"),
        Panel(
            "Requests per batch",
            (
                (
                    _ratio(
                        "sum by (version) (rate(argosy_batch_requests_sum[$__rate_interval]))",
                        "sum by (version) (rate(argosy_batch_requests_count[$__rate_interval]))",
                    ),
                    "{{version}}",
                ),
            ),
        ),
        Panel("Processes", (("argosy_processes", "{{role}}"),)),
        Panel("Memory by role", (("argosy_process_memory_bytes", "{{role}}"),), "bytes"),
        Panel(
            "What the controller does",
            (("sum by (event) (increase(argosy_controller_events_total[5m]))", "{{event}}"),),
            is_wide=True,
        ),
    ),
)

TRAINING = Dashboard(
    "Argosy: training and this machine",
    (
        Panel("Stages under way", (("argosy_stages_running", "{{stage}}"),), kind="stat"),
        Panel("Done", (("argosy_stage_done_ratio", "{{stage}}"),), "percentunit"),
        Panel("Time left", (("argosy_stage_left_seconds", "{{stage}}"),), "s"),
        Panel("Loss", (("argosy_training_loss", "training {{slot}}"),)),
        Panel("Samples per second", (("argosy_training_samples_per_second", "training {{slot}}"),)),
        Panel("Steps", (("argosy_training_step", "training {{slot}}"),)),
        Panel("Stages finished", (("argosy_stages_finished_total", "{{stage}}"),)),
        Panel("Runs started", (("argosy_runs_started_total", "runs"),), kind="stat"),
        Panel(
            "Cores at work",
            (("rate(argosy_host_cpu_seconds_total[$__rate_interval])", "busy"), ("argosy_host_cpu_cores", "there are")),
        ),
        Panel(
            "Memory",
            (("argosy_host_memory_bytes", "there is"), ("argosy_host_memory_free_bytes", "free")),
            "bytes",
        ),
        Panel("Room on the disk", (("argosy_host_disk_free_bytes", "free"),), "bytes"),
        Panel("Alerts received", (("argosy_alerts_received_total", "{{outcome}}"),)),
    ),
)

JOBS = Dashboard(
    "Argosy: jobs and updates",
    (
        Panel("Jobs", (("argosy_jobs", "{{state}}"),), kind="stat"),
        Panel("The longest wait", (("argosy_jobs_oldest_wait_seconds", "since submitted"),), "s", kind="stat"),
        Panel("Waiting and running", (("argosy_jobs", "{{state}}"),), is_wide=True),
        Panel(
            "Cores set aside for jobs",
            (("argosy_jobs_reserved_cores", "set aside"), ("argosy_host_cpu_cores", "there are")),
        ),
        Panel(
            "Memory set aside for jobs",
            (("argosy_jobs_reserved_memory_bytes", "set aside"), ("argosy_host_memory_bytes", "there is")),
            "bytes",
        ),
        Panel("Ended", (("argosy_jobs_ended_total", "{{outcome}}"),)),
        Panel("Attempts stopped or lost", (("argosy_jobs_interrupted_total", "attempts"),)),
        Panel("Updates under way", (("argosy_update_active", "{{endpoint}}"),), kind="stat"),
        Panel("Updates ended", (("argosy_updates_ended_total", "{{endpoint}} {{outcome}}"),)),
    ),
)

DASHBOARDS = {
    "argosy-endpoints": ENDPOINTS,
    "argosy-rollouts": ROLLOUT,
    "argosy-replicas": REPLICAS,
    "argosy-training": TRAINING,
    "argosy-jobs": JOBS,
}

_SOURCE = {"type": "prometheus", "uid": "argosy"}
_COLUMNS, _HEIGHT = 24, 8


def as_grafana(name: str, board: Dashboard) -> dict[str, Any]:
    """Return a dashboard as Grafana's JSON."""
    panels: list[dict[str, Any]] = []
    x = y = 0
    for number, panel in enumerate(board.panels, start=1):
        width = _COLUMNS if panel.is_wide else _COLUMNS // 2
        if x + width > _COLUMNS:
            x, y = 0, y + _HEIGHT
        place = {"x": x, "y": y, "w": width, "h": _HEIGHT}
        panels.append(_panel(number, panel, place))
        x += width
    return {
        "uid": name,
        "title": board.title,
        "tags": ["argosy"],
        "schemaVersion": 36,
        "version": 1,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "panels": panels,
        "templating": {"list": []},
        "annotations": {"list": []},
    }


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": _SOURCE, "expr": query, "legendFormat": legend}
        for i, (query, legend) in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "title": panel.title,
        "type": panel.kind,
        "datasource": _SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"legend": {"displayMode": "list", "placement": "bottom"}} if panel.kind == "timeseries" else {},
    }
