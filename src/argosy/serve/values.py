"""JSON arrays to raw tensors and back, strictly and without NumPy: the gateway stays small and starts at once.

msgspec checks types and ranges while it decodes, in C, and names the place of what is wrong.
"""

import array
import functools
import itertools
import re
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, cast

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES


def _integers(low: int, high: int) -> Any:
    return Annotated[int, msgspec.Meta(ge=low, le=high)]


_FP16_MAX, _FP32_MAX = 65504.0, 3.4028234663852886e38  # IEEE 754 binary16 and binary32, largest finite number
_ITEMS: dict[str, Any] = {
    "BOOL": bool,
    "UINT8": _integers(0, 2**8 - 1),
    "UINT16": _integers(0, 2**16 - 1),
    "UINT32": _integers(0, 2**32 - 1),
    "UINT64": Annotated[int, msgspec.Meta(ge=0)],  # msgspec's bounds end at 2**63; `pack` checks the rest
    "INT8": _integers(-(2**7), 2**7 - 1),
    "INT16": _integers(-(2**15), 2**15 - 1),
    "INT32": _integers(-(2**31), 2**31 - 1),
    "INT64": _integers(-(2**63), 2**63 - 1),
    "FP16": Annotated[float, msgspec.Meta(ge=-_FP16_MAX, le=_FP16_MAX)],
    "FP32": Annotated[float, msgspec.Meta(ge=-_FP32_MAX, le=_FP32_MAX)],
    "FP64": float,
    "BYTES": str,
}
PLAIN_ITEMS: dict[str, Any] = {
    "BOOL": bool, "FP16": float, "FP32": float, "FP64": float, "BYTES": str,
    **dict.fromkeys(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"), int),
}  # fmt: skip
"""The Python type of an element, its range unchecked: `pack_plain` checks that."""
# Type codes of `array` and `memoryview.cast`; FP16 has none in `array`.
_CODES = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP32": "f", "FP64": "d",
}  # fmt: skip
_OPENING = re.compile(rb"[\[\s]*")
_MAX_RANK = 16


@functools.cache
def _decoder(datatype: str, depth: int, nullable: bool) -> msgspec.json.Decoder[Any]:  # noqa: FBT001
    kind = _ITEMS[datatype] | None if nullable else _ITEMS[datatype]
    for _ in range(depth):
        kind = list[kind]  # type: ignore[valid-type]
    return msgspec.json.Decoder(kind)


def depth_of(text: bytes | memoryview) -> int:
    """Return how many lists a JSON value opens at its start: its rank, if it is a well-formed array of values."""
    found = _OPENING.match(text)
    return found.group().count(b"[") if found else 0


def parse(
    text: bytes | memoryview, datatype: str, where: str, *, nullable: bool = False
) -> tuple[list[Any], list[int]]:
    """Return a JSON value as a flat list and its shape ([] for a single value).

    `where` is the path of the value in the request, such as `$.inputs[0].data`, for the error. With `nullable`, null
    stands for a missing value. Raises InvalidInput for wrong types, ranges, or lists of uneven length.
    """
    depth = depth_of(text)
    if depth > _MAX_RANK:
        raise InvalidInput(
            f"the value is nested more than {_MAX_RANK} deep - at `{where}`", code="wrong_shape", path=where
        )
    try:
        found = _decoder(datatype, depth, nullable).decode(text)
    except msgspec.ValidationError as error:
        # "Expected `float`, got `str` - at `$[3]`": the place inside the value goes behind the place of the value.
        message = str(error)
        inside = message.rpartition("`$")[2].rstrip("`") if "`$" in message else ""
        raise InvalidInput(
            f"{message.partition(' - at')[0]} - at `{where}{inside}`", code="wrong_value", path=where + inside
        ) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{error} - at `{where}`", code="bad_json", path=where) from error
    shape: list[int] = []
    level: list[Any] = [found]
    for _ in range(depth):
        size = len(level[0]) if level else 0
        if any(len(part) != size for part in level):
            raise InvalidInput(
                f"the lists in dimension {len(shape)} differ in length - at `{where}`", code="ragged", path=where
            )
        shape.append(size)
        level = level[0] if len(level) == 1 else list(itertools.chain.from_iterable(level))
    return level, shape


def pack(values: Sequence[Any], datatype: str, where: str) -> bytes:
    """Return checked values as raw little-endian bytes."""
    if datatype == "BYTES":
        return pack_texts(values)
    try:
        if datatype == "FP16":
            return struct.pack(f"<{len(values)}e", *values)
        if datatype == "BOOL":
            return bytes(values)
        return array.array(_CODES[datatype], values).tobytes()
    except OverflowError as error:
        raise InvalidInput(f"a value does not fit {datatype} - at `{where}`", code="wrong_value", path=where) from error


@functools.lru_cache(maxsize=1024)
def _packer(datatype: str, count: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}{'e' if datatype == 'FP16' else _CODES[datatype]}").pack


_USUAL_COUNTS = 8192


def pack_plain(values: Sequence[Any], datatype: str) -> bytes:
    """Return values of the right Python type as raw little-endian bytes.

    Raises struct.error or OverflowError for one that is out of range. Several times as fast as `pack` for the usual
    request of a few hundred numbers.
    """
    if datatype == "BYTES":
        return pack_texts(values)
    count = len(values)
    if count <= _USUAL_COUNTS:
        return _packer(datatype, count)(*values)
    return struct.pack(f"<{count}{'e' if datatype == 'FP16' else _CODES[datatype]}", *values)


def pack_texts(values: Iterable[str | bytes]) -> bytes:
    """Return texts in the protocol's binary form: each with its length before it, 4 bytes little-endian."""
    pieces = []
    for value in values:
        data = value.encode() if isinstance(value, str) else value
        pieces.append(len(data).to_bytes(4, "little") + data)
    return b"".join(pieces)


def unpack(data: bytes | memoryview, datatype: str) -> list[Any]:
    """Return raw bytes as a flat list of JSON values."""
    if datatype == "BYTES":
        return [_text(item) for item in split_texts(data)]
    if datatype == "FP16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    return cast("list[Any]", memoryview(data).cast(_CODES[datatype]).tolist())  # type: ignore[call-overload]


def _text(item: bytes) -> str:
    try:
        return item.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "an output holds bytes that are not UTF-8, which JSON can't carry",
            hint="ask for the output with the parameter binary_data: true",
            code="not_text",
        ) from error


def split_texts(data: bytes | memoryview) -> list[bytes]:
    """Return the items of a BYTES tensor; InvalidInput when the lengths don't add up to the data."""
    view = memoryview(data)
    items = []
    at, end = 0, len(view)
    while at < end:
        size = int.from_bytes(view[at : at + 4], "little")
        if at + 4 > end or at + 4 + size > end:
            raise InvalidInput(
                f"a text of {size} bytes is announced at byte {at} of a BYTES tensor that has {end}", code="wrong_size"
            )
        items.append(bytes(view[at + 4 : at + 4 + size]))
        at += 4 + size
    return items


def nest(values: Sequence[Any], shape: Sequence[int]) -> Any:
    """Return a flat list as nested lists of the given shape; a single value for an empty shape.

    >>> nest([1, 2, 3, 4], [2, 2])
    [[1, 2], [3, 4]]
    """
    if not shape:
        return values[0]
    for size in reversed(shape[1:]):
        values = [values[at : at + size] for at in range(0, len(values), size)] if size else []
    return list(values)


def item_size(datatype: str) -> int:
    """Return the bytes of one element, 0 for BYTES."""
    return DATATYPES[datatype][1]
