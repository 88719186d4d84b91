"""Loops whose number of turns is known are written out: recurrent layers of other frameworks are such loops."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import to_module

pytestmark = pytest.mark.capability("F1", "F2")

F32, STEPS, WIDTH, HIDDEN = np.float32, 5, 4, 3
RNG = np.random.default_rng(11)
WEIGHTS = {
    "cell.W": RNG.normal(size=(WIDTH, HIDDEN)).astype(F32),
    "cell.R": RNG.normal(size=(HIDDEN, HIDDEN)).astype(F32),
    "cell.bias": RNG.normal(size=HIDDEN).astype(F32),
}


def recurrent(limit=STEPS, *, stops_at=None, taken_from="graph"):
    """Return a model: a recurrent cell in a loop, which gives its last state and all of them.

    `limit`: None for none; `stops_at`: the turn after which the body itself says that it is enough.
    """
    body = [
        helper.make_node("Gather", ["steps", "turn"], ["now"], axis=0),
        helper.make_node("MatMul", ["now", "cell.W"], ["taken"]),
        helper.make_node("MatMul", ["state", "cell.R"], ["kept"]),
        helper.make_node("Add", ["taken", "kept"], ["both"]),
        helper.make_node("Add", ["both", "cell.bias"], ["before"]),
        helper.make_node("Tanh", ["before"], ["next"]),
        helper.make_node("Identity", ["next"], ["given"]),
    ]
    constants = []
    if stops_at is None:
        body.append(helper.make_node("Identity", ["goes_on"], ["still"]))
    else:
        constants.append(numpy_helper.from_array(np.array(stops_at), "last"))
        body.append(helper.make_node("Less", ["turn", "last"], ["still"]))
    inner = helper.make_graph(
        body,
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("given", TensorProto.FLOAT, None),
        ],
        constants,
    )
    weights = [numpy_helper.from_array(array, name) for name, array in WEIGHTS.items()]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", STEPS, WIDTH])]
    name = ""
    if limit == "input":
        inputs.append(helper.make_tensor_value_info("turns", TensorProto.INT64, []))
        name = "turns"
    elif limit is not None:
        weights.append(numpy_helper.from_array(np.array(limit), "limit"))
        name = "limit"
    weights.append(numpy_helper.from_array(np.array([HIDDEN]), "hidden"))
    weights.append(numpy_helper.from_array(np.array(True), "yes"))
    nodes = [
        helper.make_node("Transpose", ["x"], ["steps"], perm=[1, 0, 2]),
        helper.make_node("Shape", ["x"], ["rows"], start=0, end=1),
        helper.make_node("Concat", ["rows", "hidden"], ["shape"], axis=0),
        helper.make_node("ConstantOfShape", ["shape"], ["zeros"]),
        helper.make_node("Loop", [name, "yes", "zeros"], ["last_state", "states"], name="loop", body=inner),
        helper.make_node("Transpose", ["states"], ["all"], perm=[1, 0, 2]),
    ]
    outputs = [
        helper.make_tensor_value_info("last_state", TensorProto.FLOAT, None),
        helper.make_tensor_value_info("all", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8).SerializeToString()


def answers(content, x):
    session = ort.InferenceSession(content, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})


@pytest.mark.parametrize(("limit", "stops_at"), [(STEPS, None), (3, None), (None, 2), (STEPS, 1), (2, 4)])
def test_a_recurrent_cell_in_a_loop_answers_as_it_did(limit, stops_at):
    content = recurrent(limit, stops_at=stops_at)
    module = to_module(content)
    for rows in (1, 4):
        x = RNG.normal(size=(rows, STEPS, WIDTH)).astype(F32)
        with torch.no_grad():
            found = module(torch.from_numpy(x))
        for want, have in zip(answers(content, x), found, strict=True):
            np.testing.assert_allclose(have.numpy(), want, rtol=1e-5, atol=1e-6)


def test_all_turns_learn_the_same_weights():
    module = to_module(recurrent())
    assert sorted(p.numel() for p in module.parameters()) == [HIDDEN, HIDDEN * HIDDEN, WIDTH * HIDDEN]
    torch.manual_seed(0)
    x, y = torch.randn(64, STEPS, WIDTH), torch.randint(0, HIDDEN, (64,))
    optimizer = torch.optim.Adam(module.parameters(), 3e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x)[0], y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    assert losses[-1] < 0.9 * losses[0]


def test_a_loop_whose_turns_depend_on_an_input_is_named():
    with pytest.raises(InvalidInput, match=r"Loop \(node 'loop'\)") as found:
        to_module(recurrent("input"))
    assert found.value.code == "unsupported_operator"


@pytest.mark.parametrize(("limit", "says"), [(10**9, "turns too often"), (0, "never turns"), (None, "too often")])
def test_loops_that_never_end_or_begin_are_refused(limit, says):
    with pytest.raises(InvalidInput, match=says):
        to_module(recurrent(limit))


def test_a_loop_with_a_body_of_another_form_is_refused():
    model = onnx.load_from_string(recurrent())
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    del loop.attribute[0].g.output[1:]
    with pytest.raises(InvalidInput):
        to_module(model.SerializeToString())


def test_a_loop_that_makes_gigabytes_of_constants_is_refused():
    model = onnx.load_from_string(recurrent(2000))
    loop = next(node for node in model.graph.node if node.op_type == "Loop")
    body = loop.attribute[0].g
    body.initializer.append(numpy_helper.from_array(np.array([2**20]), "many"))
    body.node.append(helper.make_node("ConstantOfShape", ["many"], ["wide"]))
    body.node.append(helper.make_node("Add", ["wide", "wide"], ["wider"]))
    body.output.append(helper.make_tensor_value_info("wider", TensorProto.FLOAT, None))
    loop.output.append("heap")
    model.graph.output.append(helper.make_tensor_value_info("heap", TensorProto.FLOAT, None))
    with pytest.raises(InvalidInput, match="too many constants"):
        to_module(model.SerializeToString())
