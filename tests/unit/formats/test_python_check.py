"""What is tried before a model of one's own is deployed."""

import json
import subprocess
import sys

import numpy as np
import pytest

from argosy.core.digest import sha256
from argosy.core.errors import InvalidInput
from argosy.formats.python_check import check
from argosy.formats.python_spec import SPEC_FILE
from models_of_own import DOUBLE, load, source

PREDICT = "class M(argosy.Model):\n    {}\n    def predict(self, x: argosy.FP32) -> argosy.FP32:\n        {}\n"


def checked(body, attribute=""):
    return check(load(PREDICT.format(attribute or "pass", body)))


def test_a_sane_model_passes_all_checks():
    found = check(load(DOUBLE))
    assert found.passed
    assert found.checks == {"finite": True, "deterministic": True, "rows_independent": True}
    assert (found.samples, found.notes) == (4, [])


def test_a_row_model_passes_too():
    assert check(load("class M(argosy.RowModel):\n    def predict(self, t: str) -> str:\n        return t * 2")).passed


@pytest.mark.parametrize(
    ("body", "failed", "noted"),
    [
        ("return x / 0 if np.seterr(all='ignore') else x", "finite", "NaN or infinite"),
        ("return x + np.random.rand()", "deterministic", "two different answers"),
        ("return x - x.mean()", "rows_independent", ""),
    ],
)
def test_what_is_odd_is_found(body, failed, noted):
    with np.errstate(all="ignore"):
        found = checked(body)
    assert not found.passed
    assert found.checks[failed] is False
    assert noted in " ".join(found.notes)


def test_samples_that_the_model_refuses_are_only_noted():
    found = checked("raise argosy.Refused('only ships')")
    assert (found.passed, found.checks, found.samples) == (False, {}, 0)
    assert "only ships" in found.notes[0]
    assert "'examples'" in found.notes[1]


def test_examples_are_used_where_the_class_gives_them():
    body = "\n        if (x < 5).any():\n            raise argosy.Refused('too small')\n        return x"
    assert checked(body, "examples = [{'x': 7}, {'x': 8}, {'x': 9}]").passed
    assert not checked(body).passed


def test_examples_that_it_refuses_itself_are_noted():
    found = checked("raise argosy.Refused('no')", "examples = [{'x': 7}]")
    assert found.notes == ["it refuses its own examples, so its answers were not checked: no"]


@pytest.mark.parametrize(
    ("body", "code", "said", "hint"),
    [
        ("return y", "model_code_failed", "NameError: name 'y' is not defined (model.py:12 in predict)", "Refused"),
        ("open('words.txt')", "model_code_failed", "FileNotFoundError", "--with words.txt"),
        ("return x.astype('U8')", "model_result_wrong", "must be FP32", ""),
        ("return x[:1]", "model_result_wrong", "for 4 rows [4] was promised", ""),
        ("return x if len(x) > 1 else x[:0]", "model_result_wrong", "for 1 rows [1] was promised", ""),
        ("return x if len(x) > 1 else 1 / 0", "model_code_failed", "ZeroDivisionError", "Refused"),
    ],
)
def test_code_that_fails_on_samples_is_not_deployed(body, code, said, hint):
    with pytest.raises(InvalidInput) as caught:
        checked(body)
    assert caught.value.code == code
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.fixture
def child(tmp_path):
    """Run the check as a process would; return its result, or what it wrote to its standard error."""

    def run(files, digests=None, **more):
        named = {}
        for name, data in files.items():
            path = tmp_path / "given" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            named[name] = {
                "path": str(path),
                "digest": (digests or {}).get(name) or sha256(data),
                "size_bytes": len(data),
            }
        config = {"entry": "model.py", "files": named, "result": str(tmp_path / "result.json")} | more
        code = "import sys, json; from argosy.formats.python_check import main; main(json.loads(sys.argv[1]))"
        done = subprocess.run(
            [sys.executable, "-c", code, json.dumps(config)], capture_output=True, text=True, check=False
        )
        result = tmp_path / "result.json"
        return json.loads(result.read_bytes()) if result.exists() else done.stderr

    return run


def test_the_child_says_what_it_found_and_with_what_it_was_tried(child):
    found = child({"model.py": source(DOUBLE)}, requires=["numpy"])
    assert found["inspection"]["passed"] is True
    assert [spec["name"] for spec in found["inspection"]["signature"]["inputs"]] == ["x"]
    assert found["spec"] == {
        "entry": "model.py:Double",
        "requires": ["numpy"],
        "python": ".".join(map(str, sys.version_info[:3])),
        "packages": {"numpy": np.__version__},
    }


def test_the_child_refuses_a_file_that_has_changed_since_it_was_hashed(child):
    text = source(
        "class M(argosy.Model):\n    def load(self, files):\n        files['words.txt']\n"
        "    def predict(self, x: argosy.FP32) -> argosy.FP32: ..."
    )
    said = child({"model.py": text, "words.txt": b"one"}, digests={"words.txt": sha256(b"two")})
    assert "IntegrityError" in said
    assert "changed while it was read" in said


def test_the_child_asks_for_no_more_memory_than_it_may(child):
    text = (
        "class M(argosy.Model):\n    def load(self, files):\n        np.ones(1 << 30)\n"
        "    def predict(self, x: argosy.FP32) -> argosy.FP32: ..."
    )
    assert "MemoryError" in child({"model.py": source(text)}, memory_bytes=1 << 30)


def test_the_description_can_not_be_given(child):
    found = child({"model.py": source(DOUBLE), SPEC_FILE: b'{"entry": "other.py"}'})
    assert found["spec"]["entry"] == "model.py:Double"
