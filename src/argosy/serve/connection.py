"""HTTP/1.1 on a socket: one connection, its requests in order, every size bounded and every wait with an end.

Written against hostile clients: heads and bodies that trickle, readers that never read, endless headers, tiny chunks,
lengths that contradict each other. What is wrong with a request is said in the form every error has, then the
connection is closed.
"""

import asyncio
import contextlib
import fcntl
import socket
import struct
import termios
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol, cast

import httptools
import msgspec

from argosy.core.errors import ArgosyError, DeadlineExceeded, Internal, InvalidInput, Unavailable
from argosy.serve.heads import END, MAX_KEPT_BYTES, Head, Heads

REASONS = {
    100: "Continue", 200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 413: "Content Too Large",
    415: "Unsupported Media Type", 421: "Misdirected Request", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
}  # fmt: skip
_STATUS_LINES = {status: f"HTTP/1.1 {status} {reason}\r\n" for status, reason in REASONS.items()}

MAX_HEAD_BYTES = 32 << 10
MAX_HEADERS = 100
MAX_RECEIVING_BODIES = 8
"""So many bodies of the largest size may be on their way at once, over all connections."""
_MAX_PIPELINED = 32
# Many chunks are fine if they carry something; a million of one byte cost more to parse than they bring.
_MIN_CHUNK_BYTES, _FREE_CHUNKS = 64, 1024
_BODY_BYTES_PER_S = 256 << 10
_IDLE_S = 75.0
_LOOK_S = 1.0
"""An answer that has not arrived after so long is watched."""
_LINGER_S = 1.0
_WRITE_HIGH_BYTES = 1 << 20
_JOINED_BYTES = 64 << 10
_COPIED_BYTES = 8 << 10
"""Copying so few bytes costs less than the two objects of a view."""

_NEW, _HEAD, _BODY, _IDLE, _LINGER = range(5)

ROUND_S = 0.25
"""Each connection is looked at so often."""
_PARTS = 10
_LEAST_CHECKED = 8


class Rounds:
    """Looks at all connections again and again, at a few at a time: hundreds that are to be closed in the same moment
    would hold up everybody else for milliseconds.
    """

    def __init__(self, connections: set["Connection"]) -> None:
        self._connections = connections
        self._left: list[Connection] = []
        self._part = 0
        self._next_at = 0.0

    def step(self, now: float) -> None:
        """Look at the next few. To be called at least ten times in `ROUND_S`."""
        if not self._left:
            if now < self._next_at:
                return
            self._next_at = now + ROUND_S
            self._left = list(self._connections)
            self._part = max(_LEAST_CHECKED, len(self._left) // _PARTS + 1)
        for _ in range(min(self._part, len(self._left))):
            self._left.pop().check(now)


class Exchange:
    """A request and the place of its answer in the connection's order. `respond` is to be called once."""

    __slots__ = ("body", "connection", "data", "head", "keep_alive", "on_cancel")

    def __init__(self, connection: "Connection", head: Head, body: bytes | memoryview) -> None:
        self.connection = connection
        self.head = head
        self.keep_alive = head.keep_alive
        self.body = body
        self.data: list[bytes | memoryview] | None = None
        self.on_cancel: Callable[[], None] | None = None
        """Called if the client goes away before the answer."""

    @property
    def is_wanted(self) -> bool:
        """Whether somebody still waits for the answer."""
        return self.connection.is_open

    def respond(self, status: int, pieces: list[bytes | memoryview], headers: str = "") -> None:
        """Answer; `headers` are complete lines, beyond content-length and connection."""
        if self.data is not None:
            return
        self.on_cancel = None
        size = len(pieces[0]) if len(pieces) == 1 else sum([len(piece) for piece in pieces])
        close = "" if self.keep_alive else "connection: close\r\n"
        first = f"{_STATUS_LINES[status]}{headers}content-length: {size}\r\n{close}\r\n".encode("latin-1", "replace")
        if self.head.method == "HEAD":
            self.data = [first]
        elif size > _JOINED_BYTES:
            self.data = [first, *pieces]  # sent from where they are
        else:
            # One piece spares system calls.
            self.data = [first + pieces[0] if len(pieces) == 1 else b"".join([first, *pieces])]
        self.connection.flush()

    def respond_json(self, status: int, value: Any, headers: str = "") -> None:
        """Answer with JSON."""
        self.respond(status, [msgspec.json.encode(value)], "content-type: application/json\r\n" + headers)


class Front(Protocol):
    """What a connection needs of the server it belongs to."""

    now: float
    """Monotonic seconds at the last tick: fine enough for deadlines of seconds, and costs nothing per request."""
    heads: Heads
    max_body_bytes: int
    receive_s: float
    receiving_bytes: int
    """Bytes of bodies that are not complete yet, over all connections."""
    connections: set["Connection"]

    def admit(self, head: Head) -> ArgosyError | None:
        """Look at a head; an error refuses it before its body is read."""
        ...

    def handle(self, exchange: Exchange) -> None:
        """Answer a complete request, now or later. Must not raise."""
        ...

    def refuse(self, exchange: Exchange, error: ArgosyError) -> None:
        """Answer with an error."""
        ...


class Connection(asyncio.Protocol):
    """One client."""

    def __init__(self, front: Front) -> None:
        self.is_open = False
        self._front = front
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._head = Head()
        self._alone = b""
        """What was read first of a request, from its first byte on; as much of it as a head has that is kept."""
        self._alone_bytes = 0
        """How much was read since then."""
        self._exchanges: deque[Exchange] = deque()
        self._phase = _NEW
        self._since = front.now
        self._head_bytes = self._read_bytes = 0
        self._header_count = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._held_bytes = 0
        """Our part in the front's `receiving_bytes`."""
        self._chunks = 0
        self._unparsed = 0
        """Bytes of a body still to come that the parser does not see."""
        self._is_reading = True
        self._stalled_since = 0.0
        """When the client stopped taking our bytes; 0 while it takes them."""
        self._stalled_bytes = 0
        self._watched_since = 0.0
        """When it was first seen that an answer that was written is still on its way; 0 when all have arrived."""
        self._error: ArgosyError | None = None

    # The event loop calls ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES)
        self.is_open = True
        self._front.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End: whatever was asked for is not wanted any more."""
        del exc
        self.is_open = False
        self._front.connections.discard(self)
        self._forget_body()
        exchanges, self._exchanges = self._exchanges, deque()
        for exchange in exchanges:
            on_cancel, exchange.on_cancel = exchange.on_cancel, None
            if on_cancel is not None:
                on_cancel()
        self._phase = _LINGER
        # The parser knows this connection: without this it would take the garbage collector to free both.
        del self._parser

    def eof_received(self) -> bool:
        """Take a half-closed connection for a closed one: that is how clients cancel."""
        return False

    def data_received(self, data: bytes) -> None:
        """Parse."""
        if self._phase == _LINGER:
            return
        if self._phase in (_NEW, _IDLE):
            data = self._known(data)
            if not data:
                return
            if not self._unparsed:
                self._alone, self._alone_bytes = data[:MAX_KEPT_BYTES], 0
                self._phase = _HEAD
                self._since = self._front.now
        self._alone_bytes += len(data)
        if self._phase == _HEAD:
            # Counted per read: a header that never ends is cut off even though the parser keeps asking for more.
            self._read_bytes += len(data)
        try:
            self._feed(data)
        except httptools.HttpParserCallbackError:
            # A callback below failed: ours, not the client's.
            self._stop(Internal("the request could not be processed"))
        except httptools.HttpParserError as error:
            # What was found wrong before the parser gave up counts, however the bytes were cut.
            self._stop(self._error or InvalidInput(f"this is not HTTP/1.1: {error}"[:300], code="bad_http"))
        if self._error is None and self._phase == _HEAD and self._read_bytes > 2 * MAX_HEAD_BYTES:
            self._error = _head_too_large()
        if self._error is not None:
            self._stop(self._error)

    def _feed(self, data: bytes) -> None:
        while data and self._error is None:
            if self._unparsed:
                piece, data = data[: self._unparsed], data[self._unparsed :]
                self._unparsed -= len(piece)
                self.on_body(piece)
                if not self._unparsed:
                    self.on_message_complete()
                continue
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as upgrade:
                data = data[upgrade.args[0] :]
                self._decline_upgrade()
            else:
                return

    def _decline_upgrade(self) -> None:
        """Go on with HTTP/1.1 where a client offered something else, as Java's does with every request.

        The parser takes what follows the head for the other protocol, so the body is read here; a fresh one goes on.
        """
        self._parser = httptools.HttpRequestParser(self)
        if self._error is not None:
            return
        if b"transfer-encoding" in self._head.headers:
            self._error = InvalidInput("a body in chunks can't come with an offer to upgrade", code="bad_http")
            return
        self._unparsed = int(self._head.headers.get(b"content-length", b"0"))
        if not self._unparsed:
            self.on_message_complete()

    def pause_writing(self) -> None:
        """Note that the client does not take what it is sent; take no more requests from it."""
        self._stalled_since = self._front.now
        self._stalled_bytes = self._buffered()
        self._steer()

    def resume_writing(self) -> None:
        """Go on."""
        self._stalled_since = 0.0
        self._steer()

    # The parser calls ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._error is not None:
            return  # the answer belongs to the one before, whose method decides whether it has a body
        if self._phase == _IDLE:
            # Behind another request in the same read. If the rest comes later, that must not be taken for a beginning.
            self._phase = _HEAD
            self._since = self._front.now
        self._head = Head()
        self._head_bytes = self._read_bytes = self._header_count = self._body_bytes = self._chunks = 0

    def on_url(self, url: bytes) -> None:
        """Take (a part of) the target."""
        self._head.target += url
        if len(self._head.target) > MAX_HEAD_BYTES:
            self._error = self._error or _head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        if self._error is not None:
            return
        self._header_count += 1
        self._head_bytes += len(name) + len(value)
        if self._header_count > MAX_HEADERS or self._head_bytes > MAX_HEAD_BYTES:
            self._error = _head_too_large()
            return
        name = name.lower()
        if name == b"host" and name in self._head.headers:
            self._error = InvalidInput("the request has two Host headers", code="bad_http")
        self._head.headers[name] = value

    def on_headers_complete(self) -> None:
        """Decide from the head whether the body is wanted."""
        if self._error is not None:
            return
        head = self._head
        head.method = self._parser.get_method().decode("latin-1")
        head.keep_alive = self._parser.should_keep_alive()
        self._phase = _BODY
        self._since = self._front.now
        self._error = self._front.admit(head) or self._check_length(head)
        if self._error is None and head.headers.get(b"expect", b"").lower() == b"100-continue":
            self._write_continue()

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        if self._error is not None:
            return
        self._body_bytes += len(data)
        self._front.receiving_bytes += len(data)
        self._held_bytes += len(data)
        if self._body_bytes > self._front.max_body_bytes:
            self._error = self._too_large()
        elif self._front.receiving_bytes > MAX_RECEIVING_BODIES * self._front.max_body_bytes:
            self._error = Unavailable(
                "too many large requests are being received", hint="send it again", code="too_much_at_once"
            )
        else:
            self._body.append(data)
            return
        self._forget_body()

    def on_chunk_header(self) -> None:
        """Count chunks."""
        self._chunks += 1
        if self._chunks > _FREE_CHUNKS + self._body_bytes / _MIN_CHUNK_BYTES and self._error is None:
            self._error = InvalidInput(
                f"the body comes in {self._chunks} chunks of {self._body_bytes} bytes; send larger ones",
                code="too_many_chunks",
            )

    def on_message_complete(self) -> None:
        """Hand a complete request over."""
        if self._error is not None or self._parser.should_upgrade():
            return
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._forget_body()
        self._remember()
        self._take(self._head, body)

    # Ours ----------------------------------------------------------------------------------------------------------

    def _known(self, data: bytes) -> bytes:
        """Take the requests at the start of `data` whose heads were seen before; return what is left to be parsed."""
        known = self._front.heads.get
        while (end := data.find(END, 0, MAX_KEPT_BYTES)) > 0:
            end += len(END)
            head = known(data[:end])
            if head is None:
                break
            stop = end + head.length
            if len(data) == stop:
                self._take(head, data[end:] if stop < _COPIED_BYTES else memoryview(data)[end:])
                return b""
            if len(data) < stop:
                return self._begin_body(head, data[end:]) if head.length > _COPIED_BYTES else data
            body, data = data[end:stop], data[stop:]
            self._take(head, body)
            if self._phase != _IDLE or not self.is_open:
                return b""
        return data

    def _begin_body(self, head: Head, data: bytes) -> bytes:
        """Begin to collect a body without the parser, which would copy it; return `data`, its part that is there."""
        self._head = head
        self._body_bytes = self._chunks = 0
        self._unparsed = head.length
        self._alone = b""
        self._phase = _BODY
        self._since = self._front.now
        return data

    def _remember(self) -> None:
        """Keep the head of a request that was received by itself and found right."""
        raw, self._alone = self._alone, b""
        end = raw.find(END) + len(END)
        # The parser took all that was read for one request with a body of this length: so the head is what stands
        # before.
        if end > len(END) and self._alone_bytes == end + self._head.length:
            self._front.heads.keep(raw[:end], self._head)

    def _take(self, head: Head, body: bytes | memoryview) -> None:
        """Hand a complete request over."""
        self._phase = _IDLE
        self._since = self._front.now
        exchange = Exchange(self, head, body)
        self._exchanges.append(exchange)
        if len(self._exchanges) > _MAX_PIPELINED:
            self._steer()
        self._front.handle(exchange)
        # Whoever still needs the bytes holds a view of them.
        exchange.body = b""

    def flush(self) -> None:
        """Write the answers that are next in order."""
        if not self.is_open or self._transport is None:
            return
        exchanges = self._exchanges
        if len(exchanges) == 1 and self._is_reading:
            # The usual case: one request, one answer.
            only = exchanges[0]
            if only.data is not None and only.keep_alive and len(only.data) == 1:
                exchanges.popleft()
                if self._phase == _IDLE:
                    self._since = self._front.now
                self._transport.write(only.data[0])
                return
        out: list[bytes | memoryview] = []
        keep = True
        while exchanges and exchanges[0].data is not None and keep:
            exchange = exchanges.popleft()
            out += exchange.data or ()
            keep = exchange.keep_alive
        if out:
            if self._phase == _IDLE:
                self._since = self._front.now
            self._write(out)
        if not keep:
            self._end()
        elif not self._is_reading:
            self._steer()

    def _write(self, out: list[bytes | memoryview]) -> None:
        assert self._transport is not None
        if sum([len(piece) for piece in out]) > _JOINED_BYTES:
            self._transport.writelines(out)
        else:
            self._transport.write(out[0] if len(out) == 1 else b"".join(out))

    def check(self, now: float) -> None:
        """Close what takes too long. Called a few times a second."""
        waited = now - self._since
        limit = self._front.receive_s
        if self._stalled_since:
            self._check_stalled(now)
        elif self._phase == _LINGER:
            if waited > _LINGER_S:
                self._abort()
        elif self._phase == _NEW and waited > limit:
            self._abort()
        elif self._phase == _HEAD and waited > limit:
            self._stop(_too_slow("head", limit))
        elif self._phase == _BODY and waited > limit + self._body_bytes / _BODY_BYTES_PER_S:
            self._stop(_too_slow("body", limit))
        elif self._phase == _IDLE and not self._exchanges and waited > _LOOK_S:
            if waited > _IDLE_S:
                self._abort()
            else:
                self._check_taken(now)

    def finish(self) -> None:
        """Close after the answers that are on their way: the server ends."""
        for exchange in self._exchanges:
            exchange.keep_alive = exchange is not self._exchanges[-1]
        if not self._exchanges:
            self._abort()

    @property
    def is_busy(self) -> bool:
        """Whether an answer is owed."""
        return bool(self._exchanges)

    def _check_stalled(self, now: float) -> None:
        buffered = self._buffered()
        waited = now - self._stalled_since
        # A slow reader is served as long as it takes what a slow sender would have to send.
        if self._stalled_bytes - buffered >= _BODY_BYTES_PER_S * waited:
            return
        if waited > self._front.receive_s:
            self._reset()

    def _check_taken(self, now: float) -> None:
        """Close a client that doesn't take its answer, though all of it may be in the kernel by now.

        What the client's own kernel has taken counts as arrived: nobody can see whether it is ever read.
        """
        left = self._buffered() + self._unacknowledged()
        if not left:
            self._watched_since = 0.0
        elif self._watched_since < self._since:
            self._watched_since, self._stalled_bytes = now, left
        elif self._stalled_bytes - left >= _BODY_BYTES_PER_S * (now - self._watched_since):
            return
        elif now - self._since > self._front.receive_s:
            self._reset()

    def _unacknowledged(self) -> int:
        """Return how many bytes the kernel holds for the client (tcp(7), SIOCOUTQ)."""
        peer = self._socket()
        with contextlib.suppress(OSError, ValueError):
            if peer is not None:
                return int(struct.unpack("i", fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4)))[0])
        return 0

    def _forget_body(self) -> None:
        self._body = []
        self._front.receiving_bytes -= self._held_bytes
        self._held_bytes = 0

    def _steer(self) -> None:
        """Read while the client reads, and not too far ahead of its answers."""
        wanted = not self._stalled_since and len(self._exchanges) <= _MAX_PIPELINED
        if wanted != self._is_reading and self._transport is not None and self.is_open:
            self._is_reading = wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _check_length(self, head: Head) -> ArgosyError | None:
        length = head.headers.get(b"content-length", b"0")
        if not length.isdigit() or (b"transfer-encoding" in head.headers and b"content-length" in head.headers):
            return InvalidInput("the length of the body is given in a contradictory way", code="bad_http")
        head.length = int(length[:20])
        return self._too_large() if head.length > self._front.max_body_bytes else None

    def _too_large(self) -> InvalidInput:
        return InvalidInput(
            f"the body is larger than the {self._front.max_body_bytes} bytes that are allowed", code="body_too_large"
        )

    def _write_continue(self) -> None:
        if self._transport is not None and not self._exchanges:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _stop(self, error: ArgosyError) -> None:
        """Answer with an error behind the answers still owed, and close; nothing more is read as a request."""
        if self._phase == _LINGER:
            return
        self._phase = _LINGER
        self._since = self._front.now
        self._forget_body()
        exchange = Exchange(self, self._head, b"")
        exchange.keep_alive = False
        self._exchanges.append(exchange)
        self._front.refuse(exchange, error)

    def _end(self) -> None:
        """Close after our last byte. What the client still sends is read and dropped for a second, because closing on
        unread bytes would reset the connection and take the answer with it.
        """
        self._phase = _LINGER
        self._since = self._front.now
        if self._transport is not None and not self._transport.is_closing():
            if not self._transport.can_write_eof():
                self._transport.close()  # TLS has its own way to end after the last byte
                return
            self._transport.write_eof()
            if not self._is_reading:
                self._abort()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _reset(self) -> None:
        """Close, and have the kernel drop what it still holds for the client: it would keep offering it for minutes."""
        peer = self._socket()
        with contextlib.suppress(OSError, ValueError):
            if peer is not None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._abort()

    def _socket(self) -> socket.socket | None:
        return self._transport.get_extra_info("socket") if self._transport is not None else None

    def _buffered(self) -> int:
        return self._transport.get_write_buffer_size() if self._transport is not None else 0


def _head_too_large() -> InvalidInput:
    return InvalidInput(
        f"the request's head is larger than {MAX_HEAD_BYTES} bytes or {MAX_HEADERS} headers", code="head_too_large"
    )


def _too_slow(part: str, limit_s: float) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request's {part} did not arrive within {limit_s:.3g} s", code="request_timeout")
