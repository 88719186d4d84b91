"""Each operator against ONNX Runtime, in small graphs made here."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from argosy.formats.onnx_module import to_module

pytestmark = pytest.mark.capability("F1")

F32 = np.float32
RNG = np.random.default_rng(7)


def r(*shape):
    return RNG.normal(size=shape).astype(F32)


def i(*values, dtype=np.int64):
    return np.array(values, dtype=dtype)


def model(kind, inputs, constants, attributes, *, opset=18, outputs=1):
    """Return one node as a model; `inputs` are arrays whose sizes stay free, `constants` arrays or None."""
    names, values, weights = [], [], []
    for number, array in enumerate(inputs):
        names.append(f"x{number}")
        element = helper.np_dtype_to_tensor_dtype(array.dtype)
        free = [f"d{number}_{axis}" if axis == 0 else size for axis, size in enumerate(array.shape)]
        values.append(helper.make_tensor_value_info(f"x{number}", element, free))
    for number, array in enumerate(constants):
        names.append("" if array is None else f"c{number}")
        if array is not None:
            weights.append(numpy_helper.from_array(array, f"c{number}"))
    found = [f"y{number}" for number in range(outputs)]
    node = helper.make_node(kind, names, found, name="node", **attributes)
    graph = helper.make_graph([node], "g", values, [onnx.ValueInfoProto(name=name) for name in found], weights)
    graph = onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    )
    for output in graph.graph.output:
        if not output.type.tensor_type.elem_type:
            output.CopyFrom(helper.make_tensor_value_info(output.name, TensorProto.FLOAT, None))
    return graph.SerializeToString()


def same(content, inputs, *, tolerance=1e-5):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    wanted = session.run(None, dict(zip([one.name for one in session.get_inputs()], inputs, strict=True)))
    module = to_module(content)
    with torch.no_grad():
        found = module(*map(torch.from_numpy, inputs))
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(wanted)
    for want, have in zip(wanted, found, strict=True):
        assert have.numpy().dtype == want.dtype
        assert have.shape == want.shape
        # Float32 with another order of additions.
        np.testing.assert_allclose(have.numpy(), want, rtol=tolerance, atol=tolerance)
    return module


UNARY = (
    "Abs Acos Acosh Asin Asinh Atan Atanh Ceil Cos Cosh Erf Exp Floor Log Neg Reciprocal Round Sign Sin Sinh Sqrt Tan"
)
ACTIVATIONS = "Relu Sigmoid Tanh LeakyRelu Elu Selu Celu HardSigmoid HardSwish Softplus Softsign ThresholdedRelu Mish"


@pytest.mark.parametrize("kind", UNARY.split())
def test_functions_of_one_number(kind):
    x = {"Acosh": 1 + abs(r(2, 3)), "Log": abs(r(2, 3)), "Sqrt": abs(r(2, 3))}.get(kind, np.tanh(r(2, 3)))
    same(model(kind, [x], [], {}), [x])


@pytest.mark.parametrize("kind", ACTIVATIONS.split())
def test_activations(kind):
    x = 3 * r(2, 3)
    same(model(kind, [x], [], {}), [x])


@pytest.mark.parametrize(
    ("kind", "attributes", "opset"),
    [
        ("LeakyRelu", {"alpha": 0.3}, 18),
        ("Elu", {"alpha": 0.3}, 18),
        ("Selu", {"alpha": 1.5, "gamma": 1.1}, 18),
        ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}, 18),
        ("Gelu", {}, 20),
        ("Gelu", {"approximate": "tanh"}, 20),
        ("Shrink", {"bias": 0.2, "lambd": 0.4}, 18),
        ("Softmax", {"axis": 1}, 18),
        ("Softmax", {"axis": 1}, 11),
        ("Softmax", {}, 12),
        ("LogSoftmax", {}, 13),
        ("LogSoftmax", {"axis": 1}, 9),
        ("Hardmax", {}, 13),
        ("LpNormalization", {"axis": 1}, 18),
        ("MeanVarianceNormalization", {}, 18),
        ("Clip", {"min": -0.5, "max": 0.5}, 9),
        ("GlobalAveragePool", {}, 18),
        ("GlobalMaxPool", {}, 18),
        ("LRN", {"size": 3}, 18),
        ("DepthToSpace", {"blocksize": 2}, 18),
        ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, 18),
        ("SpaceToDepth", {"blocksize": 2}, 18),
        ("Flatten", {"axis": 2}, 18),
        ("Flatten", {"axis": 0}, 18),
        ("Flatten", {}, 18),
        ("Transpose", {}, 18),
        ("Transpose", {"perm": [0, 2, 3, 1]}, 18),
        ("Dropout", {}, 9),
        ("Unsqueeze", {"axes": [0, 2]}, 11),
        ("Slice", {"starts": [1, 0], "ends": [3, -1], "axes": [1, 3]}, 9),
        ("Pad", {"pads": [0, 0, 1, 0, 0, 0, 1, 2], "value": 2.0}, 9),
        ("ArgMax", {"axis": 1}, 18),
        ("ArgMin", {"axis": -1, "keepdims": 0}, 18),
        ("ArgMax", {"axis": 1, "select_last_index": 1}, 18),
        ("Cast", {"to": TensorProto.INT64}, 18),
        ("Cast", {"to": TensorProto.BOOL}, 18),
        ("IsInf", {"detect_negative": 0}, 18),
        ("IsNaN", {}, 18),
        ("Shape", {}, 18),
        ("Shape", {"start": 1, "end": -1}, 18),
        ("Size", {}, 18),
        ("NonZero", {}, 18),
        ("TopK", {"k": 2}, 9),
        ("Trilu", {"upper": 0}, 18),
    ],
)
def test_operators_of_one_image(kind, attributes, opset):
    x = r(2, 4, 4, 6)
    outputs = 2 if kind == "TopK" else 1
    same(model(kind, [x], [], attributes, opset=opset, outputs=outputs), [x])


BINARY = "Add Sub Mul Div Pow Max Min Equal Less Greater LessOrEqual GreaterOrEqual Mean Sum PRelu"


@pytest.mark.parametrize("kind", BINARY.split())
@pytest.mark.parametrize("right", [r(2, 3, 4), r(3, 1), np.abs(r(1)), np.array(2.0, F32)])
def test_functions_of_two_numbers_spread_as_the_standard_says(kind, right):
    x = np.abs(r(2, 3, 4)) if kind == "Pow" else r(2, 3, 4)
    same(model(kind, [x], [right], {}), [x])
    same(
        model(kind, [x, right], [], {}) if right.ndim else model(kind, [x], [right], {}),
        [x, right][: 1 + (right.ndim > 0)],
    )


@pytest.mark.parametrize(
    ("kind", "attributes"),
    [("Div", {}), ("Mod", {}), ("Mod", {"fmod": 1}), ("Pow", {}), ("Mul", {}), ("Max", {}), ("BitwiseAnd", {}),
     ("Equal", {})],
)  # fmt: skip
def test_whole_numbers(kind, attributes):
    x, y = i(7, -7, 8, -9), i(2, 2, -3, 4) if kind != "Pow" else i(2, 3, 2, 1)
    same(model(kind, [x, y], [], attributes), [x, y])
    same(model(kind, [x], [y], attributes), [x])


@pytest.mark.parametrize("kind", ["And", "Or", "Xor"])
def test_logic(kind):
    x, y = r(2, 3) > 0, r(3) > 0
    same(model(kind, [x, y], [], {}), [x, y])
    same(model("Not", [x], [], {}), [x])


REDUCTIONS = "Sum Mean Max Min Prod L1 L2 LogSumExp SumSquare LogSum"


@pytest.mark.parametrize("kind", REDUCTIONS.split())
@pytest.mark.parametrize(("axes", "keep"), [([1], 1), ([-1, 0], 0), (None, 1)])
def test_reductions_with_axes_as_attribute_and_as_input(kind, axes, keep):
    x = np.abs(r(2, 3, 4))
    given = {"keepdims": keep} | ({"axes": axes} if axes else {})
    same(model(f"Reduce{kind}", [x], [], given, opset=11), [x])
    same(model(f"Reduce{kind}", [x], [i(*axes)] if axes else [], {"keepdims": keep}, opset=18), [x])
    same(model(f"Reduce{kind}", [x], [], {"keepdims": keep, "noop_with_empty_axes": 1}, opset=18), [x])


CONVOLUTIONS = [
    {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 1, 2, 1]},
    {"dilations": [2, 1]},
    {"auto_pad": "SAME_UPPER", "strides": [2, 2]},
    {"auto_pad": "SAME_LOWER", "strides": [1, 2]},
    {"auto_pad": "VALID"},
    {"group": 2},
]


@pytest.mark.parametrize("attributes", CONVOLUTIONS)
@pytest.mark.parametrize("bias", [True, False])
def test_convolutions(attributes, bias):
    groups = attributes.get("group", 1)
    x, w = r(2, 4, 7, 6), r(6, 4 // groups, 3, 3)
    same(model("Conv", [x], [w, r(6)] if bias else [w], attributes), [x], tolerance=1e-4)
    same(model("Conv", [x, w], [r(6)] if bias else [], attributes), [x, w], tolerance=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_convolutions_of_lines_and_volumes(rank):
    x, w = r(2, 3, *[5] * rank), r(4, 3, *[2] * rank)
    same(model("Conv", [x], [w], {"strides": [2] * rank}), [x], tolerance=1e-4)
    same(model("ConvTranspose", [x], [np.swapaxes(w, 0, 1).copy()], {}), [x], tolerance=1e-4)
    same(model("MaxPool", [x], [], {"kernel_shape": [2] * rank}), [x])
    same(model("AveragePool", [x], [], {"kernel_shape": [2] * rank}), [x])


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 3]},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 2], "pads": [0, 1, 1, 0]},
        {"strides": [2, 2], "pads": [1, 1, 0, 0]},
        {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
        {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
        {"dilations": [2, 2]},
        {"group": 2},
        {"strides": [2, 2], "output_shape": [10, 11]},
    ],
)
def test_transposed_convolutions(attributes):
    x, w = r(2, 4, 5, 5), r(4, 6 // attributes.get("group", 1), 3, 3)
    same(model("ConvTranspose", [x], [w, r(6)], attributes), [x], tolerance=1e-4)


WINDOWS = [
    {},
    {"strides": [2, 2], "pads": [1, 1, 1, 1]},
    {"strides": [2, 1], "pads": [0, 1, 2, 1]},
    {"strides": [2, 2], "ceil_mode": 1},
    {"strides": [2, 2], "ceil_mode": 1, "pads": [1, 1, 1, 1]},
    {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    {"strides": [2, 2], "auto_pad": "SAME_LOWER"},
    {"auto_pad": "VALID"},
]


@pytest.mark.parametrize("attributes", WINDOWS)
def test_pools(attributes):
    x = r(2, 3, 8, 7)
    window = {"kernel_shape": [3, 3], **attributes}
    same(model("MaxPool", [x], [], window), [x])
    same(model("AveragePool", [x], [], window), [x])
    same(model("AveragePool", [x], [], {**window, "count_include_pad": 1}), [x])
    if "ceil_mode" not in attributes:
        same(model("LpPool", [x], [], window), [x])


def test_pools_with_gaps():
    x = r(2, 3, 8, 7)
    same(model("MaxPool", [x], [], {"kernel_shape": [2, 2], "dilations": [2, 3]}), [x])


@pytest.mark.parametrize(
    ("kind", "constants", "attributes", "opset"),
    [
        ("BatchNormalization", [r(4), r(4), r(4), abs(r(4))], {"epsilon": 1e-3}, 15),
        ("BatchNormalization", [r(4), r(4), r(4), abs(r(4))], {}, 9),
        ("InstanceNormalization", [r(4), r(4)], {}, 18),
        ("InstanceNormalization", [np.ones(4, F32), np.zeros(4, F32)], {}, 18),
        ("GroupNormalization", [r(2), r(2)], {"num_groups": 2}, 18),
        ("GroupNormalization", [r(4), r(4)], {"num_groups": 2}, 21),
        ("LayerNormalization", [r(6), r(6)], {}, 17),
        ("LayerNormalization", [r(5, 6)], {"axis": 2, "epsilon": 1e-3}, 17),
        ("RMSNormalization", [r(6)], {}, 23),
        ("PRelu", [abs(r(4, 1, 1))], {}, 16),
        ("PRelu", [r(1)], {}, 16),
        ("PRelu", [r(1, 6)], {}, 16),
        ("Clip", [np.array(-0.2, F32), np.array(0.4, F32)], {}, 18),
        ("Clip", [None, np.array(0.4, F32)], {}, 18),
        ("Reshape", [i(0, -1, 3)], {}, 18),
        ("Reshape", [i(-1, 120)], {}, 18),
        ("Reshape", [i(2, 2, 2, 30)], {}, 18),
        ("Expand", [i(3, 1, 1, 5, 1)], {}, 18),
        ("Tile", [i(1, 2, 1, 3)], {}, 18),
        ("Slice", [i(1, -3), i(2**63 - 1, -1), i(1, 3)], {}, 18),
        ("Slice", [i(-1, 4), i(-(2**63), 0), i(1, 3), i(-1, -2)], {}, 18),
        ("Slice", [i(0), i(4), i(-1), i(2)], {}, 18),
        ("Pad", [i(0, 0, 1, 2, 0, 0, 0, 1)], {}, 18),
        ("Pad", [i(1, 2, 0, 1), np.array(3.0, F32), i(2, -1)], {}, 18),
        ("Pad", [i(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "reflect"}, 18),
        ("Pad", [i(0, 0, 1, 2, 0, 0, 2, 1)], {"mode": "edge"}, 18),
        ("Pad", [i(0, 2, 0, 0, 0, 1, 0, 0)], {"mode": "reflect"}, 18),
        ("Pad", [i(1, 2, 0, 0, 0, 1, 0, 2)], {"mode": "edge"}, 18),
        ("Pad", [i(0, 2, 0, 0, 0, 1, 0, 2)], {"mode": "wrap"}, 19),
        ("Pad", [i(0, 0, -1, 0, 0, 0, 0, -2)], {}, 18),
        ("Gather", [i(1, 0, -1)], {"axis": 1}, 18),
        ("Gather", [i(1)[0:1].reshape(())], {"axis": 2}, 18),
        ("Gather", [i(1, 0, 2, 3).reshape(2, 2)], {"axis": -1}, 18),
        ("GatherND", [i(0, 1, 1, 2).reshape(2, 2)], {}, 18),
        ("CumSum", [np.array(1)], {}, 18),
        ("CumSum", [np.array(-1)], {"exclusive": 1, "reverse": 1}, 18),
        ("Trilu", [np.array(-1)], {}, 18),
        ("ReduceMean", [i(2, 3)], {"keepdims": 0}, 18),
        ("MatMul", [r(6, 3)], {}, 18),
        ("MatMul", [r(2, 4, 6, 3)], {}, 18),
        ("Einsum", [r(6, 3)], {"equation": "bchw, wk -> bchk"}, 18),
        ("Mul", [r(4, 1, 1)], {}, 18),
        ("Unsqueeze", [i(-1, 1)], {}, 18),
    ],
)
def test_operators_of_an_image_and_constants(kind, constants, attributes, opset):
    x = r(2, 4, 5, 6)
    if kind == "Reshape" and list(constants[0]) == [2, 2, 2, 30]:
        same(model(kind, [x], constants, attributes, opset=opset), [x])
        return
    same(model(kind, [x], constants, attributes, opset=opset), [x])


def test_operators_with_several_outputs():
    x = r(2, 6, 5)
    same(model("Split", [x], [i(1, 2, 3)], {"axis": 1}, outputs=3), [x])
    same(model("Split", [x], [], {"axis": 2, "num_outputs": 2}, outputs=2), [x])
    same(model("Split", [x], [], {"axis": 1, "split": [4, 2]}, opset=11, outputs=2), [x])
    same(model("Split", [x], [], {"axis": 1}, opset=11, outputs=3), [x])
    same(model("TopK", [x], [i(2)], {"axis": 1, "largest": 0}, outputs=2), [x])


def test_scattering_and_looking_up_by_inputs():
    x, places = r(3, 4), i(0, 2, 1, 1).reshape(2, 2)
    inputs = [x, i(2, 0).reshape(2, 1), r(2, 4)]
    same(model("ScatterND", inputs, [], {}, opset=16), inputs)
    for reduction in ("add", "mul", "max", "min"):
        inputs = [x, places, r(2)]
        same(model("ScatterND", inputs, [], {"reduction": reduction}), inputs)
        inputs = [x, places, r(2, 2)]
        same(model("ScatterElements", inputs, [], {"reduction": reduction, "axis": 1}), inputs)
    inputs = [x, i(0, -1).reshape(1, 2), r(1, 2)]
    same(model("ScatterElements", inputs, [], {}), inputs)
    same(model("GatherElements", [x, places], [], {"axis": 1}), [x, places])
    same(model("GatherND", [x, i(1, 2, 0).reshape(3, 1)], [], {"batch_dims": 1}), [x, i(1, 2, 0).reshape(3, 1)])
    same(model("Gather", [x, places], [], {}), [x, places])
    same(model("Where", [x > 0, x], [np.array(-1, F32)], {}), [x > 0, x])
    for axis in (-1, 0, 1):
        same(
            model("OneHot", [i(0, 2, -1, 5)], [np.array(3), np.array([0.5, 2], F32)], {"axis": axis}), [i(0, 2, -1, 5)]
        )


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize("rich", [True, False])
def test_recurrent_layers(kind, direction, rich):
    gates, hidden, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind], 3, 2 if direction == "bidirectional" else 1
    x = r(5, 2, 4)
    constants = [r(directions, gates * hidden, 4), r(directions, gates * hidden, hidden)]
    if rich:
        states = [r(directions, 2, hidden)] * (2 if kind == "LSTM" else 1)
        constants += [r(directions, 2 * gates * hidden), None, *states]
    attributes = {"hidden_size": hidden, "direction": direction}
    if kind == "GRU":
        attributes["linear_before_reset"] = 1
    same(model(kind, [x], constants, attributes, outputs=3 if kind == "LSTM" else 2), [x])


def test_a_recurrent_layer_of_sequences_of_several_lengths():
    x = r(5, 2, 4)
    same(model("LSTM", [x], [r(1, 12, 4), r(1, 12, 3), None, i(5, 3, dtype=np.int32)], {"hidden_size": 3}), [x])


RESIZES = [
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    {"mode": "nearest"},
    {"mode": "nearest", "nearest_mode": "ceil"},
    {"mode": "nearest", "nearest_mode": "round_prefer_ceil", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear"},
    {"mode": "linear", "coordinate_transformation_mode": "asymmetric"},
    {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
    {"mode": "cubic"},
    {"mode": "cubic", "coordinate_transformation_mode": "align_corners"},
    {"mode": "cubic", "coordinate_transformation_mode": "asymmetric", "cubic_coeff_a": -0.5},
]


@pytest.mark.parametrize("attributes", RESIZES)
def test_resizing(attributes):
    x = r(2, 3, 4, 5)
    empty = np.zeros(0, F32)
    same(model("Resize", [x], [empty, np.array([1, 1, 2, 3], F32)], attributes), [x], tolerance=1e-4)
    same(model("Resize", [x], [empty, np.array([1, 1, 0.6, 1.7], F32)], attributes), [x], tolerance=1e-4)
    same(model("Resize", [x], [empty, None, i(2, 3, 7, 3)], attributes), [x], tolerance=1e-4)


@pytest.mark.parametrize("mode", ["nearest", "linear"])
def test_upsampling_of_older_opsets(mode):
    x = r(2, 3, 4, 5)
    same(model("Upsample", [x], [np.array([1, 1, 2, 2], F32)], {"mode": mode}, opset=9), [x])
    same(model("Resize", [x], [np.array([1, 1, 2, 2], F32)], {"mode": mode}, opset=10), [x])


@pytest.mark.parametrize("attributes", [{}, {"transB": 1}, {"transA": 1}, {"alpha": 0.5, "beta": 2.0}])
def test_products_with_sums(attributes):
    x = r(4, 3) if attributes.get("transA") else r(3, 4)
    w = r(5, 4) if attributes.get("transB") else r(4, 5)
    for bias in (r(5), r(1, 5), r(3, 5), r(1)):
        same(model("Gemm", [x], [w, bias], attributes), [x])
    same(model("Gemm", [x, w, r(5)], [], attributes), [x, w, r(5)])
