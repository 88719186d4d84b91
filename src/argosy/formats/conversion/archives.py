"""A look at model files of many kinds before any library opens them: sizes that can't be, names that lead elsewhere.

Everything here reads a few kilobytes and allocates no more than the file's own index is long.
"""

import os
import stat
import struct
import zipfile
from pathlib import Path
from typing import BinaryIO

import msgspec

from argosy.core.errors import InvalidInput, NotFound

# The largest header that safetensors' own reader takes is 100 MB; a model of 100,000 tensors needs 12.
_MAX_SAFETENSORS_HEADER = 25 * 2**20
_MAX_ENTRIES = 100_000
# Deflate reaches 1,000 to 1 on zeros; weights reach 2 to 1, and JSON 20 to 1.
_MAX_RATIO = 200
_MAX_SMALL = 64 * 2**20
_MAX_FOLDER_FILES = 20_000
_ITEM_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "F64": 64, "I64": 64, "U64": 64,
    "C64": 64,
}  # fmt: skip


def check_zip(path: Path) -> list[str]:
    """Return the names in a zip archive; InvalidInput for one that is cut off, a bomb, or names files elsewhere."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if len(entries) > _MAX_ENTRIES:
                raise _refused(path, f"it holds {len(entries)} files; a model has at most {_MAX_ENTRIES}")
            size = path.stat().st_size
            for entry in entries:
                _check_entry(path, entry, size)
            if sum(entry.file_size for entry in entries) > _MAX_RATIO * size + _MAX_SMALL:
                raise _refused(path, "it unpacks to far more than a model of its size", code="archive_bomb")
            return [entry.filename for entry in entries]
    except (zipfile.BadZipFile, struct.error, EOFError, UnicodeDecodeError, NotImplementedError) as error:
        raise InvalidInput(
            f"'{path.name}' is a damaged archive: {error}",
            hint="compare its size with the original's; it may have been cut off while it was copied",
            code="model_damaged",
        ) from error


def _check_entry(path: Path, entry: zipfile.ZipInfo, size: int) -> None:
    name = entry.filename
    parts = name.replace("\\", "/").split("/")
    if name.startswith(("/", "\\")) or ".." in parts or "\x00" in name or stat.S_ISLNK(entry.external_attr >> 16):
        raise _refused(path, f"a file in it, {name[:100]!r}, leads out of it", code="leads_outside")
    if entry.flag_bits & 1:
        raise _refused(path, f"a file in it, {name[:100]!r}, is encrypted")
    if entry.compress_size > size or entry.header_offset > size:
        raise _refused(path, f"a file in it, {name[:100]!r}, promises more bytes than the archive has")
    if entry.file_size > _MAX_RATIO * entry.compress_size + _MAX_SMALL:
        raise _refused(
            path, f"a file in it, {name[:100]!r}, unpacks from {entry.compress_size} to {entry.file_size} bytes",
            code="archive_bomb",
        )  # fmt: skip


def check_safetensors(path: Path) -> None:
    """Raise InvalidInput unless the header of a safetensors file fits the file, and its tensors their bytes."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little") if len(start) == 8 else 0
        if not 2 <= length <= size - 8:
            raise _refused(path, f"its header should have {length} bytes, and the file has {size} in all")
        if length > _MAX_SAFETENSORS_HEADER:
            raise _refused(path, f"its header has {length} bytes; at most {_MAX_SAFETENSORS_HEADER} are read")
        text = stream.read(length)
    try:
        raw = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        header = {name: msgspec.json.decode(one, type=_Tensor) for name, one in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused(path, f"its header is not what it should be: {error}") from error
    data = size - 8 - length
    for name, tensor in header.items():
        _check_tensor(path, name, tensor, data)


class _Tensor(msgspec.Struct):
    dtype: str
    shape: list[int]
    data_offsets: tuple[int, int]


def _check_tensor(path: Path, name: str, tensor: _Tensor, data: int) -> None:
    begin, end = tensor.data_offsets
    if not 0 <= begin <= end <= data:
        raise _refused(path, f"tensor '{name[:100]}' lies at {begin} to {end} of {data} bytes")
    elements = 1
    for extent in tensor.shape:
        elements = min(elements * extent, 2**63) if extent >= 0 else -1
    bits = _ITEM_BITS.get(tensor.dtype)
    if elements < 0 or (bits is not None and elements * bits > 8 * (end - begin) + 7):
        raise _refused(path, f"tensor '{name[:100]}' promises {elements} elements in {end - begin} bytes")


# Size in bytes of the kinds of values in a GGUF header (the GGUF specification of ggml, version 3).
_GGUF_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_TEXT, _GGUF_ARRAY = 8, 9


def check_gguf(path: Path) -> None:
    """Raise InvalidInput for a GGUF header that promises more entries, text or tensors than the file could hold."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        magic, version, tensors, keys = struct.unpack("<4sIQQ", _exactly(path, stream, 24))
        if magic != b"GGUF" or not 1 <= version <= 100:
            raise _refused(path, "it is no GGUF file")
        # A key takes at least 13 bytes and a tensor's description 25.
        if keys > size // 13 or tensors > size // 25 or keys + tensors > 1_000_000:
            raise _refused(path, f"its header promises {keys} values and {tensors} tensors in {size} bytes")
        for _ in range(keys):
            _skip(path, stream, _number(path, stream), size)
            _skip_value(path, stream, int.from_bytes(_exactly(path, stream, 4), "little"), size)
        for _ in range(tensors):
            _skip(path, stream, _number(path, stream), size)
            dimensions = int.from_bytes(_exactly(path, stream, 4), "little")
            if dimensions > 8:
                raise _refused(path, f"a tensor in it has {dimensions} dimensions")
            elements = 1
            for _ in range(dimensions):
                elements = min(elements * _number(path, stream), 2**63)
            # The narrowest quantization takes 1.5 bits.
            if elements > 6 * size:
                raise _refused(path, f"a tensor in it promises {elements} elements in a file of {size} bytes")
            _skip(path, stream, 12, size)


def _skip_value(path: Path, stream: BinaryIO, kind: int, size: int) -> None:
    if kind == _GGUF_TEXT:
        _skip(path, stream, _number(path, stream), size)
    elif kind == _GGUF_ARRAY:
        inner = int.from_bytes(_exactly(path, stream, 4), "little")
        count = _number(path, stream)
        if inner == _GGUF_TEXT and count <= size // 8:
            for _ in range(count):
                _skip(path, stream, _number(path, stream), size)
        elif inner in _GGUF_SIZES:
            _skip(path, stream, count * _GGUF_SIZES[inner], size)
        else:
            raise _refused(path, f"a list in its header promises {count} entries of kind {inner}")
    elif kind in _GGUF_SIZES:
        _skip(path, stream, _GGUF_SIZES[kind], size)
    else:
        raise _refused(path, f"a value in its header is of the unknown kind {kind}")


def _number(path: Path, stream: BinaryIO) -> int:
    return int.from_bytes(_exactly(path, stream, 8), "little")


def _exactly(path: Path, stream: BinaryIO, count: int) -> bytes:
    found = stream.read(count)
    if len(found) != count:
        raise _refused(path, "it ends in the middle of its header")
    return found


def _skip(path: Path, stream: BinaryIO, count: int, size: int) -> None:
    if count > size - stream.tell():
        raise _refused(path, f"a value in its header promises {count} bytes, and the file has {size} in all")
    stream.seek(count, os.SEEK_CUR)


def check_folder(path: Path) -> None:
    """Raise InvalidInput for a folder with links that lead out of it, or with more files than any model has."""
    root = path.resolve()
    count = 0
    for folder, folders, names in os.walk(root):
        for name in (*folders, *names):
            count += 1
            place = Path(folder, name)
            if count > _MAX_FOLDER_FILES:
                raise _refused(path, f"it holds more than {_MAX_FOLDER_FILES} files")
            # Caches of downloads keep the files themselves behind links; those of a model's own stay inside.
            if place.is_symlink() and not place.resolve().is_relative_to(_around(root)):
                raise _refused(
                    path, f"'{place.relative_to(root)}' is a link that leads out of it", code="leads_outside"
                )


def _around(root: Path) -> Path:
    # A hub's cache: models--x/snapshots/<commit>/model.safetensors is a link to models--x/blobs/<digest>.
    return root.parents[1] if root.parent.name == "snapshots" else root


def _refused(path: Path, why: str, *, code: str = "model_damaged") -> InvalidInput:
    return InvalidInput(
        f"'{path.name}' is refused: {why}", hint="get the file again from where it was made", code=code, path=str(path)
    )


def read_start(path: Path, count: int = 64) -> bytes:
    """Return the first bytes of a file; NotFound or InvalidInput where there are none."""
    try:
        with path.open("rb") as stream:
            found = stream.read(count)
    except FileNotFoundError as error:
        raise NotFound(f"there is no file or folder '{path}'", hint="name a model file or folder") from error
    except OSError as error:
        raise InvalidInput(f"'{path}' can't be read: {error.strerror}", path=str(path)) from error
    if not found:
        raise InvalidInput(f"'{path}' is empty", hint="get the file again from where it was made", code="model_damaged")
    return found
