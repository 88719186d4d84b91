import msgspec
import pytest
import torch

from argosy.core.errors import InvalidInput
from argosy.data.dataset import Dataset
from argosy.train.samples import samples_of
from ranks import classes, save_table


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


def test_a_training_of_several_tensors_per_sample_is_refused(dataset, monkeypatch):
    inputs, y = dataset.prepared("train")
    two = {**inputs, "more": next(iter(inputs.values()))}
    monkeypatch.setattr(Dataset, "prepared", lambda self, part: (two, y))
    with pytest.raises(InvalidInput, match="one tensor per sample, but the data set prepares 2: x, more"):
        samples_of(dataset, torch.float32)
