"""Room for data that doesn't fit into memory: files without a name, which go when nobody uses them any more."""

import os
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.errors import Internal
from argosy.core.files import explained
from argosy.data.steps import Array
from argosy.data.storage import plain_bytes

HELD_BYTES = 256 << 20
"""What is smaller lies in memory, as it did when it was read."""
_MISSING = -1


class Scratch:
    """Where readers and preparation put what is large. Without a folder everything is held in memory."""

    def __init__(self, folder: Path | None = None, held_bytes: int = HELD_BYTES) -> None:
        self.room, self.held_bytes = folder, held_bytes

    def is_large(self, size_bytes: int) -> bool:
        """Return whether something of so many bytes belongs into a file."""
        return self.room is not None and size_bytes > self.held_bytes

    def empty(self, shape: Sequence[int], dtype: npt.DTypeLike) -> Array:
        """Return an array to be filled: in a file, if it is large. Raises Unavailable (`disk_full`) at once."""
        dtype = np.dtype(dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        if not self.is_large(size):
            return np.empty(shape, dtype)
        with self.file() as file:
            try:
                # Else a full disk would kill the process at the page that finds no room.
                os.posix_fallocate(file.fileno(), 0, size)
            except OSError as error:
                raise explained(error, self.folder) from error
            return np.memmap(file, dtype=dtype, mode="r+", shape=tuple(shape)).view(np.ndarray)

    def column(self) -> "SpooledColumn":
        """Return an empty column whose values lie in a file."""
        return SpooledColumn(self._spool())

    def columns(self, names: Sequence[str]) -> dict[str, "SpooledColumn"]:
        """Return empty columns that share one file."""
        spool = self._spool()
        return {name: SpooledColumn(spool) for name in names}

    def file(self) -> IO[bytes]:
        """Return an open file without a name; its room is free again when nothing uses it."""
        try:
            return tempfile.TemporaryFile(dir=self.folder, prefix="argosy-scratch-")
        except OSError as error:
            raise explained(error, self.folder) from error

    @property
    def folder(self) -> Path:
        """The folder that the files lie in."""
        if self.room is None:
            raise Internal("there is no folder for what doesn't fit into memory")
        return self.room

    def _spool(self) -> "_Spool":
        with self.file() as file:
            return _Spool(os.dup(file.fileno()), self.folder)


IN_MEMORY = Scratch()
"""No files: everything is held in memory."""


class _Piece(msgspec.Struct, frozen=True):
    """Some rows of a column: where they lie. Of texts first their lengths (int64), then their bytes."""

    offset: int
    shape: tuple[int, ...]
    dtype: Any


class _Spool:
    """A file that only grows."""

    def __init__(self, descriptor: int, folder: Path) -> None:
        self._descriptor, self._folder, self._end = descriptor, folder, 0
        weakref.finalize(self, os.close, descriptor)

    def append(self, data: bytes | memoryview) -> int:
        """Write behind all else and return where."""
        start, view = self._end, memoryview(data).cast("B")
        try:
            while view:
                written = os.pwrite(self._descriptor, view, self._end)
                view, self._end = view[written:], self._end + written
        except OSError as error:
            raise explained(error, self._folder) from error
        return start

    def read(self, offset: int, count: int, dtype: Any) -> Array:
        """Return numbers that begin at `offset`."""
        found = np.empty(count, dtype)
        view = memoryview(cast("Any", found.view(np.uint8)))
        while view:
            got = os.preadv(self._descriptor, [view], offset)
            if not got:
                raise Internal(f"the scratch file ends at byte {offset}")
            view, offset = view[got:], offset + got
        return found


class SpooledColumn:
    """A column in a file, to which rows are added in pieces; as much of it is in memory as is asked for.

    It has an array's `shape`, `dtype`, `ndim` and length, gives arrays for rows (a slice, a mask, or numbers in any
    order), and becomes an array by `numpy.asarray`. Numbers of different kinds become the kind that holds all, as
    whole numbers and fractions do in an array.
    """

    def __init__(self, spool: _Spool) -> None:
        self._spool = spool
        self._pieces: list[_Piece] = []
        self._starts: list[int] = []
        self._rows = 0

    def append(self, values: Array) -> None:
        """Add rows."""
        if not len(values):
            return
        offset = self._spool.append(_bytes_of(values))
        self._pieces.append(_Piece(offset, values.shape, values.dtype))
        self._starts.append(self._rows)
        self._rows += len(values)

    @property
    def shape(self) -> tuple[int, ...]:
        """As of an array."""
        return (self._rows, *(self._pieces[0].shape[1:] if self._pieces else ()))

    @property
    def ndim(self) -> int:
        """As of an array."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """That of an array of all rows."""
        kinds = {piece.dtype for piece in self._pieces}
        return np.result_type(*kinds) if kinds else np.dtype(np.float64)

    def __len__(self) -> int:
        return self._rows

    def __array__(self, dtype: npt.DTypeLike | None = None, *, copy: bool | None = None) -> Array:
        del copy
        found = self[:]
        return found if dtype is None else found.astype(dtype, copy=False)

    def __getitem__(self, rows: Any) -> Array:
        """Return an array of these rows."""
        wanted = _numbers_of(rows, self._rows)
        order = None
        if len(wanted) > 1 and (np.diff(wanted) < 0).any():
            order = np.argsort(wanted, kind="stable")
            wanted = wanted[order]
        found = np.empty((len(wanted), *self.shape[1:]), self.dtype)
        at = 0
        while at < len(wanted):
            number = bisect_right(self._starts, int(wanted[at])) - 1
            start, piece = self._starts[number], self._pieces[number]
            end = at + int(np.searchsorted(wanted[at:], start + piece.shape[0]))
            first = int(wanted[at]) - start
            found[at:end] = self._read(piece, first, int(wanted[end - 1]) - start + 1)[wanted[at:end] - start - first]
            at = end
        if order is None:
            return found
        sorted_back = np.empty_like(found)
        sorted_back[order] = found
        return sorted_back

    def tolist(self) -> list[Any]:
        """Return all values, as an array does."""
        found: list[Any] = self[:].tolist()
        return found

    def _read(self, piece: _Piece, first: int, end: int) -> Array:
        """Return the rows of a piece from `first` up to `end`."""
        each = int(np.prod(piece.shape[1:], dtype=np.int64))
        if piece.dtype.kind != "O":
            offset = piece.offset + first * each * piece.dtype.itemsize
            return self._spool.read(offset, (end - first) * each, piece.dtype).reshape(-1, *piece.shape[1:])
        count = piece.shape[0] * each
        lengths = self._spool.read(piece.offset, count, np.int64)
        data = self._spool.read(piece.offset + 8 * count, int(np.maximum(lengths, 0).sum()), np.uint8).tobytes()
        texts = np.empty(count, dtype=object)
        at = 0
        for place, length in enumerate(lengths.tolist()):
            if length != _MISSING:
                texts[place] = data[at : at + length].decode("utf-8", "surrogatepass")
                at += length
        return texts.reshape(piece.shape)[first:end]


def _numbers_of(rows: Any, count: int) -> npt.NDArray[np.int64]:
    if isinstance(rows, slice):
        return np.arange(*rows.indices(count), dtype=np.int64)
    numbers = np.asarray(rows)
    if numbers.dtype == bool:
        return np.flatnonzero(numbers)
    if len(numbers) and not (numbers.min() >= 0 and numbers.max() < count):
        raise IndexError(f"rows {numbers.min()} to {numbers.max()} of a column of {count}")
    return numbers.astype(np.int64, copy=False)


def _bytes_of(values: Array) -> bytes | memoryview:
    if values.dtype.kind != "O":
        return plain_bytes(values)
    texts = [None if text is None else text.encode("utf-8", "surrogatepass") for text in values.ravel().tolist()]
    lengths = np.array([_MISSING if text is None else len(text) for text in texts], dtype=np.int64)
    return lengths.tobytes() + b"".join(text for text in texts if text is not None)
