"""Losses, one value per sample, so that ranks with different numbers of samples can be added up exactly.

Shape suffixes: b batch, k outputs, t tokens, n samples of the training part.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.train.config import TrainConfig
from argosy.train.samples import Samples

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets of a batch to one loss per sample [b]: [b, k] and [b], or of texts [b, t, k] and [b, t]."""

_OF_CLASSES = ("cross-entropy", "focal")
_OF_NUMBERS: dict[str, Loss] = {
    "mse": lambda outputs, targets: F.mse_loss(outputs, targets, reduction="none"),
    "mae": lambda outputs, targets: F.l1_loss(outputs, targets, reduction="none"),
    # Huber 1964 with the border at 1, which for a regression is one standard deviation of the label.
    "huber": lambda outputs, targets: F.huber_loss(outputs, targets, reduction="none"),
    "bce": lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets, reduction="none"),
}


def loss_of(config: TrainConfig, samples: Samples) -> Loss:
    """Return the loss that `config` asks to minimize over `samples`. Raises InvalidInput for one that doesn't fit."""
    weights = class_weights(config.class_weights, samples.y, samples.labels, samples.outputs, samples.task)
    return loss_for(
        config.loss,
        samples.task,
        samples.outputs,
        smoothing=config.label_smoothing,
        gamma=config.focal_gamma,
        weights_k=weights,
    )


def loss_for(
    name: str,
    task: str,
    outputs: int,
    *,
    smoothing: float = 0.0,
    gamma: float = 2.0,
    weights_k: Tensor | None = None,
) -> Loss:
    """Return the loss called `name` ("auto": the usual one) for a task of `outputs` numbers per sample (or token).

    `weights_k` is what a sample's loss is multiplied by, by its class.
    """
    numbers = task == "regression"
    if name == "auto":
        name = "mse" if numbers else "cross-entropy"
    _check_fits(name, task, smoothing)
    if name in _OF_CLASSES:
        loss = _cross_entropy(smoothing, gamma if name == "focal" else 0.0)
    else:
        loss = _elementwise(_OF_NUMBERS[name], 0 if numbers else outputs)
    loss = _per_text(loss) if task == "language-model" else loss
    return loss if weights_k is None else _weighted(loss, weights_k)


def _check_fits(name: str, task: str, smoothing: float) -> None:
    if name in _OF_CLASSES and task == "regression":
        raise InvalidInput(
            f"[train] loss = '{name}' is for classes, but this is a regression",
            hint='use loss = "mse" or set [data] task = "classification"',
        )
    if task == "language-model" and name not in _OF_CLASSES:
        raise InvalidInput(
            f"[train] loss = '{name}' is not for tokens, which a language model predicts",
            hint='use loss = "cross-entropy", or leave it out',
        )
    if smoothing and name != "cross-entropy":
        raise InvalidInput(
            f"[train] label_smoothing = {smoothing:g} goes with loss = 'cross-entropy', not with '{name}'",
            hint="leave one of them out",
        )


def _cross_entropy(smoothing: float, gamma: float) -> Loss:
    def loss(logits_bk: Tensor, y_b: Tensor) -> Tensor:
        # Szegedy et al. 2016, section 7, for the smoothing.
        found_b = F.cross_entropy(logits_bk, y_b.long(), reduction="none", label_smoothing=smoothing)
        # Lin et al. 2017, equation 4; exp(-loss) is the probability of the true class.
        return (1 - torch.exp(-found_b)) ** gamma * found_b if gamma else found_b

    return loss


def _elementwise(distance: Loss, classes: int) -> Loss:
    def loss(outputs_bk: Tensor, y_b: Tensor) -> Tensor:
        # Classes become one target per output (one against the rest).
        target_bk = F.one_hot(y_b, classes) if classes else y_b.reshape(len(y_b), -1)
        return distance(outputs_bk, target_bk.to(outputs_bk.dtype)).mean(dim=1)

    return loss


def _per_text(loss: Loss) -> Loss:
    """Make one loss per text, the mean over its tokens, of one per token."""

    def of_texts(logits_btk: Tensor, y_bt: Tensor) -> Tensor:
        return loss(logits_btk.flatten(0, 1), y_bt.flatten()).reshape(y_bt.shape).mean(dim=1)

    return of_texts


def _weighted(loss: Loss, weights_k: Tensor) -> Loss:
    def weighted(outputs_bk: Tensor, y_b: Tensor) -> Tensor:
        return weights_k.to(outputs_bk.dtype)[y_b] * loss(outputs_bk, y_b)

    return weighted


def class_weights(
    asked: str | Mapping[str, float], y_n: Tensor, labels: Sequence[str], outputs: int, task: str = "classification"
) -> Tensor | None:
    """Return what each class counts (float64 [k]), or None where all count 1.

    "balanced": n / (k * members), so that all classes have the same sum and the mean over the samples is 1 (King and
    Zeng 2001, section 4.2). Raises InvalidInput for a label that doesn't exist, or a task without classes.
    """
    if not asked:
        return None
    if task != "classification":
        raise InvalidInput(f"[train] class_weights are for classes, but this is a {task}", hint="leave them out")
    if isinstance(asked, str):
        members_k = torch.bincount(y_n, minlength=outputs).to(torch.float64)
        present = members_k > 0
        return torch.where(present, len(y_n) / (present.sum() * members_k.clamp(min=1)), torch.ones(()))
    unknown = [label for label in asked if label not in labels]
    if unknown:
        raise InvalidInput(
            f"[train] class_weights names {unknown[0]!r}, which is no label; the labels are: "
            f"{', '.join(map(repr, labels[:20]))}" + (" ..." if len(labels) > 20 else ""),
            labels=list(labels[:100]),
        )
    return torch.tensor([asked.get(label, 1.0) for label in labels], dtype=torch.float64)


def distilled(teacher_bk: Tensor, outputs_bk: Tensor, task: str, temperature: float) -> Tensor:
    """Return how far a student's outputs are from its teacher's, one value per sample [b].

    Classes: Kullback-Leibler divergence of the softened probabilities times temperature**2, which keeps the size
    of the gradient (Hinton et al. 2015, section 2). Regression: squared difference.
    """
    if task != "classification":
        return F.mse_loss(outputs_bk, teacher_bk, reduction="none").mean(dim=1)
    student = F.log_softmax(outputs_bk / temperature, dim=1)
    teacher = F.log_softmax(teacher_bk / temperature, dim=1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=1) * temperature**2
