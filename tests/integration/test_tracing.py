"""Traces over OTLP: what a request and a run leave at a collector that decodes them."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from argosy.core.config import traces_endpoint
from argosy.core.progress import Progress
from argosy.core.tracing import open_tracing
from argosy.pipeline.traced import traced_run
from collector import Collector
from installed import Installed
from rpc import Rpc, grpc_port
from served import Served, constant, logarithm, slow, until

SERVER, ERROR = 2, 2  # opentelemetry.proto.trace.v1: SPAN_KIND_SERVER, STATUS_CODE_ERROR


@pytest.fixture(scope="module")
def collector():
    made = Collector()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "100")
        yield made
    made.close()


@pytest.fixture(scope="module")
def served(collector):
    made = Served()
    made.gateway(grpc_port=0)
    yield made
    made.close()


def parent(number, *, sampled=True):
    return f"{number:032x}", {"traceparent": f"00-{number:032x}-{number + 7:016x}-{'01' if sampled else '00'}"}


def by_name(spans):
    assert len({span.name for span in spans}) == len(spans), [span.name for span in spans]
    return {span.name: span for span in spans}


@pytest.mark.capability("M1")
def test_a_request_is_a_span_of_its_callers_trace_with_queue_batch_and_replica_inside(collector, served):
    version = served.publish(constant(3.0))
    served.ready(served.replica(version, "one"))
    served.route(version)
    trace, headers = parent(5)
    before = time.time_ns()
    status, answered, _ = served.infer([[1.0], [2.0]], headers=headers)
    assert status == 200
    found = by_name(until(lambda: len(collector.of(trace)) == 4 and collector.of(trace)))
    assert set(found) == {"infer m", "queue", "batch", "replica"}
    root, queue, batch, replica = (found[name] for name in ("infer m", "queue", "batch", "replica"))
    assert (root.parent, root.kind, root.service, root.status) == (f"{12:016x}", SERVER, "argosy-gateway", 0)
    assert [queue.parent, batch.parent, replica.parent] == [root.id, root.id, batch.id]
    assert root.attributes["argosy.prediction"] == answered["argosy-prediction"]
    assert (root.attributes["argosy.version"], root.attributes["argosy.rows"]) == ("m:1", 2)
    assert (batch.attributes["argosy.replica"], batch.attributes["argosy.batch.requests"]) == ("one", 1)
    assert before <= root.start <= queue.start <= queue.end == batch.start <= replica.start
    assert replica.start < replica.end <= batch.end <= root.end <= time.time_ns()


@pytest.mark.capability("M1")
def test_a_call_over_grpc_belongs_to_its_callers_trace(collector, served):
    version = served.publish(constant(3.0), name="called")
    served.ready(served.replica(version))
    served.route(version)
    trace, headers = parent(8)
    rpc, row = Rpc(grpc_port(served)), np.ones((1, 1), "float32")
    for metadata in ([*headers.items(), ("tracestate", "vendor=1")], [], [("traceparent", "x" * 5000)]):
        assert rpc.infer(row, metadata=metadata).code == "OK"
    found = by_name(until(lambda: len(collector.of(trace)) == 4 and collector.of(trace)))
    assert found["infer m"].parent == f"{15:016x}"


@pytest.mark.capability("M1")
def test_a_request_through_a_front_belongs_to_its_callers_trace(collector):
    world = Served()
    try:
        version = world.publish(constant(3.0), name="fronted")
        world.gateway(fronts=1)
        world.ready(world.replica(version)).route(version)
        world.front()
        until(lambda: world.ask("GET", "/v2/health/ready")[0] == 200)
        trace, headers = parent(9)
        assert world.infer([[1.0]], headers=headers)[0] == 200
        assert world.infer([[1.0]])[0] == 200
        found = by_name(until(lambda: len(collector.of(trace)) == 4 and collector.of(trace)))
        assert found["infer m"].parent == f"{16:016x}"
    finally:
        world.close()


def test_requests_that_share_a_run_name_the_same_batch(collector, served):
    version = served.publish(slow(), name="slow")
    served.ready(served.replica(version, calibrate_s=0.0))
    served.route(version)
    served.infer([[1.0]])
    with ThreadPoolExecutor(12) as pool:
        list(pool.map(lambda n: served.infer([[1.0]], headers=parent(100 + n)[1]), range(12)))
    traces = [parent(100 + n)[0] for n in range(12)]
    batches = until(lambda: all(len(collector.of(t)) == 4 for t in traces) and [
        by_name(collector.of(trace))["batch"].attributes for trace in traces])  # fmt: skip
    for one in batches:
        together = [other for other in batches if other["argosy.batch"] == one["argosy.batch"]]
        assert one["argosy.batch.requests"] == len(together)


def test_a_failed_request_says_so_and_what_the_caller_does_not_keep_is_not_kept(collector, served):
    version = served.publish(logarithm(), name="log")
    served.ready(served.replica(version))
    served.route(version)
    unwanted, headers = parent(6, sampled=False)
    served.infer([[1.0]], headers=headers)
    for garbage in ("", "x" * 5000, "00-zz-1-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"):
        assert served.infer([[1.0]], headers={"traceparent": garbage})[0] == 200
    trace, headers = parent(7)
    assert served.infer([[-1.0]], headers=headers)[0] >= 500
    found = until(lambda: [span for span in collector.of(trace) if span.name == "infer m"])
    assert (found[0].status, found[0].attributes["argosy.code"] != "ok") == (ERROR, True)
    assert collector.of(unwanted) == []


def test_a_run_is_a_trace_with_a_span_for_each_stage_that_was_executed(collector):
    heard = []
    with traced_run("digits", heard.append) as report:
        report(Progress(stage="data", message="cached"))
        report(Progress(stage="train", message="started"))
        report(Progress(stage="train", done=1, total=2))
        report(Progress(stage="train", message="finished", values={"loss": 0.5, "odd": [1]}))
    with pytest.raises(RuntimeError), traced_run("digits", heard.append) as report:  # noqa: PT012
        report(Progress(stage="convert", message="started"))
        raise RuntimeError("it broke")
    assert len(heard) == 5
    told = [span.trace for span in collector.spans if span.service == "argosy-run"]
    first, second = (by_name(collector.of(trace)) for trace in dict.fromkeys(told))
    assert set(first) == {"run digits", "stage train"}
    assert first["stage train"].parent == first["run digits"].id
    assert first["stage train"].attributes == {"argosy.stage": "train", "argosy.loss": 0.5}
    assert (first["run digits"].service, first["run digits"].status) == ("argosy-run", 0)
    assert {name: span.status for name, span in second.items()} == {"run digits": ERROR, "stage convert": ERROR}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://x", "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_tracing_is_off_unless_a_collector_is_named(environment):
    assert traces_endpoint(environment) == ""


def test_off_nothing_of_it_is_loaded_and_requests_take_the_plain_way(monkeypatch):
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    assert open_tracing("x", share=1.0) is None
    code = """
import asyncio, sys
from argosy.core.clock import SystemClock
from argosy.serve.control import GatewayConfig
from argosy.serve.dataplane import DataPlane
from argosy.serve.gateway import Gateway
from argosy.serve.gateway_front import GatewayFront
async def main():
    gateway = Gateway(GatewayConfig(socket="/nowhere/g", state="/nowhere/s", key="00" * 16), SystemClock(), 1)
    assert type(gateway.plane) is DataPlane and type(gateway.front) is GatewayFront
asyncio.run(main())
assert not any(name.startswith("opentelemetry") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.slow
def test_a_real_run_leaves_its_stages(collector, tmp_path):
    random = np.random.default_rng(7)
    rows = [f"{a},{b},{'xy'[int(a + b > 1)]}" for a, b in random.random((300, 2))]
    (tmp_path / "pairs.csv").write_text("\n".join(["a,b,label", *rows]) + "\n")
    (tmp_path / "argosy.toml").write_text(
        '[project]\nname = "pairs"\n[data]\ntrain = "pairs.csv"\n[train]\nepochs = 2\n'
    )
    done = Installed(tmp_path / "home", tmp_path).json("run")
    found = {span.name: span for span in collector.spans if span.service == "argosy-run"}
    run = found["run pairs"]
    stages = [found[f"stage {name}"] for name in done["executed"]]
    assert {stage.parent for stage in stages} == {run.id}
    assert [stage.start for stage in stages] == sorted(stage.start for stage in stages)
    assert all(run.start <= stage.start < stage.end <= run.end for stage in stages)
