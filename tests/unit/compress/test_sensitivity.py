"""Which layers int8 hurts most."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.compress.passes.sensitivity import most_sensitive, sensitivities

pytestmark = pytest.mark.capability("C5")

RNG = np.random.default_rng(3)
WIDTH = 48


def chain(path, kinds=("MatMul", "Gemm", "MatMul"), *, spoiled=1, opset=18):
    """Layers in a row; the input of one has a value a thousand times as large as the others, which it ignores."""
    nodes, weights, value = [], [], "x"
    for number, kind in enumerate(kinds):
        weight = (RNG.normal(size=(WIDTH, WIDTH)) / np.sqrt(WIDTH)).astype(np.float32)
        if number == spoiled:
            factor = np.ones(WIDTH, np.float32)
            factor[0], weight[0] = 1000.0, 0.0
            weights.append(numpy_helper.from_array(factor, "factor"))
            nodes.append(helper.make_node("Mul", [value, "factor"], ["large"], name="scaling"))
            value = "large"
        weights.append(numpy_helper.from_array(weight, f"w{number}"))
        nodes.append(helper.make_node(kind, [value, f"w{number}"], [f"h{number}"], name=f"layer-{number}"))
        value = f"h{number}"
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", WIDTH])],
        [helper.make_tensor_value_info(value, onnx.TensorProto.FLOAT, ["batch", WIDTH])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.fixture
def rows():
    return {"x": RNG.normal(size=(32, WIDTH)).astype(np.float32)}


@pytest.mark.parametrize("spoiled", [0, 1, 2])
def test_the_layer_whose_input_one_range_cannot_hold_is_the_most_sensitive(tmp_path, rows, spoiled):
    path = chain(tmp_path / "chain.onnx", spoiled=spoiled)
    before = path.read_bytes()
    found = sensitivities(path, rows)
    worst = f"layer-{spoiled}"
    assert set(found) == {"layer-0", "layer-1", "layer-2"}
    assert found[worst] > 100 * max(distance for name, distance in found.items() if name != worst)
    assert most_sensitive(found, 0.3) == [worst]
    assert path.read_bytes() == before


def test_a_layers_distance_is_that_of_rounding_it_alone(tmp_path, rows):
    path = chain(tmp_path / "chain.onnx", spoiled=None)
    x = rows["x"].astype(np.float64)
    w = [numpy_helper.to_array(t).astype(np.float64) for t in onnx.load(path).graph.initializer]
    scale = (max(0, x.max()) - min(0, x.min())) / 255
    zero = np.round(-min(0, x.min()) / scale)
    rounded_x = (np.clip(np.round(x / scale) + zero, 0, 255) - zero) * scale
    steps = np.abs(w[0]).max(axis=0) / 127
    rounded_w = np.round(w[0] / steps) * steps
    wanted, got = x @ w[0] @ w[1] @ w[2], rounded_x @ rounded_w @ w[1] @ w[2]
    distance = np.square(got - wanted).mean() / wanted.var()
    assert sensitivities(path, rows)["layer-0"] == pytest.approx(distance, rel=0.05)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.34, 1), (0.5, 2), (0.9, 3)])
def test_a_share_of_the_layers_is_named_and_at_least_one(tmp_path, rows, share, count):
    assert len(most_sensitive(sensitivities(chain(tmp_path / "chain.onnx"), rows), share)) == count


def test_graphs_that_are_too_old_or_have_one_layer_only_say_nothing(tmp_path, rows):
    assert sensitivities(chain(tmp_path / "old.onnx", opset=10), rows) == {}
    assert sensitivities(chain(tmp_path / "one.onnx", kinds=("MatMul",), spoiled=0), rows) == {}
    assert most_sensitive(sensitivities(chain(tmp_path / "one.onnx", kinds=("MatMul",), spoiled=0), rows), 0.5) == []
