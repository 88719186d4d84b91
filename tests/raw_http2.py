"""HTTP/2 by hand, for what no gRPC library would send (RFC 9113, RFC 7541 without compression)."""

import socket
import struct

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, END_HEADERS, ACK = 1, 4, 1
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
INFER = "/inference.GRPCInferenceService/ModelInfer"


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(*pairs):
    return frame(SETTINGS, payload=b"".join(struct.pack(">HI", number, value) for number, value in pairs))


def head(*pairs):
    """A header block: each field literal, never indexed."""

    def text(value):
        data = value if isinstance(value, bytes) else value.encode()
        size = len(data)
        if size < 127:
            return bytes([size]) + data
        prefix, size = bytearray([127]), size - 127
        while size >= 128:
            prefix.append(size % 128 + 128)
            size //= 128
        return bytes(prefix) + bytes([size]) + data

    return b"".join(b"\x10" + text(name) + text(value) for name, value in pairs)


def call(path=INFER, *more, stream=1, flags=END_HEADERS):
    """The frame that opens a call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "127.0.0.1"),
              ("te", "trailers"), ("content-type", "application/grpc"), *more]  # fmt: skip
    return frame(HEADERS, flags, stream, head(*fields))


def message(data, *, stream=1, flags=END_STREAM, is_compressed=0, size=None):
    """A frame with a whole message, or one that claims `size` bytes."""
    prefix = struct.pack(">BI", is_compressed, len(data) if size is None else size)
    return frame(DATA, flags, stream, prefix + data)


class Raw:
    """One connection."""

    def __init__(self, port, *, hello=None, timeout=15.0):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout)
        self._buffer = b""
        self.send(PREFACE + settings() if hello is None else hello)

    def send(self, *pieces):
        self.socket.sendall(b"".join(pieces))

    def frames(self):
        """Yield kind, flags, stream and payload until the server hangs up; answer its pings and settings."""
        while True:
            while len(self._buffer) < 9 or len(self._buffer) < 9 + self._size():
                try:
                    found = self.socket.recv(65536)
                except ConnectionResetError:
                    return
                if not found:
                    return
                self._buffer += found
            end = 9 + self._size()
            kind, flags = self._buffer[3], self._buffer[4]
            stream = struct.unpack(">I", self._buffer[5:9])[0]
            payload, self._buffer = self._buffer[9:end], self._buffer[end:]
            if kind in (PING, SETTINGS) and not flags & ACK:
                self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
            yield kind, flags, stream, payload

    def _size(self):
        return int.from_bytes(self._buffer[:3], "big")

    def close(self):
        self.socket.close()
