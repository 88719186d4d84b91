"""Arrays as files that are mapped, not read: several processes share them, and they may be larger than memory.

Each array is an `.npy` file; nothing is pickled. Texts are two: all bytes (UTF-8), and where each text ends.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.digest import sha256_file
from argosy.core.errors import IntegrityError, NotFound
from argosy.core.files import write_pieces
from argosy.data.steps import Array

_PIECE_BYTES = 16 << 20
_HELD_BYTES = 64 << 20
"""Texts of fewer bytes become Python's own at once."""
_TEXT_BYTES = 64
"""A guess at what a text takes, to choose how many are held at once."""


class StoredArray(msgspec.Struct, frozen=True, kw_only=True):
    """An array in files below a folder: the file names and the digests of what they hold."""

    file: str
    digest: str
    ends: str = ""
    """Of texts: the file that says where each ends."""
    ends_digest: str = ""


def store(array: Array, folder: Path, name: str) -> StoredArray:
    """Write an array below `folder`, piece by piece, durably; `name` is that of the file, without its ending."""
    file = f"{name}.npy"
    if array.dtype.kind != "O":
        return StoredArray(file=file, digest=write_pieces(folder / file, _of_numbers(array)))
    ends, size = _ends_of(array)
    digest = write_pieces(folder / file, _of_texts(array, size))
    ends_file = f"{name}.ends.npy"
    ends_digest = write_pieces(folder / ends_file, _of_numbers(ends))
    return StoredArray(file=file, digest=digest, ends=ends_file, ends_digest=ends_digest)


def mapped(folder: Path, stored: StoredArray, *, is_checked: bool = True) -> Array:
    """Return a stored array, its files mapped and not to be written to. Raises NotFound and IntegrityError.

    With `is_checked` every byte is read once and must be what was written. Many texts come as `MappedTexts`.
    """
    found = _mapped(folder / stored.file, stored.digest if is_checked else "")
    if not stored.ends:
        return found
    texts = MappedTexts(found, _mapped(folder / stored.ends, stored.ends_digest if is_checked else ""))
    return texts[:] if len(found) <= _HELD_BYTES else cast("Array", texts)


class MappedTexts:
    """Texts in mapped files: like an array of objects, of which those asked for are made."""

    dtype = np.dtype(object)

    def __init__(self, data: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self._data, self._ends = data, ends
        self.shape, self.ndim = ends.shape, ends.ndim
        self._each = int(np.prod(ends.shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return len(self._ends)

    def __array__(self, dtype: npt.DTypeLike | None = None, *, copy: bool | None = None) -> Array:
        del dtype, copy
        return self[:]

    def __getitem__(self, rows: Any) -> Array:
        """Return an array of objects: the texts of these rows (a slice, a mask, or numbers)."""
        ends = self._ends[rows]
        numbers = np.arange(len(self), dtype=np.int64)[rows]
        first = numbers[:, None] * self._each + np.arange(self._each) if ends.ndim > 1 else numbers
        flat = self._ends.reshape(-1)
        starts = np.where(first > 0, flat[np.maximum(first - 1, 0)], 0)
        texts = np.empty(ends.size, dtype=object)
        for place, (start, end) in enumerate(zip(starts.ravel().tolist(), ends.ravel().tolist(), strict=True)):
            texts[place] = self._data[start:end].tobytes().decode("utf-8", "surrogatepass")
        return texts.reshape(ends.shape)

    def tolist(self) -> list[Any]:
        """Return all texts, as an array does."""
        found: list[Any] = self[:].tolist()
        return found


def pieces(array: Array) -> Iterator[Array]:
    """Yield an array's rows in order, as many at once as a few megabytes hold."""
    rows = max(1, _PIECE_BYTES // max(1, row_bytes(array)))
    for start in range(0, len(array), rows):
        yield array[start : start + rows]


def row_bytes(array: Array) -> int:
    """Return what a row takes in memory; of texts, about."""
    each = _TEXT_BYTES if array.dtype.kind == "O" else array.dtype.itemsize
    return each * int(np.prod(array.shape[1:], dtype=np.int64))


def plain_bytes(array: Array) -> memoryview:
    """Return the bytes of numbers, without a copy where they lie side by side."""
    return memoryview(cast("Any", np.ascontiguousarray(array).reshape(-1).view(np.uint8)))


def verified(path: Path, digest: str) -> bytes:
    """Return a file of a data set, if it is what was written. Raises NotFound, IntegrityError."""
    _check(path, digest)
    return path.read_bytes()


def _mapped(path: Path, digest: str) -> Array:
    if digest:
        _check(path, digest)
    try:
        # A plain view: what is taken of it are arrays, not maps.
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False).view(np.ndarray))
    except FileNotFoundError as error:
        raise _lacking(path) from error
    except ValueError as error:
        raise IntegrityError(f"'{path}' is not what was written: {error}") from error


def _check(path: Path, digest: str) -> None:
    try:
        found = sha256_file(path)
    except FileNotFoundError as error:
        raise _lacking(path) from error
    if found != digest:
        raise IntegrityError(f"'{path}' is not what was written", hint="delete the folder and run again")


def _lacking(path: Path) -> NotFound:
    return NotFound(f"the data set lacks its part '{path.parent.name}/{path.name}'", path=str(path))


def _of_numbers(array: Array) -> Iterator[bytes | memoryview]:
    yield _header(array.dtype, array.shape)
    for piece in pieces(array):
        yield plain_bytes(piece)


def _of_texts(array: Array, size: int) -> Iterator[bytes]:
    yield _header(np.dtype(np.uint8), (size,))
    for piece in pieces(array):
        yield b"".join(_encoded(text) for text in piece.ravel().tolist())


def _ends_of(array: Array) -> tuple[npt.NDArray[np.int64], int]:
    ends = np.empty(array.shape, dtype=np.int64)
    flat, at, size = ends.reshape(-1), 0, 0
    for piece in pieces(array):
        lengths = [len(_encoded(text)) for text in piece.ravel().tolist()]
        flat[at : at + len(lengths)] = size + np.cumsum(lengths, dtype=np.int64)
        at, size = at + len(lengths), size + sum(lengths)
    return ends, size


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    about = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, about)
    return buffer.getvalue()
