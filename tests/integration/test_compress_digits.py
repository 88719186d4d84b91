"""The search on real data with its real parts: a small residual network on handwritten digits."""

import numpy as np
import pytest
import torch

from argosy.compress import search
from argosy.compress.config import CompressConfig
from argosy.data.config import DataConfig
from argosy.data.dataset import build_dataset
from argosy.formats.onnx_export import export_onnx
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.fit import fit
from argosy.train.models import build_model

TRAIN = TrainConfig(epochs=5, learning_rate=4e-3, schedule="cosine", weight_decay=0.01)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    from sklearn.datasets import load_digits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("digits")
    digits = load_digits()
    np.savez(folder / "digits.npz", image=digits.images[:, None].astype(np.uint8), label=digits.target)
    dataset = build_dataset(DataConfig(train="digits.npz", validation=0.2), folder)
    module = build_model(ModelConfig(family="resnet", options={"width": 24, "blocks": 1}), folder, (1, 8, 8), 10, 0)
    fit(module, dataset, TRAIN)
    x = next(iter(dataset.prepared("train")[0].values()))
    export_onnx(module, torch.from_numpy(x[:2]), folder / "model.onnx")
    yield folder, module, dataset
    torch.set_num_threads(threads)


def accuracy(path, dataset, part):
    inputs, y = dataset.prepared(part)
    return float((OnnxRunner.load(path).run(inputs)["logits"].argmax(1) == y).mean())


@pytest.fixture(autouse=True)
def _short_measurements(monkeypatch):
    monkeypatch.setattr(search, "_QUICK_S", 0.1)
    monkeypatch.setattr(search, "_FINAL_S", 0.4)


@pytest.mark.capability("C6")
def test_the_budget_is_kept_on_data_the_search_never_saw(trained):
    folder, module, dataset = trained
    before = {name: value.clone() for name, value in module.state_dict().items()}
    result = search.compress(
        folder / "model.onnx",
        module,
        dataset,
        CompressConfig(size="100KB", latency_p95="50ms", epochs=4, passes=["slim", "quantize", "optimize"]),
        TRAIN,
        folder / "search",
    )
    chosen = result.chosen
    assert chosen is not None, result.says
    assert chosen.path.stat().st_size == chosen.size_bytes <= 100_000
    assert chosen.timings
    assert 1 / chosen.size_ratio >= 3
    lost = accuracy(folder / "model.onnx", dataset, "test") - accuracy(chosen.path, dataset, "test")
    assert lost <= 0.01 + 1e-9
    passes = {tuple(name for name, _ in c.recipe) for c in result.candidates if c.status == "measured"}
    assert {("quantize",), ("slim",)} <= passes
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.capability("C6")
def test_a_budget_out_of_reach_is_said_at_once(trained):
    folder, module, dataset = trained
    result = search.compress(
        folder / "model.onnx",
        module,
        dataset,
        CompressConfig(size="100B", epochs=1, passes=["slim", "quantize"]),
        TRAIN,
        folder / "search",
    )
    assert result.chosen is None
    assert "out of reach" in result.says
    assert "size = " in result.hint
    assert {c.status for c in result.candidates if c.recipe[0][0] == "slim"} <= {"stopped", "measured"}
