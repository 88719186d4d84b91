"""The models on the page about Python code are right: they load, answer, and please a type checker."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from argosy.formats.python_check import check
from argosy.formats.python_runner import PythonRunner
from argosy.formats.python_spec import SPEC_FILE, PythonSpec

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "serve-python-code.md").read_text()
SOURCES = dict(re.findall(r"```python\n# (\w+\.py)\n(.*?)```", PAGE, re.DOTALL))


def opened(name):
    spec = PythonSpec(entry=name)
    return PythonRunner.open({name: SOURCES[name].encode(), "words.txt": b"fine great", SPEC_FILE: spec.encode()})


@pytest.mark.parametrize("name", SOURCES)
def test_a_model_on_the_page_passes_the_check_before_deploying(name):
    assert check(opened(name)).passed


def test_the_first_model_answers_what_the_page_says():
    found = opened("sentiment.py").run(
        {"text": np.array(["a fine film", "dull"], dtype=object), "weight": np.ones(2, "float32")}
    )
    assert found["label"].tolist() == ["good", "bad"]
    assert found["score"].dtype == np.float32


@pytest.mark.parametrize("name", SOURCES)
def test_a_type_checker_finds_nothing_in_them(name, tmp_path):
    path = tmp_path / name
    path.write_text(SOURCES[name])
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", path], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
