import json
import subprocess
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.core.errors import InvalidInput
from argosy.formats.inspect import inspect_onnx, main


def test_a_sane_model_passes_all_checks(make_onnx):
    found = inspect_onnx(make_onnx())
    assert found.passed
    assert found.checks == {"finite": True, "deterministic": True, "rows_independent": True}
    assert found.size_bytes == len(make_onnx())
    assert found.signature.inputs[0].name == "x"


def test_answers_that_are_not_finite_are_noted(make_onnx):
    found = inspect_onnx(
        make_onnx([helper.make_node("Div", ["x", "zero"], ["y"])], [_constant("zero", 0)], y_shape=("batch", 3))
    )
    assert not found.passed
    assert found.checks["finite"] is False
    assert "NaN" in found.notes[0]


def test_rows_that_influence_each_other_are_noted(make_onnx):
    mean = [
        helper.make_node("ReduceMean", ["x"], ["m"], keepdims=1),
        helper.make_node("Mul", ["x", "m"], ["y"]),
    ]
    found = inspect_onnx(make_onnx(mean, [], y_shape=("batch", 3)))
    assert found.checks["rows_independent"] is False
    assert not found.passed


def test_random_answers_are_noted(make_onnx):
    noise = [helper.make_node("RandomNormalLike", ["x"], ["n"]), helper.make_node("Add", ["x", "n"], ["y"])]
    found = inspect_onnx(make_onnx(noise, [], y_shape=("batch", 3)))
    assert found.checks["deterministic"] is False


def test_a_model_too_large_to_try_is_described_without_a_self_check(make_onnx):
    found = inspect_onnx(
        make_onnx(
            [helper.make_node("ReduceSum", ["x", "axes"], ["y"])],
            [_constant("axes", 1, np.int64)],
            x_shape=("batch", 2**40),
            y_shape=("batch", 1),
        )
    )
    assert not found.passed
    assert "generated" in found.notes[0]


def test_integers_and_text_are_generated_too(make_onnx):
    for kind in (TensorProto.STRING, TensorProto.INT64, TensorProto.BOOL, TensorProto.DOUBLE):
        same = make_onnx(
            [helper.make_node("Identity", ["x"], ["y"])], [], x_type=kind, y_type=kind, y_shape=("batch", 3)
        )
        assert inspect_onnx(same).passed


def test_the_child_writes_its_findings_and_nothing_for_a_bad_file(make_onnx, tmp_path):
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    good.write_bytes(make_onnx())
    bad.write_bytes(b"not a model")
    # In a process of its own, because it limits its memory for good.
    code = "import sys; from argosy.formats.inspect import main; main({'model': sys.argv[1], 'result': sys.argv[2]})"
    run = [sys.executable, "-c", code]
    subprocess.run([*run, str(good), str(tmp_path / "good.json")], check=True)
    assert json.loads((tmp_path / "good.json").read_text())["passed"] is True
    failed = subprocess.run([*run, str(bad), str(tmp_path / "bad.json")], capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "InvalidInput" in failed.stderr
    assert not (tmp_path / "bad.json").exists()


def test_a_model_that_asks_for_absurd_memory_is_stopped_in_the_child(make_onnx, tmp_path):
    size = numpy_helper.from_array(np.array([2**17, 2**17], dtype=np.int64), "size")
    bomb = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    path = tmp_path / "bomb.onnx"
    path.write_bytes(make_onnx(bomb, [size], y_shape=("batch", 3)))
    code = "import sys; from argosy.formats.inspect import main; main({'model': sys.argv[1], 'result': sys.argv[2]})"
    subprocess.run([sys.executable, "-c", code, str(path), str(tmp_path / "r.json")], check=True)
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["passed"] is False
    assert "could not answer" in found["notes"][0]


def test_an_unknown_setting_is_refused():
    with pytest.raises(InvalidInput, match="inspect"):
        main({"model": "m", "result": "r", "speed": 9})


def _constant(name, value, dtype=np.float32):
    return numpy_helper.from_array(np.array([value], dtype=dtype), name)
