"""What a step gives to all ranks."""

from typing import NamedTuple


class Totals(NamedTuple):
    """Sums over the samples of all ranks."""

    loss: float
    samples: float


class NotFinite(Exception):
    """The loss or a gradient of this step is not a finite number; nothing good can come after it."""
