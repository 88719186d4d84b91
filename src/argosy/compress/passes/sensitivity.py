"""Which layers int8 hurts most: each alone is rounded, and how far the answers move is what it costs.

One copy of the graph can do so for every layer: behind a switch per layer its weights get the error of rounding them to
int8 per channel, and its input that of rounding it to uint8 in its own range. So a layer costs one run of a few rows,
and no graph is built or loaded again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

_KINDS = ("MatMul", "Gemm", "Conv")
_SWITCHES = "argosy_switches"
# The copy holds all weights twice, in one message of protocol buffers, which may have 2 GiB.
_MOST_BYTES = 900 * 2**20
_MOST_LAYERS = 500
# DynamicQuantizeLinear is there from this opset on.
_LEAST_OPSET = 11


def sensitivities(path: Path, rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Return how far the answers to `rows` move when one layer alone is int8, by the names of the layers' nodes.

    As mean squared distance, in units of the answers' own variance. Empty where a graph is too large or too old.
    """
    import onnx

    if path.stat().st_size > _MOST_BYTES:
        return {}
    model = onnx.load(str(path))
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    layers = _layers(model)
    if opset < _LEAST_OPSET or not 1 < len(layers) <= _MOST_LAYERS:
        return {}
    names = [node.name for node, _ in layers]
    _add_switches(model, layers)
    run = _session(model)
    wanted = run(rows, np.zeros(len(names), np.float32))
    found = {}
    for number, name in enumerate(names):
        switches = np.zeros(len(names), np.float32)
        switches[number] = 1.0
        found[name] = _distance(run(rows, switches), wanted)
    return found


def most_sensitive(found: Mapping[str, float], share: float) -> list[str]:
    """Return this share of the layers, at least one, whose `sensitivities` are the largest; the worst first."""
    worst = sorted(found, key=lambda name: -found[name])
    return worst[: max(1, round(share * len(worst)))] if worst else []


def _layers(model: "onnx.ModelProto") -> "list[tuple[onnx.NodeProto, np.ndarray]]":
    """Every named layer with float weights of its own, and these."""
    from onnx import TensorProto, numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    return [
        (node, numpy_helper.to_array(weights[node.input[1]]))
        for node in model.graph.node
        if node.op_type in _KINDS and node.name and len(node.input) > 1 and node.input[1] in weights
    ]


def _add_switches(model: "onnx.ModelProto", layers: "list[tuple[onnx.NodeProto, np.ndarray]]") -> None:
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    graph.input.append(helper.make_tensor_value_info(_SWITCHES, TensorProto.FLOAT, [len(layers)]))
    before: dict[str, list[Any]] = {}
    for number, (node, weight) in enumerate(layers):
        x, w = node.input[0], node.input[1]
        own = f"{_SWITCHES}/{number}"
        graph.initializer.append(numpy_helper.from_array(_rounded(node, weight) - weight, f"{own}/error"))
        graph.initializer.append(numpy_helper.from_array(np.array(number), f"{own}/number"))

        def switched(value: str, error: str, result: str, own: str = own) -> list[Any]:
            return [
                helper.make_node("Mul", [f"{own}/on", error], [f"{result}/part"]),
                helper.make_node("Add", [value, f"{result}/part"], [result]),
            ]

        before[node.name] = [
            helper.make_node("Gather", [_SWITCHES, f"{own}/number"], [f"{own}/on"]),
            *switched(w, f"{own}/error", f"{own}/w"),
            helper.make_node("DynamicQuantizeLinear", [x], [f"{own}/{part}" for part in ("q", "scale", "zero")]),
            helper.make_node("DequantizeLinear", [f"{own}/{p}" for p in ("q", "scale", "zero")], [f"{own}/rounded"]),
            helper.make_node("Sub", [f"{own}/rounded", x], [f"{own}/x_error"]),
            *switched(x, f"{own}/x_error", f"{own}/x"),
        ]
        node.input[0], node.input[1] = f"{own}/x", f"{own}/w"
    nodes = [new for node in graph.node for new in (*before.get(node.name, ()), node)]
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)


def _rounded(node: "onnx.NodeProto", weight: np.ndarray) -> np.ndarray:
    """Weights rounded to int8 with a scale per output."""
    is_turned = any(a.name == "transB" and a.i for a in node.attribute)
    axis = 0 if node.op_type == "Conv" or is_turned else weight.ndim - 1
    others = tuple(number for number in range(weight.ndim) if number != axis)
    scale = np.maximum(np.abs(weight).max(axis=others, keepdims=True), 1e-12) / 127
    return np.asarray(np.clip(np.round(weight / scale), -127, 127) * scale, np.float32)


def _session(model: "onnx.ModelProto") -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def run(rows: dict[str, np.ndarray], switches: np.ndarray) -> list[np.ndarray]:
        answers: Sequence[Any] = session.run(None, {**rows, _SWITCHES: switches})
        return [answer for answer in answers if answer.dtype.kind == "f"]

    return run


def _distance(got: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    total = 0.0
    for have, want in zip(got, wanted, strict=True):
        spread = float(np.var(want)) + 1e-12
        total += float(np.mean(np.square(have.astype(np.float64) - want))) / spread
    return total
