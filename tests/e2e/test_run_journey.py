"""`argosy run` on a table of the user's own: trains, gates, publishes; caches; resumes."""

import json
import os
import signal
import subprocess
import time

import pytest

from installed import ARGOSY

# Six lines: what a newcomer writes.
PROJECT = """[project]
name = "cancer"
[data]
train = "cancer.csv"
[evaluate]
accuracy = ">= 0.9"
"""

# Enough to run every stage, where it does not matter how good the model becomes.
FEW = ("--set", "train.epochs=12", "--set", 'evaluate.accuracy=">= 0.5"')


@pytest.fixture
def cancer(installed):
    from sklearn.datasets import load_breast_cancer

    found = load_breast_cancer()
    lines = [",".join([*map(str, found.feature_names), "label"])]
    lines += [
        ",".join([*map(repr, map(float, row)), ("malignant", "benign")[kind]])
        for row, kind in zip(found.data, found.target, strict=True)
    ]
    (installed.folder / "cancer.csv").write_text("\n".join(lines) + "\n")
    (installed.folder / "argosy.toml").write_text(PROJECT)
    return installed


@pytest.mark.capability("D1", "D2", "E1", "T6", "F1", "V2", "V3", "X1")
def test_a_csv_and_six_lines_become_a_signed_version_and_a_second_run_does_nothing(cancer):
    planned = cancer.json("plan")
    assert [step["stage"] for step in planned["steps"]] == ["data", "train", "convert", "evaluate", "publish"]
    assert not any(step["is_done"] for step in planned["steps"])

    first = cancer.json("run")
    assert first["executed"] == ["data", "train", "convert", "evaluate", "publish"]
    (version,) = first["versions"]
    assert version["version"] == "cancer:1"
    assert version["passed"]
    assert version["metrics"]["accuracy"] >= 0.9

    second = cancer.json("run")
    assert second["executed"] == []
    assert second["versions"] == first["versions"]

    changed = cancer.json("run", *FEW)
    assert changed["executed"] == ["train", "convert", "evaluate", "publish"], "the data are as they were"
    assert changed["versions"][0]["version"] == "cancer:2"

    cancer.ok("audit", "verify")
    shown = cancer.ok("models", "show", "cancer:1")
    assert "verified" in shown
    links = cancer.json("why", "cancer:1")["links"]
    assert [link["name"] for link in links if link["what"] == "stage"] == [
        "publish",
        "evaluate",
        "convert",
        "train",
        "data",
    ]

    header, first = (cancer.folder / "cancer.csv").read_text().splitlines()[:2]
    row = dict(zip(header.split(",")[:-1], map(float, first.split(",")[:-1]), strict=True))
    (cancer.folder / "row.json").write_text(json.dumps(row))
    told = cancer.json("explain", "cancer:1", "row.json", "--seconds", "1", "--save", "why.png")
    assert told["parts"].keys() == row.keys()
    assert sum(told["parts"].values()) == pytest.approx(told["prediction"] - told["base"], abs=1e-6)
    assert (cancer.folder / "why.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.capability("E1")
def test_a_version_that_misses_a_gate_is_kept_but_not_released(cancer):
    done = cancer("run", *FEW, "--set", 'evaluate.accuracy=">= 0.9999"')
    assert done.returncode == 1
    assert "missed by" in done.stderr
    assert not cancer.json("models", "list")[0]["manifest"]["evaluation"]["passed"]
    refused = cancer.refused("deploy", "cancer:1")
    assert "accuracy" in refused


@pytest.mark.capability("T7")
@pytest.mark.parametrize(
    "stage",
    [pytest.param("data", marks=pytest.mark.slow), "train", pytest.param("evaluate", marks=pytest.mark.slow)],
)
def test_a_run_killed_in_a_stage_goes_on_without_repeating_a_finished_one(cancer, stage):
    before = {"data": [], "train": ["data"], "evaluate": ["data", "train", "convert"]}[stage]
    process = subprocess.Popen(
        [ARGOSY, "run", *FEW],
        cwd=cancer.folder,
        env=cancer.environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    for line in process.stdout:
        if line.split()[:1] == [stage]:
            break
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    result = cancer.json("run", *FEW)
    assert result["cached"] == before or (stage in result["cached"] and set(before) <= set(result["cached"]))
    assert result["versions"][0]["version"] == "cancer:1"
    assert len(cancer.json("models", "list")) == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("data.train", "missing.csv"), "there is no data file"),
        (("data.label", "diagnosis"), "diagnosis"),
        (("train.optimizer", "adamm"), "adamm"),
        (("train.epoch", "3"), "unknown field `epoch`"),
        (("train.epochs", '"many"'), "at `$.train.epochs`"),
        (("model.build", "model:build"), "model"),
    ],
)
def test_a_wrong_project_gets_one_clear_error_and_leaves_nothing(cancer, change, says):
    name, value = change
    assert says in cancer.refused("run", "--set", f"{name}={value}")
    assert cancer.json("models", "list") == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "empty"),
        ("a,b,label\n", "no rows"),
        ("a,label\n1,x\n2,x\n3,x\n4,x\n", "only the class"),
        ("a,label\n\x00,\n", ""),
    ],
)
def test_a_data_file_nothing_can_be_learned_from_is_refused(cancer, content, says):
    (cancer.folder / "cancer.csv").write_text(content)
    assert says in cancer.refused("run")


MODELS = {
    "without_parameters": ("import torch\ndef build(outputs): return torch.nn.Flatten()\n", "parameters"),
    "of_a_wrong_output": ("import torch\ndef build(outputs): return torch.nn.Linear(30, outputs + 1)\n", "3"),
    "that_raises": ("def build(outputs): return 1 / 0\n", "model.py"),
    "without_the_function": ("def make(): pass\n", "build"),
}


@pytest.mark.parametrize(
    "kind", [kind if kind == "that_raises" else pytest.param(kind, marks=pytest.mark.slow) for kind in MODELS]
)
def test_a_wrong_model_gets_one_clear_error(cancer, kind):
    code, says = MODELS[kind]
    (cancer.folder / "model.py").write_text(code)
    assert says in cancer.refused("run", "--set", "model.build=model:build")
    assert cancer.json("models", "list") == []


@pytest.mark.slow
def test_nothing_is_left_running_after_a_run(cancer):
    cancer.ok("run", *FEW)
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = subprocess.run(["pgrep", "-f", str(cancer.home)], capture_output=True, text=True, check=False).stdout
        if not left:
            return
    pytest.fail(f"still running: {left}")
