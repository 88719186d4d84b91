"""TensorBoard's event files, written by hand: TensorBoard itself is only needed to look at them.

A file is a row of records: the length, its checksum, an `Event` message, its checksum (tensorflow/core/lib/io,
record_writer.h). Messages are in protobuf's wire format, with the numbers of tensorflow/core/util/event.proto.
"""

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from argosy.core.clock import Clock

_POLYNOMIAL = 0x82F63B78  # CRC-32C, reflected
_MASK = 0xA282EAD8


class TensorBoard:
    """Writes scalars, and the settings as a text, into a new file in `folder`. What can't be written is told once."""

    def __init__(self, folder: Path, name: str, clock: Clock, say: Callable[[str], None]) -> None:
        self._clock, self._say = clock, say
        self._stream: BinaryIO | None = None
        now = int(clock.now())
        self._path = folder / f"events.out.tfevents.{now}.{name}"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._stream = self._path.open("ab")
        except OSError as error:
            self._give_up(error)
        self._write(_text_field(3, b"brain.Event:2"), step=0)

    def settings(self, values: Mapping[str, Any]) -> None:
        """Write the settings as a table, which TensorBoard shows under "text"."""
        rows = "\n".join(f"| {name} | `{json.dumps(value)}` |" for name, value in values.items())
        table = f"| setting | value |\n|---|---|\n{rows}"
        tensor = _number_field(1, 7) + _text_field(2, b"") + _text_field(8, table.encode())
        plugin = _text_field(1, _text_field(1, b"text"))
        value = _text_field(1, b"settings") + _text_field(8, tensor) + _text_field(9, plugin)
        self._write(_text_field(5, _text_field(1, value)), step=0)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Write one scalar for each number."""
        summary = b"".join(
            _text_field(1, _text_field(1, name.encode()) + b"\x15" + struct.pack("<f", _float32(value)))
            for name, value in values.items()
        )
        self._write(_text_field(5, summary), step)

    def close(self, *, failed: bool) -> None:
        """Close the file; how a training ended has no place in it."""
        del failed
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _write(self, what: bytes, step: int) -> None:
        if self._stream is None:
            return
        event = b"\x09" + struct.pack("<d", self._clock.now()) + _number_field(2, step) + what
        head = struct.pack("<Q", len(event))
        try:
            self._stream.write(head + _checksum(head) + event + _checksum(event))
            self._stream.flush()  # TensorBoard reads along
        except OSError as error:
            self.close(failed=True)
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._say(f"no log for TensorBoard: '{self._path}' can't be written ({error.strerror})")


def _float32(value: float) -> float:
    return max(-3.4e38, min(3.4e38, value))


def _varint(number: int) -> bytes:
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)


def _number_field(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _text_field(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _checksum(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[crc & 0xFF ^ byte]
    crc ^= 0xFFFFFFFF
    # Turned and shifted, so that a checksum over data that holds checksums stays good.
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _MASK) & 0xFFFFFFFF)


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = tuple(_entry(byte) for byte in range(256))
