"""NPZ files: NumPy arrays by name, never unpickled."""

import shutil
import zipfile
from pathlib import Path

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.files import explained
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Column, Table


def read_npz(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read every array of an NPZ file; all must have as many rows. Arrays of Python objects are refused."""
    del image_size
    columns: dict[str, Column] = {}
    unusable: dict[str, str] = {}
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, np.lib.npyio.NpzFile):
            raise InvalidInput(f"'{path.name}' holds a single array", hint="save it with numpy.savez")
        with loaded as archive:
            for name in archive.files:
                found = _array(archive, name, path, scratch)
                if found.ndim == 0:
                    unusable[name] = "it is a single value, not one per row"
                elif found.dtype.kind in "biuf":
                    columns[name] = found
                elif found.dtype.kind in "US" and found.ndim == 1:
                    columns[name] = np.array([_text(value) for value in found.tolist()], dtype=object)
                elif found.dtype.kind == "M" and found.ndim == 1:
                    columns[name] = found.astype("datetime64[us]")
                else:
                    unusable[name] = f"it holds {found.dtype} of shape {list(found.shape)}"
    except (zipfile.BadZipFile, ValueError, OSError, EOFError, NotImplementedError) as error:
        raise InvalidInput(f"'{path.name}' can't be read as NPZ: {error}", path=str(path)) from error
    if len({len(column) for column in columns.values()}) > 1:
        lengths = ", ".join(f"'{name}' {len(column)}" for name, column in columns.items())
        raise InvalidInput(
            f"the arrays of '{path.name}' have different numbers of rows: {lengths}",
            hint="every array needs one row per sample; drop the others before saving",
            path=str(path),
        )
    if not columns:
        found_names = ", ".join(f"'{name}': {why}" for name, why in unusable.items())
        raise InvalidInput(f"'{path.name}' holds no array that can be used{': ' if found_names else ''}{found_names}")
    return Table(columns=columns, kind="arrays", where=path.name, unusable=unusable)


def _text(value: str | bytes) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _array(archive: "np.lib.npyio.NpzFile", name: str, path: Path, scratch: Scratch) -> Column:
    packed = archive.zip
    assert packed is not None, "it is open"
    try:
        member = packed.getinfo(f"{name}.npy")
    except KeyError:
        return np.asarray(archive[name])  # a member without the ending that NumPy gives
    try:
        if scratch.is_large(member.file_size):
            return _mapped(packed, member, scratch)
        return np.asarray(archive[name])
    except ValueError as error:
        if "pickle" not in str(error).lower():
            raise
        raise InvalidInput(
            f"the array '{name}' of '{path.name}' holds pickled Python objects, which are never loaded",
            hint="save it as numbers or as text: array.astype(str)",
            path=str(path),
        ) from error


def _mapped(archive: zipfile.ZipFile, member: zipfile.ZipInfo, scratch: Scratch) -> Column:
    """Unpack an array into a file, and map that."""
    with scratch.file() as file:
        try:
            with archive.open(member) as packed:
                shutil.copyfileobj(packed, file, 1 << 20)
            file.flush()
        except OSError as error:
            raise explained(error, scratch.folder) from error
        file.seek(0)
        is_first = np.lib.format.read_magic(file) == (1, 0)
        read_header = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        shape, is_fortran, dtype = read_header(file)
        if dtype.hasobject:
            raise ValueError("pickled objects")
        found = np.memmap(
            file, dtype=dtype, mode="r", offset=file.tell(), shape=shape, order="F" if is_fortran else "C"
        )
        return found.view(np.ndarray)
