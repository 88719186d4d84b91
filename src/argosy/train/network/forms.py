"""The form in which numbers travel: as they are, or encoded, with what the encoding lost kept for the next time."""

import zlib
from typing import Protocol

import numpy as np

from argosy.train.network.codec import MAX_COUNT, Bytes, Codec, Floats
from argosy.train.transport import Numbers

CHUNK_BYTES = 1 << 18
"""What is sent and added at once: fits in a second-level cache beside what it is added to."""


class Form(Protocol):
    """Turns chunks of one exchange's numbers into bytes and back."""

    count: int
    """How many numbers a chunk has."""
    code: int
    """0, or a number that stands for the codec."""

    def size_bytes(self, count: int) -> int:
        """Return how many bytes `count` numbers take."""
        ...

    def pack(self, start: int, stop: int, *, keep: bool) -> memoryview:
        """Return the bytes of the numbers from `start` to `stop`; with `keep` these become what the bytes stand for."""
        ...

    def unpack(self, data: Bytes, scratch: int, count: int) -> Numbers:
        """Return the `count` numbers that `data` stands for, in memory kept for `scratch` if they need any."""
        ...

    def unpack_into(self, data: Bytes, out: Numbers) -> None:
        """Replace `out` by the numbers that `data` stands for."""
        ...


class Plain:
    """Numbers as they are, sent from where they are."""

    code = 0

    def __init__(self, values: Numbers) -> None:
        self.count = CHUNK_BYTES // values.itemsize
        self._values = values

    def size_bytes(self, count: int) -> int:
        """Return their own size."""
        return count * self._values.itemsize

    def pack(self, start: int, stop: int, *, keep: bool) -> memoryview:
        """Return the very memory of the numbers."""
        del keep
        return self._values[start:stop].data.cast("B")

    def unpack(self, data: Bytes, scratch: int, count: int) -> Numbers:
        """Return the bytes as numbers, where they are."""
        del scratch, count
        return data.view(self._values.dtype)

    def unpack_into(self, data: Bytes, out: Numbers) -> None:
        """Copy."""
        out[...] = data.view(out.dtype)


class Coded:
    """Numbers in a codec's form; `error`, as long as the numbers, is added before and gets what is lost."""

    def __init__(self, values: Floats, codec: Codec, error: Floats | None) -> None:
        self.count = MAX_COUNT
        self.code = zlib.crc32(codec.name.encode()) or 1
        self._values = values
        self._codec = codec
        self._error = error
        self._encoded: dict[tuple[int, int], Bytes] = {}
        self._scratch: dict[int, Floats] = {}

    def size_bytes(self, count: int) -> int:
        """Return the size of one encoded chunk."""
        return self._codec.size_bytes(count)

    def pack(self, start: int, stop: int, *, keep: bool) -> memoryview:
        """Encode numbers plus error; the error is what the bytes miss."""
        values, codec = self._values[start:stop], self._codec
        data = np.empty(codec.size_bytes(values.size), np.uint8)
        if self._error is None:
            codec.encode(values, data)
            if keep:
                codec.decode(data, values)
            return data.data
        error = self._error[start:stop]
        np.add(error, values, out=error)
        codec.encode(error, data)
        found = values if keep else self._memory(-1, values.size)
        codec.decode(data, found)
        np.subtract(error, found, out=error)
        return data.data

    def unpack(self, data: Bytes, scratch: int, count: int) -> Floats:
        """Decode into memory of its own."""
        found = self._memory(scratch, count)
        self._codec.decode(data, found)
        return found

    def unpack_into(self, data: Bytes, out: Numbers) -> None:
        """Decode."""
        self._codec.decode(data, out)

    def _memory(self, name: int, count: int) -> Floats:
        if name not in self._scratch:
            self._scratch[name] = np.empty(self.count, np.float32)
        return self._scratch[name][:count]
