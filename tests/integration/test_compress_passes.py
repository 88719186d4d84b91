"""Every pass alone on a convolutional network, an encoder and a decoder: it changes what it says, at a known price."""

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from argosy.compress import search
from argosy.compress.config import CompressConfig
from argosy.compress.passes.kinds import is_quantized
from argosy.compress.passes.nncf_int8 import has_nncf
from argosy.compress.search import apply_passes
from argosy.formats.onnx_module import to_module
from argosy.formats.runner import load_runner
from argosy.train.config import TrainConfig
from compressed import (
    Sentences,
    Steps,
    Stripes,
    cnn,
    decoder,
    encoder,
    low_rank,
    one_thread,
    onnx_of,
    quick_exports,
    steady,
    train,
)

KINDS = ["cnn", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("encoder", "decoder"))]


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def trained(kind, tmp_path_factory):
    """Return the file of a trained network, and its data."""
    with one_thread():
        if kind == "cnn":
            data = Stripes(90)
            module = train(cnn(), data, steps=25)
            low_rank(module[3], 8)
        else:
            data = Sentences() if kind == "encoder" else Steps()
            module = train(encoder() if kind == "encoder" else decoder(), data, steps=60, rate=5e-3)
            for block in module.blocks if kind == "encoder" else module.model.blocks:
                low_rank(block.up, 8)
                low_rank(block.down, 8)
        path = tmp_path_factory.mktemp("models") / f"{kind}.onnx"
        path.write_bytes(onnx_of(module, data))
    return path, data


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    steady(monkeypatch)
    quick_exports(monkeypatch)
    monkeypatch.setattr(search, "_QUICK_S", 0.05)
    monkeypatch.setattr(search, "_FINAL_S", 0.05)


@pytest.fixture
def applied(trained, kind, tmp_path):
    """Return a function that applies passes to a network's bare file and checks what holds for all of them."""
    path, data = trained

    def apply(*recipe, epochs=2):
        before = path.read_bytes()
        result = apply_passes(path, None, data, CompressConfig(epochs=epochs), TrainConfig(), tmp_path / "work", recipe)
        assert result.chosen is not None, result.says
        chosen = result.chosen
        assert path.read_bytes() == before
        assert chosen.path.stat().st_size == chosen.size_bytes
        for quality in (result.original.quality, chosen.quality):
            assert quality.measure == {"decoder": "perplexity"}.get(kind, "accuracy")
            assert np.isfinite(quality.value)
        # Perplexity of guessing would be 24, accuracy a third.
        if kind == "decoder":
            assert result.original.quality.value < 4
            assert chosen.quality.value < 12
        else:
            assert result.original.quality.value > 0.85
            assert chosen.quality.value > 0.5
        assert chosen.timings[0].p95_s > 0
        runner = load_runner("onnx", chosen.path, engine=chosen.engine)
        assert [spec.name for spec in runner.signature.outputs] == (
            ["logits", "nats"] if kind == "decoder" else ["logits"]
        )
        return result

    return apply


def parameters(path):
    return sum(p.numel() for p in to_module(path).parameters())


@pytest.mark.capability("C1")
def test_prune_sets_weights_to_zero_and_the_file_is_smaller_for_it(applied):
    result = applied(("prune", {"sparsity": 0.6}))
    chosen = result.chosen
    weights = [p.detach().numpy() for p in to_module(chosen.path).parameters() if p.ndim >= 2 and p.numel() >= 256]
    zeros = 1 - sum(map(np.count_nonzero, weights)) / sum(w.size for w in weights)
    # What the file calls a weight may be more than what the pass may prune: tables of positions, masks.
    assert zeros == pytest.approx(0.6, abs=0.03)
    assert chosen.changed["zeros"] == pytest.approx(0.6, abs=1e-3)
    assert chosen.size_bytes < 0.75 * result.original.size_bytes


@pytest.mark.capability("C2")
def test_slim_takes_channels_or_blocks_away(applied, kind):
    result = applied(("slim", {}), epochs=4)
    chosen = result.chosen
    assert chosen.recipe == [("slim", {"ratio": 0.5} if kind == "cnn" else {"blocks": 0.34})]
    changed = chosen.changed
    assert changed["parameters_after"] < 0.8 * changed["parameters_before"]
    assert parameters(chosen.path) == pytest.approx(changed["parameters_after"], rel=0.02)
    assert chosen.size_bytes < 0.85 * result.original.size_bytes
    if kind != "cnn":
        assert len(changed["blocks_removed"]) == 2


@pytest.mark.capability("C2")
def test_slim_takes_the_widths_of_networks_for_texts(applied, kind):
    result = applied(("slim", {"ratio": 0.25}))
    assert result.chosen.changed["parameters_after"] < result.chosen.changed["parameters_before"]
    assert result.chosen.recipe == [("slim", {"ratio": 0.25})], "and no blocks beside them"
    if kind != "cnn":
        assert list(result.chosen.changed["widths"].values()) == ["128 to 96"] * 3


@pytest.mark.capability("C2")
def test_slim_takes_weights_out_of_embeddings_where_there_are_any(trained, applied, kind, tmp_path):
    if kind != "encoder":
        path, data = trained
        asked = [("slim", {"embeddings": 0.5})]
        result = apply_passes(path, None, data, CompressConfig(epochs=2), TrainConfig(), tmp_path / "work", asked)
        why = {"cnn": "the network has none", "decoder": "its weights are those of another layer as well"}
        assert result.chosen is None
        assert "no embedding can be made smaller" in result.says
        assert why[kind] in result.says
        return
    result = applied(("slim", {"embeddings": 0.5}))
    changed = result.chosen.changed
    assert set(changed["embeddings"].values()) <= {"12 rows of 8, of 24 of 32", "24 rows of 8, of 24 of 32"}
    assert changed["parameters_after"] < changed["parameters_before"]
    assert result.chosen.size_bytes < result.original.size_bytes


@pytest.mark.capability("C3")
def test_factorize_lowers_the_rank(applied, kind):
    result = applied(("factorize", {"energy": 0.98}))
    chosen = result.chosen
    ranks = chosen.changed["ranks"]
    assert len(ranks) >= (1 if kind == "cnn" else 6)
    assert all(int(text.split()[0]) < int(text.split()[2]) for text in ranks.values())
    assert parameters(chosen.path) == pytest.approx(chosen.changed["parameters_after"], rel=0.02)
    assert chosen.size_bytes < 0.85 * result.original.size_bytes
    smallest = {min(p.shape[0], p[0].numel()) for p in to_module(chosen.path).parameters() if p.ndim >= 2}
    assert 8 in smallest


@pytest.mark.capability("C4")
def test_distill_trains_a_student_for_long(applied, kind):
    result = applied(("distill", {}), epochs=2)
    chosen = result.chosen
    assert chosen.changed["epochs"] == 8
    assert chosen.changed["parameters_after"] < 0.7 * chosen.changed["parameters_before"]
    assert chosen.size_bytes < 0.8 * result.original.size_bytes


@pytest.mark.capability("C5")
@pytest.mark.parametrize("operands", ["u8s8", "s8s8", "dynamic", "nncf", "weights-8", "weights-4"])
def test_quantize_stores_weights_in_a_byte_or_half_of_one(applied, kind, operands):
    if operands == "nncf" and not has_nncf():
        pytest.skip("NNCF is not installed")
    if operands in ("u8s8", "s8s8") and kind != "cnn":
        pytest.skip("one range for all tokens destroys networks for texts; the pass proposes others")
    result = applied(("quantize", {"operands": operands}))
    chosen = result.chosen
    graph = onnx.load(chosen.path).graph
    held = {t.data_type for t in graph.initializer if numpy_helper.to_array(t).size >= 512}
    wanted = {onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4}
    assert held & wanted
    assert chosen.size_bytes < result.original.size_bytes
    assert chosen.changed["quantized_operations"] > 0
    assert is_quantized_file(chosen.path)
    assert chosen.quality.agreement > 0.6


def is_quantized_file(path):
    from argosy.compress.passes import Model

    return is_quantized(Model(path=path))


@pytest.mark.capability("C7")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "openvino-bf16"])
def test_optimize_changes_the_engine_or_the_graph_and_next_to_no_answer(applied, kind, engine):
    if engine != "onnxruntime":
        pytest.importorskip("openvino")
    result = applied(("optimize", {"engine": engine, "fold": True}))
    chosen = result.chosen
    assert chosen.engine == chosen.changed["engine"] == engine
    assert chosen.changed["nodes_after"] <= chosen.changed["nodes_before"]
    assert len(onnx.load(chosen.path).graph.node) == chosen.changed["nodes_after"]
    assert chosen.quality.agreement >= 0.95
    assert abs(chosen.quality.drop) <= 0.02


@pytest.mark.capability("C6")
def test_passes_follow_one_another_and_each_is_measured(applied, kind):
    result = applied(("slim", {}), ("prune", {"sparsity": 0.5}), ("quantize", {}), ("optimize", {}))
    assert [len(c.recipe) for c in result.candidates] == [1, 2, 3, 4]
    assert all(c.status == "measured" and c.quality is not None for c in result.candidates)
    sizes = [c.size_bytes for c in result.candidates]
    assert sizes[2] < sizes[1] < sizes[0] < result.original.size_bytes
    assert result.chosen.name == result.candidates[-1].name
