"""Two processes prove to each other that they know the token of a training, before either believes a word.

    listener                                dialler
       ── greeting, nonce_a ───────────────────►
       ◄─────────── nonce_d, body, HMAC("dial") ─
       ── "+", body, HMAC("accept") ───────────►      or "-": the token is another one

Each HMAC-SHA256 is over its role, both nonces and the body, so nothing can be sent back or sent again. A body is
parsed only after its HMAC was right. What follows on the connection is neither encrypted nor signed: whoever can change
packets between the hosts can change numbers. `Secure` is where TLS will go.
"""

import contextlib
import errno
import hashlib
import hmac
import secrets
import socket
import struct
import threading
from collections.abc import Callable
from typing import Protocol

from argosy.core.clock import SystemClock
from argosy.core.errors import Conflict, Denied, InvalidInput, Unavailable
from argosy.train.network.ports import listening_process

GREETING = b"argosy-ranks-1\r\n"
_NONCE_BYTES = 32
_MAC_BYTES = 32
_MAX_HELLO_BYTES = 4096
"""What a stranger may make a listener keep before the token was checked."""
_MAX_ANSWER_BYTES = 1 << 20
"""Enough for the addresses of thousands of ranks."""
_MAX_GUESTS = 64
"""Handshakes under way at once; more wait in the kernel's queue, so that strangers can't take all memory."""
HANDSHAKE_S = 10.0
"""How long the other side may take for its part: one round trip, in which no person is involved."""

# Not an injected clock: these are waits for another machine, which no fake clock moves.
_monotonic = SystemClock.monotonic


class Secure(Protocol):
    """Wraps a fresh connection, for TLS: called before the first byte, on either side."""

    def __call__(self, connection: socket.socket, *, is_listener: bool) -> socket.socket:
        """Return the connection to use instead."""
        ...


def new_token() -> str:
    """Return a random word of 256 bits that the ranks of one training share and nobody else knows."""
    return secrets.token_hex(32)


def check_token(token: str) -> bytes:
    """Return the bytes of a token; raise InvalidInput for one that could be guessed."""
    if len(token) < 32:
        raise InvalidInput(
            f"the token of a training has {len(token)} characters; at least 32 are needed",
            hint='make one with: python -c "import secrets; print(secrets.token_hex(32))"',
            code="weak_token",
        )
    return token.encode()


def split_address(address: str) -> tuple[str, int]:
    """Return host and port of `host:port` or `[host]:port`."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit() or int(port) > 65535 or not host:
        raise InvalidInput(f"{address!r} is not an address of the form 'host:port'", code="bad_address")
    return host.strip("[]"), int(port)


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on that address; port 0 takes a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"asked to listen on {host}:{port}, where {listening_process(port)} listens already",
                hint=f"choose another port, or see who has it with: ss -ltnp 'sport = :{port}'",
                code="port_taken",
            ) from error
        raise InvalidInput(
            f"can't listen on {host}:{port}: {error.strerror or error}",
            hint="see this machine's addresses with: ip -brief address; ports below 1024 need root",
            code="bad_address",
        ) from error


class Guest:
    """A connection whose other side has proved that it knows the token."""

    def __init__(self, connection: socket.socket, hello: bytes, answer: Callable[[bytes], None]) -> None:
        self.connection = connection
        self.hello = hello
        self.answer = answer

    def is_gone(self) -> bool:
        """Return whether the other side has closed the connection. It says nothing more before it is answered."""
        self.connection.setblocking(False)
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            with contextlib.suppress(OSError):
                self.connection.settimeout(HANDSHAKE_S)


class Door:
    """Listens, and calls `admit`, in a thread of the guest's own, for everyone who knows the token.

    `admit` answers the guest, and owns its connection from then on.
    """

    def __init__(
        self,
        listener: socket.socket,
        token: str,
        admit: Callable[[Guest], None],
        *,
        secure: Secure | None = None,
    ) -> None:
        self._listener = listener
        self._token = check_token(token)
        self._admit = admit
        self._secure = secure
        self._places = threading.BoundedSemaphore(_MAX_GUESTS)
        self._closed = threading.Event()
        self._listener.settimeout(0.5)
        self._thread = threading.Thread(target=self._listen, name="argosy-door", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening; guests who are inside stay."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept
        self._thread.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._closed.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            except OSError:  # a guest who left in the queue, no descriptor left, or the end
                self._closed.wait(0.05)
                continue
            self._places.acquire()
            threading.Thread(target=self._welcome, args=(connection,), name="argosy-guest", daemon=True).start()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            guest = self._identify(connection)
        except (OSError, ValueError):
            connection.close()
            return
        finally:
            self._places.release()
        self._admit(guest)

    def _identify(self, plain: socket.socket) -> Guest:
        plain.settimeout(HANDSHAKE_S)
        connection = self._secure(plain, is_listener=True) if self._secure else plain
        # One limit for the whole, so that a byte now and then keeps nobody's place.
        until = _monotonic() + HANDSHAKE_S
        nonce = secrets.token_bytes(_NONCE_BYTES)
        connection.sendall(GREETING + nonce)
        theirs = _receive(connection, _NONCE_BYTES, until)
        hello = _receive_body(connection, _MAX_HELLO_BYTES, until)
        mac = _receive(connection, _MAC_BYTES, until)
        if not hmac.compare_digest(mac, _mac(self._token, b"dial", nonce, theirs, hello)):
            connection.sendall(b"-")
            raise ValueError("the token is another one")
        connection.settimeout(HANDSHAKE_S)

        def answer(body: bytes) -> None:
            connection.sendall(b"+" + _framed(body) + _mac(self._token, b"accept", nonce, theirs, body))

        return Guest(connection, hello, answer)


def dial(
    address: str,
    token: str,
    hello: bytes,
    *,
    answer_s: float = HANDSHAKE_S,
    secure: Secure | None = None,
    prepare: Callable[[socket.socket], bytes] | None = None,
) -> tuple[socket.socket, bytes]:
    """Connect, prove to know the token, have the other side prove it; return the connection and its answer.

    `prepare` may make the hello from the connection. Raises OSError when nobody is there or the connection breaks.
    """
    key = check_token(token)
    host, port = split_address(address)
    plain = socket.create_connection((host, port), timeout=HANDSHAKE_S)
    try:
        connection = secure(plain, is_listener=False) if secure else plain
        until = _monotonic() + HANDSHAKE_S
        _check_greeting(_receive(connection, len(GREETING), until), address)
        theirs = _receive(connection, _NONCE_BYTES, until)
        body = prepare(connection) if prepare else hello
        nonce = secrets.token_bytes(_NONCE_BYTES)
        connection.settimeout(HANDSHAKE_S)
        connection.sendall(nonce + _framed(body) + _mac(key, b"dial", theirs, nonce, body))
        answer = _receive_answer(connection, key, address, theirs + nonce, _monotonic() + answer_s)
    except BaseException:
        plain.close()
        raise
    return connection, answer


def _check_greeting(found: bytes, address: str) -> None:
    if found != GREETING:
        raise Unavailable(
            f"something else than a training answers at {address}",
            hint="give the address that the first host's job printed",
            code="not_a_training",
        )


def _receive_answer(connection: socket.socket, key: bytes, address: str, nonces: bytes, until: float) -> bytes:
    if _receive(connection, 1, until) != b"+":
        raise Denied(
            f"the training at {address} has another token than this rank was given",
            hint="give all hosts the token that the first host's job printed",
            code="wrong_token",
        )
    answer = _receive_body(connection, _MAX_ANSWER_BYTES, until)
    mac = _receive(connection, _MAC_BYTES, until)
    if not hmac.compare_digest(mac, _mac(key, b"accept", nonces, b"", answer)):
        raise Denied(f"whoever answers at {address} does not know the token of this training", code="wrong_token")
    return answer


def _mac(key: bytes, role: bytes, listeners_nonce: bytes, diallers_nonce: bytes, body: bytes) -> bytes:
    # All parts but the last have a fixed length for each role, so no two messages share a text.
    return hmac.digest(key, GREETING + role + listeners_nonce + diallers_nonce + body, hashlib.sha256)


def _framed(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


def _receive_body(connection: socket.socket, limit: int, until: float) -> bytes:
    (size,) = struct.unpack(">I", _receive(connection, 4, until))
    if size > limit:
        raise ConnectionError(f"a message of {size} bytes is too long")
    return _receive(connection, size, until)


def _receive(connection: socket.socket, size: int, until: float) -> bytes:
    """Return exactly `size` bytes; OSError when they don't come in time or the connection ends."""
    found = bytearray(size)
    view = memoryview(found)
    while view:
        left_s = until - _monotonic()
        if left_s <= 0:
            raise TimeoutError("the other side takes too long")
        connection.settimeout(left_s)
        count = connection.recv_into(view)
        if not count:
            raise ConnectionError("the other side has closed the connection")
        view = view[count:]
    return bytes(found)
