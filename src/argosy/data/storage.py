"""One part of a data set as an NPZ file, in which nothing is pickled: texts are bytes and where each ends."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, NotFound
from argosy.data.steps import Array


def pack(arrays: Mapping[str, Array]) -> memoryview:
    """Return the arrays as an NPZ file; texts as one UTF-8 array and where each ends, so that nothing is pickled."""
    flat: dict[str, Array] = {}
    for name, array in arrays.items():
        if array.dtype.kind == "O":
            texts = [text.encode() for text in array.ravel().tolist()]
            flat[f"text.{name}"] = np.frombuffer(b"".join(texts), dtype=np.uint8)
            flat[f"ends.{name}"] = np.cumsum([len(text) for text in texts], dtype=np.int64).reshape(array.shape)
        else:
            flat[name] = array
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **flat)
    return buffer.getbuffer()


def unpack(path: Path, digest: str) -> dict[str, Array]:
    """Return what was packed into the file. Raises NotFound, or IntegrityError when it isn't what was written."""
    arrays: dict[str, Array] = {}
    with np.load(io.BytesIO(verified(path, digest)), allow_pickle=False) as archive:
        for name in archive.files:
            kind, _, rest = name.partition(".")
            if kind == "ends":
                arrays[rest] = _texts(archive[f"text.{rest}"].tobytes(), archive[name])
            elif kind != "text":
                arrays[name] = archive[name]
    return arrays


def verified(path: Path, digest: str) -> bytes:
    """Return a file of a data set, if it is what was written. Raises NotFound, IntegrityError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise NotFound(f"the data set lacks its part '{path.name}'", path=str(path)) from error
    if sha256(data) != digest:
        raise IntegrityError(f"'{path}' is not what was written", hint="delete the folder and run again")
    return data


def _texts(data: bytes, ends: npt.NDArray[np.int64]) -> Array:
    texts = np.empty(ends.size, dtype=object)
    start = 0
    for place, end in enumerate(ends.ravel().tolist()):
        texts[place] = data[start:end].decode()
        start = end
    return texts.reshape(ends.shape)
