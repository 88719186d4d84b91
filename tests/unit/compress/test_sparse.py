"""Weights with zeros are stored in less, and a runtime sees the same numbers."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from argosy.compress import sparse
from argosy.compress.sparse import stored_sparse
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.runner import load_runner

pytestmark = pytest.mark.capability("C1")

KINDS = {np.dtype(np.float32): 1, np.dtype(np.int8): 3, np.dtype(np.uint8): 2}


def holding(*arrays, inputs=()):
    """Return a graph that gives its constants back, each plus an input that is 0."""
    nodes, outputs = [], []
    for number, array in enumerate(arrays):
        nodes += [
            helper.make_node("Cast", [f"w{number}"], [f"f{number}"], to=1),
            helper.make_node("Add", [f"f{number}", "x"], [f"y{number}"]),
        ]
        outputs.append(helper.make_tensor_value_info(f"y{number}", 1, array.shape))
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", 1, [1]), *inputs],
        outputs,
        [numpy_helper.from_array(array, f"w{number}") for number, array in enumerate(arrays)],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


def read(content, engine="onnxruntime"):
    found = load_runner("onnx", content, engine=engine).run({"x": np.zeros(1, np.float32)})
    return [found[f"y{number}"] for number in range(len(found))]


def with_zeros(shape, dtype, share, seed=0):
    random = np.random.default_rng(seed)
    array = random.normal(size=shape) if dtype == np.float32 else random.integers(1, 100, size=shape)
    return np.where(random.random(shape) < share, 0, array).astype(dtype)


@settings(max_examples=40)
@given(
    shape=st.sampled_from([(1024,), (1025,), (37, 41), (3, 7, 61), (8, 16, 3, 3), (2000, 1), (1, 1031), (5, 5)]),
    dtype=st.sampled_from(list(KINDS)),
    share=st.floats(0, 1),
    seed=st.integers(0, 5),
)
def test_the_stored_file_answers_bit_by_bit_as_the_dense_one_and_is_never_larger(shape, dtype, share, seed):
    arrays = with_zeros(shape, dtype, share, seed), with_zeros((33, 65), np.float32, 0.9, seed)
    content = holding(*arrays)
    stored = stored_sparse(content)
    assert len(stored) < len(content)
    for found, array in zip(read(stored), arrays, strict=True):
        assert found.tobytes() == array.astype(np.float32).tobytes()


@pytest.mark.parametrize(("dtype", "share"), [(np.float32, 0.9), (np.int8, 0.9), (np.uint8, 0.5)])
def test_a_tensor_takes_its_values_and_a_bit_for_each_place(dtype, share):
    array = with_zeros((300, 300), dtype, share)
    around = len(stored_sparse(holding(array))) - np.count_nonzero(array) * array.itemsize - array.size / 8
    assert 0 < around < 2000, "the nodes and names around"


@pytest.mark.parametrize(
    "array",
    [
        with_zeros((64, 64), np.float32, 0.0),
        with_zeros((64, 64), np.float32, 0.1),
        with_zeros((31, 33), np.float32, 0.9),
        with_zeros((64, 64), np.int8, 0.2),
        with_zeros((64, 64), np.float64, 0.9),
        with_zeros((64, 64), np.int64, 0.9),
    ],
    ids=["no zeros", "few zeros", "small", "no gain for int8", "float64", "int64"],
)
def test_with_nothing_to_gain_the_bytes_are_the_same(array):
    content = holding(array)
    assert stored_sparse(content) is content


def test_what_is_stored_so_already_is_left_alone():
    once = stored_sparse(holding(with_zeros((200, 200), np.float32, 0.9)))
    assert stored_sparse(once) == once


def test_what_is_stored_so_already_may_get_company():
    first, second = with_zeros((100, 100), np.float32, 0.9, 1), with_zeros((100, 100), np.float32, 0.0, 2)
    model = onnx.load_from_string(stored_sparse(holding(first, second)))
    pruned = with_zeros((100, 100), np.float32, 0.8, 3)
    [tensor] = [t for t in model.graph.initializer if t.name == "w1"]
    tensor.CopyFrom(numpy_helper.from_array(pruned, "w1"))
    content = model.SerializeToString()
    stored = stored_sparse(content)
    assert len(stored) < len(content)
    assert [found.tobytes() for found in read(stored)] == [first.tobytes(), pruned.tobytes()]


def test_names_that_are_taken_are_not_taken_again():
    array = with_zeros((64, 64), np.float32, 0.9)
    model = onnx.load_from_string(holding(array))
    model.graph.node.append(helper.make_node("Identity", ["x"], ["w0.sparse.bits"]))
    model.graph.output.append(helper.make_tensor_value_info("w0.sparse.bits", 1, [1]))
    stored = stored_sparse(model.SerializeToString())
    found = OnnxRunner.load(stored).run({"x": np.zeros(1, np.float32)})
    assert found["y0"].tobytes() == array.tobytes()


def test_a_constant_that_callers_may_replace_stays_one():
    array = with_zeros((64, 64), np.float32, 0.9)
    content = holding(array, inputs=[helper.make_tensor_value_info("w0", 1, [64, 64])])
    assert stored_sparse(content) == content


def test_a_tensor_too_large_to_be_unpacked_at_load_stays_dense(monkeypatch):
    # Beyond its bound the runtime folds nothing, and would unpack the weights in every run.
    content = holding(with_zeros((64, 64), np.float32, 0.9))
    assert len(stored_sparse(content)) < len(content)
    monkeypatch.setattr(sparse, "_LARGEST", 64 * 64 - 1)
    assert stored_sparse(content) == content
    assert sparse._LARGEST * 4 <= 64 * 2**20


def test_the_same_file_is_made_again():
    content = holding(with_zeros((64, 64), np.float32, 0.9), with_zeros((64, 64), np.int8, 0.9))
    assert stored_sparse(content) == stored_sparse(content)


def test_negative_zeros_are_zeros_and_what_is_no_number_stays_so():
    array = with_zeros((64, 64), np.float32, 0.9)
    array[array == 0] = -0.0
    array[0, :3] = np.nan, np.inf, -np.inf
    stored = stored_sparse(holding(array))
    assert len(stored) < 0.5 * array.nbytes
    assert np.array_equal(read(stored)[0], array, equal_nan=True)


def test_openvino_reads_it_too():
    pytest.importorskip("openvino")
    arrays = with_zeros((37, 41), np.float32, 0.9), with_zeros((65, 33), np.int8, 0.9)
    for found, array in zip(read(stored_sparse(holding(*arrays)), engine="openvino"), arrays, strict=True):
        assert np.array_equal(found, array)


def test_a_network_runs_as_fast_as_the_dense_one(tmp_path):
    # Shown by what the runtime makes of the file, not by a clock: nothing of the unpacking is left.
    import onnxruntime as ort

    stored = stored_sparse(holding(with_zeros((200, 200), np.float32, 0.9)))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    ort.InferenceSession(stored, options, providers=["CPUExecutionProvider"])
    left = {node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node}
    assert left == {"Add"}
