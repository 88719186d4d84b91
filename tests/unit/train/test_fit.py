import numpy as np
import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.train.config import TrainConfig
from argosy.train.families.mlp import MlpOptions
from argosy.train.families.mlp import build as build_mlp
from argosy.train.fit import answers_of, fit
from argosy.train.inputs import ModelInput
from ranks import save_table


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return Dataset.load(save_table(tmp_path_factory.mktemp("fit"), n=150))


def student(seed=0):
    torch.manual_seed(seed)
    return build_mlp(MlpOptions(hidden=[16]), ModelInput(shape=(5,)), 3)


SETTINGS = TrainConfig(epochs=15, batch_size=32, learning_rate=0.02)


def test_fitting_trains_the_model_in_place_and_tells_each_epoch(dataset):
    model, news = student(), []
    history = fit(model, dataset, SETTINGS, report=news.append)
    assert [entry["epoch"] for entry in history] == list(range(1, 16))
    assert history[-1]["loss"] < history[0]["loss"]
    assert history[-1]["accuracy"] > 0.7
    assert not model.training
    assert news[-1].done == news[-1].total


@pytest.mark.capability("C4")
def test_a_student_learns_from_its_teachers_answers_alone(dataset):
    """With alpha 1 no label is looked at: labels are replaced by nonsense and the student still agrees."""
    teacher = student(seed=1)
    fit(teacher, dataset, SETTINGS)
    train = dataset.splits["train"]
    nonsense = type(train)(inputs=train.inputs, y=np.zeros_like(train.y))
    blind = Dataset(
        **{
            **{f: getattr(dataset, f) for f in dataset.__struct_fields__},
            "splits": {**dataset.splits, "train": nonsense},
        }
    )
    pupil = student(seed=2)
    fit(pupil, blind, SETTINGS, teacher=teacher, alpha=1.0, temperature=2.0)
    x = torch.from_numpy(next(iter(dataset.prepared("test")[0].values())).copy())
    with torch.no_grad():
        agree = (pupil(x).argmax(1) == teacher(x).argmax(1)).double().mean()
    assert float(agree) > 0.85


def test_without_any_weight_on_the_teacher_its_answers_change_nothing(dataset):
    one, other = student(), student()
    settings = TrainConfig(epochs=2)
    fit(one, dataset, settings)
    fit(other, dataset, settings, teacher=student(seed=5), alpha=0.0)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_teacher_answers_in_inference_mode_and_is_left_as_it_was():
    teacher = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.9)).train()
    x = torch.randn(10, 5)
    answers = answers_of(teacher, x, batch_size=4)
    assert torch.allclose(answers, teacher[0](x), atol=1e-6)
    assert teacher.training
    assert not answers.requires_grad


def test_workers_and_strategy_are_not_looked_at(dataset):
    assert len(fit(student(), dataset, TrainConfig(epochs=1, workers=4, strategy="data-parallel"))) == 1


@pytest.mark.parametrize(("alpha", "temperature"), [(-0.1, 1.0), (1.1, 1.0), (0.5, 0.0)])
def test_impossible_weights_of_the_teacher_are_refused(dataset, alpha, temperature):
    with pytest.raises(InvalidInput, match="must be from 0 to 1"):
        fit(student(), dataset, SETTINGS, teacher=student(), alpha=alpha, temperature=temperature)


def test_a_regression_learns_and_is_judged_in_its_own_unit(tmp_path):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(200, 2))
    y = 1000 + 50 * x[:, 0] - 30 * x[:, 1]
    rows = "\n".join(f"{a:.6f},{b:.6f},{c:.4f}" for (a, b), c in zip(x, y, strict=True))
    (tmp_path / "t.csv").write_text(f"a,b,price\n{rows}\n")
    dataset = build_dataset(DataConfig(train="t.csv", label="price", task="regression"), tmp_path)
    torch.manual_seed(0)
    history = fit(
        build_mlp(MlpOptions(hidden=[16]), ModelInput(shape=(2,)), 1),
        dataset,
        TrainConfig(epochs=40, learning_rate=0.02),
    )
    assert history[-1]["rmse"] < 0.2 * float(y.std())
    assert history[0]["rmse"] > history[-1]["rmse"] > 0.01
