import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from argosy.compress.passes import Model, embeddings
from argosy.compress.passes.embeddings import SharedRows, smaller, with_small_embeddings
from argosy.compress.passes.slim import Slim
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import to_module
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import Sentences, Steps, bench_of, decoder, encoder, onnx_of, quick_exports, steady, weights_of

pytestmark = pytest.mark.capability("C2")


@pytest.fixture
def quick(monkeypatch):
    steady(monkeypatch)
    quick_exports(monkeypatch)


def table(words, width, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(words, width)).astype(np.float32))


def test_a_table_of_few_dimensions_is_written_in_those():
    whole = table(64, 8) @ table(8, 48)
    made = smaller(whole, torch.ones(64), 0.6)
    assert made.places is None
    assert made.rows.weight.shape == (64, 8)
    assert torch.allclose(made.weight, whole, atol=1e-4)


def test_rare_words_share_the_rows_of_the_nearest_frequent_ones():
    own = table(32, 16)
    whole = torch.cat([own, own.flip(0) + 1e-3])
    counts = torch.cat([torch.full((32,), 100.0), torch.zeros(32)])
    made = smaller(whole, counts, 0.4)
    assert made.places.tolist() == [*range(32), *reversed(range(32))]
    assert made.out is None
    assert torch.equal(made.weight[:32], own)
    assert torch.allclose(made.weight, whole, atol=2e-3)


def test_words_that_come_often_are_nearer_to_what_they_were():
    whole = table(256, 32)
    often = torch.zeros(256).index_fill_(0, torch.arange(0, 256, 8), 1000.0)
    error = (smaller(whole, often, 0.75).weight - whole).square().sum(dim=1)
    assert error[::8].mean() < 0.5 * error.mean()


@settings(max_examples=30, deadline=None)
@given(st.integers(16, 300), st.integers(8, 64), st.floats(0.1, 0.98), st.integers(0, 2**16))
def test_no_more_weights_are_left_than_asked(words, width, share, seed):
    whole = table(words, width, seed)
    counts = torch.from_numpy(np.random.default_rng(seed).integers(0, 50, size=words))
    made = smaller(whole, counts, share)
    if made is None:
        assert (1 - share) * words * width < 16 * (width + words)
        return
    places = words if made.places is not None else 0
    assert weights_of(made) + places <= (1 - share) * words * width
    assert made.weight.shape == whole.shape
    assert made(torch.arange(words).reshape(1, -1)).shape == (1, words, width)


def test_many_rows_are_told_apart():
    whole = table(70_000, 8)
    made = smaller(whole, torch.ones(70_000), 0.3)
    assert made.places.dtype == torch.int32
    assert smaller(whole[:40_000], torch.ones(40_000), 0.3).places.dtype == torch.int16


def sentences(tmp_path, module=None):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module or encoder(16, 2), Sentences()))
    return bench_of(path, Sentences())


def test_how_often_words_come_is_counted_in_the_training_part_without_the_rest_of_the_network(tmp_path, monkeypatch):
    module = encoder(16, 2)
    bench = sentences(tmp_path, module)
    found = []
    monkeypatch.setattr(embeddings, "smaller", lambda weight, counts, share: found.append((len(weight), counts)))
    ran = []
    module.blocks[0].register_forward_hook(lambda _, rows, __: ran.append(len(rows[0])))
    with pytest.raises(InvalidInput, match="no embedding can be made smaller"):
        with_small_embeddings(module, 0.5, bench)
    ids = bench.samples.train["input_ids"]
    counts = next(counts for words, counts in found if words == 24)
    assert np.array_equal(counts[1:], np.bincount(ids.flatten(), minlength=24)[1:])
    # All there is to see of the rest is whether it shares the tables' weights.
    assert set(ran) == {2}
    # Noted: the network isn't asked again.
    monkeypatch.setattr(embeddings, "training_rows", None)
    found.clear()
    with pytest.raises(InvalidInput):
        with_small_embeddings(module, 0.5, bench)
    assert len(found) == 2


@pytest.mark.parametrize("is_bare", [False, True], ids=["module", "file"])
def test_the_pass_makes_the_file_smaller_and_leaves_the_original_alone(tmp_path, quick, is_bare):
    module = encoder(32, 2)
    bench = sentences(tmp_path, module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = Model(path=bench.original.path, module=None if is_bare else lambda: module)
    made = Slim().apply(model, {"embeddings": 0.5}, bench)
    (said,) = made.changed["embeddings"].values()
    assert said == "12 rows of 8, of 24 of 32"
    assert made.changed["parameters_after"] < made.changed["parameters_before"]
    assert any(isinstance(layer, SharedRows) for layer in made.module.modules())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    runner = OnnxRunner.load(made.onnx)
    assert runner.signature == bench.runner.signature
    x = bench.samples.validation
    with torch.no_grad():
        wanted = made.module(*(torch.from_numpy(x[spec.name]) for spec in runner.signature.inputs)).numpy()
    assert np.allclose(runner.run(x)["logits"], wanted, atol=1e-4)
    # As a killed search finds it again, and by the exporter that files are made with.
    path = tmp_path / "made.onnx"
    path.write_bytes(made.onnx)
    again = to_module(path).eval()
    with torch.no_grad():
        got = again(*(torch.from_numpy(x[spec.name]) for spec in runner.signature.inputs)).numpy()
    assert np.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("is_bare", [False, True], ids=["module", "file"])
def test_a_table_that_is_the_last_layer_as_well_stays_whole(tmp_path, is_bare):
    path = tmp_path / "model.onnx"
    module = decoder(16, 2)
    path.write_bytes(onnx_of(module, Steps()))
    bench = bench_of(path, Steps())
    student = to_module(path).eval() if is_bare else module
    before = {name: value.clone() for name, value in student.state_dict().items()}
    with pytest.raises(InvalidInput, match="its weights are those of another layer as well"):
        with_small_embeddings(student, 0.5, bench)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())


def test_a_network_without_tables_is_refused(tmp_path):
    bench = sentences(tmp_path)
    with pytest.raises(InvalidInput, match="the network has none"):
        with_small_embeddings(nn.Sequential(nn.Linear(2, 2)), 0.5, bench)
