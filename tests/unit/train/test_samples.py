from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch

from argosy.core.errors import InvalidInput
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.fit import fit
from argosy.train.inputs import ModelInput
from argosy.train.models import build_model
from argosy.train.samples import given_of, samples_of
from ranks import classes, config, largest_difference, save_table, train_ranks, train_single
from sentences import sentences, write_csv


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.load(save_table(tmp_path_factory.mktemp("samples"), n=40))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_numbers_come_in_the_dtype_asked_for_and_classes_as_integers(dataset, dtype):
    samples = samples_of(dataset, dtype)
    assert samples.x.dtype == samples.validation_x.dtype == dtype
    assert samples.y.dtype == torch.int64
    assert (samples.task, samples.outputs, samples.input_shape) == ("classification", 3, (5,))
    assert len(samples.x) == len(dataset.splits["train"])


def test_an_absent_validation_part_is_empty(dataset):
    splits = {name: part for name, part in dataset.splits.items() if name != "validation"}
    samples = samples_of(msgspec.structs.replace(dataset, splits=splits), torch.float32)
    assert len(samples.validation_x) == len(samples.validation_y) == 0


def test_more_workers_than_samples_are_refused():
    samples = classes(n=3)
    samples.check(3)
    with pytest.raises(InvalidInput, match=r"workers = 4 is more than the 3 samples of the training part") as caught:
        samples.check(4)
    assert "at most 3 workers" in caught.value.hint


def test_a_batch_is_what_the_model_takes(dataset):
    samples = samples_of(dataset, torch.float32)
    rows = torch.tensor([3, 1])
    (x,) = samples.batch(rows)
    assert torch.equal(x, samples.x[rows])
    (x,) = samples.validation_batch(rows)
    assert torch.equal(x, samples.validation_x[rows])
    assert len(samples) == len(samples.y)
    assert samples.given == given_of(dataset) == ModelInput(shape=(5,))


def test_several_tensors_per_sample_come_in_their_order(dataset, monkeypatch):
    inputs, y = dataset.prepared("train")
    more = np.arange(len(y) * 4).reshape(len(y), 2, 2)
    monkeypatch.setattr(Dataset, "prepared", lambda self, part: ({**inputs, "more": more}, y))
    samples = samples_of(dataset, torch.float32)
    rows = torch.tensor([2, 0])
    x, other = samples.batch(rows)
    assert torch.equal(x, samples.x[rows])
    assert other.tolist() == more[rows.numpy()].tolist()
    assert [len(tensor) for tensor in samples.validation_batch(rows)] == [2, 2]
    assert samples.given == ModelInput(shape=(5,), more=((2, 2),))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    write_csv(folder / "texts.csv", *sentences(n=60))
    return build_dataset(DataConfig(train="texts.csv", max_length=16), folder)


def test_a_batch_of_texts_is_padded_to_its_own_longest(texts):
    samples = samples_of(texts, torch.float32)
    whole = texts.prepared("train")[0]
    assert samples.lengths.tolist() == whole["attention_mask"].sum(axis=1).tolist()
    order = samples.lengths.argsort()
    for rows in (order[:2], order[-2:], torch.tensor([0, 7, 3])):
        ids, mask = samples.batch(rows)
        longest = int(samples.lengths[rows].max())
        assert ids.shape == mask.shape == (len(rows), longest)
        assert ids.dtype == mask.dtype == torch.int64
        assert ids.tolist() == whole["input_ids"][rows.numpy(), :longest].tolist()
        assert mask.tolist() == whole["attention_mask"][rows.numpy(), :longest].tolist()
    held = texts.prepared("validation")[0]
    ids, mask = samples.validation_batch(torch.arange(3))
    assert ids.tolist() == held["input_ids"][:3, : ids.shape[1]].tolist()
    assert int(mask.sum()) == int(held["attention_mask"][:3].sum())
    assert samples.given == given_of(texts)
    assert samples.given == ModelInput(shape=(16,), vocabulary=texts.vocabulary, pad_id=0)


@pytest.mark.capability("T1", "B1")
@pytest.mark.parametrize(
    ("family", "options"), [("transformer", {"width": 16, "layers": 1, "dropout": 0.0}), ("lstm", {"hidden": 16})]
)
def test_two_ranks_learn_texts_as_one_process_does(texts, family, options):
    samples = samples_of(texts, torch.float64)
    asked = ModelConfig(family=family, options=options)

    def build():
        return build_model(asked, Path(), samples.given, samples.outputs, 0).double()

    settings = config(epochs=2, batch_size=7, learning_rate=0.01)
    alone, position = train_single(build, samples, settings)
    (one, _), (other, _) = train_ranks(build, samples, settings, 2)
    assert largest_difference(one, other) == 0.0
    assert largest_difference(one, alone) < 1e-6
    assert position.history[-1]["loss"] < position.history[0]["loss"]


@pytest.mark.capability("B1")
def test_texts_without_a_word_of_the_model_get_one_that_learns_them(texts):
    samples = samples_of(texts, torch.float32)
    model = build_model(ModelConfig(), Path(), samples.given, samples.outputs, 0)
    history = fit(model, texts, TrainConfig(epochs=12, batch_size=16, learning_rate=2e-3))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_a_tables_family_refuses_texts_by_name(texts):
    with pytest.raises(InvalidInput, match="'mlp'"):
        build_model(ModelConfig(family="mlp"), Path(), given_of(texts), 3, 0)


def test_a_function_of_the_users_is_given_vocabulary_and_padding(tmp_path, texts):
    (tmp_path / "model.py").write_text(
        "from torch import nn\n\nclass Bag(nn.Module):\n"
        "    def __init__(self, vocabulary, pad_id, outputs):\n"
        "        super().__init__()\n"
        "        self.table = nn.Embedding(vocabulary, outputs, padding_idx=pad_id)\n"
        "    def forward(self, ids, mask):\n"
        "        return (self.table(ids) * mask[:, :, None]).sum(1)\n\n"
        "def build(vocabulary, pad_id, outputs):\n    return Bag(vocabulary, pad_id, outputs)\n"
    )
    model = build_model(ModelConfig(build="model:build"), tmp_path, given_of(texts), 3, 0)
    assert model.table.num_embeddings == texts.vocabulary
