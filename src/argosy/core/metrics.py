"""The names of everything an operator counts, in one table. Prometheus naming: base units, `_total` for counters."""

from typing import Literal

import msgspec

Part = Literal["gateway", "controller", "monitor"]
"""Which process exposes a metric."""


class Metric(msgspec.Struct, frozen=True):
    """One metric: what kind it is, what it says, and its labels, each of a bounded set."""

    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    buckets: tuple[float, ...] = ()
    part: Part = "gateway"


_LATENCY = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def _controller(text: str, *labels: str) -> Metric:
    return Metric("gauge", text, labels, part="controller")


def _monitor(text: str, *labels: str) -> Metric:
    return Metric("gauge", text, labels, part="monitor")


METRICS: dict[str, Metric] = {
    "argosy_requests_total": Metric("counter", "Requests answered, by outcome.", ("endpoint", "version", "code")),
    "argosy_failed_total": Metric(
        "counter", "Answers among them that say the service failed, not the caller.", ("endpoint",)
    ),
    "argosy_first_failures_total": Metric(
        "counter", "Requests that a version failed at first, another's answer or not.", ("endpoint", "version")
    ),
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
    "argosy_controller_started_seconds": _controller("When this controller started, in seconds since 1970."),
    "argosy_controller_look_age_seconds": _controller("Time since the controller last looked at the world."),
    "argosy_controller_events_total": Metric(
        "counter",
        "What the controller did or met, by the event of its log: elections, moves, a store that fails.",
        ("event",),
        part="controller",
    ),
    "argosy_gateway_wanted": _controller("1 while a gateway is to run, else 0."),
    "argosy_replicas_wanted": _controller("Replicas that are to run.", "version"),
    "argosy_replicas_ready": _controller("Replicas that can take requests now.", "version"),
    "argosy_replica_failures_total": Metric(
        "counter", "Replicas that ended unasked or could not start.", ("version",), part="controller"
    ),
    "argosy_endpoint_wanted_replicas": _controller(
        "Replicas that an endpoint's current version is to have.", "endpoint"
    ),
    "argosy_endpoint_ready_replicas": _controller("Ready replicas of an endpoint's current version.", "endpoint"),
    "argosy_latency_objective_seconds": _controller("What `[endpoint] latency_p99` allows.", "endpoint"),
    "argosy_rollouts_total": Metric(
        "counter", "Rollouts that ended, by outcome.", ("endpoint", "outcome"), part="controller"
    ),
    "argosy_rollout_phase": _controller("1 for the phase a rollout is in, 0 for the others.", "endpoint", "phase"),
    "argosy_rollout_step": _controller("The step a rollout is at, counted from 0.", "endpoint"),
    "argosy_rollout_verdict": _controller("1 for what the judge says now, 0 for the others.", "endpoint", "verdict"),
    "argosy_rollout_windows": _controller("Windows of requests the judge has seen of a rollout.", "endpoint"),
    "argosy_rollout_evidence": _controller("Evidence that the new version is worse, all metrics together.", "endpoint"),
    "argosy_rollout_evidence_limit": _controller("The evidence at which a rollout is rolled back.", "endpoint"),
    "argosy_rollout_metric_evidence": _controller(
        "A metric's part of the evidence that the new version is worse.", "endpoint", "metric"
    ),
    "argosy_rollout_metric_assurance": _controller(
        "Evidence that the new version is not much worse in a metric.", "endpoint", "metric"
    ),
    "argosy_monitor_up": _monitor("1 while a tool that the monitor keeps running does run.", "tool"),
    "argosy_monitor_restarts_total": Metric(
        "counter", "Starts of a tool after it had ended unasked.", ("tool",), part="monitor"
    ),
    "argosy_alerts_received_total": Metric(
        "counter", "Alerts that Alertmanager sent, by what became of them.", ("outcome",), part="monitor"
    ),
    "argosy_alert_requests_refused_total": Metric(
        "counter", "Requests to the receiver that were refused, by reason.", ("reason",), part="monitor"
    ),
    "argosy_host_cpu_cores": _monitor("Cores that Argosy may use on this machine."),
    "argosy_host_cpu_seconds_total": Metric("counter", "CPU time that all cores have worked.", (), part="monitor"),
    "argosy_host_memory_bytes": _monitor("Memory of this machine, or of the container."),
    "argosy_host_memory_free_bytes": _monitor("Memory that may still be used."),
    "argosy_host_disk_free_bytes": _monitor("Room left on the disk of ARGOSY_HOME."),
    "argosy_processes": _monitor("Living processes of this home, by what they are for.", "role"),
    "argosy_process_memory_bytes": _monitor("Memory of all processes of a role together.", "role"),
    "argosy_stages_running": _monitor("Stages of runs under way.", "stage"),
    "argosy_stage_done_ratio": _monitor("How much of a running stage is done, the least of those under way.", "stage"),
    "argosy_stage_left_seconds": _monitor("Time a running stage still needs, the greatest.", "stage"),
    "argosy_training_loss": _monitor("Loss of a running training, as it tells it.", "slot"),
    "argosy_training_samples_per_second": _monitor("Samples a running training takes per second.", "slot"),
    "argosy_training_step": _monitor("Steps a running training has done.", "slot"),
    "argosy_stages_finished_total": Metric(
        "counter", "Stages of runs that were finished, by the log.", ("stage",), part="monitor"
    ),
    "argosy_runs_started_total": Metric("counter", "Runs that were started, by the log.", (), part="monitor"),
    "argosy_jobs": _monitor("Jobs that have not ended, by state.", "state"),
    "argosy_jobs_oldest_wait_seconds": _monitor("Time since the job that waits longest was submitted."),
    "argosy_jobs_reserved_cores": _monitor("Cores set aside for jobs that run."),
    "argosy_jobs_reserved_memory_bytes": _monitor("Memory set aside for jobs that run."),
    "argosy_jobs_reserved_gpus": _monitor("GPUs set aside for jobs that run."),
    "argosy_jobs_ended_total": Metric("counter", "Jobs that ended, by outcome.", ("outcome",), part="monitor"),
    "argosy_jobs_interrupted_total": Metric(
        "counter", "Attempts of jobs that were stopped or lost before their job had ended.", (), part="monitor"
    ),
    "argosy_update_active": _monitor("1 while an update of the endpoint is under way.", "endpoint"),
    "argosy_updates_ended_total": Metric(
        "counter", "Updates that ended, by outcome.", ("endpoint", "outcome"), part="monitor"
    ),
}
