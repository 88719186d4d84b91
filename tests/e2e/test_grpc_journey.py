"""`argosy deploy model.onnx`, and Triton's gRPC client at the address it prints."""

import os
import signal
import socket
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from argosy.cluster.local import LocalLauncher
from installed import Installed
from served import linear, until

triton = pytest.importorskip("tritonclient.grpc")

ROWS = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")


@pytest.fixture
def model(installed):
    path = installed.folder / "m.onnx"
    path.write_bytes(linear())
    return path


def ask(address):
    with triton.InferenceServerClient(address) as client:
        given = triton.InferInput("x", ROWS.shape, "FP32")
        given.set_data_from_numpy(ROWS)
        return client.infer("m", [given], client_timeout=10).as_numpy("y")


@pytest.mark.capability("I1")
def test_a_deployed_file_is_served_over_grpc_at_the_address_that_is_printed(installed, model):
    said = installed.ok("deploy", model, "--port", "0")
    found = installed.json("deploy", model)
    assert f"  grpc  {found['grpc']}" in said.splitlines()
    (wanted,) = onnxruntime.InferenceSession(model.read_bytes(), providers=["CPUExecutionProvider"]).run(
        None, {"x": ROWS}
    )
    np.testing.assert_array_equal(ask(found["grpc"]), wanted)
    # A gateway that died comes back where it was.
    gateway = pid_of_gateway(installed)
    os.kill(gateway, signal.SIGKILL)
    until(lambda: pid_of_gateway(installed) != gateway, seconds=30)
    np.testing.assert_array_equal(until(lambda: [ask(found["grpc"])])[0], wanted)
    assert installed.json("deploy", model)["grpc"] == found["grpc"]


def pid_of_gateway(installed):
    info = LocalLauncher(Path(installed.runtime()) / "processes").get("gateway")
    return info.pid if info is not None and info.alive else 0


def test_the_grpc_port_can_be_chosen_changed_and_turned_off(installed, model):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is in use" in installed.refused("deploy", model, "--port", "0", "--grpc-port", port)
    found = installed.json("deploy", model, "--port", "0", "--grpc-port", port)
    assert found["grpc"] == f"127.0.0.1:{port}"
    ask(found["grpc"])
    off = installed.json("deploy", model, "--grpc-port", "-1")
    until(lambda: not is_open(port))
    assert "grpc" not in installed.ok("deploy", model)
    assert off["url"]
    on = installed.json("gateway", "set", "--grpc-port", "0")
    assert on["settings"]["grpc_port"] == 0
    again = until(lambda: installed.json("endpoints", "show", "m")["urls"].get("grpc"))
    np.testing.assert_array_equal(until(lambda: [ask(again)])[0].shape, (3, 3))


def is_open(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def test_two_homes_serve_grpc_beside_each_other(installed, model, tmp_path):
    other = Installed(tmp_path / "other", installed.folder)
    try:
        first, second = installed.json("deploy", model), other.json("deploy", model)
        assert first["grpc"] != second["grpc"]
        np.testing.assert_array_equal(ask(first["grpc"]), ask(second["grpc"]))
    finally:
        other("down")
