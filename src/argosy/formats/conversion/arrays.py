"""Arrays in files, read as data: nothing is unpickled, and no header is believed that the file can't keep."""

import math
import zipfile
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.conversion.jobs import shared

Arrays = dict[str, np.ndarray]
_MAX_BYTES = 8 * 2**30
_MAX_RATIO = 200
_MAX_SMALL = 64 * 2**20


def read_answers(path: Path) -> Arrays:
    """Return what a child process wrote by `shared.save`; InvalidInput for anything else."""
    _check(path)
    try:
        return shared.load(path)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"what the converter left behind can't be read: {error}", code="conversion_ended") from error


def read_samples(path: Path) -> Arrays:
    """Return a user's samples, one array per input, the batch as first dimension; raise NotFound or InvalidInput."""
    if not path.is_file():
        raise NotFound(f"there is no file of samples '{path}'", hint="make one with numpy.savez('samples.npz', x=rows)")
    _check(path)
    try:
        with np.load(path, allow_pickle=False) as archive:
            found = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InvalidInput(f"'{path}' holds no plain arrays: {error}", code="samples_wrong") from error
    rows = {name: len(array) if array.ndim else 0 for name, array in found.items()}
    if not found or min(rows.values()) == 0 or len(set(rows.values())) > 1:
        raise InvalidInput(
            f"'{path}' must hold arrays with the same number of rows, at least one; it has {rows or 'none'}",
            hint="one array per input, in their order: numpy.savez('samples.npz', x=rows)",
            code="samples_wrong",
        )
    return found


def _check(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > _MAX_RATIO * entry.compress_size + _MAX_SMALL or entry.file_size > _MAX_BYTES:
                    raise _wrong(path, f"'{entry.filename[:100]}' unpacks to {entry.file_size} bytes")
                with archive.open(entry) as stream:
                    version = npy.read_magic(stream)
                    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
                    shape, _, dtype = read(stream)
                if math.prod(shape) * dtype.itemsize > entry.file_size:
                    raise _wrong(path, f"'{entry.filename[:100]}' promises the shape {list(shape)}")
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as error:
        raise _wrong(path, str(error)[:300]) from error


def _wrong(path: Path, why: str) -> InvalidInput:
    return InvalidInput(f"'{path.name}' is no file of plain arrays (.npz): {why}", code="samples_wrong")
