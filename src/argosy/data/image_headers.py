"""What an image file says about itself, read from its first bytes by itself: before any library unfolds it.

No NumPy and no Pillow, because the gateway asks too. Sources: ITU T.81 (JPEG) annex B; PNG 3rd edition section 11.2.1;
the WebP container specification (RFC 9649).
"""

import struct
from typing import NamedTuple

from argosy.core.errors import InvalidInput

MAX_IMAGE_BYTES = 16 << 20
"""A larger file is refused: the best a camera makes has some 15 MB."""
MAX_PIXELS = 64 << 20
"""More pixels are refused before they are unfolded: 64 Mi take 200 MB, and a kilobyte of PNG can hold them."""
MEDIA_TYPES = {"image/jpeg": "JPEG", "image/jpg": "JPEG", "image/png": "PNG", "image/webp": "WEBP"}
"""The media types of what is read, and the name of each format."""

_SOF = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_ALONE = {0x01, *range(0xD0, 0xD8)}


class Header(NamedTuple):
    """The kind of a file and how large its image is, as it is stored (not turned upright)."""

    format: str
    width: int
    height: int


def check_image(
    data: bytes | memoryview, *, max_bytes: int = MAX_IMAGE_BYTES, max_pixels: int = MAX_PIXELS, what: str = "the image"
) -> Header:
    """Return the header of a JPEG, PNG or WebP file.

    Raises InvalidInput with the code `image_too_large` for one beyond the bounds, `not_an_image` for anything else.
    """
    if len(data) > max_bytes:
        raise InvalidInput(
            f"{what} has {len(data)} bytes; at most {max_bytes} are read",
            hint="make it smaller before it is sent",
            code="image_too_large",
        )
    header = _header(memoryview(data))
    if header is None or header.width < 1 or header.height < 1:
        raise InvalidInput(
            f"{what} is no JPEG, PNG or WebP file, or its beginning is damaged",
            hint="send the whole file as it is on disk",
            code="not_an_image",
        )
    if header.width * header.height > max_pixels:
        raise InvalidInput(
            f"{what} says it has {header.width} x {header.height} pixels; at most {max_pixels} are unfolded",
            hint="make it smaller before it is sent",
            code="image_too_large",
        )
    return header


def _header(data: memoryview) -> Header | None:
    start = bytes(data[:16])
    try:
        if start.startswith(b"\xff\xd8\xff"):
            return _jpeg(data)
        if start.startswith(b"\x89PNG\r\n\x1a\n") and start[12:16] == b"IHDR":
            return Header("PNG", *struct.unpack_from(">II", data, 16))
        if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
            return _webp(data, start[12:16])
    except (struct.error, IndexError):
        pass  # it ends within its header
    return None


def _jpeg(data: memoryview) -> Header | None:
    at = 2
    while True:
        # Segments begin with 0xFF, of which there may be several, and their kind.
        if data[at] != 0xFF:
            return None
        while data[at] == 0xFF:
            at += 1
        kind = data[at]
        at += 1
        if kind in _ALONE:
            continue
        if kind in _SOF:
            height, width = struct.unpack_from(">HH", data, at + 3)
            return Header("JPEG", width, height)
        if kind in (0xD9, 0xDA, 0x00):
            return None
        (size,) = struct.unpack_from(">H", data, at)
        if size < 2:
            return None
        at += size


def _webp(data: memoryview, kind: bytes) -> Header | None:
    if kind == b"VP8 " and bytes(data[23:26]) == b"\x9d\x01\x2a":
        width, height = struct.unpack_from("<HH", data, 26)
        return Header("WEBP", width & 0x3FFF, height & 0x3FFF)
    if kind == b"VP8L" and data[20] == 0x2F:
        (bits,) = struct.unpack_from("<I", data, 21)
        return Header("WEBP", (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8X":
        sizes = bytes(data[24:30])
        if len(sizes) == 6:
            return Header("WEBP", int.from_bytes(sizes[:3], "little") + 1, int.from_bytes(sizes[3:], "little") + 1)
    return None
