"""The page and its API: what the registry holds, for this machine only, and nothing that acts."""

from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.core.errors import Conflict, Internal, InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.operate.view import SystemView
from argosy.registry.registry import Registry
from argosy.registry.versions import Evaluation, FileRef, Manifest
from argosy.web import app as web
from argosy.web.server import bind

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
def client(tmp_path):
    settings = load_settings({"ARGOSY_HOME": str(tmp_path)})
    registry = Registry(settings, clock=FakeClock())
    registry.log.append("run.started", "run-1", {})
    app = web.create_app(registry, SimpleNamespace(look=lambda: VIEW), "127.0.0.1", 8710)
    return TestClient(app, base_url="http://127.0.0.1:8710")


@pytest.mark.capability("M3")
def test_the_state_is_what_the_command_line_shows(client):
    assert client.get("/api/state").json()["gateway"] == "running"


def test_the_newest_entry_of_the_log_comes_first(client):
    assert [entry["kind"] for entry in client.get("/api/log").json()] == ["run.started", "log.created"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/page.css"])
def test_the_page_brings_all_it_needs_and_loads_nothing_from_elsewhere(client, path):
    answer = client.get(path)
    assert answer.status_code == 200
    assert "http://" not in answer.text.replace("http://www.w3.org/2000/svg", "")
    assert "https://" not in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1:9", "", "127.0.0.1:8710.evil.example"])
def test_a_page_of_another_site_that_points_its_name_here_is_refused(client, host):
    assert client.get("/api/state", headers={"host": host}).status_code == 421


@pytest.mark.parametrize("method", ["post", "put", "delete", "patch"])
def test_nothing_can_be_changed_through_it(client, method):
    assert getattr(client, method)("/api/state").status_code == 405


def test_a_route_without_a_known_policy_stops_the_start():
    with pytest.raises(Internal, match="no policy"):
        web._route("/api/new", "anybody", "page.html", set())


def test_an_address_others_can_reach_is_refused():
    with pytest.raises(InvalidInput, match="loopback only"):
        bind("0.0.0.0", 0)


def test_a_port_in_use_is_said():
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(Conflict, match="in use"):
            bind("127.0.0.1", taken.getsockname()[1])


@pytest.fixture
def trained(client, tmp_path):
    """Two versions, the first with a report of its training; return what asks for one of them."""
    registry = Registry(load_settings({"ARGOSY_HOME": str(tmp_path)}), clock=FakeClock())
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    for files in ({"model.onnx": b"m", "training.html": b"<!doctype html><title>a</title>"}, {"model.onnx": b"n"}):
        references = {n: FileRef(digest=registry.blobs.put(c), size_bytes=len(c)) for n, c in files.items()}
        registry.versions.publish(
            Manifest(
                name="digits",
                created=1.0,
                role="original",
                task="tensor",
                signature=Signature(inputs=(spec,), outputs=(spec,)),
                files=references,
                evaluation=Evaluation(kind="self-check", passed=True),
            )
        )
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
