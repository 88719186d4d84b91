"""Model files through the graph of formats for real: torch, ONNX, TorchScript, torch.export, scikit-learn."""

import json
import os
import signal
import subprocess
import sys
import threading
from importlib import util
from pathlib import Path

import numpy as np
import pytest

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.formats.conversion import edges, nodes
from argosy.formats.conversion.convert import Request, convert, plan
from argosy.formats.conversion.graph import CONVERTERS, FORMATS, Converter, Format

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, ins, outs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(ins, outs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outs)
        self.conv2 = nn.Conv2d(outs, outs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outs)
        self.short = nn.Conv2d(ins, outs, 1, stride)

    def forward(self, x):
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.short(x))

class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 1, 1)
        self.blocks = nn.Sequential(Block(8, 8, 1), Block(8, 16, 2))
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))).mean((2, 3)))

class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(2, 6)
        self.rnn = nn.LSTM(6, 12, batch_first=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids):
        return {"logits": self.head(self.rnn(self.table(ids))[0][:, -1])}

class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.third(torch.relu(self.second(torch.tanh(self.first(x)))))

class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.left, self.right = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x):
        if bool((self.left.bias.sum() > 100) | (x.sum() > 1e6)):
            return self.left(x)
        return self.right(x)

class Mixing(nn.Module):
    def forward(self, x):
        return x - x.mean(0)

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False)
        self.outer.weight = self.inner.weight

    def forward(self, x):
        return self.outer(torch.relu(self.inner(x)))

class Half(Plain):
    def __init__(self):
        super().__init__()
        self.to(torch.bfloat16)

    def forward(self, x):
        return super().forward(x.to(torch.bfloat16)).float()
"""


@pytest.fixture
def nets(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    return lambda name: f"{tmp_path}/nets.py:{name}"


def carried_out(source, out, **options):
    return convert(plan(Request(source=str(source), out=Path(out), **options)))


def refused(source, out, **options):
    with pytest.raises(ArgosyError) as found:
        carried_out(source, out, **options)
    assert not Path(out).exists()
    assert not Path(f"{out}.parity.json").exists()
    return found.value


def proved(report):
    assert report.passed
    assert all(step.parity.passed and step.parity.agreement == 1.0 for step in report.steps)
    assert report.parity.batch_sizes == (8, 1, 3)
    return report


@pytest.mark.capability("F1", "F4")
def test_a_resnet_becomes_onnx_and_that_a_module_that_trains_further(nets, tmp_path):
    found = proved(carried_out(nets("ResNet"), tmp_path / "net.onnx", inputs=("x:batch,3,16,16:float32",)))
    assert json.loads((tmp_path / "net.onnx.parity.json").read_text())["passed"]
    assert found.parity.max_rel < 1e-5
    proved(carried_out(tmp_path / "net.onnx", tmp_path / "back", target_format="pytorch"))
    code = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from model import build
torch.manual_seed(0)
module = build().train()
x, y = torch.randn(32, 3, 16, 16), torch.randint(0, 10, (32,))
optimizer = torch.optim.Adam(module.parameters(), 1e-2)
losses = []
for _ in range(30):
    optimizer.zero_grad()
    loss = torch.nn.functional.cross_entropy(module(x), y)
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
print(losses[-1] < 0.9 * losses[0], all(p.grad is not None for p in module.parameters()))
"""
    command = [sys.executable, "-c", code, tmp_path / "back"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["True", "True"]


@pytest.mark.capability("F1")
@pytest.mark.slow
def test_a_resnet_becomes_torchscript_and_that_onnx(nets, tmp_path):
    shape = ("x:batch,3,16,16:float32",)
    proved(carried_out(nets("ResNet"), tmp_path / "net.pt", inputs=shape))
    proved(carried_out(tmp_path / "net.pt", tmp_path / "net.onnx", inputs=shape))


@pytest.mark.capability("F1")
@pytest.mark.slow
def test_a_module_becomes_torch_export_and_that_onnx(nets, tmp_path):
    proved(carried_out(nets("Plain"), tmp_path / "net.pt2", inputs=("x:batch,4",)))
    proved(carried_out(tmp_path / "net.pt2", tmp_path / "net.onnx"))


@pytest.mark.capability("F1")
def test_a_recurrent_net_of_tokens_with_named_outputs_becomes_onnx_and_openvino(nets, tmp_path):
    proved(carried_out(nets("Recurrent"), tmp_path / "net.onnx", inputs=("ids:batch,7:int64",)))
    if util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed here")
    proved(carried_out(tmp_path / "net.onnx", tmp_path / "net.xml"))
    assert (tmp_path / "net.bin").is_file()


@pytest.mark.capability("F4")
@pytest.mark.slow
def test_a_model_that_decides_by_values_is_scripted_or_refused_by_its_line(nets, tmp_path):
    error = refused(nets("Deciding"), tmp_path / "net.onnx", inputs=("x:batch,4",))
    assert error.code == "control_flow"
    assert "if bool(" in error.message
    proved(carried_out(nets("Deciding"), tmp_path / "net.pt", inputs=("x:batch,4",)))


@pytest.mark.capability("F4")
@pytest.mark.slow
def test_a_model_whose_rows_depend_on_each_other_is_told_apart_from_a_wrong_converter(nets, tmp_path):
    assert refused(nets("Mixing"), tmp_path / "net.pt", inputs=("x:batch,4",)).code == "rows_depend"


@pytest.mark.capability("F1")
@pytest.mark.slow
def test_tied_weights_come_from_a_file_that_keeps_one_of_them(nets, tmp_path):
    from safetensors.numpy import save_file

    weights = tmp_path / "tied.safetensors"
    save_file({"outer.weight": np.eye(4, dtype=np.float32) * 3}, weights)
    samples = tmp_path / "rows.npz"
    np.savez(samples, x=np.arange(20, dtype=np.float32).reshape(5, 4))
    found = carried_out(nets("Tied"), tmp_path / "net.onnx", weights=weights, samples=samples)
    assert found.samples == 5
    assert found.samples_from == str(samples)
    from argosy.formats.onnx_runtime import OnnxRunner

    answer = OnnxRunner.load(tmp_path / "net.onnx").run({"x": np.ones((1, 4), np.float32)})
    assert next(iter(answer.values())).tolist() == [[9.0] * 4]
    save_file({"other.weight": np.eye(4, dtype=np.float32)}, weights)
    error = refused(nets("Tied"), tmp_path / "no.onnx", weights=weights, samples=samples)
    assert error.code == "weights_differ"


@pytest.mark.slow
def test_a_bfloat16_model_is_compared_within_what_bfloat16_can_hold(nets, tmp_path):
    found = carried_out(nets("Half"), tmp_path / "net.pt", inputs=("x:batch,4",))
    assert set(found.steps[0].tolerances.values()) == {0.05}


def test_what_the_model_takes_must_be_known(nets, tmp_path):
    error = refused(nets("Plain"), tmp_path / "net.onnx")
    assert error.code == "inputs_unknown"
    assert "--input" in error.hint


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("def build(): return 3", "returns int"),
        ("raise ValueError('broken')", "can't be imported: ValueError: broken"),
        ("def build():\n    return missing", "NameError.*line 2"),
        ("other = 1", "no function 'build'"),
    ],
)
def test_code_that_builds_nothing_says_where_it_fails(tmp_path, code, says):
    (tmp_path / "bad.py").write_text(code)
    with pytest.raises(InvalidInput, match=says):
        carried_out(f"{tmp_path}/bad.py", tmp_path / "net.onnx", inputs=("x:batch,4",))


def wrong(monkeypatch, name):
    job = f"{Path(__file__).parents[1]}/wrong_converters.py:{name}"
    made = Converter(source="pytorch", target="onnx", job=job, does="a wrong converter")
    monkeypatch.setattr(edges, "WRONG", made, raising=False)
    monkeypatch.setitem(CONVERTERS._builtin, "pytorch-onnx", "argosy.formats.conversion.edges:WRONG")


@pytest.mark.capability("F4")
def test_a_wrong_converter_is_caught_and_the_layer_it_spoils_is_named(nets, tmp_path, monkeypatch):
    wrong(monkeypatch, "one_weight")
    error = refused(nets("Plain"), tmp_path / "net.onnx", inputs=("x:batch,4",))
    assert error.code == "parity"
    assert error.context["layer"]["layer"] == "second"
    assert "the first layer that differs is 'second'" in error.message
    assert error.context["parity"]["max_rel"] > error.context["parity"]["tolerance"] == 1e-3


@pytest.mark.capability("F4")
def test_a_layer_is_named_also_where_the_converted_model_shows_nothing_inside(nets, tmp_path, monkeypatch):
    blind = Format(name="blind", title="blind library", job="onnx_job", suffix=".blind")
    job = f"{Path(__file__).parents[1]}/wrong_converters.py:one_layer"
    made = Converter(source="onnx", target="blind", job=job, does="a wrong converter")
    monkeypatch.setattr(nodes, "BLIND", blind, raising=False)
    monkeypatch.setitem(FORMATS._builtin, "blind", "argosy.formats.conversion.nodes:BLIND")
    monkeypatch.setattr(edges, "ONNX_BLIND", made, raising=False)
    monkeypatch.setitem(CONVERTERS._builtin, "onnx-blind", "argosy.formats.conversion.edges:ONNX_BLIND")
    error = refused(nets("Plain"), tmp_path / "net.blind", inputs=("x:batch,4",), target_format="blind")
    assert error.code == "parity"
    layer = error.context["layer"]
    assert (layer["kind"], layer["number"]) == ("Gemm", 2)
    assert f"the first layer that differs is '{layer['layer']}' (Gemm)" in error.message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["nets.py"]


@pytest.mark.capability("F4")
@pytest.mark.slow
def test_a_converter_that_freezes_the_batch_is_caught(nets, tmp_path, monkeypatch):
    wrong(monkeypatch, "frozen_batch")
    error = refused(nets("Plain"), tmp_path / "net.onnx", inputs=("x:batch,4",))
    assert "a wrong converter" in error.message


def test_a_converter_that_leaves_a_link_gives_nothing_away(nets, tmp_path, monkeypatch):
    wrong(monkeypatch, "nothing")
    assert refused(nets("Plain"), tmp_path / "net.onnx", inputs=("x:batch,4",)).code != "internal"


@pytest.fixture
def pipelines(tmp_path):
    if util.find_spec("skl2onnx") is None:
        pytest.skip("skl2onnx is not installed here")
    import joblib
    from sklearn.decomposition import PCA
    from sklearn.ensemble import GradientBoostingRegressor
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    draw = np.random.default_rng(0)
    rows = draw.standard_normal((200, 6))
    labels = np.array(["low", "mid", "high"])[(rows[:, 0] > 0).astype(int) + (rows[:, 1] > 0.5)]
    joblib.dump(make_pipeline(StandardScaler(), PCA(4), LogisticRegression()).fit(rows, labels), tmp_path / "a.joblib")
    joblib.dump(GradientBoostingRegressor(n_estimators=10).fit(rows, rows[:, 0] * 2), tmp_path / "b.pkl", compress=3)
    return tmp_path


def test_scikit_learn_pipelines_become_onnx(pipelines):
    for name in ("a.joblib", "b.pkl"):
        found = proved(carried_out(pipelines / name, pipelines / f"{name}.onnx"))
        assert found.steps[0].tolerances.get("label", 0.0) == 0.0


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.capability("F4")
def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(tmp_path, monkeypatch):
    import pickle

    if util.find_spec("skl2onnx") is None:
        pytest.skip("skl2onnx is not installed here")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps(Evil()))
    error = refused(tmp_path / "evil.pkl", tmp_path / "out.onnx")
    assert error.code == "pickle_refused"
    assert "system" in error.message
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pkl"]


@pytest.mark.capability("F4")
def test_the_command_shows_plan_progress_and_proof_and_json_is_one_document(installed, tmp_path):
    (installed.folder / "nets.py").write_text(NETS)
    said = installed.ok("convert", "nets.py:Plain", "net.pt", "--input", "x:batch,4")
    lines = [line for line in said.splitlines() if line]
    assert lines[0] == "PyTorch module to TorchScript: torch.jit.trace, or script"
    assert "1/1" in lines[1]
    assert "100% of 8 samples agree" in lines[-2]
    assert "net.pt.parity.json" in lines[-1]
    refused = installed.refused("convert", "net.pt", "model.mindir")
    assert "argosy tools install mindspore" in refused
    tools = {tool["name"]: tool for tool in installed.json("tools", "list")["tools"]}
    assert tools["mindspore"]["where"] == ""
    assert "belong to a model file" in installed.refused("convert", "--to", "onnx")
    assert "it isn't said into what" in installed.refused("convert", "net.pt")


@pytest.mark.slow
def test_a_conversion_killed_in_the_middle_leaves_nothing_half(installed):
    (installed.folder / "nets.py").write_text(
        NETS + "\nimport os, time\ndef slow():\n    open('started', 'w').close()\n    time.sleep(600)\n"
    )
    scratch = installed.folder / "scratch"
    scratch.mkdir()
    process = subprocess.Popen(
        [Path(sys.executable).parent / "argosy", "convert", "nets.py:slow", "net.onnx", "--input", "x:batch,4"],
        cwd=installed.folder,
        env=installed.environment | {"TMPDIR": str(scratch)},
        stdout=subprocess.DEVNULL,
    )
    while not list(scratch.glob("argosy-convert-*/source/tmp/started")):
        assert process.poll() is None
        threading.Event().wait(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert sorted(path.name for path in installed.folder.iterdir()) == ["nets.py", "scratch"]
    done = subprocess.run(
        [Path(sys.executable).parent / "argosy", "convert", "nets.py:Plain", "net.pt", "--input", "x:batch,4"],
        cwd=installed.folder,
        env=installed.environment | {"TMPDIR": str(scratch)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # The remains of the killed one went with the next.
    assert list(scratch.glob("argosy-convert-*")) == []
