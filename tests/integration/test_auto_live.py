"""`auto` with real processes: it looks, measures, begins anew, and the result is that of the way it chose."""

import msgspec
import numpy as np
import pytest

from argosy.core.digest import sha256_file
from argosy.data.config import DataConfig
from argosy.data.dataset import build_dataset
from argosy.train import choosing
from argosy.train.choosing import CHOICE, Choice
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training
from argosy.train.measurement import MeasurementStore


@pytest.mark.slow
@pytest.mark.capability("T8")
def test_a_training_that_was_measured_gives_the_bits_of_the_way_that_was_chosen(tmp_path, monkeypatch):
    # So that some seconds are long enough.
    monkeypatch.setattr(choosing, "_COST_S", 0.02)
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1200, 40)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=x, label=(x[:, 0] > 0).astype(np.int64))
    build_dataset(DataConfig(train="data.npz"), tmp_path).save(tmp_path / "dataset")
    model, store, said = ModelConfig(family="mlp", options={"hidden": [256, 256]}), MeasurementStore(tmp_path), []

    def run(name, train, report=lambda news: None):
        return run_training(tmp_path / "dataset", model, train, tmp_path, tmp_path / name, report, measurements=store)

    train = TrainConfig(workers=2, epochs=150, batch_size=32)
    # Measuring may take a twentieth of the training, which is nothing here.
    monkeypatch.setattr(choosing, "_SHARE", 60.0)
    result = run("auto", train, said.append)
    notes = [news.message for news in said if news.is_note]
    assert len(result.choice) == 3, notes
    assert notes[-3:] == [f"auto: {result.choice[0]}", *result.choice[1:]]
    choice = msgspec.json.decode((tmp_path / "auto" / CHOICE).read_bytes(), type=Choice)
    assert choice.is_measured

    named = run_training(
        tmp_path / "dataset",
        model,
        choice.applied(train),
        tmp_path,
        tmp_path / "named",
        threads=choice.threads,
    )
    assert sha256_file(named.weights) == sha256_file(result.weights)
    assert run("again", train).choice[0].endswith("(measured before)")
