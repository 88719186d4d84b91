"""The gateway's own OpenAPI document against the gateway itself; its page, and its snippets as they run."""

import contextlib
import io
import json
import shutil
import subprocess

import numpy as np
import pytest

from argosy.core.tensors import Signature, TensorSpec
from argosy.security.api_keys import make_key
from argosy.serve.access import AccessKey, AccessRules
from described import run_schemathesis
from served import Served, graph


@pytest.fixture(scope="module")
def served():
    found = Served()
    try:
        found.gateway(grpc_port=0)
        table = found.publish(bounded(), "table", signature=TABLE, prepare=PREPARE, finish=FINISH)
        mixed = found.publish(mixed_types(), "mixed")
        found.ready(found.replica(table), found.replica(mixed))
        found.route_all([("table", table, "table:1"), ("mixed", mixed, "mixed:1")])
        yield found
    finally:
        found.close()


TABLE = Signature(
    inputs=(TensorSpec(name="features", datatype="FP32", shape=(-1, 4), columns=("a", "b", "c", "d")),),
    outputs=(
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 3), columns=("red", "green", "blue")),
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
    ),
)
PREPARE = [
    {"step": "take", "input": "features", "datatype": "FP32", "shape": [-1, 4]},
    {"step": "impute", "input": "features", "fill": [1.0, 1.0, 1.0, 1.0]},
    {"step": "join", "inputs": ["features"], "output": "x"},
]
FINISH = [{"step": "softmax", "input": "y"}, {"step": "label", "labels": ["red", "green", "blue"]}]


def bounded():
    """y = clip(x) W: finite for every finite x."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    nodes = [("Clip", ["x", "low", "high"], ["c"], {}), ("MatMul", ["c", "w"], ["y"], {})]
    constants = [("w", weights), ("low", np.array(-10, "float32")), ("high", np.array(10, "float32"))]
    return graph(nodes, [("x", "FLOAT", ["n", 4])], [("y", "FLOAT", ["n", 3])], constants)


def mixed_types():
    nodes = [("Neg", ["x"], ["minus"], {}), ("Not", ["flag"], ["other"], {})]
    outputs = [("minus", "DOUBLE", ["n", 2]), ("other", "BOOL", ["n"])]
    return graph(nodes, [("x", "DOUBLE", ["n", 2]), ("flag", "BOOL", ["n"])], outputs)


# JSON Schema can't say that `data` has as many elements as `shape` says.
SETTINGS = """
[[operations]]
include-path-regex = "/infer$"
checks.positive_data_acceptance.enabled = false

# Headers that nobody knows are not refused, here as everywhere.
[phases.coverage.generation]
allow-extra-parameters = false

# A millisecond is a valid time, but may be too short for an answer.
[checks.not_a_server_error]
expected-statuses = ["2xx", "3xx", "4xx", "504"]
"""


@pytest.mark.capability("I2")
@pytest.mark.parametrize("examples", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing_against_our_own_document(served, tmp_path, examples):
    url = f"http://127.0.0.1:{served.port}/openapi.json"
    run_schemathesis(tmp_path, url, examples=examples, settings=SETTINGS)


@pytest.mark.capability("Z1")
def test_schemathesis_gets_in_with_the_key_and_never_without(tmp_path):
    key = make_key()
    served = Served()
    with contextlib.closing(served):
        served.gateway()
        table = served.publish(bounded(), "table", signature=TABLE, prepare=PREPARE, finish=FINISH)
        served.ready(served.replica(table))
        served.route(table, "table")
        served.client.set_access(
            AccessRules(is_on=True, keys=(AccessKey(id=key.id, name="ada", digest=key.digest, endpoints=("table",)),))
        )
        url = f"http://127.0.0.1:{served.port}/openapi.json"
        assert served.ask("GET", "/openapi.json")[0] == 401
        assert served.ask("GET", "/docs")[0] == 200
        options = ("--header", f"Authorization: Bearer {key.text}", "--phases", "examples,coverage")
        said = run_schemathesis(tmp_path, url, *options, examples=1, settings=SETTINGS)
        assert key.text not in served.ask("GET", "/openapi.json", headers={"authorization": f"Bearer {key.text}"})[2]
        assert "Errored" not in said


def test_the_document_shows_what_is_served_now(served):
    status, headers, document = served.ask("GET", "/openapi.json")
    assert (status, headers["content-type"]) == (200, "application/json")
    assert {"/predict/table", "/predict/mixed"} <= set(document["paths"])
    predict = document["paths"]["/predict/table"]["post"]
    assert set(predict["requestBody"]["content"]["application/json"]["example"]["inputs"]) == set("abcd")
    assert served.ask("HEAD", "/openapi.json")[0] == served.ask("HEAD", "/docs")[0] == 200


def samples(served, name):
    document = served.ask("GET", "/openapi.json")[2]
    found = document["paths"][f"/predict/{name}"]["post"]["x-codeSamples"]
    return {sample["label"]: sample["source"] for sample in found}


@pytest.mark.capability("I2")
@pytest.mark.parametrize("name", ["table", "mixed"])
@pytest.mark.parametrize("label", ["python", "tritonclient", "tritonclient-grpc"])
def test_a_snippet_runs_as_it_stands(served, name, label):
    pytest.importorskip("tritonclient.grpc" if label.endswith("grpc") else "tritonclient.http")
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(samples(served, name)[label], label, "exec"), {})
    assert said.getvalue().strip()


@pytest.mark.parametrize("name", ["table", "mixed"])
def test_the_curl_snippet_runs_as_it_stands(served, name):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    command = samples(served, name)["curl"].replace("curl ", "curl --silent --fail-with-body ")
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["endpoint"] == name


def test_the_page_is_served_with_a_policy_that_lets_nothing_else_run(served):
    status, headers, page = served.ask("GET", "/docs")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert b"<title>Argosy" in page


@pytest.mark.parametrize(
    ("path", "method", "allow"),
    [
        ("/predict/table", "GET", "POST"),
        ("/v2/models/table", "POST", "GET, HEAD"),
        ("/docs", "DELETE", "GET, HEAD"),
        ("/v2/repository/index", "PATCH", "POST"),
    ],
)
def test_a_wrong_method_is_told_the_right_one(served, path, method, allow):
    status, headers, _ = served.ask(method, path)
    assert (status, headers["allow"]) == (405, allow)


@pytest.mark.skipif(shutil.which("chromium") is None, reason="there is no Chromium on this machine")
def test_the_page_shows_the_endpoints_in_a_browser(served, tmp_path):
    command = [
        "chromium", "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom",
        "--virtual-time-budget=5000", f"--user-data-dir={tmp_path}", f"http://127.0.0.1:{served.port}/docs",
    ]  # fmt: skip
    page = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "POST /predict/table" in page
    assert "tritonclient, gRPC" in page
