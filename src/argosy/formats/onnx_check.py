"""A look through the bytes of an ONNX file before any library parses them.

ONNX Runtime resolves external data relative to the working folder when it loads from memory, and takes sizes from the
file before it compares them with the data. So references that leave the bytes, and sizes that the bytes can't hold,
are refused here, in one pass that allocates nothing. Field numbers are those of onnx.proto3, IR version 13.
"""

from collections.abc import Iterator
from pathlib import Path

from argosy.core.errors import InvalidInput, NotFound
from argosy.core.files import resolve_inside

# Protocol buffers end here: a message has at most 2 GiB.
MAX_BYTES = 2**31 - 1
# More fields than any model we know has (the largest: some 100,000 operations), and few enough to pass in seconds.
_MAX_FIELDS = 1_000_000
# Nested graphs of If and Loop; each level takes four messages.
_MAX_DEPTH = 100
# A sparse tensor is made dense when it is loaded, so its shape must not promise more than this many elements.
_MAX_DENSE = 2**28

# Which fields of which message hold messages that matter, and of what kind they are.
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_TENSOR_DIMS, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 13, 14
_SPARSE_DIMS = 3
_MODEL_GRAPH = 7


def read_model_file(path: Path) -> bytes:
    """Return the bytes of a model file; raise NotFound or InvalidInput instead of reading something absurd."""
    try:
        if not path.is_file():
            raise NotFound(f"there is no model file '{path}'")
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise InvalidInput(f"'{path.name}' has {size} bytes; an ONNX file has at most {MAX_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be read: {error.strerror}") from error


def check_onnx(data: bytes, *, external: Path | None = None) -> set[str]:
    """Raise InvalidInput unless `data` is one self-contained ONNX message whose sizes its bytes can hold.

    With `external`, the folder the file is in, weights may also be in other files there: their names are returned, and
    InvalidInput is raised for those that lead out of the folder, are missing, or are shorter than is said.
    Says nothing about operators and types: the runtime does.
    """
    if not data:
        raise InvalidInput("the model file is empty; an ONNX file was expected")
    has_graph = False
    outside: set[str] = set()
    left = _MAX_FIELDS
    todo = [("model", 0, len(data), 0)]
    while todo:
        kind, start, end, depth = todo.pop()
        if depth > _MAX_DEPTH:
            raise InvalidInput("the model is nested deeper than any real model; it is refused")
        left -= 1
        if kind == "tensor":
            left -= _check_tensor(data, start, end, left, external=external, outside=outside)
            continue
        children = _CHILDREN[kind]
        dense = 1
        for field, wire, value, stop in _fields(data, start, end):
            left -= 1
            if left < 0:
                raise _too_many()
            if wire == _BYTES and field in children:
                todo.append((children[field], value, stop, depth + 1))
                has_graph |= kind == "model" and field == _MODEL_GRAPH
            elif kind == "sparse" and field == _SPARSE_DIMS:
                dense *= _product(data, wire, value, stop)
        if dense > _MAX_DENSE:
            raise InvalidInput(f"a sparse tensor in the model promises {dense} elements; at most {_MAX_DENSE} are read")
    if not has_graph:
        raise InvalidInput(
            "the file is not an ONNX model: it holds no graph", hint="export it with: torch.onnx.export(model, ...)"
        )
    return outside


def _too_many() -> InvalidInput:
    return InvalidInput("the model is made of more parts than any real model; it is refused")


def _check_tensor(data: bytes, start: int, end: int, left: int, *, external: Path | None, outside: set[str]) -> int:
    """Return the number of fields, of which there may be `left`; add the file its data is in to `outside`."""
    elements = 1
    count = 0
    where: dict[str, str] = {}
    for field, wire, value, stop in _fields(data, start, end):
        count += 1
        if count > left:
            raise _too_many()
        if field == _TENSOR_EXTERNAL and wire == _BYTES and external is not None:
            where.update([_text_pair(data, value, stop)])
        elif field == _TENSOR_EXTERNAL or (field == _TENSOR_LOCATION and value != 0 and external is None):
            raise InvalidInput(
                "the model keeps weights in another file, which is refused",
                hint="save it as one file: onnx.save(onnx.load('model.onnx'), 'single.onnx')",
                code="external_data",
            )
        if field == _TENSOR_DIMS:
            elements *= _product(data, wire, value, stop)
    held = end - start
    if external is not None and where:
        held = _external_bytes(external, where)
        outside.add(where.get("location", ""))
    # The narrowest datatype has two bits, so a byte holds four elements at most.
    if elements > 4 * held:
        raise InvalidInput(f"a tensor in the model promises {elements} elements in {held} bytes; it is refused")
    return count


def _text_pair(data: bytes, start: int, end: int) -> tuple[str, str]:
    """A StringStringEntryProto."""
    found = {field: data[value:stop] for field, wire, value, stop in _fields(data, start, end) if wire == _BYTES}
    return found.get(1, b"").decode(errors="replace"), found.get(2, b"").decode(errors="replace")


def _external_bytes(folder: Path, where: dict[str, str]) -> int:
    """Return how many bytes of a tensor lie in the file that `where` names, which must be in `folder`."""
    name = where.get("location", "")
    try:
        path = resolve_inside(folder, name)
    except InvalidInput as error:
        raise InvalidInput(
            f"the model keeps weights in {name[:100]!r}, which leads out of the folder it is in",
            hint="save it as one file: onnx.save(onnx.load('model.onnx'), 'single.onnx')",
            code="external_data",
        ) from error
    if not path.is_file():
        raise InvalidInput(
            f"the model keeps weights in '{name[:100]}', which is not in the folder it is in",
            hint="copy that file beside the model",
            code="external_data",
        )
    texts = (where.get("offset", "0"), where.get("length", ""))
    offset, length = (int(text) if text.isdecimal() and len(text) < 19 else 0 for text in texts)
    size = path.stat().st_size
    if offset + length > size:
        raise InvalidInput(f"the model takes bytes {offset} to {offset + length} of '{name}', which has {size}")
    return length or size - offset


_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def _product(data: bytes, wire: int, value: int, stop: int) -> int:
    """The product of one dimension (a varint) or of several (packed)."""
    if wire == _VARINT:
        return value
    found, at = 1, value
    while at < stop:
        size, at = _varint(data, at, stop)
        # Capped, so that many large dimensions don't grow a number of a million digits.
        found = min(found * size, 2**63)
    return found


def _fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (field, wire type, value or start, stop) of each field of the message in data[start:end]."""
    at = start
    while at < end:
        tag, at = _varint(data, at, end)
        field, wire = tag >> 3, tag & 7
        if field == 0:
            raise _malformed(at)
        if wire == _VARINT:
            value, at = _varint(data, at, end)
            yield field, wire, value, at
            continue
        if wire == _BYTES:
            length, at = _varint(data, at, end)
        elif wire in (_FIXED32, _FIXED64):
            length = 4 if wire == _FIXED32 else 8
        else:
            raise _malformed(at)
        stop = at + length
        if stop > end:
            raise _malformed(at)
        yield field, wire, at, stop
        at = stop


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise _malformed(at)


def _malformed(at: int) -> InvalidInput:
    return InvalidInput(
        f"the file is not an ONNX model: it is damaged or of another kind at byte {at}",
        hint="export it again, and compare its size with the original's if it was copied",
    )
