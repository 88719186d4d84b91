"""An endpoint that sleeps and wakes, by the installed command."""

import time

import numpy as np
import pytest
from tritonclient import http

from served import constant

pytestmark = pytest.mark.capability("R6")


def until(holds, patience_s=60.0):
    deadline = time.monotonic() + patience_s
    while not (found := holds()):
        assert time.monotonic() < deadline, "it did not happen in time"
    return found


def ask(address: str) -> list[float]:
    given = http.InferInput("x", (1, 1), "FP32")
    given.set_data_from_numpy(np.ones((1, 1), "float32"))
    with http.InferenceServerClient(address, network_timeout=60.0, connection_timeout=60.0) as client:
        assert client.is_server_ready()
        return client.infer("m", [given]).as_numpy("y").ravel().tolist()


def test_an_endpoint_sleeps_wakes_with_its_next_request_and_says_why(installed):
    path = installed.folder / "m.onnx"
    path.write_bytes(constant(3.0))
    url = installed.json(
        "deploy", path, "--name", "m", "--port", "0", "--set", "endpoint.replicas=0..2", "--set", "endpoint.idle=2s"
    )["url"]
    address = url.partition("//")[2].partition("/")[0]

    def endpoint():
        return installed.json("endpoints", "show", "m")["endpoint"]

    def is_asleep():
        found = endpoint()
        left = [replica for version in found["versions"] for replica in version["replicas"]]
        return found if found["state"] == "idle" and not left else None

    asleep = until(is_asleep)
    assert (asleep["scaling"]["low"], asleep["scaling"]["high"], asleep["scaling"]["wanted"]) == (0, 2, 0)
    assert "no request for 2 s" in installed.ok("endpoints", "show", "m")
    assert "the next request starts one" in installed.ok("watch", "--once")
    assert ask(address) == [3.0]
    shown = installed.ok("endpoints", "show", "m")
    assert "of 0 to 2 replicas run" in shown
    # By then it may sleep again: the idle time is short.
    assert "a request has come, and nothing ran" in shown or "no request for 2 s" in shown
    assert endpoint()["failed"] == 0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("endpoint.replicas=4..1", "0 <= lowest <= highest <= 64"),
        ("endpoint.replicas=0", "a highest of 1 or more"),
        ("endpoint.priority=999", "it must be between -100 and 100"),
        ("endpoint.idle=0s", "it must be between 1s and 7d"),
    ],
)
def test_impossible_settings_are_refused_before_anything_runs(installed, setting, said):
    path = installed.folder / "m.onnx"
    path.write_bytes(constant(3.0))
    assert said in " ".join(installed.refused("deploy", path, "--name", "m", "--port", "0", "--set", setting).split())
