import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from argosy.compress.config import CompressConfig
from argosy.compress.passes import Model, SoFar
from argosy.compress.passes.nncf_int8 import has_nncf
from argosy.compress.passes.quantize import Quantize
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_export import onnx_bytes
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import bench_of

pytestmark = pytest.mark.capability("C5")

U8S8 = {"operands": "u8s8", "per_channel": True, "reduce_range": False}


def convolution(width=32):
    """Convolution, batch norm, relu, mean: what folding and quantization work on."""
    random = np.random.default_rng(0)

    def constant(name, *shape):
        return numpy_helper.from_array(random.normal(scale=0.1, size=shape).astype(np.float32) + (name == "var"), name)

    nodes = [
        helper.make_node("Conv", ["x", "W"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("Conv", ["r", "V"], ["d"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["d"], ["g"]),
        helper.make_node("Flatten", ["g"], ["logits"]),
    ]
    constants = [constant("W", width, 1, 3, 3), constant("V", 3, width, 3, 3)]
    constants += [constant(name, width) for name in ("scale", "shift", "mean", "var")]
    return _model(nodes, constants, ["batch", 1, 6, 6])


def _model(nodes, constants, shape):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", 3])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return model.SerializeToString()


class Pictures:
    task, labels, digest = "classification", "abc", "sha256:" + "3" * 64

    def __init__(self):
        self.asked = []

    def prepared(self, split):
        self.asked.append(split)
        random = np.random.default_rng(len(split))
        return {"x": random.random(size=(80, 1, 6, 6)).astype(np.float32)}, np.arange(80) % 3


@pytest.fixture
def bench(tmp_path):
    path = tmp_path / "original.onnx"
    path.write_bytes(convolution())
    data = Pictures()
    made = bench_of(path, data)
    assert set(data.asked) == {"train", "validation"}
    return made


def so_far(tried, elsewhere=(), max_drop="1pt"):
    budget = CompressConfig(max_drop=max_drop).budget()
    return SoFar(tried=tried, elsewhere=elsewhere, budget=budget, sketch=lambda _: None)


def test_an_int8_model_is_smaller_and_answers_nearly_the_same(bench):
    made = Quantize().apply(bench.original, U8S8, bench)
    x = Pictures().prepared("test")[0]
    wanted = OnnxRunner.load(bench.original.path).run(x)["logits"]
    got = OnnxRunner.load(made.onnx).run(x)["logits"]
    # 8 bits over the range of three layers: some percent of the spread of the answers.
    assert np.abs(got - wanted).max() < 0.1 * np.ptp(wanted)
    kinds = {node.op_type for node in onnx.load_from_string(made.onnx).graph.node}
    assert "DequantizeLinear" in kinds
    assert "BatchNormalization" not in kinds, "batch norm must be folded before"
    assert made.changed["datatype"] == "int8"
    assert made.module is None


def test_weights_are_stored_in_a_byte_each(bench):
    made = Quantize().apply(bench.original, U8S8, bench)
    stored = [t for t in onnx.load_from_string(made.onnx).graph.initializer if len(t.dims) == 4]
    assert [t.data_type for t in stored] == [onnx.TensorProto.INT8] * 2


@pytest.mark.parametrize("operands", ["u8s8", "s8s8"])
def test_operand_types_and_granularity_are_what_was_asked(bench, operands):
    made = Quantize().apply(bench.original, {**U8S8, "operands": operands, "per_channel": False}, bench)
    graph = onnx.load_from_string(made.onnx).graph
    tensors = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    activations = [n for n in graph.node if n.op_type == "QuantizeLinear"]
    assert {tensors[n.input[2]].dtype.name for n in activations} == {"uint8" if operands == "u8s8" else "int8"}
    assert all(
        tensors[n.input[1]].size == 1 for n in graph.node if n.op_type == "DequantizeLinear" and len(n.input) > 1
    )


def test_the_same_settings_give_the_same_bytes_silently(bench, capfd):
    assert Quantize().apply(bench.original, U8S8, bench).onnx == Quantize().apply(bench.original, U8S8, bench).onnx
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_cannot_be_prepared_is_quantized_as_it_is(bench, monkeypatch):
    from onnxruntime.quantization import shape_inference

    def fails(*_, **__):
        raise Exception("Incomplete symbolic shape inference")  # noqa: TRY002 - what onnxruntime raises

    monkeypatch.setattr(shape_inference, "quant_pre_process", fails)
    made = Quantize().apply(bench.original, U8S8, bench)
    assert "as it is" in made.skipped[0]
    OnnxRunner.load(made.onnx)


def test_a_model_with_nothing_to_quantize_is_refused(bench, tmp_path):
    path = tmp_path / "plain.onnx"
    path.write_bytes(_model([helper.make_node("Sin", ["x"], ["logits"])], [], ["batch", 3]))

    class Rows(Pictures):
        def prepared(self, split):
            return {"x": np.ones((9, 3), np.float32)}, np.arange(9) % 3

    with pytest.raises(InvalidInput, match="no operation"):
        Quantize().apply(Model(path=path), U8S8, bench_of(path, Rows()))


def test_both_operand_types_are_tried_on_the_original_and_variants_of_the_faster(candidate):
    tried, asked = [], []
    while (settings := Quantize().propose(Model(path=None), so_far(tried))) is not None:
        asked.append(settings)
        ratio = 0.5 if settings["operands"] == "u8s8" else 1.6
        tried.append(candidate(ratio=ratio, recipe=[("quantize", settings)]))
    assert [s["operands"] for s in asked] == ["u8s8", "s8s8", "u8s8", "u8s8"] + ["nncf"] * has_nncf()
    assert len({tuple(s.values()) for s in asked}) == len(asked)


def test_on_a_slimmed_model_only_what_was_best_on_the_original_is_tried(candidate):
    slow = candidate(ratio=1.6, recipe=[("quantize", {**U8S8, "operands": "s8s8"})])
    fast = candidate(ratio=0.5, agreement=0.99, recipe=[("quantize", U8S8)])
    true = candidate(ratio=0.52, recipe=[("quantize", {**U8S8, "reduce_range": True})])
    slimmed = Model(path=None, recipe=(("slim", {"ratio": 0.5}),))
    tried = []
    while (settings := Quantize().propose(slimmed, so_far(tried, [slow, fast, true]))) is not None:
        tried.append(candidate(recipe=[("slim", {"ratio": 0.5}), ("quantize", settings)]))
    assert [c.recipe[-1][1] for c in tried] == [U8S8, {**U8S8, "reduce_range": True}]


def test_linear_layers_are_stored_in_bytes_or_half_of_them_whatever_they_are_called(tmp_path):
    random = np.random.default_rng(0)
    weights = [random.normal(scale=0.1, size=shape).astype(np.float32) for shape in ((64, 256), (256, 3))]
    nodes = [
        helper.make_node("Gemm", ["x", "W"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "V"], ["logits"]),
    ]
    path = tmp_path / "linear.onnx"
    constants = [numpy_helper.from_array(array, name) for array, name in zip(weights, "WV", strict=True)]
    path.write_bytes(_model(nodes, constants, ["batch", 64]))

    class Rows(Pictures):
        def prepared(self, split):
            return {"x": np.random.default_rng(len(split)).normal(size=(80, 64)).astype(np.float32)}, np.arange(80) % 3

    bench = bench_of(path, Rows())
    for bits, least in ((8, 0.94), (4, 0.75)):
        made = Quantize().apply(bench.original, {"operands": f"weights-{bits}"}, bench)
        assert made.changed["quantized_operations"] == 2
        # The weights, and a scale for each 32 of them; names and nodes are around.
        assert len(made.onnx) < path.stat().st_size * (bits / 32 + 1 / 32) + 3000
        assert bench.samples.judge(OnnxRunner.load(made.onnx)).agreement >= least


def test_operands_nobody_has_are_told_with_those_there_are(bench):
    with pytest.raises(InvalidInput, match="'int3'; there are: u8s8"):
        Quantize().apply(bench.original, {"operands": "int3"}, bench)


def test_an_int8_graph_is_not_quantized_again():
    assert not Quantize().accepts(Model(path=None, recipe=(("quantize", U8S8),)))


class Tokens:
    """Texts as they are prepared, of one to nine tokens."""

    task, labels, digest = "classification", "abc", "sha256:" + "4" * 64

    def prepared(self, split):
        random = np.random.default_rng(len(split))
        mask = (np.arange(9) < random.integers(1, 10, size=(60, 1))).astype(np.int64)
        return {"input_ids": random.integers(1, 40, size=(60, 9)) * mask, "attention_mask": mask}, np.arange(60) % 3


def encoder(tmp_path):
    import torch
    from torch import nn

    class Texts(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = (
                nn.Embedding(40, 64),
                nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 3)),
            )

        def forward(self, ids, mask):
            return self.head((self.table(ids) * mask.unsqueeze(2).float()).sum(1))

    path = tmp_path / "texts.onnx"
    rows = {name: torch.from_numpy(array[:4]) for name, array in Tokens().prepared("train")[0].items()}
    path.write_bytes(onnx_bytes(Texts(), rows, free_lengths=True))
    return path


def test_texts_are_quantized_with_ranges_of_each_run_and_answer_nearly_the_same(tmp_path, candidate):
    path = encoder(tmp_path)
    runner = OnnxRunner.load(path)
    bench = bench_of(path, Tokens())
    tried, made = [], []
    while (settings := Quantize().propose(Model(path=path), so_far(tried))) is not None:
        made.append(Quantize().apply(Model(path=path), settings, bench))
        tried.append(candidate(recipe=[("quantize", settings)]))
    assert [c.recipe[-1][1]["operands"] for c in tried] == ["dynamic", "dynamic"] + ["nncf"] * has_nncf()
    for found in made:
        assert len(found.onnx) < 0.5 * path.stat().st_size
        smaller = OnnxRunner.load(found.onnx)
        assert smaller.signature.inputs == runner.signature.inputs
        assert bench.samples.judge(smaller).agreement > 0.9


def floats(content):
    """The nodes whose weights still are float."""
    graph = onnx.load_from_string(content).graph
    large = {t.name for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1}
    layers = [node for node in graph.node if node.op_type in ("MatMul", "Gemm")]
    return {node.name for node in layers if node.input[1] in large}


@pytest.mark.parametrize("operands", ["dynamic", "weights-8", *["nncf"] * has_nncf()])
def test_the_layers_that_int8_hurts_most_stay_in_float_where_that_is_asked(tmp_path, operands):
    path = encoder(tmp_path)
    bench = bench_of(path, Tokens())
    whole = Quantize().apply(Model(path=path), {"operands": operands}, bench)
    assert floats(whole.onnx) == set()
    assert "kept_in_float" not in whole.changed
    made = Quantize().apply(Model(path=path), {"operands": operands, "keep": 0.5}, bench)
    (kept,) = made.changed["kept_in_float"]
    assert {name.removesuffix("_MatMul") for name in floats(made.onnx)} == {kept}
    assert len(whole.onnx) < len(made.onnx) < path.stat().st_size


@pytest.mark.parametrize("keep", [-0.1, 1.0, 2.5])
def test_a_share_that_is_none_is_refused(bench, keep):
    with pytest.raises(InvalidInput, match="share of the layers"):
        Quantize().apply(bench.original, {**U8S8, "keep": keep}, bench)


def proposed_all(path, candidate, outcome, elsewhere=(), *, max_drop="1pt", left=None):
    tried = []
    while (settings := Quantize().propose(Model(path=path), so_far(tried, elsewhere, max_drop))) is not None:
        ratio, drop = outcome(settings)
        tried.append(candidate(ratio=ratio, drop=drop, drop_high=drop, seen_drop=drop, recipe=[("quantize", settings)]))
        if left is not None and settings.get("keep"):
            tried[-1].changed["loss_left"] = left
        assert len(tried) < 20
    return [c.recipe[-1][1] for c in tried]


def test_what_is_fast_and_loses_too_much_keeps_layers_until_it_keeps_the_bound(tmp_path, candidate):
    def outcome(settings):
        if settings["operands"] == "dynamic":
            return 0.4, 0.03 if settings.get("keep", 0) < 0.25 else 0.008
        return 1.4, 0.03

    asked = proposed_all(encoder(tmp_path), candidate, outcome)
    keeps = [(s["operands"], s["keep"]) for s in asked if s.get("keep")]
    # None further once it is within the bound.
    assert keeps[:3] == [("dynamic", 0.05), ("dynamic", 0.1), ("dynamic", 0.25)]
    assert all(operands == "dynamic" and keep <= 0.25 for operands, keep in keeps)


def test_what_loses_least_keeps_layers_first_and_shares_that_will_not_do_are_skipped(tmp_path, candidate):
    losses = {False: 0.05, True: 0.03}  # with a reduced range less
    left = {"0.05": 0.8, "0.1": 0.6, "0.25": 0.3, "0.5": 0.1}

    def outcome(settings):
        if settings["operands"] == "nncf":
            return 1.2, 0.2
        share = f"{settings['keep']:g}" if settings.get("keep") else ""
        return 0.2, losses[settings["reduce_range"]] * left.get(share, 1.0)

    asked = proposed_all(encoder(tmp_path), candidate, outcome, left=left)
    keeps = [(s["reduce_range"], s["keep"]) for s in asked if s.get("keep")]
    # 0.024 after the first: a tenth would leave 0.018, a quarter 0.009. The other would need a half, and gain nothing.
    assert keeps == [(True, 0.05), (True, 0.25)]


def test_how_much_of_the_loss_is_left_is_told_by_share(tmp_path):
    path = encoder(tmp_path)
    made = Quantize().apply(Model(path=path), {"operands": "dynamic", "keep": 0.5}, bench_of(path, Tokens()))
    left = made.changed["loss_left"]
    assert list(left) == ["0.05", "0.1", "0.25", "0.5"]
    assert 0 <= left["0.5"] <= left["0.05"] < 1


def test_no_layer_is_kept_where_int8_keeps_the_bound_or_gains_nothing(tmp_path, candidate):
    path = encoder(tmp_path)
    assert not any(s.get("keep") for s in proposed_all(path, candidate, lambda _: (0.5, 0.001)))
    lossless = candidate(ratio=0.38, recipe=[("optimize", {"engine": "openvino-bf16"})])
    slower = proposed_all(path, candidate, lambda _: (0.4, 0.05), [lossless])
    assert not any(s.get("keep") for s in slower)


def test_it_ends_where_no_share_helps(tmp_path, candidate):
    asked = proposed_all(encoder(tmp_path), candidate, lambda _: (0.4, 0.3))
    assert max(s.get("keep", 0.0) for s in asked) == 0.5


def test_keeping_layers_that_cannot_be_told_apart_is_refused(tmp_path, monkeypatch):
    from argosy.compress.passes import sensitivity

    monkeypatch.setattr(sensitivity, "_MOST_BYTES", 10)
    path = encoder(tmp_path)
    with pytest.raises(InvalidInput, match="too large or too old"):
        Quantize().apply(Model(path=path), {"operands": "dynamic", "keep": 0.5}, bench_of(path, Tokens()))
