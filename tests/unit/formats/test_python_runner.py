"""Models of one's own, asked: what they get, what they may give, and whose fault it is."""

import gc
import json
import os

import numpy as np
import pytest
from structlog.testing import capture_logs as captured

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput, Refused, Unavailable
from argosy.formats.python_runner import PythonRunner
from argosy.formats.python_spec import SPEC_FILE
from models_of_own import DOUBLE, files, load


def column(*values):
    return np.array(values, "float32").reshape(-1, 1)


def texts(*values):
    found = np.empty(len(values), dtype=object)
    found[:] = values
    return found


def batch_model(body, taken="x: argosy.FP32", given="argosy.FP32"):
    return load(f"class M(argosy.Model):\n    def predict(self, {taken}) -> {given}:\n        {body}\n")


def row_model(body, taken="x: float", given="float"):
    return load(f"class M(argosy.RowModel):\n    def predict(self, {taken}) -> {given}:\n        {body}\n")


# What it gets ---------------------------------------------------------------------------------------------------------


def test_a_batch_model_answers_a_batch():
    assert load(DOUBLE).run({"x": column(1, 2)})["y"].tolist() == [[2.0], [4.0]]


def test_a_row_model_gets_plain_values_and_its_answers_become_a_batch():
    runner = load("""
        class Answer(TypedDict):
            kinds: str
            total: float
            pair: Annotated[argosy.INT64, argosy.Shape(2)]

        class M(argosy.RowModel):
            def predict(self, text: str, raw: bytes, n: int, f: float, flag: bool,
                        x: Annotated[argosy.FP32, argosy.Shape(2)]) -> Answer:
                kinds = " ".join(type(value).__name__ for value in (text, raw, n, f, flag, x))
                return {"kinds": kinds, "total": n + f, "pair": [n, len(text)]}
        """)
    found = runner.run(
        {
            "text": texts(b"one", "zwei"), "raw": texts(b"\xff", b""), "n": np.array([1, 2]),
            "f": np.array([0.5, 0.25]), "flag": np.array([True, False]), "x": np.zeros((2, 2), "float32"),
        }
    )  # fmt: skip
    assert found["kinds"].tolist() == ["str bytes int float bool ndarray"] * 2
    assert found["total"].tolist() == [1.5, 2.25]
    assert found["pair"].tolist() == [[1, 3], [2, 4]]
    assert (found["total"].dtype, found["pair"].dtype) == (np.float64, np.int64)


def test_a_text_that_is_not_utf_8_is_the_callers_fault():
    runner = batch_model("return [text + '!' for text in x]", "x: argosy.Text", "argosy.Text")
    assert runner.run({"x": texts(b"a", "é".encode())})["output"].tolist() == ["a!", "é!"]
    with pytest.raises(Refused, match="not UTF-8"):
        runner.run({"x": texts(b"a", b"\xff")})


def test_bytes_stay_bytes():
    runner = batch_model("return [bytes(reversed(item)) for item in x]", "x: argosy.Bytes", "argosy.Bytes")
    assert runner.run({"x": texts(b"\xff\x00", b"")})["output"].tolist() == [b"\x00\xff", b""]


def test_the_arrays_are_the_models_own_to_change():
    runner = batch_model("x *= 2; return x")
    given = np.array([1, 2], "float32")
    assert runner.run({"x": given})["output"].tolist() == [2, 4]
    assert given.tolist() == [1, 2]


# What it may give -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "given"),
    [
        ("return x.tolist()", "argosy.FP32"),
        ("return x.astype('float64')", "argosy.FP32"),
        ("return x.astype('int64')", "argosy.FP32"),
        ("return x.astype('>f4')", "argosy.FP32"),
        ("return [1, 2]", "argosy.INT8"),
        ("return np.array([1, 2], 'uint64')", "argosy.INT32"),
        ("return tuple(x)", "argosy.FP64"),
    ],
)
def test_what_can_be_kept_or_rounded_is_converted(body, given):
    found = batch_model(body, given=given).run({"x": np.array([1, 2], "float32")})["output"]
    assert found.tolist() == [1, 2]
    assert found.dtype == np.dtype({"FP32": "f4", "FP64": "f8", "INT8": "i1", "INT32": "i4"}[given.partition(".")[2]])


ANSWER = "class Answer(NamedTuple):\n    y: argosy.FP32\n\n"
WRONG = {
    "another type": ("argosy.FP32", "return ['a', 'b']", "output 'output' must be FP32 (float32), but is str"),
    "none": ("argosy.FP32", "return None", "must be FP32 (float32), but is object"),
    "a fraction": ("argosy.INT64", "return x + 0.5", "must be INT64 (int64), but is float32"),
    "too large": ("argosy.INT8", "return [1, 300]", "must be INT8 (int8), but is int64 with values that don't fit"),
    "a sign": ("argosy.UINT8", "return [1, -1]", "values that don't fit"),
    "not bool": ("argosy.BOOL", "return [0, 1]", "must be BOOL (bool), but is int64"),
    "bool": ("argosy.INT8", "return [True, False]", "must be INT8 (int8), but is bool"),
    "rows": ("argosy.FP32", "return x[:1]", "has the shape [1], but for 2 rows [2] was promised"),
    "rank": ("argosy.FP32", "return x[:, None]", "has the shape [2, 1], but for 2 rows [2] was promised"),
    "single": ("argosy.FP32", "return 1.0", "has the shape [], but for 2 rows [2]"),
    "ragged": ("Annotated[argosy.FP32, argosy.Shape(-1)]", "return [[1], [1, 2]]", "can't be made an array"),
    "width": ("Annotated[argosy.FP32, argosy.Shape(3)]", "return np.zeros((2, 2))", "for 2 rows [2, 3] was promised"),
    "one text": ("argosy.Text", "return 'ab'", "is a single text; give one for each row"),
    "no text": ("argosy.Text", "return [1, 2]", "must hold texts, but holds a 'int'"),
    "texts of something": ("argosy.Text", "return {'a', 'b'}", "is a 'set'; give a list or an array"),
    "fewer texts": ("argosy.Text", "return ['a']", "has the shape [1], but for 2 rows [2]"),
    "refuses to be an array": ("argosy.FP32", "return type('T', (), {'__array__': lambda *_: 1 / 0})()", "division"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_a_result_that_was_not_promised_is_the_versions_fault(case):
    given, body, said = WRONG[case]
    with pytest.raises(InvalidInput) as caught:
        batch_model(body, given=given).run({"x": np.ones(2, "float32")})
    assert said in caught.value.message
    assert caught.value.code == "model_result_wrong"
    assert not isinstance(caught.value, Refused)


@pytest.mark.parametrize(
    ("kind", "body", "said"),
    [
        ("NamedTuple", "return x", "returned a 'ndarray', but promised 'Answer'"),
        ("NamedTuple", "return (x,)", "returned a 'tuple', but promised 'Answer'"),
        ("TypedDict", "return x", "returned a 'ndarray', but promised a dict with y"),
        ("TypedDict", "return {'z': x}", "returned the keys z, but promised a dict with y"),
        ("TypedDict", "return {'y': x, 'z': x}", "returned the keys y, z"),
    ],
)
def test_a_result_of_another_kind_is_the_versions_fault(kind, body, said):
    runner = load(
        f"class Answer({kind}):\n    y: argosy.FP32\n\n"
        f"class M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> Answer:\n        {body}\n"
    )
    with pytest.raises(InvalidInput) as caught:
        runner.run({"x": np.ones(2, "float32")})
    assert said in caught.value.message


def test_numbers_that_overflow_become_infinite_and_are_found_by_the_replica():
    assert np.isinf(batch_model("return [1e300, 1]").run({"x": np.ones(2, "float32")})["output"][0])


# Whose fault it is ----------------------------------------------------------------------------------------------------


def test_what_the_model_refuses_reaches_the_caller_and_nothing_else_of_it_does():
    runner = batch_model("raise argosy.Refused('too short' + 'x' * 9999, hint='say more', code='mine', secret=1)")
    with pytest.raises(Refused) as caught:
        runner.run({"x": np.ones(1, "float32")})
    assert caught.value.message.startswith("too short")
    assert len(caught.value.message) <= 500
    assert (caught.value.hint, caught.value.code, caught.value.context) == ("say more", "input_refused", {})


def test_a_row_model_says_which_row_it_refused():
    runner = row_model("\n        if x < 0:\n            raise argosy.Refused('negative')\n        return x")
    with pytest.raises(Refused, match=r"^row 1: negative$"):
        runner.run({"x": np.array([1.0, -1.0])})
    with pytest.raises(Refused, match=r"^negative$"):
        runner.run({"x": np.array([-1.0])})


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ("return {}['/secret/path']", "KeyError"),
        ("import sys; sys.exit('secret')", "SystemExit"),
        ("raise GeneratorExit('secret')", "GeneratorExit"),
        ("raise type('Odd', (BaseException,), {})('secret')", "Odd"),
        ("np.empty(1 << 55)", "MemoryError"),
    ],
)
def test_code_that_fails_is_the_versions_fault_and_callers_learn_only_the_kind(body, kind):
    runner = batch_model(body)
    with captured() as logged, pytest.raises(InvalidInput) as caught:
        runner.run({"x": np.ones(1, "float32")})
    assert kind in caught.value.message
    assert "secret" not in caught.value.message
    assert caught.value.code == "model_code_failed"
    assert not isinstance(caught.value, Refused)
    (entry,) = logged
    assert entry["event"] == "model_code_failed"
    assert "(model.py:11 in predict)" in entry["error"]
    assert any('File "model.py", line 11, in predict' in line for line in entry["traceback"])
    assert runner.run is not None, "the process goes on"


def test_a_model_that_always_fails_does_not_fill_the_log():
    clock = FakeClock()
    runner = PythonRunner.open(
        files(
            "class M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> argosy.FP32:\n        raise ValueError"
        ),
        clock=clock,
    )
    with captured() as logged:
        for _ in range(100):
            clock.advance(0.02)
            with pytest.raises(InvalidInput):
                runner.run({"x": np.ones(1, "float32")})
    assert 2 <= len(logged) <= 3


# Files and loading ----------------------------------------------------------------------------------------------------


def test_files_are_there_by_name_and_as_paths():
    runner = load(
        """
        class M(argosy.Model):
            def load(self, files: argosy.Files) -> None:
                assert sorted(files) == ["data/a/x.txt", "data/y.txt", "model.py", "words.txt"], list(files)
                assert "python-model.json" not in files
                assert files["words.txt"] == b"one two"
                self.word = files.path("words.txt")
                self.folder = files.path("data")
                self.all = files.path()

            def predict(self, x: argosy.FP32) -> argosy.Text:
                found = sorted(p.relative_to(self.folder).as_posix() for p in self.folder.rglob("*") if p.is_file())
                return [f"{self.word.read_text()} {' '.join(found)} {(self.all / 'model.py').exists()}"]
        """,
        words__txt="one two",
        **{"data/a/x__txt": "X", "data/y__txt": "Y"},
    )
    assert runner.run({"x": np.ones(1, "float32")})["output"].tolist() == ["one two a/x.txt y.txt True"]
    folder = runner._model.all
    assert (folder.stat().st_mode & 0o777) == 0o700
    del runner
    gc.collect()
    assert not folder.exists()


def test_nothing_is_written_where_no_path_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    load(DOUBLE, words__txt="x").run({"x": column(1)})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("asked", ["files['nope.txt']", "files.path('nope.txt')", "files.path('wor')"])
def test_a_file_that_was_not_deployed_lists_those_that_were(asked):
    with pytest.raises(Unavailable, match=r"there are: model\.py, words\.txt"):
        load("class M(argosy.Model):\n    def load(self, files):\n        " + asked + "\n    def predict(self, x: "
             "argosy.FP32) -> argosy.FP32: ...", words__txt="")  # fmt: skip


@pytest.mark.parametrize(("name", "hint"), [("words.txt", "files['words.txt']"), ("other.txt", "--with other.txt")])
def test_a_file_that_is_looked_for_on_the_disk_has_a_hint(name, hint):
    text = f"""
        class M(argosy.Model):
            def load(self, files):
                open({name!r})
            def predict(self, x: argosy.FP32) -> argosy.FP32: ...
        """
    with pytest.raises(Unavailable) as caught:
        load(text, words__txt="")
    assert hint in caught.value.hint
    assert "(model.py:" in caught.value.message


@pytest.mark.parametrize(
    "text",
    [
        "class M(argosy.Model):\n    def __init__(self, size): ...\n",
        "class M(argosy.Model):\n    def load(self, files):\n        raise SystemExit(3)\n",
        "class M(argosy.Model):\n    def load(self, files):\n        raise ConnectionError('no')\n",
    ],
)
def test_a_model_that_cannot_be_loaded_may_be_tried_again(text):
    with pytest.raises(Unavailable, match="'M' can't be loaded: "):
        load(text + "    def predict(self, x: argosy.FP32) -> argosy.FP32: ...")


@pytest.mark.parametrize("spec", [b"", b"{}", b'{"entry": "model.py", "speed": 9}', b"\xff"])
def test_a_version_whose_description_is_not_understood_is_refused(spec):
    with pytest.raises(InvalidInput, match=SPEC_FILE):
        PythonRunner.open(files(DOUBLE) | {SPEC_FILE: spec})


def test_its_description_names_what_it_was_tried_with():
    assert json.loads(files(DOUBLE, requires=["numpy"])[SPEC_FILE]) == {
        "entry": "model.py", "requires": ["numpy"], "python": "", "packages": {},
    }  # fmt: skip


# Examples -------------------------------------------------------------------------------------------------------------

EXAMPLES = """
class M(argosy.Model):
    examples = {}
    def predict(self, text: argosy.Text, x: Annotated[argosy.FP32, argosy.Shape(2)]) -> argosy.FP32: ...
"""


def test_examples_become_a_batch():
    found = load(EXAMPLES.format("[{'text': 'a', 'x': [1, 2]}, {'text': 'bc', 'x': (3, 4)}]")).examples
    assert found["text"].tolist() == ["a", "bc"]
    assert found["x"].tolist() == [[1, 2], [3, 4]]
    assert found["x"].dtype == np.float32


@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ("[{'text': 'a'}]", "an example has values for text, but predict takes text, x"),
        ("[{'text': 'a', 'x': [1, 2], 'z': 1}]", "an example has values for text, x, z"),
        ("[{'text': 'a', 'x': [1]}]", "the examples don't fit predict: input 'x' must have the shape [-1, 2]"),
        ("[{'text': 'a', 'x': ['b', 'c']}]", "the examples don't fit predict: could not convert string to float"),
        ("[{'text': 'a', 'x': [1, 2]}, {'text': 'a', 'x': [1]}]", "the examples don't fit predict"),
    ],
)
def test_examples_that_do_not_fit_are_refused(examples, said):
    with pytest.raises(InvalidInput) as caught:
        load(EXAMPLES.format(examples))
    assert said in caught.value.message


def test_what_people_write_models_with_stands_in_the_package_and_costs_nothing_until_asked_for():
    import subprocess
    import sys

    code = (
        "import sys, argosy; assert 'numpy' not in sys.modules; argosy.Model; assert 'numpy' in sys.modules;"
        "assert all(getattr(argosy, name) is not None for name in argosy.__all__);"
        "assert not {'onnxruntime', 'torch', 'structlog'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ | {"PYTHONWARNINGS": "error"})
