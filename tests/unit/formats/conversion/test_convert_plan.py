"""What is refused before anything runs, and how inputs and samples are read."""

import zipfile

import numpy as np
import pytest
from onnx import TensorProto, helper

from argosy.core.errors import Conflict, InvalidInput, NotFound, PluginError
from argosy.formats.conversion.arrays import read_answers, read_samples
from argosy.formats.conversion.convert import Request, parse_input, plan
from argosy.formats.conversion.jobs import shared


@pytest.fixture
def model(tmp_path):
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", ends[:1], ends[1:])
    made = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    path = tmp_path / "model.onnx"
    path.write_bytes(made.SerializeToString())
    return path


def test_the_plan_says_each_step_in_words(model, tmp_path):
    found = plan(Request(source=str(model), out=tmp_path / "made", target_format="pytorch"))
    assert found.lines() == ["ONNX to PyTorch module: Argosy's own reader of ONNX graphs"]


@pytest.mark.parametrize(
    ("out", "to", "refusal"),
    [
        ("model.onnx", "", (InvalidInput, "already")),
        ("nowhere/model.xml", "", (InvalidInput, "there is no folder")),
        ("model.bin", "openvino", (InvalidInput, "should end in .xml")),
        ("full", "pytorch", (Conflict, "not an empty folder")),
        ("full", "openvino", (InvalidInput, "is a folder")),
        ("model", "", (InvalidInput, "doesn't say what")),
    ],
)
def test_an_output_that_can_not_be_is_refused_first(model, tmp_path, out, to, refusal):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(refusal[0], match=refusal[1]):
        plan(Request(source=str(model), out=tmp_path / out, target_format=to))


def test_the_output_may_not_lie_in_the_original(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(InvalidInput, match="lies in it"):
        plan(Request(source=str(folder), out=folder / "model.onnx"))


def test_a_missing_tool_is_named_before_anything_runs(model, tmp_path):
    with pytest.raises(PluginError, match="needs the tool 'mindspore'"):
        plan(Request(source=str(model), out=tmp_path / "m.mindir", home=tmp_path))


def test_weights_and_tolerance_are_looked_at_first(model, tmp_path):
    with pytest.raises(InvalidInput, match="--weights belongs to a PyTorch module"):
        plan(Request(source=str(model), out=tmp_path / "m", target_format="pytorch", weights=model))
    with pytest.raises(InvalidInput, match="a tolerance is a share"):
        plan(Request(source=str(model), out=tmp_path / "m", target_format="pytorch", tolerance=2.0))


def test_inputs_are_read_as_they_are_written():
    assert parse_input("ids:batch,tokens:int64") == {"name": "ids", "shape": [-1, -1], "dtype": "int64"}
    assert parse_input("x:2,3,224") == {"name": "x", "shape": [2, 3, 224], "dtype": "float32"}
    for wrong in ("x", "x:1:complex64", ":1,2"):
        with pytest.raises(InvalidInput, match="no description of an input"):
            parse_input(wrong)


def test_samples_must_be_plain_arrays_of_equal_length(tmp_path):
    good = tmp_path / "good.npz"
    np.savez(good, x=np.ones((3, 2)), y=np.ones(3))
    assert list(read_samples(good)) == ["x", "y"]
    np.savez(tmp_path / "uneven.npz", x=np.ones((3, 2)), y=np.ones(2))
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    np.savez(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("hello")
    for name in ("uneven", "objects", "none", "text"):
        with pytest.raises(InvalidInput) as found:
            read_samples(tmp_path / f"{name}.npz")
        assert found.value.code == "samples_wrong", name
    with pytest.raises(NotFound, match="no file of samples"):
        read_samples(tmp_path / "missing.npz")


def test_an_array_that_promises_more_than_its_file_is_refused_before_memory_is_taken(tmp_path):
    np.savez(tmp_path / "good.npz", x=np.ones((3, 2)))
    with zipfile.ZipFile(tmp_path / "good.npz") as archive:
        content = archive.read("x.npy").replace(b"(3, 2)", b"(9999999999999,)")[: 64 + 128]
    with zipfile.ZipFile(tmp_path / "huge.npz", "w") as archive:
        archive.writestr("x.npy", content)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", bytes(100 * 2**20))
    for name in ("huge", "bomb"):
        with pytest.raises(InvalidInput):
            read_samples(tmp_path / f"{name}.npz")


def test_answers_keep_names_order_and_texts(tmp_path):
    given = {"b/1": np.ones(2), "a": np.array(["x", "y"], dtype=object), "names": np.arange(3)}
    shared.save(tmp_path / "a.npz", given)
    found = read_answers(tmp_path / "a.npz")
    assert list(found) == ["b/1", "a", "names"]
    assert found["a"].tolist() == ["x", "y"]


def test_generated_samples_fit_the_inputs(tmp_path):
    inputs = [shared.describe("x", ["batch", 3], "float32"), shared.describe("ids", [None, None], "int64")]
    found = shared.samples_for({"folder": str(tmp_path), "rows": 6}, inputs, highest=50)
    assert (found["x"].shape, found["x"].dtype.name) == ((6, 3), "float32")
    assert (found["ids"].shape, found["ids"].dtype.name) == ((6, 8), "int64")
    assert 0 <= found["ids"].min() <= found["ids"].max() < 50
    assert found["x"].min() < 0  # some are normal, some between 0 and 1
    frozen = shared.samples_for({"folder": str(tmp_path)}, [shared.describe("x", [2, 3], "float16")])
    assert frozen["x"].shape == (2, 3)
    with pytest.raises(ValueError, match="at most"):
        shared.samples_for({"folder": str(tmp_path)}, [shared.describe("x", [2**40], "float32")])
