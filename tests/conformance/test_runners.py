"""What every format's runner must do."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.runner import RUNNERS, load_runner


def _onnx_affine():
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", 2])],
        [
            numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w"),
            numpy_helper.from_array(np.ones(2, np.float32), "b"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


def _python_affine():
    return b"""from typing import Annotated, NamedTuple
import numpy as np
import argosy

class Answer(NamedTuple):
    y: Annotated[argosy.FP32, argosy.Shape(2)]

class Affine(argosy.Model):
    def predict(self, x: Annotated[argosy.FP32, argosy.Shape(3)]) -> Answer:
        x += 0  # its own copy
        return Answer(x @ np.arange(6, dtype=np.float32).reshape(3, 2) + 1)
"""


# y = x @ [[0, 1], [2, 3], [4, 5]] + 1, in each format.
AFFINE = {"onnx": _onnx_affine, "python": _python_affine}
X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


@pytest.fixture(params=RUNNERS.names())
def model_format(request):
    return request.param


@pytest.fixture
def data(model_format):
    return AFFINE[model_format]()


def test_it_computes(model_format, data):
    found = load_runner(model_format, data).run({"x": X})
    assert list(found) == ["y"]
    assert found["y"].dtype == np.float32
    assert np.allclose(found["y"], X @ np.arange(6).reshape(3, 2) + 1, atol=1e-5)


def test_bytes_and_file_load_alike(model_format, data, tmp_path):
    path = tmp_path / "model"
    path.write_bytes(data)
    first, second = load_runner(model_format, data), load_runner(model_format, path, threads=2)
    assert first.signature == second.signature
    assert np.array_equal(first.run({"x": X})["y"], second.run({"x": X})["y"])


def test_the_signature_says_what_can_be_sent(model_format, data):
    signature = load_runner(model_format, data).signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("x", "FP32", (-1, 3))]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("y", "FP32", (-1, 2))]


def test_rows_answer_alone_as_they_do_in_a_batch(model_format, data):
    runner = load_runner(model_format, data)
    alone = np.concatenate([runner.run({"x": row[None]})["y"] for row in X])
    # Another kernel may add in another order.
    assert np.allclose(runner.run({"x": X})["y"], alone, atol=1e-6)


def test_inputs_stay_as_they_were_and_need_not_be_contiguous(model_format, data):
    runner = load_runner(model_format, data)
    wide = np.repeat(X, 2, axis=1)
    before = wide.copy()
    found = runner.run({"x": wide[:, ::2]})
    assert np.array_equal(found["y"], runner.run({"x": X})["y"])
    assert np.array_equal(wide, before)


@pytest.mark.parametrize(
    "inputs",
    [{}, {"y": X}, {"x": X, "z": X}, {"x": X.astype(np.float64)}, {"x": X[:, :2]}, {"x": X[0]}, {"x": X[:0]}],
    ids=["none", "other name", "one too many", "datatype", "width", "rank", "no rows"],
)
def test_what_does_not_fit_the_signature_is_invalid_input(model_format, data, inputs):
    with pytest.raises(InvalidInput):
        load_runner(model_format, data).run(inputs)


@pytest.mark.parametrize(
    "spoil", [lambda d: b"", lambda d: b"junk", lambda d: d[: len(d) // 2], lambda d: d + b"\xff\xff"]
)
def test_what_is_no_model_is_invalid_input(model_format, data, spoil):
    with pytest.raises(InvalidInput):
        load_runner(model_format, spoil(data))


def test_an_unknown_format_lists_the_known_ones():
    with pytest.raises(NotFound, match="onnx"):
        load_runner("abacus", b"")
