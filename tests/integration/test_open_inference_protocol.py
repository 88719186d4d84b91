"""The Open Inference Protocol's own OpenAPI description, unchanged, against a gateway and a replica.

The description is the one in MLServer's wheel, the protocol's reference server; it is fetched once from the package
index and kept in pytest's cache. That of a checkout of kserve/open-inference-protocol can be given as well:

    OPEN_INFERENCE_REST=…/specification/protocol/open_inference_rest.yaml python -m pytest <this file>
"""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from described import run_schemathesis
from served import Served, graph

# The newest whose description is valid OpenAPI: from 1.6 on it has a type "bytes", which there is none of.
MLSERVER = "mlserver==1.5.0"
PATH = "mlserver/rest/openapi/dataplane.json"


@pytest.fixture(scope="module")
def served():
    found = Served()
    try:
        found.gateway()
        version = found.publish(bounded())
        found.ready(found.replica(version))
        # The second name is what a description that writes paths as in a shell, /v2/models/${MODEL_NAME}, asks for.
        found.route_all([("m", version, "m:1"), ("$m", version, "m:$1")])
        yield found
    finally:
        found.close()


def bounded():
    """y = clip(x) W: finite for every finite x."""
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype("float32")
    nodes = [("Clip", ["x", "low", "high"], ["c"], {}), ("MatMul", ["c", "w"], ["y"], {})]
    constants = [("w", weights), ("low", np.array(-10, "float32")), ("high", np.array(10, "float32"))]
    return graph(nodes, [("x", "FLOAT", ["n", 4])], [("y", "FLOAT", ["n", 3])], constants)


@pytest.fixture(scope="module", params=["mlserver", "given"])
def description(request):
    """Return the file of a description."""
    if request.param == "given":
        if "OPEN_INFERENCE_REST" not in os.environ:
            pytest.skip("OPEN_INFERENCE_REST names no description")
        return Path(os.environ["OPEN_INFERENCE_REST"]).absolute()
    folder = Path(request.config.cache.mkdir("open-inference"))
    file = folder / f"{MLSERVER}.json"
    if not file.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, MLSERVER]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode and not os.environ.get("CI"):
            pytest.skip("the package index can't be reached")
        assert done.returncode == 0, done.stderr
        wheel = next(folder.glob("mlserver-*.whl"))
        file.write_bytes(zipfile.ZipFile(wheel).read(PATH))
        wheel.unlink()
    return file


NAMES = {"model_name": "m", "model_version": "1", "MODEL_NAME": "m", "MODEL_VERSION": "1"}
SETTINGS = "[parameters]\n" + "".join(f'"path.{name}" = "{value}"\n' for name, value in NAMES.items())
# A body that fits the description says nothing about this model's inputs, so nearly all of them are refused, rightly.
INPUTS_ARE_THE_MODELS = ("--exclude-checks", "positive_data_acceptance")


@pytest.mark.capability("I1")
@pytest.mark.parametrize("examples", [25, pytest.param(200, marks=pytest.mark.slow)])
def test_schemathesis_finds_nothing_against_the_protocols_own_description(served, description, tmp_path, examples):
    url = f"http://127.0.0.1:{served.port}"
    run_schemathesis(tmp_path, description, "--url", url, *INPUTS_ARE_THE_MODELS, examples=examples, settings=SETTINGS)


@pytest.mark.capability("I1")
def test_answers_to_good_requests_are_as_the_description_says(served, description):
    import schemathesis

    # by its own loader, which reads JSON as YAML too
    schema = schemathesis.openapi.from_path(description)
    body = {
        "id": "42",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}],
        "outputs": [{"name": "y"}],
    }
    asked = 0
    for found in schema.get_all_operations():
        operation = found.ok()
        known = {p.name for p in operation.path_parameters}
        case = operation.Case(
            path_parameters={name: value for name, value in NAMES.items() if name in known},
            **({"body": body, "media_type": "application/json"} if operation.method == "post" else {}),
        )
        response = case.call_and_validate(base_url=f"http://127.0.0.1:{served.port}")
        assert response.status_code == 200, response.text
        if operation.method == "post":
            assert json.loads(response.content)["id"] == "42"
        asked += 1
    assert asked >= 6
