import pytest
import torch
from torch.nn import functional

from argosy.core.errors import InvalidInput
from argosy.train.config import TrainConfig
from argosy.train.losses import class_weights, distilled, loss_for, loss_of
from argosy.train.samples import Samples

OUTPUTS = torch.tensor([[2.0, -1.0, 0.5], [0.0, 0.3, -2.0]])
CLASSES = torch.tensor([0, 2])


@pytest.mark.capability("T6")
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("auto", functional.cross_entropy(OUTPUTS, CLASSES)),
        ("cross-entropy", functional.cross_entropy(OUTPUTS, CLASSES)),
        ("mse", functional.mse_loss(OUTPUTS, functional.one_hot(CLASSES, 3).float())),
        ("bce", functional.binary_cross_entropy_with_logits(OUTPUTS, functional.one_hot(CLASSES, 3).float())),
    ],
)
def test_the_mean_over_samples_is_torchs_loss_of_classes(name, expected):
    losses = loss_for(name, "classification", 3)(OUTPUTS, CLASSES)
    assert losses.shape == (2,)
    assert float(losses.mean()) == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.capability("T6")
@pytest.mark.parametrize("name", ["auto", "mse"])
def test_the_loss_of_a_regression_is_the_squared_difference(name):
    losses = loss_for(name, "regression", 1)(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 5.0]))
    assert losses.tolist() == [1.0, 4.0]


def test_cross_entropy_of_a_regression_is_refused():
    with pytest.raises(InvalidInput, match="this is a regression"):
        loss_for("cross-entropy", "regression", 1)


def test_a_student_that_answers_as_its_teacher_has_no_distance_to_it():
    assert distilled(OUTPUTS, OUTPUTS + 3.0, "classification", 2.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
    assert distilled(OUTPUTS, OUTPUTS, "regression", 2.0).tolist() == [0.0, 0.0]


def test_the_distance_to_a_teacher_is_the_divergence_of_softened_answers():
    teacher, student = torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    p = torch.softmax(teacher / 2, dim=1)
    expected = float((p * (p.log() - torch.tensor(0.5).log())).sum()) * 4
    assert float(distilled(teacher, student, "classification", 2.0)) == pytest.approx(expected, rel=1e-5)


def samples(y, *, outputs=3, task="classification", labels=("red", "green", "blue")):
    y = torch.as_tensor(y)
    x = torch.zeros(len(y), 2)
    return Samples(x, y, x[:0], y[:0], task, outputs, labels=tuple(labels))


def loss(y=(0, 1, 2), **fields):
    config = TrainConfig(**fields)
    config.check()
    return loss_of(config, samples(y))


@pytest.mark.capability("T6")
def test_focal_loss_is_the_formula_and_without_gamma_the_cross_entropy():
    probability = torch.softmax(OUTPUTS, dim=1)[torch.arange(2), CLASSES]
    expected = -((1 - probability) ** 1.5) * probability.log()
    assert torch.allclose(loss(loss="focal", focal_gamma=1.5)(OUTPUTS, CLASSES), expected)
    plain = functional.cross_entropy(OUTPUTS, CLASSES, reduction="none")
    assert torch.equal(loss(loss="focal", focal_gamma=0.0)(OUTPUTS, CLASSES), plain)


@pytest.mark.capability("T6")
def test_label_smoothing_is_torchs():
    expected = functional.cross_entropy(OUTPUTS, CLASSES, reduction="none", label_smoothing=0.2)
    assert torch.equal(loss(label_smoothing=0.2)(OUTPUTS, CLASSES), expected)


@pytest.mark.capability("T6")
def test_balanced_weights_give_every_class_the_same_sum_and_all_samples_the_mean_1():
    y = torch.tensor([0] * 6 + [1] * 3 + [2] * 1)
    weights = class_weights("balanced", y, (), 3)
    assert weights.tolist() == pytest.approx([10 / 18, 10 / 9, 10 / 3])
    assert float(weights[y].mean()) == pytest.approx(1.0)
    weighed = loss(y, class_weights="balanced")(OUTPUTS, CLASSES)
    plain = functional.cross_entropy(OUTPUTS, CLASSES, reduction="none")
    assert torch.allclose(weighed, plain * weights[CLASSES].float())


def test_a_class_without_samples_has_no_part_in_the_balance():
    assert class_weights("balanced", torch.tensor([0, 0, 2, 2]), (), 3).tolist() == pytest.approx([1.0, 1.0, 1.0])


@pytest.mark.capability("T6")
def test_weights_are_given_by_label_and_the_others_count_1():
    weighed = loss(class_weights={"blue": 5.0})(OUTPUTS, CLASSES)
    plain = functional.cross_entropy(OUTPUTS, CLASSES, reduction="none")
    assert torch.allclose(weighed, plain * torch.tensor([1.0, 5.0]))


@pytest.mark.capability("T6")
@pytest.mark.parametrize(("name", "function"), [("mae", functional.l1_loss), ("huber", functional.huber_loss)])
def test_losses_of_numbers_are_torchs(name, function):
    outputs, y = torch.tensor([[1.0], [3.0]]), torch.tensor([0.5, 5.0])
    found = loss_for(name, "regression", 1)(outputs, y)
    assert float(found.mean()) == pytest.approx(float(function(outputs[:, 0], y)))


@pytest.mark.capability("T6")
def test_the_loss_of_a_text_is_the_mean_over_its_tokens():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    y = torch.randint(0, 7, (2, 5), generator=torch.Generator().manual_seed(1)).to(torch.int32)
    found = loss_for("auto", "language-model", 7)(logits, y)
    expected = [float(functional.cross_entropy(logits[n], y[n].long())) for n in range(2)]
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "task", "told"),
    [
        ({"loss": "focal"}, "regression", "loss = 'focal' is for classes"),
        ({"loss": "mse"}, "language-model", "loss = 'mse' is not for tokens"),
        ({"loss": "bce", "label_smoothing": 0.1}, "classification", "goes with loss = 'cross-entropy', not with 'bce'"),
        ({"label_smoothing": 0.1}, "regression", "not with 'mse'"),
        ({"class_weights": "balanced"}, "regression", "class_weights are for classes"),
        ({"class_weights": {"pink": 2.0}}, "classification", "names 'pink', which is no label; the labels are: 'red'"),
    ],
)
def test_a_loss_that_does_not_fit_the_task_is_refused(fields, task, told):
    with pytest.raises(InvalidInput, match=told):
        loss_of(TrainConfig(**fields), samples([0, 1, 2], task=task))


@pytest.mark.parametrize(
    "fields",
    [
        {"class_weights": "equal"},
        {"class_weights": {"red": 0.0}},
        {"label_smoothing": 1.0},
        {"focal_gamma": -1.0},
        {"focal_gamma": float("inf")},
    ],
)
def test_settings_of_losses_that_can_not_work_are_refused_before_anything_runs(fields):
    with pytest.raises(InvalidInput):
        TrainConfig(**fields).check()
