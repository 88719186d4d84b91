"""Texts and images as callers send them: base64 in JSON, whole files as bodies; and the bounds of both.

They are checked in the gateway, before they wait: size, UTF-8, and what an image's header says. Without NumPy or
Pillow; the pixels are the replica's business.
"""

import binascii
import functools
import itertools
from typing import Any

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import MAX_TEXT_BYTES, Signature, TensorSpec
from argosy.data.image_headers import MEDIA_TYPES, check_image
from argosy.serve import values
from argosy.serve.wire import Tensor

_DATA_URL = "data:image/"


def check_content(spec: TensorSpec, data: bytes | memoryview) -> int:
    """Raise InvalidInput unless every item of a BYTES tensor is what `spec.content` says.

    Returns the bytes of the longest. The lengths inside `data` must have been checked.
    """
    view = memoryview(data)
    check = _check_text if spec.content == "text" else _check_image
    longest = at = row = 0
    while at < len(view):
        size = int.from_bytes(view[at : at + 4], "little")
        check(view[at + 4 : at + 4 + size], row, spec.name)
        longest = max(longest, size)
        at += 4 + size
        row += 1
    return longest


def _check_text(item: memoryview, row: int, name: str) -> None:
    if len(item) > MAX_TEXT_BYTES:
        raise InvalidInput(
            f"the text in row {row} of '{name}' has {len(item)} bytes; at most {MAX_TEXT_BYTES} are read",
            hint="send the part that matters, or several parts as rows",
            code="text_too_large",
            input=name,
        )
    try:
        str(item, "utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"the text in row {row} of '{name}' is not UTF-8: {error.reason} at byte {error.start}",
            code="not_utf8",
            input=name,
        ) from error


def _check_image(item: memoryview, row: int, name: str) -> None:
    try:
        check_image(item, what=f"row {row} of '{name}'")
    except InvalidInput as error:
        error.context["input"] = name
        if error.code == "not_an_image" and _looks_like_base64(item):
            error.hint = 'base64 in JSON needs the parameter "content_type": "base64"'
        raise


def _looks_like_base64(item: memoryview) -> bool:
    # How the first bytes of JPEG, PNG and WebP files come out.
    return bytes(item[:11]).startswith((b"/9j/", b"iVBORw0KGgo", b"UklGR"))


@functools.cache
def _decoder(kind: Any, depth: int) -> msgspec.json.Decoder[Any]:
    for _ in range(depth):
        kind = list[kind]
    return msgspec.json.Decoder(kind)


def parse_base64(text: bytes | memoryview, where: str) -> tuple[list[Any], list[int]]:
    """Return base64 texts of a JSON value as a flat list of bytes, and its shape ([] for a single one).

    Data URLs (`data:image/png;base64,…`) are taken too. Raises InvalidInput with the path of what is wrong.
    """
    depth = values.depth_of(text)
    if depth <= 1:
        try:
            found = _decoder(bytes, depth).decode(text)
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            pass  # read again, to say where and why, or to find a data URL
        else:
            return (found, [len(found)]) if depth else ([found], [])
    texts, shape = values.parse(text, "BYTES", where)
    places = itertools.product(*(range(size) for size in shape))
    return [
        _from_base64(item, where + "".join(f"[{index}]" for index in place))
        for item, place in zip(texts, places, strict=True)
    ], shape


def _from_base64(text: str, where: str) -> bytes:
    encoded = text.partition(",")[2] if text.startswith(_DATA_URL) else text
    try:
        return binascii.a2b_base64(encoded, strict_mode=True)
    except ValueError as error:
        raise InvalidInput(
            f"the text is not base64: {str(error)[:100]} - at `{where}`",
            hint="standard base64 with padding and without line breaks: base64 -w0 FILE",
            code="not_base64",
            path=where,
        ) from error


def image_of_body(body: bytes | memoryview, signature: Signature) -> Tensor:
    """Return a body that is one image file as the only input of a version; InvalidInput if that takes no image."""
    spec = signature.inputs[0] if len(signature.inputs) == 1 else None
    if spec is None or spec.content != "image":
        wanted = ", ".join(spec.name for spec in signature.inputs)
        raise InvalidInput(
            f"this endpoint does not take one image; send application/json with the inputs: {wanted}",
            code="media_type",
        )
    data = len(body).to_bytes(4, "little") + body
    return Tensor(spec.name, spec.datatype, (1,), data)


def is_image(media_type: str) -> bool:
    """Return whether a body of this type is an image file that can be read."""
    return media_type in MEDIA_TYPES
