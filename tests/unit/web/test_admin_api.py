"""The admin API: what the registry holds, read only."""

import sys
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.core.errors import Conflict, InvalidInput, PluginError
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate.view import SystemView
from argosy.registry.registry import Registry
from argosy.registry.versions import Evaluation, FileRef, Manifest
from argosy.web.app import Admin, create_app
from argosy.web.server import bind, serve

VIEW = SystemView(
    time=1.0,
    url="http://127.0.0.1:1",
    grpc="127.0.0.1:2",
    gateway="running",
    gateway_error="",
    controller="running",
    controller_error="",
    endpoints=(),
)


@pytest.fixture
def registry(tmp_path):
    found = Registry(load_settings({"ARGOSY_HOME": str(tmp_path)}), clock=FakeClock())
    found.log.append("run.started", "run-1", {"project": "digits"})
    return found


@pytest.fixture
def client(registry):
    return TestClient(create_app(Admin(registry, SimpleNamespace(look=lambda: VIEW), list)))


@pytest.mark.capability("M3")
def test_the_state_is_what_the_command_line_shows(client):
    assert client.get("/api/state").json()["gateway"] == "running"


def test_the_newest_entry_of_the_log_comes_first(client):
    assert [entry["kind"] for entry in client.get("/api/log").json()] == ["run.started", "log.created"]


def test_runs_are_listed(client):
    found = client.get("/api/runs").json()
    assert (found["now"], [run["project"] for run in found["runs"]]) == ([], ["digits"])


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed_through_it(client, method):
    assert getattr(client, method)("/api/state").status_code == 405


def test_an_address_others_can_reach_is_refused():
    with pytest.raises(InvalidInput, match="loopback only"):
        bind("0.0.0.0", 0)


def test_a_port_in_use_is_said():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(Conflict, match="in use"):
            bind("127.0.0.1", taken.getsockname()[1])


def test_without_the_extra_it_says_what_to_install(monkeypatch, registry):
    monkeypatch.setitem(sys.modules, "nicegui", None)
    monkeypatch.delitem(sys.modules, "argosy.web.live", raising=False)
    wired = dict.fromkeys(("observer", "launcher", "settings", "clock"))
    with bind("127.0.0.1", 0) as taken, pytest.raises(PluginError, match="nicegui") as refused:
        serve(taken, registry=registry, is_read_only=True, tell=pytest.fail, **wired)
    assert "argosy[ui]" in refused.value.hint


@pytest.fixture
def publish(registry):
    """Publish a version with these files beside its model."""
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))

    def published(files):
        files = {"model.onnx": repr(files).encode()} | files
        return registry.versions.publish(
            Manifest(
                name="digits",
                created=1.0,
                role="original",
                task="tensor",
                signature=Signature(inputs=(spec,), outputs=(spec,)),
                files={n: FileRef(digest=registry.blobs.put(c), size_bytes=len(c)) for n, c in files.items()},
                evaluation=Evaluation(kind="self-check", passed=True),
            )
        )

    return published


@pytest.fixture
def trained(client, publish):
    """Two versions, the first with a report of its training; return what asks for one of them."""
    publish({"training.html": b"<!doctype html><title>a</title>"})
    publish({})
    return lambda version: client.get("/report", params={"version": version})


@pytest.mark.capability("M3", "T6")
def test_the_report_of_a_training_is_a_page_that_can_run_nothing(client, trained):
    answer = trained("digits:1")
    assert answer.text == "<!doctype html><title>a</title>"
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "script" not in policy
    told = {version["version"]: version["has_report"] for version in client.get("/api/versions").json()}
    assert told == {"digits:1": True, "digits:2": False}


@pytest.mark.parametrize("version", ["digits:2", "digits:9", "cats", ""])
def test_a_version_without_a_report_is_told(trained, version):
    answer = trained(version)
    assert answer.status_code in (400, 404)
    assert answer.json()["error"]["message"]


@pytest.mark.parametrize("name", ["training.html", "model.onnx", "../model.onnx", ""])
def test_only_pictures_are_shown_as_pictures(client, publish, name):
    publish({"compression.png": b"\x89PNG"})
    found = client.get("/picture", params={"version": "digits:1", "name": "compression.png"})
    assert (found.content, found.headers["content-type"]) == (b"\x89PNG", "image/png")
    assert client.get("/picture", params={"version": "digits:1", "name": name}).status_code == 404
