"""What every step is made of: plain data, and the function that is made of it once and then run for each batch."""

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]
Kernel = Callable[[Arrays], Arrays]


# cache_hash: kernels are looked up by their steps.
class PlainStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="step", cache_hash=True):
    """The base of every step: frozen plain data, told apart in JSON by the field `step`."""
