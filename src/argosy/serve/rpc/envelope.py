"""Raw tensors into and out of protobuf messages without protobuf: it would copy each of them two to three times.

Protobuf writes a message as fields one behind the other, each a tag (number and kind) and a value; the bytes of a raw
tensor stand there as they are. Measured, 600 kB: 4 us to cut out instead of 86, 27 us to put in instead of 1,800.

Source: protobuf.dev, "Encoding".
"""

from collections.abc import Iterable

from argosy.core.errors import InvalidInput

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5  # the kinds of values; 3 and 4 are groups, which nobody writes
MAX_FIELDS = 8192
"""More than 1,024 inputs with their outputs and tensors need; a message of a million fields would take seconds."""


def cut_out(message: bytes, number: int) -> tuple[bytes, list[memoryview]]:
    """Return the message without its fields of this number, and the values of those, as views of `message`.

    Raises InvalidInput where the bytes are no message. What is left is still to be parsed, and may turn out to be none.
    """
    view = memoryview(message)
    found: list[memoryview] = []
    kept: list[memoryview] = []
    at = kept_until = fields = 0
    end = len(message)
    try:
        while at < end:
            start = at
            fields += 1
            tag, at = _varint(message, at)
            kind = tag & 7
            if kind == _LENGTH:
                size, at = _varint(message, at)
                stop = at + size
                if stop > end:
                    raise _no_message()
                if tag >> 3 == number:
                    found.append(view[at:stop])
                    kept.append(view[kept_until:start])
                    kept_until = stop
                at = stop
            elif kind == _VARINT:
                _, at = _varint(message, at)
            elif kind in (_FIXED32, _FIXED64):
                at += 4 if kind == _FIXED32 else 8
            else:
                raise _no_message()
            if fields > MAX_FIELDS:
                raise InvalidInput(
                    f"the message has more than {MAX_FIELDS} fields", hint="send fewer inputs", code="bad_message"
                )
    except IndexError:
        raise _no_message() from None
    if not found:
        return message, found
    kept.append(view[kept_until:])
    return b"".join(kept), found


def put_in(message: bytes, number: int, values: Iterable[bytes | memoryview]) -> bytes:
    """Return the message with `values` as its last fields, all of this number."""
    pieces: list[bytes | memoryview] = [message]
    for value in values:
        pieces += (length_prefix(number, len(value)), value)
    return b"".join(pieces)


def length_prefix(number: int, size: int) -> bytes:
    """Return what stands before the `size` bytes of a field's value.

    >>> length_prefix(6, 300).hex()
    '32ac02'
    """
    prefix = bytearray([number << 3 | _LENGTH])
    while size >= 0x80:
        prefix.append(size & 0x7F | 0x80)
        size >>= 7
    prefix.append(size)
    return bytes(prefix)


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, seven bits a byte, the lowest first, and the place behind it."""
    byte = message[at]
    if byte < 0x80:
        return byte, at + 1
    value = byte & 0x7F
    shift = 7
    while True:
        at += 1
        byte = message[at]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at + 1
        shift += 7
        if shift > 63:
            raise _no_message()


def _no_message() -> InvalidInput:
    return InvalidInput("the message is not what the protocol's .proto file says", code="bad_message")
