"""`argosy compress` through the installed command: files, budgets, passes, and what can be wrong with them."""

import json

import numpy as np
import onnx
import pytest

from argosy.formats.onnx_runtime import OnnxRunner
from compressed import Stripes, cnn, one_thread, onnx_of, train


@pytest.fixture(scope="session")
def trained():
    with one_thread():
        return onnx_of(train(cnn(), Stripes(), steps=25), Stripes())


@pytest.fixture
def project(installed, trained):
    """A folder with a model nobody knows and rows to judge it by."""
    (installed.folder / "model.onnx").write_bytes(trained)
    y = np.arange(300) % 3
    columns = {
        "label": y,
        "thousands": y + 1000,
        "words": np.array(["a", "b", "c"])[y],
        "share": np.linspace(0, 1, 300),
    }
    np.savez(installed.folder / "data.npz", x=Stripes(300).prepared("train")[0]["x"], **columns)
    return installed


def compress(argosy, *arguments):
    return argosy.json("compress", "model.onnx", *arguments)


def failed(argosy, *arguments):
    """Return the one error of a command that must fail, as a program reads it."""
    done = argosy("compress", "model.onnx", *arguments, "--json")
    assert done.returncode not in (0, 70), done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return json.loads(done.stdout or done.stderr)["error"], done.returncode


@pytest.mark.capability("C6")
def test_a_file_within_a_size_becomes_a_sibling_that_reports_show(project, trained):
    made = compress(project, "--data", "data.npz", "--size", "30KB", "--passes", "quantize", "--save", "out")
    assert (made["parent"], made["version"]) == ("model:1", "model:2")
    assert made["passed"]
    assert made["size_bytes"] <= 30_000 < made["original_size_bytes"] == len(trained)
    assert made["passes"][0]["pass"] == "quantize"
    assert made["test"]["drop"] <= 0.01
    saved = project.folder / "out"
    assert (saved / "model.onnx").stat().st_size == made["size_bytes"]
    assert (saved / "compression.png").read_bytes()[:4] == b"\x89PNG"
    assert json.loads((saved / "compression.json").read_bytes())["chosen"]["name"] == made["name"]
    assert (project.folder / "model.onnx").read_bytes() == trained
    assert made["name"] in project.ok("models", "report", made["version"])
    error, code = failed(project, "--data", "data.npz", "--size", "1KB", "--passes", "quantize")
    assert (error["code"], code) == ("budget_out_of_reach", 2)
    nearest = error["context"]["nearest"]
    assert 1000 < nearest["size_bytes"] < len(trained)
    assert nearest["passes"][0]["pass"] == "quantize"
    assert "size = " in error["hint"]


@pytest.mark.capability("C1")
def test_a_pass_is_applied_as_it_is_asked_for(project, trained):
    made = compress(project, "--data", "data.npz", "--pass", "prune:sparsity=0.8", "--epochs", "2")
    assert made["passes"] == [{"pass": "prune", "sparsity": 0.8}]
    assert made["size_bytes"] < 0.4 * len(trained)
    assert made["candidates"] == 1
    assert made["test"]["accuracy"] > 0.8


@pytest.mark.slow
@pytest.mark.capability("C2", "C5")
def test_passes_are_applied_in_the_order_they_are_given(project, trained):
    made = compress(project, "--data", "data.npz", "--pass", "slim:ratio=0.5", "--pass", "quantize", "--epochs", "2")
    assert [step["pass"] for step in made["passes"]] == ["slim", "quantize"]
    assert made["candidates"] == 2
    assert made["size_bytes"] < 0.3 * len(trained)
    error, _ = failed(project, "--data", "data.npz", "--pass", "quantize", "--pass", "slim")
    assert "slim can't be applied to int8" in error["message"]


@pytest.mark.capability("C5")
def test_a_bare_file_without_data_is_judged_by_inputs_that_are_made_up(project, trained):
    made = compress(project, "--pass", "quantize:operands=weights-8")
    assert made["test"]["cosine"] > 0.999
    assert made["size_bytes"] < len(trained)
    home = project.home
    models = [path for path in home.rglob("*") if path.is_file() and path.stat().st_size == made["size_bytes"]]
    kinds = {node.op_type for path in models for node in onnx.load(path).graph.node}
    assert "MatMulNBits" in kinds
    assert OnnxRunner.load(models[0]).signature.is_batched


@pytest.mark.capability("C6")
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("--size", "0MB"), "invalid_input", "size = '0MB' is impossible"),
        (("--size", "small"), "invalid_input", "not a size such as"),
        (("--passes", "shrink"), "invalid_input", "'shrink'; known are"),
        (("--pass", "shrink"), "invalid_input", "no pass 'shrink'; there are: slim"),
        (("--pass", "slim:ratio=half"), "invalid_input", "takes a number, not 'half'"),
        (
            ("--pass", "slim:colour=3"),
            "invalid_input",
            "no setting 'colour'; there are: blocks, embeddings, heads, ratio",
        ),
        (("--label", "thousands"), "invalid_input", "says class 1002; the model has 3"),
        (("--label", "words"), "invalid_input", "are no numbers"),
        (("--data", "nothing.npz"), "not_found", "no data file 'nothing.npz'"),
    ],
)
def test_what_is_wrong_is_said_once_and_the_original_stays(project, trained, arguments, code, said):
    data = () if "--data" in arguments else ("--data", "data.npz")
    only = () if {"--pass", "--passes"} & set(arguments) else ("--passes", "quantize")
    error, status = failed(project, *data, *only, *arguments)
    assert error["code"] == code
    assert said in error["message"]
    assert status in (2, 3)
    assert (project.folder / "model.onnx").read_bytes() == trained


@pytest.mark.capability("C6")
def test_without_data_a_search_has_nothing_to_judge_by(project):
    error, status = failed(project, "--size", "30KB")
    assert (error["code"], status) == ("no_data", 2)
    assert "--data FILE" in error["hint"]


@pytest.mark.capability("C6")
def test_a_damaged_file_and_an_unknown_version_are_refused(project, trained):
    (project.folder / "model.onnx").write_bytes(trained[: len(trained) // 2])
    error, _ = failed(project, "--data", "data.npz", "--size", "30KB")
    assert error["code"] in ("invalid_input", "model_load_failed")
    assert "no model 'nobody'" in project.refused("compress", "nobody:3", "--size", "30KB")
