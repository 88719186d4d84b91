import pytest
import torch
from torch.nn import functional

from argosy.core.errors import InvalidInput
from argosy.train.losses import distilled, loss_for

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
