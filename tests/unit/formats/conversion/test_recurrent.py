"""Recurrent layers written out in plain operators answer as the layers do."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper

from argosy.formats.conversion.jobs.recurrent import KINDS, written_out
from argosy.formats.onnx_export import export_onnx

pytestmark = pytest.mark.capability("F3")

RNG = np.random.default_rng(5)
STEPS, WIDTH, HIDDEN = 5, 4, 3
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
SIDES = {"forward": 1, "reverse": 1, "bidirectional": 2}


def r(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def model(kind, *, direction="forward", rich=True, steps=STEPS, lengths=None, opset=18, extra=None, **attributes):
    sides, gates = SIDES[direction], GATES[kind]
    weights = {"W": r(sides, gates * HIDDEN, WIDTH), "R": r(sides, gates * HIDDEN, HIDDEN)}
    names = ["x", "W", "R"]
    inputs = [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [steps, "batch", WIDTH])]
    if rich:
        weights["B"] = r(sides, 2 * gates * HIDDEN)
        names += ["B", "", "h"] + ["c"] * (kind == "LSTM")
        for name in names[5:]:
            shape = [sides, "batch", HIDDEN]
            inputs.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    if lengths is not None:
        weights["lengths"] = np.array(lengths, np.int32)
        names = [*names[:3], "", "lengths"]
    weights |= extra or {}
    outputs = ["y", "y_h"] + ["y_c"] * (kind == "LSTM")
    node = helper.make_node(kind, names, outputs, name="layer", hidden_size=HIDDEN, direction=direction, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        inputs,
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def run(made, given):
    return ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, given)


def is_ordered(graph):
    """Whether every node stands behind those it takes from: runtimes sort, tools do not."""
    known = {one.name for one in (*graph.input, *graph.initializer)} | {""}
    for node in graph.node:
        if not set(node.input) <= known:
            return False
        known |= set(node.output)
    return True


def inputs_for(made, batch):
    return {
        one.name: r(*(size.dim_value or batch for size in one.type.tensor_type.shape.dim)) for one in made.graph.input
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("direction", SIDES)
@pytest.mark.parametrize("rich", [True, False])
@pytest.mark.parametrize("before_reset", [0, 1])
def test_a_layer_answers_as_before_for_any_batch(kind, direction, rich, before_reset):
    if kind != "GRU" and before_reset:
        pytest.skip("a setting of GRU only")
    attributes = {"linear_before_reset": before_reset} if kind == "GRU" else {}
    before = model(kind, direction=direction, rich=rich, **attributes)
    after = written_out(before)
    assert not {node.op_type for node in after.graph.node} & set(KINDS)
    assert all(node.name.startswith("layer/") for node in after.graph.node)
    assert is_ordered(after.graph)
    for batch in (1, 3):
        given = inputs_for(before, batch)
        for want, have in zip(run(before, given), run(after, given), strict=True):
            assert want.shape == have.shape
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


def test_activations_are_what_the_layer_says():
    before = model("RNN", activations=["Relu"])
    given = inputs_for(before, 2)
    np.testing.assert_allclose(run(written_out(before), given)[0], run(before, given)[0], rtol=1e-5, atol=1e-6)


def test_lengths_that_are_all_the_same_are_no_obstacle():
    before = model("LSTM", rich=False, lengths=[STEPS, STEPS])
    assert not {node.op_type for node in written_out(before).graph.node} & set(KINDS)


@pytest.mark.parametrize(
    "made",
    [
        model("LSTM", steps="time"),
        model("LSTM", rich=False, lengths=[STEPS, 2]),
        model("LSTM", clip=1.0),
        model("GRU", activations=["HardSigmoid", "Tanh"]),
        model("RNN", steps=10**6),
        model("LSTM", opset=11),
    ],
    ids=["free", "lengths", "clip", "activation", "long", "old"],
)
def test_what_cannot_be_written_out_stays_for_the_tool_to_name(made):
    assert [node.op_type for node in written_out(made).graph.node] == [made.graph.node[0].op_type]


def test_a_model_without_such_layers_is_the_same_model():
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [], [])
    plain = helper.make_model(graph)
    assert written_out(plain) is plain


def test_states_that_are_zeros_for_any_batch_are_not_asked_for():
    made = model("LSTM", rich=False)
    sizes = [numpy_helper.from_array(np.array(v, np.int64), n) for n, v in (("one", [1]), ("wide", [HIDDEN]))]
    made.graph.initializer.extend([*sizes, numpy_helper.from_array(np.zeros(1, np.float32), "zero")])
    layer = made.graph.node[0]
    layer.input.extend(["", "", "state", "state"])
    before = [
        helper.make_node("Shape", ["x"], ["rows"], start=1, end=2),
        helper.make_node("Concat", ["one", "rows", "wide"], ["shape"], axis=0),
        helper.make_node("Expand", ["zero", "shape"], ["state"]),
    ]
    nodes = [*before, type(layer).FromString(layer.SerializeToString())]
    del made.graph.node[:]
    made.graph.node.extend(nodes)
    whole = made.SerializeToString()
    after = written_out(made)
    assert made.SerializeToString() == whole
    assert not {"Shape", "Expand", "LSTM"} & {node.op_type for node in after.graph.node}
    given = inputs_for(made, 3)
    for want, have in zip(run(made, given), run(after, given), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options",
    [{}, {"num_layers": 2, "bias": False}, {"bidirectional": True, "nonlinearity": "relu"}],
    ids=["one", "two without bias", "both ways"],
)
def test_the_zeros_that_torch_begins_its_plain_cells_with_are_taken_out(tmp_path, options):
    class States(torch.nn.RNN):
        def forward(self, x):
            return super().forward(x)[0]

    torch.manual_seed(0)
    target = tmp_path / "net.onnx"
    net = States(WIDTH, HIDDEN, batch_first=True, **options).eval()
    export_onnx(net, torch.zeros(2, STEPS, WIDTH), target, input_name="x", output="y")
    before = onnx.load(str(target))
    after = written_out(before)
    kinds = [{node.op_type for node in one.graph.node} for one in (before, after)]
    assert "Expand" in kinds[0]
    assert not {"Expand", "Shape"} & kinds[1]
    onnx.checker.check_model(after, full_check=True)
    for batch in (1, 4):
        given = {"x": r(batch, STEPS, WIDTH)}
        for want, have in zip(run(before, given), run(after, given), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("other", "is_kept"), [(["batch", HIDDEN], False), ([1, HIDDEN], True), ([HIDDEN], True)])
def test_zeros_that_make_a_value_larger_stay(other, is_kept):
    numbers = {"one": [1], "wide": [HIDDEN]}
    made = helper.make_model(
        helper.make_graph(
            [
                helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
                helper.make_node("Concat", ["rows", "wide"], ["shape"], axis=0),
                helper.make_node("Expand", ["zero", "shape"], ["zeros"]),
                helper.make_node("Add", ["zeros", "other"], ["y"]),
            ],
            "g",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", 2]),
                helper.make_tensor_value_info("other", onnx.TensorProto.FLOAT, other),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["batch", HIDDEN])],
            [
                *(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in numbers.items()),
                numpy_helper.from_array(np.zeros(1, np.float32), "zero"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    assert ("Expand" in {node.op_type for node in written_out(made).graph.node}) is is_kept


def test_a_width_that_is_joined_behind_a_layer_by_computed_sizes_takes_them_as_numbers():
    made = model("GRU", rich=False, direction="bidirectional")
    numbers = {"zero": [0], "one": [1], "two": [2], "three": [3], "four": [4], "flat": [-1]}
    made.graph.initializer.extend(numpy_helper.from_array(np.array(v, np.int64), n) for n, v in numbers.items())
    made.graph.node.extend([
        helper.make_node("Transpose", ["y"], ["turned"], perm=[0, 2, 1, 3]),
        helper.make_node("Shape", ["turned"], ["shape"], start=0),
        helper.make_node("Slice", ["shape", "zero", "two"], ["kept"]),
        helper.make_node("Slice", ["shape", "two", "three"], ["sides"]),
        helper.make_node("Slice", ["shape", "three", "four"], ["wide"]),
        helper.make_node("Mul", ["sides", "wide"], ["both"]),
        helper.make_node("Reshape", ["both", "flat"], ["product"]),
        helper.make_node("Concat", ["kept", "product"], ["sizes"], axis=0),
        helper.make_node("Reshape", ["turned", "sizes"], ["joined"]),
    ])  # fmt: skip
    made.graph.output.append(helper.make_tensor_value_info("joined", onnx.TensorProto.FLOAT, None))
    whole = made.SerializeToString()
    after = written_out(made)
    assert made.SerializeToString() == whole
    assert "Shape" not in {node.op_type for node in after.graph.node}
    for batch in (1, 4):
        given = inputs_for(made, batch)
        for want, have in zip(run(made, given), run(after, given), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-6)
