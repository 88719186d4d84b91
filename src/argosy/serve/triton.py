"""What Triton's clients ask a server beside the protocol: a model's configuration, counts, parameters. Pure.

Source: Triton's `protocol/extension_model_configuration.md`, `extension_statistics.md`, `extension_schedule_policy.md`.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from argosy.core.errors import InvalidInput, NotFound
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve.counters import Counters

PLATFORM = "argosy_onnx"
EXTENSIONS = ("binary_tensor_data", "model_repository", "model_configuration", "statistics")
"""Those of the protocol and of Triton that the HTTP side speaks, by Triton's names."""
MAX_TIMEOUT_S = 600.0
# Parameters of a request that ask for another answer than the one that would be given.
_UNSUPPORTED: Mapping[str, str] = {
    "sequence_id": "requests are independent of each other here",
    "shared_memory_region": "tensors travel in the request",
    "classification": "ask for the output as it is",
}
# What these clients can ask for in a server that keeps models itself; the reason why it is not offered here.
_NOT_OFFERED: Mapping[str, str] = {
    "load": "versions are put into service by: argosy deploy",
    "unload": "endpoints are taken out of service by: argosy endpoints remove",
    "systemsharedmemory": "tensors are sent with the request, also by callers on this machine",
    "cudasharedmemory": "tensors are sent with the request",
    "trace": "there are no traces; see /metrics",
    "logging": "the log's level is the setting ARGOSY_LOG_LEVEL",
}


def not_offered(parts: list[str]) -> NotFound | None:
    """Return the error for a path of Triton's that has no meaning here, None if `parts` is not one."""
    what = ""
    match parts:
        case ["v2", "repository", "models", _, ("load" | "unload") as what]:
            pass
        case ["v2", ("systemsharedmemory" | "cudasharedmemory" | "trace" | "logging") as what, *_]:
            pass
        case ["v2", "models", _, ("trace") as what, *_]:
            pass
    if not what:
        return None
    # Triton's clients show their users the message and nothing else.
    return NotFound(f"'/{'/'.join(parts)[:200]}' is not offered here: {_NOT_OFFERED[what]}", code="not_offered")


def refuse_parameters(parameters: Any, where: str) -> None:
    """Raise InvalidInput for a parameter whose effect callers would miss; others that are not known do nothing."""
    for name, why in _UNSUPPORTED.items():
        if name in parameters:
            raise InvalidInput(
                f"the parameter {name} is not supported: {why} - at `{where}.parameters`",
                code="unsupported_parameter",
                path=f"{where}.parameters.{name}",
            )


def timeout_of(parameters: Mapping[str, Any]) -> float:
    """Return the seconds that the parameter `timeout` (microseconds) gives a request, 0 when there is none."""
    found = parameters.get("timeout", 0)
    if isinstance(found, bool) or not isinstance(found, int) or found < 0:
        raise InvalidInput(
            f"the parameter timeout is {str(found)[:40]!r}; give microseconds, a whole number - at `$.parameters`",
            code="bad_timeout",
            path="$.parameters.timeout",
        )
    return min(MAX_TIMEOUT_S, found / 1e6)


def model_config(name: str, signature: Signature, max_batch: int) -> dict[str, Any]:
    """Return a model's configuration, `GET /v2/models/{name}/config`.

    `max_batch`: rows that a replica runs together, 0 where none is known. A request may have more rows than that.
    """
    is_batched = signature.is_batched and max_batch > 0

    def tensor(spec: TensorSpec) -> dict[str, Any]:
        kind = "STRING" if spec.datatype == "BYTES" else spec.datatype
        # In this form the batch dimension stands in max_batch_size only.
        dims = spec.shape[1:] if is_batched else spec.shape
        return {"name": spec.name, "data_type": f"TYPE_{kind}", "dims": list(dims)}

    return {
        "name": name,
        "platform": PLATFORM,
        "backend": PLATFORM,
        "max_batch_size": max_batch if is_batched else 0,
        "input": [tensor(spec) for spec in signature.inputs],
        "output": [tensor(spec) for spec in signature.outputs],
    }


def statistics(counters: Counters, versions: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return counts since the gateway started, for (endpoint, name of a version) each: `GET /v2/models/{name}/stats`.

    What the gateway does not tell apart stays 0: `compute_input` and `compute_output` are part of `compute_infer`. Time
    and batches are those of the version, in all endpoints that serve it.
    """
    answered: dict[tuple[str, str], list[int]] = {}
    for (endpoint, ref, code), value in counters.series("argosy_requests_total"):
        good_and_bad = answered.setdefault((endpoint, ref), [0, 0])
        good_and_bad[code != "ok"] += int(value)
    return {
        "model_stats": [_of_version(counters, name, ref, *answered.get((name, ref), (0, 0))) for name, ref in versions]
    }


def _of_version(counters: Counters, name: str, ref: str, good: int, bad: int) -> dict[str, Any]:
    count, seconds = counters.summed("argosy_request_seconds", name, ref)
    waited, waiting_s = counters.summed("argosy_queue_seconds", ref)
    runs, running_s = counters.summed("argosy_run_seconds", ref)
    _, rows = counters.summed("argosy_batch_rows", ref)
    nothing = {"count": 0, "ns": 0}
    # One histogram holds the time of all outcomes; failures rarely take long enough to matter.
    mean_ns = seconds / count * 1e9 if count else 0.0
    return {
        "name": name,
        "version": ref.rpartition(":")[2],
        "last_inference": 0,
        "inference_count": int(rows),
        "execution_count": runs,
        "inference_stats": {
            "success": {"count": good, "ns": int(good * mean_ns)},
            "fail": {"count": bad, "ns": int(bad * mean_ns)},
            "queue": {"count": waited, "ns": int(waiting_s * 1e9)},
            "compute_input": nothing,
            "compute_infer": {"count": runs, "ns": int(running_s * 1e9)},
            "compute_output": nothing,
            "cache_hit": nothing,
            "cache_miss": nothing,
        },
        "batch_stats": [],
    }
