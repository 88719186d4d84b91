"""Killed at any moment, a search goes on with what it has finished, and leaves nothing half-written."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.compress.config import CompressConfig
from argosy.compress.passes.nncf_int8 import has_nncf
from argosy.compress.search import compress
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.train.config import TrainConfig

# The same data in the child and here, from one text.
DATA = """
import numpy as np

class Data:
    task, digest = "classification", "sha256:" + "4" * 64

    def prepared(self, split):
        y = np.arange(160) % 4
        x = np.eye(64)[y * 16] + 0.1 * np.random.default_rng(len(split)).normal(size=(160, 64))
        return {"x": x.astype(np.float32)}, y
"""
SEARCH = (
    DATA
    + """
import sys
from pathlib import Path
from argosy.compress.config import CompressConfig
from argosy.compress.search import compress
from argosy.train.config import TrainConfig

folder = Path(sys.argv[1])
config = CompressConfig(passes=["quantize"], max_drop="5pt")
compress(folder / "model.onnx", None, Data(), config, TrainConfig(), folder / "search")
"""
)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    layers = [random.normal(scale=0.1, size=shape).astype(np.float32) for shape in ((64, 256), (256, 256), (256, 4))]
    layers[0][:, :64] += np.eye(64)
    layers[1] += np.eye(256)
    layers[2][:64, :] += np.repeat(np.eye(4), 16, axis=0)
    nodes = [helper.make_node("MatMul", [f"v{i}", f"w{i}"], [f"v{i + 1}"]) for i in range(3)]
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("v0", onnx.TensorProto.FLOAT, ["batch", 64])],
        [helper.make_tensor_value_info("v3", onnx.TensorProto.FLOAT, ["batch", 4])],
        [numpy_helper.from_array(layer, f"w{i}") for i, layer in enumerate(layers)],
    )
    for node in graph.node:
        node.input[0] = node.input[0].replace("v0", "x")
    graph.input[0].name = "x"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    return tmp_path


@pytest.mark.capability("C6")
def test_a_killed_search_resumes_without_repeating_what_was_finished(folder):
    namespace: dict = {}
    exec(DATA, namespace)
    child = subprocess.Popen([sys.executable, "-c", SEARCH, str(folder)])
    deadline = time.monotonic() + 60
    while len(records := sorted((folder / "search").glob("*.json"))) < 2:
        assert child.poll() is None, "the search ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    finished = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in records}
    tries = []
    result = compress(
        folder / "model.onnx",
        None,
        namespace["Data"](),
        CompressConfig(passes=["quantize"], max_drop="5pt"),
        TrainConfig(),
        folder / "search",
        lambda news: tries.append(news.message) if news.message.startswith("trying") else None,
    )
    wanted = 4 + has_nncf()
    assert len(result.candidates) == wanted
    assert len(tries) <= wanted - len(finished)
    for path, (data, written) in finished.items():
        assert path.read_bytes() == data
        assert path.stat().st_mtime_ns == written
    for candidate in result.candidates:
        assert OnnxRunner.load(candidate.path).signature.is_batched
