import numpy as np
import pytest
from onnx import TensorProto, helper

from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.onnx_runtime import OnnxRunner


def test_a_model_answers_with_what_its_graph_says(make_onnx):
    runner = OnnxRunner.load(make_onnx())
    found = runner.run({"x": np.eye(3, dtype=np.float32)})
    assert found["y"].tolist() == [[1, 2], [3, 4], [5, 6]]


def test_the_signature_has_names_datatypes_and_free_dimensions(make_onnx):
    signature = OnnxRunner.load(make_onnx()).signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("x", "FP32", (-1, 3))]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("y", "FP32", (-1, 2))]
    assert signature.is_batched


def test_a_file_gives_the_same_runner_as_its_bytes(make_onnx, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(make_onnx())
    assert OnnxRunner.load(path).signature == OnnxRunner.load(make_onnx()).signature


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound, match="no model file"):
        OnnxRunner.load(tmp_path / "absent.onnx")


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({}, "also needs the input 'x'"),
        ({"z": np.zeros((1, 3), np.float32)}, "no input 'z'; its inputs are: 'x'"),
        ({"x": np.zeros((1, 3), np.float64)}, "must be FP32 .* is float64"),
        ({"x": np.zeros((1, 3), ">f4")}, "must be FP32"),
        ({"x": np.zeros((1, 4), np.float32)}, r"must have the shape \[-1, 3\].* has \[1, 4\]"),
        ({"x": np.zeros(3, np.float32)}, "must have the shape"),
        ({"x": np.zeros((0, 3), np.float32)}, "no rows"),
    ],
)
def test_wrong_inputs_are_named_and_refused(make_onnx, inputs, said):
    with pytest.raises(InvalidInput, match=said):
        OnnxRunner.load(make_onnx()).run(inputs)


def test_a_failure_inside_the_model_is_told_as_wrong_input(make_onnx):
    runner = OnnxRunner.load(
        make_onnx([helper.make_node("Gather", ["W", "x"], ["y"])], x_type=TensorProto.INT64, x_shape=("batch",))
    )
    assert runner.run({"x": np.array([2])})["y"].tolist() == [[5, 6]]
    with pytest.raises(InvalidInput, match="could not answer") as caught:
        runner.run({"x": np.array([99])})
    assert caught.value.code == "model_run_failed"


def test_text_is_taken_as_str_or_utf8_bytes_and_refused_otherwise(make_onnx):
    data = make_onnx(
        [helper.make_node("Identity", ["x"], ["y"])],
        x_type=TensorProto.STRING,
        y_type=TensorProto.STRING,
        x_shape=("batch",),
        y_shape=("batch",),
    )
    runner = OnnxRunner.load(data)
    assert runner.signature.inputs[0].datatype == "BYTES"
    for given in (
        np.array(["größe", "b"], object),
        np.array(["größe".encode(), b"b"], object),
        np.array(["größe", "b"]),
    ):
        assert runner.run({"x": given})["y"].tolist() == ["größe", "b"]
    with pytest.raises(InvalidInput, match="not UTF-8"):
        runner.run({"x": np.array([b"\xff"], object)})


def test_outputs_that_are_no_tensors_are_refused_with_the_way_out(make_onnx):
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch"])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    with pytest.raises(InvalidInput, match="output 'y' is of the type 'seq") as caught:
        OnnxRunner.load(model.SerializeToString())
    assert "zipmap" in caught.value.hint


def test_an_operator_the_runtime_does_not_know_is_named(make_onnx, capfd):
    with pytest.raises(InvalidInput, match="Frobnicate") as caught:
        OnnxRunner.load(make_onnx([helper.make_node("Frobnicate", ["x"], ["y"])]))
    assert caught.value.code == "model_load_failed"
    assert capfd.readouterr().err == ""


def test_negative_threads_are_refused(make_onnx):
    with pytest.raises(InvalidInput, match="-1 threads"):
        OnnxRunner.load(make_onnx(), threads=-1)


def test_inputs_are_left_unchanged_and_answers_are_the_callers_own(make_onnx):
    runner = OnnxRunner.load(make_onnx())
    x = np.ones((2, 3), np.float32)
    first = runner.run({"x": x})["y"]
    kept = first.copy()
    runner.run({"x": x * 7})
    assert (x == 1).all()
    assert np.array_equal(first, kept)
