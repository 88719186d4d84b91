"""Metrics of the user's own: read apart from the controller, given to one window each, and never missed silently."""

import http.server
import json
import math
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput, NotFound, Unavailable
from argosy.operate import desired as d
from argosy.operate.config import OwnMetric, RolloutConfig
from argosy.operate.desired import Rollout, Target
from argosy.operate.judging import WindowJudge
from argosy.operate.metric_process import after, load, number, query, reader, run
from argosy.operate.own_metrics import (
    KEPT_READINGS,
    MetricFile,
    MetricState,
    ProcessReadings,
    ReaderConfig,
    Reading,
)
from argosy.serve.control import Window

OWN = OwnMetric(python="shop:sales", code="sha256:c", low=10, high=0)


def rollout(own=OWN, phase=d.CANARY):
    config = RolloutConfig(steps=(50,), judge=("errors",), mirror=0, window="1s", metrics={"sales": own})
    return Rollout(
        id="r7", endpoint="m", kind=d.STEPWISE, base=Target("sha256:a", "m:1"), to=Target("sha256:b", "m:2"),
        config=config, actor="ada", asked=0.0, since=0.0, phase=phase,
    )  # fmt: skip


def settings(own=OWN, source="def sales(window):\n    return {'current': 1, 'new': window['end']}\n"):
    return ReaderConfig(
        rollout="r7", endpoint="m", current="m:1", new="m:2", window_s=1.0, metrics={"sales": own},
        sources={"sha256:c": source}, out="",
    )  # fmt: skip


# ---- the process that reads


def states(source, turns=3):
    clock, written = FakeClock(), []
    run(settings(source=source), clock, written.append, is_over=lambda: len(written) >= turns)
    return [msgspec.json.decode(data, type=MetricFile).metrics["sales"] for data in written]


def test_a_function_is_read_once_in_every_window():
    found = states("def sales(window):\n    return {'current': 4, 'new': window['end'] - window['start']}\n", 5)
    assert [state.read for state in found] == [1, 2, 3, 4, 5]
    assert [reading.new for reading in found[-1].readings] == pytest.approx([0, 1, 1, 1, 1], abs=1e-3)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("def sales(window):\n    return 5\n", "returned '5' and not"),
        ("def sales(window):\n    raise KeyError('gone')\n", "KeyError: 'gone'"),
        ("def sales(window):\n    return {'current': 'a', 'new': 1}\n", "ValueError"),
        ("import nowhere_at_all\n", "'shop.py' can't be loaded"),
        ("sold = 1\n", "has no function 'sales'"),
    ],
)
def test_whatever_is_wrong_with_a_function_is_the_metrics_trouble(source, says):
    assert says in states(source, 1)[0].trouble


def test_a_function_that_never_returns_is_ended_and_told_of():
    """In a process of its own, as metrics are read: it takes the process's alarm, which tests have a use for."""
    hangs = "def sales(window):\n    while True: pass\n"
    code = f"from test_own_metrics import states; print(states({hangs!r}, 1)[0].trouble)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "it took longer than 1 s" in done.stdout


def test_what_is_not_finite_is_ignored_and_counted_and_readings_are_bounded():
    state = MetricState()
    for value in (math.nan, math.inf, *range(KEPT_READINGS + 9)):
        state = after(state, lambda start, end, value=value: (1.0, value), 0.0, float(state.read))
    assert (state.ignored, state.read, len(state.readings)) == (2, KEPT_READINGS + 9, KEPT_READINGS)


def test_code_that_is_not_in_the_registry_is_no_code():
    with pytest.raises(InvalidInput, match="not in the registry"):
        load(OWN, {})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"resultType": "vector", "result": []}, "the metric is not there"),
        ({"resultType": "vector", "result": [{"value": [0, "1"]}] * 2}, "2 series"),
        ({"resultType": "matrix", "result": []}, "a matrix"),
        ({"resultType": "vector"}, "can't be read"),
        (None, "can't be read"),
    ],
)
def test_an_answer_of_prometheus_that_is_no_number_is_refused(data, says):
    with pytest.raises(InvalidInput, match=says):
        number(json.dumps({"data": data}).encode())


def test_a_prometheus_that_is_not_there_is_unavailable():
    with pytest.raises(Unavailable, match="does not answer"):
        query("http://127.0.0.1:9", "up", at=0.0)


def test_each_version_is_asked_for_by_its_name():
    asked = []

    class Prometheus(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            body = json.dumps({"data": {"resultType": "vector", "result": [{"value": [0, "0.5"]}]}}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Prometheus) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        own = OwnMetric(promql='mean{v="$version"}[$window]', prometheus=f"http://127.0.0.1:{server.server_port}")
        assert reader(own, settings(own))(0.0, 1.0) == (0.5, 0.5)
        server.shutdown()
    assert ["m%3A1" in asked[0], "m%3A2" in asked[1], "%5B1s%5D" in asked[0]] == [True, True, True]


# ---- the controller's side


@pytest.fixture
def readings(tmp_path):
    clock = FakeClock()
    made = ProcessReadings(MemoryLauncher(clock), clock, tmp_path / "metrics", lambda digest: b"source")
    made.clock, made.launcher = clock, made._launcher
    made.counter = 0

    def write(**state):
        made.counter += 1
        made._path("r7").parent.mkdir(exist_ok=True)
        file = MetricFile(count=made.counter, metrics={"sales": MetricState(**state)})
        made._path("r7").write_bytes(msgspec.json.encode(file))

    made.write = write
    made.follow([rollout()])
    return made


def window(start, **counts):
    given = {"requests_stable": 50, "requests_canary": 50} | counts
    return Window(rollout="r7", index=int(start * 1000), start=start, seconds=1.0, share=0.5, **given)


def living(readings):
    return [info.name for info in readings.launcher.list("metrics") if info.alive]


@pytest.mark.capability("R2")
def test_a_reading_goes_into_one_window_as_badness_of_its_requests(readings):
    now = readings.clock.now()
    readings.write(read=1, readings=(Reading(end=now, current=8.0, new=5.0),))
    readings.follow([rollout()])
    assert readings.trouble("r7") == ""
    first = readings.complete(rollout(), window(now - 1))
    assert first.bad["sales"] == pytest.approx((25.0, 35.0))
    assert "sales" not in readings.complete(rollout(), window(now)).bad
    assert "sales" not in readings.complete(rollout(), window(now, requests_canary=0)).bad


def test_nothing_is_promoted_before_the_first_reading_and_after_the_last(readings):
    assert readings.trouble("r7") == "metric 'sales' was not read yet"
    readings.write(read=1, readings=(Reading(end=readings.clock.now(), current=1.0, new=1.0),))
    readings.follow([rollout()])
    assert readings.trouble("r7") == ""
    readings.write(read=1, trouble="Prometheus does not answer")
    readings.follow([rollout()])
    assert readings.trouble("r7") == "metric 'sales' cannot be read: Prometheus does not answer"
    readings.write(read=1, ignored=1)
    readings.clock.advance(6)
    readings.follow([rollout()])
    assert readings.trouble("r7") == "metric 'sales' gave no finite number any more"
    assert readings.state("r7")["sales"]["ignored"] == 1


def test_a_reading_process_that_dies_or_hangs_is_started_again_and_old_numbers_are_forgotten(readings):
    (first,) = living(readings)
    readings.write(read=1, readings=(Reading(end=readings.clock.now(), current=1.0, new=1.0),))
    readings.follow([rollout()])
    readings.launcher.end(first, -9)
    readings.clock.advance(6)
    readings.follow([rollout()])
    (second,) = living(readings)
    assert second != first
    assert "sales" not in readings.complete(rollout(), window(readings.clock.now() - 6)).bad
    readings.clock.advance(30)
    readings.follow([rollout()])
    (third,) = living(readings)
    assert third != second
    readings.follow([])
    assert living(readings) == []
    assert readings.trouble("r7")


def test_a_file_that_is_not_in_the_store_is_told_and_stops_nothing(tmp_path):
    def gone(digest):
        raise NotFound(f"no blob {digest}")

    clock = FakeClock()
    readings = ProcessReadings(MemoryLauncher(clock), clock, tmp_path / "metrics", gone)
    readings.follow([rollout()])
    assert "no blob sha256:c" in readings.trouble("r7")


def test_a_worse_metric_rolls_back_and_one_that_is_as_good_can_be_promoted():
    for new, said in ((9.0, "rollback"), (1.0, "promote")):
        judge = WindowJudge(rollout())
        for n in range(400):
            bad = {"errors": (0.0, 0.0), "sales": (50 * new / 10, 50 * new / 10 + 10.0)}
            judge.take(window(float(n), bad=bad))
        assert judge.verdict()["verdict"] == said
