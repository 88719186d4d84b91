"""`argosy deploy sentiment.py` and what follows, by the installed command."""

import json
import threading
import urllib.request

import pytest

ROLLOUT = """[project]
name = "sentiment"
[rollout]
steps = [30, 60]
dwell = "1s"
window = "500ms"
judge = ["errors"]
time_limit = "60s"
mirror = 0
"""

MODEL = """
from typing import NamedTuple

import numpy as np

import argosy
from scoring.words import score


class Answer(NamedTuple):
    label: argosy.Text
    score: argosy.FP32


class Sentiment(argosy.Model):
    def load(self, files: argosy.Files) -> None:
        self.good = set(files["words.txt"].decode().split())

    def predict(self, text: argosy.Text) -> Answer:
        scores = np.array([score(line, self.good) for line in text], dtype=np.float32)
        if any(not line for line in text):
            raise argosy.Refused("the text is empty; send at least a word")
        return Answer(np.where(scores > {limit}, "good", "bad"), scores)
"""


@pytest.fixture
def folder(installed):
    def write(limit=0, words="fine great"):
        (installed.folder / "sentiment.py").write_text(MODEL.replace("{limit}", str(limit)))
        (installed.folder / "words.txt").write_text(words)
        (installed.folder / "scoring").mkdir(exist_ok=True)
        (installed.folder / "scoring" / "words.py").write_text(
            "def score(text, good):\n    return sum(word in good for word in text.split())\n"
        )
        return ("deploy", "sentiment.py", "--with", "words.txt", "--with", "scoring", "--requires", "numpy>=1.26")

    return write


@pytest.mark.capability("I3", "K1", "R3")
def test_a_python_file_is_deployed_asked_changed_and_returned_to(installed, folder):
    command = folder()
    first = installed.json(*command, "--port", "0")
    told = installed.json("predict", "sentiment", '{"text": "a fine film"}')
    assert (told["version"], told["outputs"]) == ("sentiment:1", {"label": "good", "score": 1.0})
    assert "send at least a word" in installed.refused("predict", "sentiment", '{"text": ""}')
    assert installed.json(*command)["url"] == first["url"]
    assert len(installed.json("models", "list")) == 1, "the same files are the same version"

    assert installed.json(*folder(words="great"))["undo"] == "argosy rollback sentiment"
    assert installed.json("predict", "sentiment", '{"text": "a fine film"}')["outputs"]["label"] == "bad"
    installed.ok("rollback", "sentiment")
    told = installed.json("predict", "sentiment", '{"text": ["a fine film", "dull"]}')
    assert told["outputs"] == {"label": ["good", "bad"], "score": [1.0, 0.0]}
    assert "version" in installed.ok("why", told["prediction"])

    shown = installed.ok("models", "show", "sentiment:1")
    assert "sentiment.py:Sentiment, needs numpy>=1.26" in shown
    assert "scoring/words.py" in shown
    assert "sentiment:2" in installed.ok("models", "list", "sentiment")
    assert "was not compressed" in installed.refused("models", "report", "sentiment:1")
    assert "can't be explained" in installed.refused("explain", "sentiment:1", '{"text": "x"}')


@pytest.mark.capability("R2", "I3")
def test_a_new_python_version_is_a_canary_first(installed, folder):
    (installed.folder / "argosy.toml").write_text(ROLLOUT)
    installed.ok(*folder(), "--port", "0")
    installed.ok(*folder(limit=1), "--detach")
    url = installed.json("watch", "sentiment", "--once")["url"] + "/predict/sentiment"
    body = json.dumps({"inputs": {"text": "a fine film"}}).encode()
    answers = set()
    rollout = threading.Event()

    def ask():
        while not rollout.is_set():
            with urllib.request.urlopen(urllib.request.Request(url, body)) as answer:
                found = json.load(answer)
                answers.add((found["version"], found["outputs"]["label"]))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        told = installed.ok("watch", "sentiment", timeout=100)
    finally:
        rollout.set()
        thread.join()
    assert "promoted" in told
    assert answers == {("sentiment:1", "good"), ("sentiment:2", "bad")}


ANSWER = "class M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> argosy.FP32:\n        return {}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("class M(argosy.Model):\n    def predict(self, x) -> argosy.FP32: ...", "input 'x' of 'M' has no annotation"),
        (ANSWER.format("y"), "NameError"),
        (ANSWER.format("x[:1]"), "for 4 rows [4] was promised"),
        (ANSWER.format("x - x.mean()"), "depends on the other rows of the batch"),
        ("import no_such_library", "imports 'no_such_library', which is not installed"),
        ("import helper", "add --with '"),
        ("import os; os._exit(7)", "ended without a result: exit code 7"),
        ("import ctypes; ctypes.string_at(0)", "ended without a result: signal 11"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_code_that_is_wrong_is_refused_before_anything_is_published(installed, text, said):
    (installed.folder / "model.py").write_text("import argosy\n" + text + "\n")
    (installed.folder / "helper.py").write_text("")
    assert said in installed.refused("deploy", "model.py")
    assert installed.json("models", "list") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.py",), "there is no file 'nothing.py'"),
        (("good.py:Nope",), "has no class 'Nope'"),
        (("good.py", "--with", "nothing.txt"), "there is no 'nothing.txt' to deploy"),
        (("good.py", "--requires", "no-such-library>=3"), "needs the package 'no-such-library>=3', but it is not"),
        (("good.py", "--requires", "=="), "does not name a package"),
        (("good.py", "--with", "json.py"), "would take the place of Python's own module 'json'"),
        (("good.py", "--with", "linked"), "is a link to a folder"),
        (("good.py", "--with", "odd name.txt"), "can't be called 'odd name.txt'"),
        (("good.py", "--with", "python-model.json"), "give it another"),
        (("good.py", "--with", "other/good.py"), "would both be 'good.py'"),
        (("model.onnx", "--with", "json.py"), "are for Python files"),
        (("odd-name.py",), "must be called like a Python module"),
    ],
)
def test_what_can_not_be_deployed_says_why(installed, arguments, said):
    files = installed.folder
    for name in (
        "good.py",
        "json.py",
        "odd name.txt",
        "odd-name.py",
        "python-model.json",
        "other/good.py",
        "model.onnx",
    ):
        (files / name).parent.mkdir(exist_ok=True)
        (files / name).write_text("import argosy\n" + ANSWER.format("x"))
    (files / "linked").mkdir()
    (files / "linked" / "folder").symlink_to(files / "other")
    assert said in installed.refused("deploy", *arguments)


def test_a_folder_comes_along_without_what_is_hidden_or_compiled(installed, folder):
    command = folder()
    for name in (".git/config", "scoring/__pycache__/words.cpython-311.pyc", "scoring/.secret", "scoring/data/x.bin"):
        path = installed.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    (installed.folder / "scoring" / "linked.txt").symlink_to(installed.folder / "words.txt")
    installed.ok(*command, "--port", "0")
    shown = json.loads(installed.ok("models", "show", "sentiment:1", "--json"))
    assert sorted(shown["manifest"]["files"]) == [
        "python-model.json",
        "scoring/data/x.bin",
        "scoring/linked.txt",
        "scoring/words.py",
        "sentiment.py",
        "words.txt",
    ]
