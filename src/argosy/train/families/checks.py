"""What every family refuses in the same words."""

from collections.abc import Sequence

from torch import nn

from argosy.core.errors import InvalidInput
from argosy.train.inputs import ModelInput

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh}


def one_of(field: str, value: str, known: Sequence[str]) -> str:
    """Return `value`; raise InvalidInput unless it is one of `known`."""
    if value not in known:
        raise InvalidInput(f"[model] {field} = {value!r} is not known; known are: {', '.join(sorted(known))}")
    return value


def at_least(least: int, **fields: int) -> None:
    """Raise InvalidInput for a field below `least`."""
    for field, value in fields.items():
        if value < least:
            raise InvalidInput(f"[model] {field} = {value} must be {least} or more")


def share(field: str, value: float) -> None:
    """Raise InvalidInput unless `value` is from 0 to below 1."""
    if not 0 <= value < 1:
        raise InvalidInput(f"[model] {field} = {value:g} must be from 0 to below 1")


def heads_divide(width: int, heads: int) -> None:
    """Raise InvalidInput unless `width` can be shared out among `heads`."""
    at_least(1, width=width, heads=heads)
    if width % heads:
        fitting = [str(n) for n in range(1, min(width, 64) + 1) if width % n == 0]
        raise InvalidInput(
            f"[model] heads = {heads} does not divide width = {width}: every head takes an equal part of it",
            hint=f"for this width heads can be {', '.join(fitting[:12])}",
        )


def one_tensor(family: str, given: ModelInput, *, takes_texts: bool = False) -> None:
    """Raise InvalidInput unless a sample is one tensor of numbers, or a text where those are taken."""
    if given.more:
        raise InvalidInput(
            f"family '{family}' takes one array per sample, but the data has {1 + len(given.more)}: {given}",
            hint="choose one with [data] columns",
        )
    if given.is_text and not takes_texts:
        raise InvalidInput(
            f"family '{family}' takes numbers, but a sample is a text: {given}",
            hint='use family = "transformer" or "lstm"',
        )
