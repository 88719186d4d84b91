"""Every kind of rollout and what can be done to one, by the installed command, with traffic all the while."""

import os
import signal
import subprocess
import threading
import time
from collections import Counter

import numpy as np
import pytest

from argosy.client import Client
from argosy.core.errors import ArgosyError
from served import constant, graph, logarithm, until

SETTINGS = """[project]
name = "m"
[endpoint]
replicas = 1
[rollout]
dwell = "1s"
window = "500ms"
time_limit = "60s"
"""


def scaled(factor, name):
    """y = factor * x; `name` makes two files of one model."""
    weights = [("f", np.full(1, factor, "float32"))]
    nodes = [("Mul", ["x", "f"], [name], {}), ("Identity", [name], ["y"], {})]
    return graph(nodes, [("x", "FLOAT", ["n", 1])], [("y", "FLOAT", ["n", 1])], weights)


class Callers:
    """Requests from some threads until it is left; which version answered, and what failed."""

    def __init__(self, url, value=lambda n: float(n % 97), threads=2):
        self.url, self.value = url, value
        self.versions, self.failed, self.answered = Counter(), [], 0
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(n,)) for n in range(threads)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _run(self, number):
        with Client(self.url, timeout_s=10) as client:
            while not self._over.is_set():
                number += 2
                try:
                    found = client.predict("m", {"x": [[self.value(number)]]})
                except ArgosyError as error:
                    self.failed.append(error.message)
                else:
                    self.versions[found.version] += 1
                self.answered += 1


@pytest.fixture
def home(installed):
    def write(name, content):
        path = installed.folder / name
        path.write_bytes(content)
        return path

    def configure(text):
        (installed.folder / "argosy.toml").write_text(SETTINGS + text)

    def endpoint():
        return installed.json("watch", "m", "--once")["endpoints"][0]

    installed.write, installed.configure, installed.endpoint = write, configure, endpoint
    installed.configure("")
    found = installed.json("deploy", write("one.onnx", scaled(2, "a")), "--name", "m", "--port", "0")
    installed.url = found["url"]
    return installed


def controller(home):
    asked = ["pgrep", "-f", f"argosy.cluster.child.*{home.runtime()}.*/controller(/|$| )"]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()[0])


@pytest.mark.capability("R2")
@pytest.mark.timeout(280)
def test_a_version_in_shadow_is_judged_by_copies_alone_and_left_promoted_or_refused(home):
    with Callers(home.url) as callers:
        home.configure('kind = "shadow"\nmirror = 100\nshadow = "1s"\n')
        until(lambda: callers.answered > 50)
        assert home.json("plan")["rollout"]["promote_min"] > 0
        told = home.ok("deploy", home.write("two.onnx", scaled(2, "b")), "--name", "m")
        assert "copies 100 % of its requests to 'm:2', which gets no request itself" in told
        assert "m:2 was judged in shadow: judged by" in told
        found = home.endpoint()
        assert found["last"]["outcome"] == "left"
        assert [version["ref"] for version in found["versions"]] == ["m:1"]
        refused = home("deploy", home.write("three.onnx", constant(1.0)), "--name", "m")
        assert refused.returncode == 1
        assert "m:3 was rolled back" in refused.stderr
        assert home.endpoint()["last"]["verdict"]["metric"] in ("agreement", "constant")
        assert set(callers.versions) == {"m:1"}
        home.configure('kind = "shadow"\nmirror = 100\nshadow = "1s"\nafter_shadow = "promote"\n')
        home.ok("deploy", "m:2", "--name", "m")
        until(lambda: callers.versions["m:2"] > 10)
    assert callers.failed == []
    picture = home.folder / "why.svg"
    told = home.ok("why", "m", "--save", str(picture))
    assert "replayed: same verdict, promote" in told
    assert picture.read_text().startswith("<svg")
    replayed = home.json("why", "m")["replayed"]
    assert replayed["is_same"]
    assert replayed["moments"][-1]["assurance"] >= 20


@pytest.mark.slow
@pytest.mark.capability("R2", "R3")
@pytest.mark.timeout(280)
def test_blue_green_switches_at_once_and_switches_back_when_the_new_version_fails(home):
    home.configure('kind = "blue-green"\nkeep = "8s"\nheld_back = 20\njudge = ["errors"]\nmirror = 60\n')
    with Callers(home.url) as callers:
        told = home.ok("deploy", home.write("two.onnx", scaled(2, "b")), "--name", "m")
        assert "switched: 80 % of the requests" in told
        assert "watched for 8 s after the switch" in told
        until(lambda: callers.versions["m:2"] > 10)
        assert callers.failed == []
    with Callers(home.url, value=lambda n: -1.0 if n % 3 else 1.0) as callers:
        refused = home("deploy", home.write("three.onnx", logarithm()), "--name", "m")
        assert refused.returncode == 1
        assert "errors" in refused.stderr
        back = callers.versions["m:2"]
        until(lambda: callers.versions["m:2"] > back + 20)
    assert home.endpoint()["versions"][0]["ref"] == "m:2"


@pytest.mark.slow
@pytest.mark.capability("R2", "R3")
@pytest.mark.timeout(280)
def test_a_rollout_is_paused_resumed_and_aborted_and_its_time_limit_waits(home):
    home.configure('steps = [10, 50, 100]\njudge = ["errors"]\n')
    with Callers(home.url) as callers:
        home.ok(
            "deploy", home.write("two.onnx", scaled(2, "b")), "--name", "m", "--detach", "--set", "rollout.dwell=9s"
        )
        assert "paused (canary, with 10 % of the requests" in home.ok("pause", "m")
        rollout = home.endpoint()["rollout"]
        assert (rollout["paused_by"] != "", rollout["step"], rollout["steps"]) == (True, 0, [10.0, 50.0])
        assert "was paused by" in home.ok("pause", "m")
        paused = time.monotonic()
        os.kill(controller(home), signal.SIGKILL)
        until(lambda: time.monotonic() - paused > 4)
        assert home.json("pause", "m")["changed"] is False  # and starts the controller again
        later = home.endpoint()["rollout"]
        assert later["step"] == 0
        assert later["windows"] > rollout["windows"]
        assert later["left_s"] == pytest.approx(rollout["left_s"], abs=0.01)
        assert home.json("resume", "m")["changed"] is True
        until(lambda: home.endpoint()["rollout"]["step"] == 1)
        assert "serves m:1" in home.ok("abort", "m")
        assert home.endpoint()["last"]["reason"].startswith("aborted by")
        assert "no rollout to abort" in home.refused("abort", "m")
        assert "no rollout to pause" in home.refused("pause", "m")
        home.ok("deploy", "m:2", "--name", "m", "--detach")
        home.ok("pause", "m")
        home.ok("promote", "m")
        until(lambda: home.endpoint()["versions"][0]["ref"] == "m:2")
    assert callers.failed == []


METRIC = """
import json, pathlib

def sales(window):
    return json.loads(pathlib.Path({path!r}).read_text())[window["new"]]
"""


@pytest.mark.slow
@pytest.mark.capability("R2")
@pytest.mark.timeout(280)
def test_a_metric_by_a_python_function_rolls_back_holds_and_lets_through(home):
    values = home.folder / "values.json"
    values.write_text('{"m:2": {"current": 0.1, "new": 0.9}}')
    home.write("shop.py", METRIC.format(path=str(values)).encode())
    home.configure(
        'steps = [50]\njudge = ["errors"]\nmirror = 0\n'
        '[rollout.metrics.sales]\npython = "shop:sales"\nlow = 0\nhigh = 1\n'
    )
    with Callers(home.url) as callers:
        refused = home("deploy", home.write("two.onnx", scaled(2, "b")), "--name", "m")
        assert "m:2 was rolled back: sales: " in refused.stderr, refused.stdout + refused.stderr
        values.write_text('{"m:2": {"current": 0.5, "new": 0.1}}')
        home.ok("deploy", "m:2", "--name", "m", "--detach", "--set", "rollout.dwell=30s")
        until(lambda: any(m["name"] == "sales" and m["assurance"] >= 20 for m in home.endpoint()["rollout"]["metrics"]))
        values.write_text("gone")
        held = until(lambda: home.endpoint()["rollout"]["held"] or None)
        assert "metric 'sales' cannot be read: JSONDecodeError" in held
        assert "sales" in home.ok("why", "m")
        home.ok("abort", "m")
    assert callers.failed == []
