"""`argosy train` and what it leaves; language models and graphs from their files to an endpoint."""

import json
import re
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from installed import ARGOSY, Installed
from sentences import WORDS, verses

TABLE = """[project]
name = "table"
[data]
train = "table.csv"
[train]
epochs = 6
"""

WRITER = """[project]
name = "writer"
[data]
task = "language-model"
train = "verse.txt"
tokenizer = "bytes"
context = 32
[model]
options = { width = 32, layers = 1, heads = 2 }
[train]
epochs = 3
batch_size = 8
learning_rate = 5e-3
[evaluate]
perplexity = "<= 2.5"
"""

GRAPHS = """[project]
name = "rings"
[data]
train = "graphs.npz"
columns = ["nodes", "adjacency"]
[model]
family = "graph"
options = { kind = "gin", width = 16, layers = 2 }
[train]
epochs = 10
learning_rate = 1e-2
[evaluate]
accuracy = ">= 0.9"
"""


@pytest.mark.capability("T1", "T6")
def test_train_takes_a_folder_and_leaves_weights_and_a_report(installed):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(240, 4))
    lines = ["a,b,c,d,label", *(",".join([*map(str, row), "yn"[int(row[0] > row[1])]]) for row in x)]
    project = installed.folder / "project"
    project.mkdir()
    (project / "table.csv").write_text("\n".join(lines) + "\n")
    (project / "argosy.toml").write_text(TABLE)

    train = ("train", "project", "--strategy", "data-parallel", "--workers", "2", "--set", "train.epochs=7")
    told = installed.ok(*train, "--save", "out")
    assert "7 epochs" in told
    assert "out/training.html" in told
    assert "argosy run --file 'project'" in told
    page = (installed.folder / "out" / "training.html").read_text()
    assert "test accuracy" in page
    assert "data-parallel" in page
    ET.fromstring((installed.folder / "out" / "training.svg").read_text())
    assert len(json.loads((installed.folder / "out" / "history.json").read_text())) == 7

    again = installed.json(*train)
    assert again["executed"] == []
    assert again["values"]["train"]["test_accuracy"] > 0.8
    kept = Path(again["files"]["weights.safetensors"])
    assert kept.read_bytes() == (installed.folder / "out" / "weights.safetensors").read_bytes()

    assert "is not known" in installed.refused("train", "project", "--strategy", "best")
    assert "there is no 'nowhere'" in installed.refused("train", "nowhere")


@pytest.mark.capability("T1", "T5")
def test_two_machines_train_together_by_what_the_first_one_says(installed, tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(240, 4))
    lines = ["a,b,c,d,label", *(",".join([*map(str, row), "yn"[int(row[0] > row[1])]]) for row in x)]
    project = installed.folder / "project"
    project.mkdir()
    (project / "table.csv").write_text("\n".join(lines) + "\n")
    (project / "argosy.toml").write_text(TABLE)
    other = Installed(tmp_path / "other-home", installed.folder)
    (tmp_path / "other-home").mkdir()

    command = [str(ARGOSY), "train", "project", "--hosts", "2", "--save", "first"]
    first = subprocess.Popen(
        command, cwd=installed.folder, env=installed.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        said = ""
        while "--at" not in said:
            line = first.stdout.readline().decode()
            assert line, said
            said += line
        (token,) = re.findall(r"ARGOSY_TRAIN_TOKEN=(\w+)", said)
        (place,) = re.findall(r"--host 1 --at \S+", said)
        assert "lacks the token" in other.refused("train", "project", "--hosts", "2", *place.split())
        other.environment["ARGOSY_TRAIN_TOKEN"] = token
        told = other.ok("train", "project", "--hosts", "2", *place.split(), "--save", "second")
        rest = first.communicate(timeout=120)[0].decode()
    finally:
        first.kill()
    assert first.returncode == 0, rest
    assert "6 epochs" in told
    assert "over 2 hosts: " in rest
    weights = [(installed.folder / name / "weights.safetensors").read_bytes() for name in ("first", "second")]
    assert weights[0] == weights[1]


@pytest.mark.slow
@pytest.mark.capability("B1", "D1", "E1", "F1")
def test_a_language_model_goes_from_a_text_file_to_an_endpoint_that_says_what_comes_next(installed, monkeypatch):
    (installed.folder / "verse.txt").write_text(verses(700))
    (installed.folder / "argosy.toml").write_text(WRITER)
    ran = installed.json("run")
    (version,) = ran["versions"]
    assert version["passed"]
    assert version["metrics"]["perplexity"] < 2.5
    assert ran["values"]["train"]["test_perplexity"] == pytest.approx(version["metrics"]["perplexity"], rel=0.05)
    installed.ok("models", "report", "writer:1", "--save", "report")
    page = (installed.folder / "report" / "training.html").read_text()
    assert "What it writes" in page
    assert "temperature" in page

    # What the how-to says is done with the weights in Python, with the sizes of this model.
    page = (Path(__file__).parents[2] / "docs" / "how-to" / "train-a-gpt.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    installed.ok("train", "--save", "out")
    for asked, here in (
        ('"width": 192, "layers": 4, "heads": 6', '"width": 32, "layers": 1, "heads": 2'),
        ("128", "32"),
    ):
        assert asked in code
        code = code.replace(asked, here)
    code = code.replace("And it came to pass", "the dog ran")
    monkeypatch.chdir(installed.folder)
    names = {}
    exec(code, names)
    words = {word for choice in WORDS for words in choice for word in words.split()}
    assert len(names["text"]) >= 150
    assert len([word for word in names["text"].split() if word in words]) > 15

    installed.ok("deploy", "writer:1", "--now", "--port", "0")
    beginning = "the dog ran to the big r"
    told = installed.json("predict", "writer", json.dumps({"text": [beginning, "cat", "x"]}))["outputs"]
    logits, nats = np.array(told["logits"]), np.array(told["nats"])
    assert logits.shape == (3, 257)
    tokenizer = (installed.folder / "report" / "tokenizer.json").read_text()
    assert int(logits[0].argmax()) == json.loads(tokenizer)["model"]["vocab"]["e"]
    assert nats[0] < 1.5
    assert nats[2] == 0.0
    # Longer than the context: its end is what counts.
    long = installed.json("predict", "writer", json.dumps({"text": [f"{verses(9)} {beginning}"]}))["outputs"]
    assert np.array(long["logits"])[0].argmax() == logits[0].argmax()


@pytest.mark.slow
@pytest.mark.capability("B1", "D1")
def test_graphs_in_two_arrays_become_a_version_that_takes_both(installed):
    draw = np.random.default_rng(3)
    count, nodes = 300, 8
    kinds = draw.integers(0, 2, size=count)
    adjacency = np.zeros((count, nodes, nodes), dtype=np.uint8)
    for graph, kind in enumerate(kinds):
        # A ring, or a star: which one is told by the edges alone.
        for node in range(nodes):
            other = (node + 1) % nodes if kind else 0
            adjacency[graph, node, other] = adjacency[graph, other, node] = 1
    np.savez(
        installed.folder / "graphs.npz",
        nodes=np.ones((count, nodes, 1), dtype=np.float32),
        adjacency=adjacency,
        label=np.where(kinds, "ring", "star"),
    )
    (installed.folder / "argosy.toml").write_text(GRAPHS)
    (version,) = installed.json("run")["versions"]
    assert version["metrics"]["accuracy"] == 1.0
    installed.ok("deploy", "rings:1", "--now", "--port", "0")
    given = {"nodes": np.ones((2, nodes, 1)).tolist(), "adjacency": adjacency[:2].tolist()}
    told = installed.json("predict", "rings", json.dumps(given))["outputs"]
    assert told["label"] == ["ring" if kind else "star" for kind in kinds[:2]]
