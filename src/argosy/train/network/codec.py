"""What a codec promises: fewer bytes for flat float32 numbers, at a known loss."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from argosy.core.plugins import Plugins

Floats = NDArray[np.float32]
"""A flat, contiguous array of float32."""
Bytes = NDArray[np.uint8]
"""A flat, contiguous array of bytes."""

MAX_COUNT = 1 << 16
"""Most numbers encoded at once: 256 KB stay in a second-level cache over all passes, and 16 bits hold an index."""


class Codec(Protocol):
    """Encodes up to `MAX_COUNT` numbers at a time.

    Every codec passes tests/conformance/test_codecs.py. Encoding may draw random numbers; decoding gives the same bits
    wherever it is done.
    """

    @property
    def name(self) -> str:
        """Kind and settings: ranks whose codecs have other names are told that they differ."""
        ...

    def size_bytes(self, count: int) -> int:
        """Return how many bytes `count` numbers take, whatever they are."""
        ...

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write `values` into `out`, which has `size_bytes(values.size)` bytes.

        Raises InvalidInput with the code `not_finite` if one of them is infinite or not a number.
        """
        ...

    def decode(self, data: Bytes, out: Floats) -> None:
        """Replace `out` by the numbers that `data` stands for."""
        ...


CODECS: Plugins[Any] = Plugins(
    "argosy.codecs",
    {
        "fp16": "argosy.train.network.codecs:Half",
        "int8": "argosy.train.network.codecs:BlockInt8",
        "top-k": "argosy.train.network.codecs:TopK",
    },
    extras={"fp16": "train", "int8": "train", "top-k": "train"},
)
"""Classes of codecs; each is called with its settings, all of which have defaults."""
