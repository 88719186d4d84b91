"""Losses, one value per sample, so that ranks with different numbers of samples can be added up exactly.

Shape suffixes: b batch, k outputs.
"""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput

Loss = Callable[[Tensor, Tensor], Tensor]
"""Outputs [b, k] and targets [b] to one loss per sample [b]."""


def loss_for(name: str, task: str, outputs: int) -> Loss:
    """Return the loss called `name` ("auto": the usual one) for a task of `outputs` numbers per sample."""
    is_classes = task == "classification"
    if name == "auto":
        name = "cross-entropy" if is_classes else "mse"
    if name == "cross-entropy":
        if not is_classes:
            raise InvalidInput(
                "[train] loss = 'cross-entropy' is for classes, but this is a regression",
                hint='use loss = "mse" or set [data] task = "classification"',
            )
        return lambda logits_bk, y_b: F.cross_entropy(logits_bk, y_b, reduction="none")
    elementwise = F.mse_loss if name == "mse" else F.binary_cross_entropy_with_logits

    def loss(outputs_bk: Tensor, y_b: Tensor) -> Tensor:
        # Classes become one target per output (one against the rest).
        target_bk = F.one_hot(y_b, outputs) if is_classes else y_b.reshape(len(y_b), -1)
        return elementwise(outputs_bk, target_bk.to(outputs_bk.dtype), reduction="none").mean(dim=1)

    return loss


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
