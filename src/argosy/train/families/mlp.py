"""Fully connected layers."""

from msgspec import field
from torch import nn

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.train.families.checks import ACTIVATIONS, one_of, one_tensor, share
from argosy.train.inputs import ModelInput


class MlpOptions(Config, frozen=True):
    """Options of `family = "mlp"`."""

    hidden: list[int] = field(default_factory=lambda: [128, 64])
    """Width of each hidden layer."""
    activation: str = "relu"
    """Between the layers, without which they would be one affine map: relu, gelu, silu or tanh."""
    batch_norm: bool = False
    """Batch norm before each activation."""
    dropout: float = 0.0
    """After each activation, from 0 to below 1."""


def build(options: MlpOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build fully connected layers with an activation after each but the last. Takes samples of any shape."""
    one_of("activation", options.activation, tuple(ACTIVATIONS))
    if not options.hidden or min(options.hidden) < 1:
        raise InvalidInput(f"[model] hidden = {options.hidden} must be one or more widths of at least 1")
    share("dropout", options.dropout)
    one_tensor("mlp", given)
    layers: list[nn.Module] = [nn.Flatten()]
    size = given.size
    for width in options.hidden:
        layers.append(nn.Linear(size, width))
        if options.batch_norm:
            layers.append(nn.BatchNorm1d(width))
        layers.append(ACTIVATIONS[options.activation]())
        if options.dropout:
            layers.append(nn.Dropout(options.dropout))
        size = width
    layers.append(nn.Linear(size, outputs))
    return nn.Sequential(*layers)
