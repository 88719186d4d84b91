"""What every engine an ONNX file can run on must do."""

import importlib.util
import threading

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.core.errors import ArgosyError, InvalidInput, NotFound, PluginError
from argosy.formats import runner as table
from argosy.formats.runner import ENGINES, load_runner

pytestmark = pytest.mark.capability("C7")

# bfloat16 keeps 8 bits of a number: 2^-8 for each, and sums of hundreds of them err a little more.
TOLERANCE = {"openvino-bf16": 2e-2}
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(5, 3)).astype(np.float32)


def model(nodes, inputs, outputs, constants):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


FLOAT, INT64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64


@pytest.fixture(scope="module")
def affine():
    """Return y = x @ [[0, 1], [2, 3], [4, 5]] + 1."""
    return model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])],
        [("x", FLOAT, ["batch", 3])],
        [("y", FLOAT, ["batch", 2])],
        {"w": np.arange(6, dtype=np.float32).reshape(3, 2), "b": np.ones(2, np.float32)},
    )


@pytest.fixture(params=ENGINES.names())
def engine(request):
    if request.param.startswith("openvino"):
        pytest.importorskip("openvino")
    return request.param


def close(engine, found, wanted):
    return np.abs(found - wanted).max() <= TOLERANCE.get(engine, 1e-5) * max(1.0, np.abs(wanted).max())


def test_it_computes(engine, affine):
    found = load_runner("onnx", affine, engine=engine).run({"x": X})
    assert list(found) == ["y"]
    assert found["y"].dtype == np.float32
    assert close(engine, found["y"], X @ np.arange(6).reshape(3, 2) + 1)


def test_a_deep_network_answers_as_on_onnx_runtime(engine):
    layers = {f"w{i}": RANDOM.normal(scale=0.12, size=(64, 64)).astype(np.float32) for i in range(6)}
    nodes = []
    for i in range(6):
        nodes.append(helper.make_node("MatMul", [f"v{i}" if i else "x", f"w{i}"], [f"m{i}"]))
        nodes.append(helper.make_node("Relu", [f"m{i}"], [f"v{i + 1}" if i < 5 else "y"]))
    content = model(nodes, [("x", FLOAT, ["n", 64])], [("y", FLOAT, ["n", 64])], layers)
    x = RANDOM.normal(size=(40, 64)).astype(np.float32)
    wanted = load_runner("onnx", content).run({"x": x})["y"]
    assert np.ptp(wanted) > 0.1
    assert close(engine, load_runner("onnx", content, engine=engine).run({"x": x})["y"], wanted)


def test_texts_of_any_length_give_several_outputs_by_their_names(engine):
    content = model(
        [
            helper.make_node("Gather", ["table", "ids"], ["vectors"]),
            helper.make_node("Cast", ["mask"], ["seen"], to=1),
            helper.make_node("Unsqueeze", ["seen", "last"], ["seen3"]),
            helper.make_node("Mul", ["vectors", "seen3"], ["real"]),
            helper.make_node("ReduceSum", ["real", "middle"], ["sum"], keepdims=0),
            helper.make_node("Identity", ["vectors"], ["last_hidden_state"]),
        ],
        [("ids", INT64, ["n", "t"]), ("mask", INT64, ["n", "t"])],
        [("sum", FLOAT, ["n", 4]), ("last_hidden_state", FLOAT, ["n", "t", 4])],
        {"table": RANDOM.normal(size=(9, 4)).astype(np.float32), "last": np.array([2]), "middle": np.array([1])},
    )
    plain, runner = load_runner("onnx", content), load_runner("onnx", content, engine=engine)
    assert runner.signature == plain.signature
    for shape in ((2, 3), (1, 7)):
        ids, mask = RANDOM.integers(0, 9, size=shape), np.ones(shape, np.int64)
        mask[:, -1] = 0
        wanted, found = (one.run({"ids": ids, "mask": mask}) for one in (plain, runner))
        assert list(found) == ["sum", "last_hidden_state"]
        assert all(close(engine, found[name], wanted[name]) for name in wanted)


def test_bytes_and_file_and_any_number_of_threads_load_alike(engine, affine, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(affine)
    first = load_runner("onnx", affine, engine=engine)
    for threads in (0, 1, 2):
        other = load_runner("onnx", path, threads=threads, spinning=threads > 1, engine=engine)
        assert first.signature == other.signature
        assert np.array_equal(first.run({"x": X})["y"], other.run({"x": X})["y"])
    with pytest.raises(InvalidInput, match="-1 threads"):
        load_runner("onnx", affine, threads=-1, engine=engine)


def test_the_signature_says_what_can_be_sent(engine, affine):
    signature = load_runner("onnx", affine, engine=engine).signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [("x", "FP32", (-1, 3))]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [("y", "FP32", (-1, 2))]


def test_names_of_what_is_in_between_are_not_taken_for_an_outputs(engine):
    content = model(
        [helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Identity", ["r"], ["probabilities"])],
        [("x", FLOAT, ["batch", 3])],
        [("probabilities", FLOAT, ["batch", 3])],
        {},
    )
    assert list(load_runner("onnx", content, engine=engine).run({"x": X})) == ["probabilities"]


def test_answers_are_the_callers_own(engine, affine):
    runner = load_runner("onnx", affine, engine=engine)
    first = runner.run({"x": X})["y"]
    kept = first.copy()
    runner.run({"x": X + 1})
    assert np.array_equal(first, kept), "the next run has written over the answers of this one"
    first[:] = 7
    assert np.array_equal(runner.run({"x": X})["y"], kept)


def test_inputs_stay_as_they_were_and_need_not_be_contiguous(engine, affine):
    runner = load_runner("onnx", affine, engine=engine)
    wide = np.repeat(X, 2, axis=1)
    before = wide.copy()
    found = runner.run({"x": wide[:, ::2]})
    assert np.array_equal(found["y"], runner.run({"x": X})["y"])
    assert np.array_equal(wide, before)
    fixed = X.copy()
    fixed.flags.writeable = False
    assert np.array_equal(runner.run({"x": fixed})["y"], found["y"])


def test_rows_answer_alone_as_they_do_in_a_batch(engine, affine):
    runner = load_runner("onnx", affine, engine=engine)
    alone = np.concatenate([runner.run({"x": row[None]})["y"] for row in X])
    assert close(engine, runner.run({"x": X})["y"], alone)


def test_two_threads_can_ask_at_once(engine, affine):
    runner = load_runner("onnx", affine, engine=engine)
    wanted = {n: runner.run({"x": np.full((n, 3), n, np.float32)})["y"] for n in (1, 64)}
    wrong = []

    def ask(n):
        for _ in range(100):
            try:
                found = runner.run({"x": np.full((n, 3), n, np.float32)})["y"]
            except ArgosyError as error:
                found = error
            if not np.array_equal(found, wanted[n]):
                wrong.append(found)

    threads = [threading.Thread(target=ask, args=(n,)) for n in (1, 64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.parametrize(
    "inputs",
    [{}, {"y": X}, {"x": X, "z": X}, {"x": X.astype(np.float64)}, {"x": X[:, :2]}, {"x": X[0]}, {"x": X[:0]}],
    ids=["none", "other name", "one too many", "datatype", "width", "rank", "no rows"],
)
def test_what_does_not_fit_the_signature_is_invalid_input(engine, affine, inputs):
    with pytest.raises(InvalidInput):
        load_runner("onnx", affine, engine=engine).run(inputs)


@pytest.mark.parametrize(
    "spoil", [lambda d: b"", lambda d: b"junk", lambda d: d[: len(d) // 2], lambda d: d + b"\xff\xff"]
)
def test_what_is_no_model_is_invalid_input(engine, affine, spoil):
    with pytest.raises(InvalidInput):
        load_runner("onnx", spoil(affine), engine=engine)


def test_an_operator_nobody_knows_is_invalid_input_in_one_line(engine):
    content = model(
        [helper.make_node("Levitate", ["x"], ["y"])], [("x", FLOAT, ["n", 3])], [("y", FLOAT, ["n", 3])], {}
    )
    with pytest.raises(InvalidInput) as caught:
        load_runner("onnx", content, engine=engine)
    assert "Levitate" in caught.value.message
    assert "\n" not in caught.value.message


def test_what_fails_inside_is_invalid_input_and_the_next_request_is_answered(engine):
    content = model(
        [helper.make_node("Add", ["a", "b"], ["y"])],
        [("a", FLOAT, ["n"]), ("b", FLOAT, ["m"])],
        [("y", FLOAT, ["k"])],
        {},
    )
    runner = load_runner("onnx", content, engine=engine)
    three, two = np.ones(3, np.float32), np.ones(2, np.float32)
    with pytest.raises(InvalidInput) as caught:
        runner.run({"a": three, "b": two})
    assert caught.value.code == "model_run_failed"
    assert "Add" in caught.value.message
    assert "\n" not in caught.value.message
    assert np.array_equal(runner.run({"a": two, "b": two})["y"], [2, 2])


def test_an_unknown_engine_lists_the_known_ones(affine):
    with pytest.raises(NotFound, match="onnxruntime, openvino, openvino-bf16"):
        load_runner("onnx", affine, engine="abacus")


def test_without_openvino_the_extra_is_named(affine, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    for name in ("openvino", "openvino-bf16"):
        with pytest.raises(PluginError) as caught:
            load_runner("onnx", affine, engine=name)
        assert "argosy[openvino]" in caught.value.hint


def test_the_passes_know_the_same_engines():
    from argosy.compress.passes.optimize import _KNOWN, has_openvino

    assert sorted(_KNOWN) == sorted(table.ENGINES.names())
    assert has_openvino() == (importlib.util.find_spec("openvino") is not None)
