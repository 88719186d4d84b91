"""The Python code of "Call an endpoint" runs as it stands, against endpoints like those it names."""

import contextlib
import io
import re
from pathlib import Path

import numpy as np
import pytest

from argosy.core.tensors import Signature, TensorSpec
from argosy.data.images import DecodeImage, Normalize, ResizeImage
from argosy.data.prepare import steps_to_plain
from pictures import encoded, pixels
from served import Served, graph, linear

PAGE = (Path(__file__).parents[2] / "docs" / "how-to" / "call-an-endpoint.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def takes(kind):
    """A signature with one input of this content, and y."""
    output = TensorSpec(name="y", datatype="BYTES", shape=(-1,))
    if kind == "image":
        output = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
    return Signature(inputs=(TensorSpec(name=kind, datatype="BYTES", shape=(-1,), content=kind),), outputs=(output,))


def same_text():
    return graph([("Identity", ["text"], ["y"], {})], [("text", "STRING", ["n"])], [("y", "STRING", ["n"])])


def colours():
    """The mean of each channel of a picture of 8 x 8."""
    nodes = [("GlobalAveragePool", ["x"], ["p"], {}), ("Flatten", ["p"], ["y"], {"axis": 1})]
    return graph(nodes, [("x", "FLOAT", ["n", 3, 8, 8])], [("y", "FLOAT", ["n", 3])])


@pytest.fixture(scope="module")
def served():
    table = Signature(
        inputs=(TensorSpec(name="features", datatype="FP32", shape=(-1, 2), columns=("weight", "diameter")),),
        outputs=(
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2), columns=("apple", "cherry")),
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
        ),
    )
    prepare = [
        {"step": "take", "input": "features", "datatype": "FP32", "shape": [-1, 2]},
        {"step": "join", "inputs": ["features"], "output": "x"},
    ]
    finish = [{"step": "softmax", "input": "y"}, {"step": "label", "labels": ["apple", "cherry"]}]
    weights = [("w", np.array([[0.01, -0.01], [0.1, -0.1]], "float32")), ("b", np.array([-1, 1], "float32"))]
    fruit = graph(
        [("MatMul", ["x", "w"], ["h"], {}), ("Add", ["h", "b"], ["y"], {})],
        [("x", "FLOAT", ["n", 2])],
        [("y", "FLOAT", ["n", 2])],
        weights,
    )
    found = Served()
    with contextlib.closing(found):
        found.gateway()
        pixels_of = steps_to_plain(
            [DecodeImage(), ResizeImage(height=8, width=8), Normalize(mean=(0,) * 3, std=(1,) * 3)]
        )
        versions = {
            "fruit": found.publish(fruit, "fruit", signature=table, prepare=prepare, finish=finish),
            "mini": found.publish(same_text(), "mini", signature=takes("text")),
            "photos": found.publish(colours(), "photos", signature=takes("image"), prepare=pixels_of),
            "scorer": found.publish(linear(), "scorer"),
        }
        found.ready(*(found.replica(version) for version in versions.values()))
        found.route_all([(name, version, f"{name}:1") for name, version in versions.items()])
        yield found


@pytest.mark.capability("I2")
def test_the_page_runs_from_top_to_bottom(served, tmp_path, monkeypatch):
    pytest.importorskip("tritonclient.http")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.jpg").write_bytes(encoded(pixels(40, 30), "JPEG"))
    scope, said = {}, io.StringIO()
    assert len(BLOCKS) == 6
    with contextlib.redirect_stdout(said):
        for code in BLOCKS:
            local = code.replace("127.0.0.1:8700", f"127.0.0.1:{served.port}")
            exec(compile(local, "call-an-endpoint.md", "exec"), scope)
    lines = said.getvalue().splitlines()
    assert lines[0].startswith("apple fruit:1 ")
    assert lines[1] == "['apple', 'cherry']"
    assert lines[2] == "{'y': 'a sentence'}"
    assert lines[3].startswith("{'y': [")
    assert lines[4] == "(8, 3) float32"
    assert lines[5] == "20"
    assert lines[6].startswith("wrong_value $.inputs.weight Expected `float | null`, got `str`")
    for name in ("client", "server"):
        scope[name].close()
