"""Connections of a blocking client: kept open, shared by threads, never more than a bound, every wait with an end."""

import contextlib
import os
import select
import socket
import ssl
import threading
from collections.abc import Callable, Sequence

from argosy.client.http1 import Address, Answer, AnswerReader, Request
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, IntegrityError, InvalidInput, Unavailable

_READ_BYTES = 256 << 10
# A peer that answers early and closes still has its answer in our buffers.
_BROKEN = (BrokenPipeError, ConnectionResetError, ConnectionAbortedError)


class Pool:
    """At most `size` connections to one server."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        clock: Clock,
        *,
        headers: Sequence[tuple[str, str]] = (),
        size: int = 16,
        max_answer_bytes: int = 256 << 20,
    ) -> None:
        """`headers` go with every request."""
        self._address = address
        self._tls = tls
        self._clock = clock
        self._headers = headers
        self._size = size
        self._max_answer_bytes = max_answer_bytes
        self._idle: list[_Connection] = []
        self._open = 0
        self._pid = os.getpid()
        self._changed = threading.Condition()
        self._is_closed = False

    def exchange(self, request: Request, deadline: float) -> Answer:
        """Send a request and return its answer, whatever the status.

        Raises Unavailable when the connection is refused or lost before a whole answer, TimeoutError at `deadline`
        (monotonic seconds), DeadlineExceeded if no connection could be had until then, IntegrityError for a certificate
        that is not to be trusted, InvalidInput for what is no HTTP.
        """
        while True:
            connection, is_used = self._take(deadline)
            is_clean = False
            try:
                answer = connection.ask(request, self._headers, deadline, self._max_answer_bytes)
                is_clean = answer.keep_alive
            except _Lost as lost:
                # A server may close a connection that waited in the pool at the moment we send on it.
                if is_used and not lost.has_begun:
                    continue
                raise lost_error(self._address, lost.reason) from lost
            finally:
                self._return(connection if is_clean else None, connection)
            return answer

    def close(self) -> None:
        """Close what is idle now, and what is in use when its answer has come."""
        with self._changed:
            self._is_closed = True
            idle, self._idle = self._idle, []
            self._open -= len(idle)
            self._changed.notify_all()
        for connection in idle:
            connection.close()

    def __del__(self) -> None:
        # Most scripts never close their client; what is idle needs no warning about that.
        for connection in getattr(self, "_idle", ()):
            connection.close()

    def _take(self, deadline: float) -> tuple["_Connection", bool]:
        with self._changed:
            self._forget_the_parents()
            while True:
                if self._is_closed:
                    raise InvalidInput("this client is closed", code="client_closed")
                while self._idle:
                    connection = self._idle.pop()
                    if connection.is_quiet():
                        return connection, True
                    self._open -= 1
                    connection.close()
                if self._open < self._size:
                    self._open += 1
                    break
                left = deadline - self._clock.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    raise DeadlineExceeded(
                        f"all {self._size} connections of this client are in use",
                        hint="give the client more with connections",
                        code="deadline_exceeded",
                    )
        try:
            return _Connection(self._address, self._tls, self._clock, deadline), False
        except BaseException:
            self._return(None, None)
            raise

    def _return(self, clean: "_Connection | None", used: "_Connection | None") -> None:
        with self._changed:
            if clean is not None and not self._is_closed and self._pid == os.getpid():
                self._idle.append(clean)
            else:
                self._open = max(0, self._open - 1)
                if used is not None:
                    used.close()
            self._changed.notify()

    def _forget_the_parents(self) -> None:
        """Leave the connections of the process this one was forked from alone: both would read the same answers."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            for connection in self._idle:
                connection.close()
            self._idle = []
            self._open = 0


class _Lost(Exception):
    """The connection ended before a whole answer."""

    def __init__(self, reason: str, *, has_begun: bool) -> None:
        super().__init__(reason)
        self.reason = reason
        self.has_begun = has_begun


def lost_error(address: Address, reason: str) -> Unavailable:
    """Return the error of a connection that ended too early."""
    return Unavailable(
        f"the connection to '{address.url}' ended before the answer: {reason}",
        hint="the gateway may be restarting; see: argosy watch",
        code="connection_lost",
        retry_after_s=0.0,
    )


def unreachable_error(address: Address, error: OSError) -> ArgosyError:
    """Return the error of a connection that was not made. Raises nothing."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return IntegrityError(
            f"the certificate of '{address.url}' is not trusted: {error.verify_message}",
            hint="give the file with your authority's certificates as ca_file",
            code="untrusted_certificate",
        )
    if isinstance(error, ssl.SSLError):
        return InvalidInput(
            f"'{address.url}' can't be reached with TLS: {error.reason or error}",
            hint="check host and port, and whether the server is plain http://",
            code="not_a_gateway",
        )
    return Unavailable(
        f"nobody can be reached at '{address.url}': {error.strerror or error}",
        hint="start what was deployed with: argosy up; or check the URL",
        code="not_reachable",
        retry_after_s=0.0,
    )


class _Connection:
    """One socket."""

    def __init__(self, address: Address, tls: ssl.SSLContext | None, clock: Clock, deadline: float) -> None:
        self._clock = clock
        self._deadline = deadline
        self._address = address
        try:
            self._socket = _connected(address, self._left)
        except TimeoutError as error:
            raise _no_connection(address) from error
        except OSError as error:
            raise unreachable_error(address, error) from error
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if tls is not None:
                self._socket.settimeout(self._left())
                self._socket = tls.wrap_socket(self._socket, server_hostname=address.host)
        except BaseException as error:
            self._socket.close()
            if isinstance(error, TimeoutError):
                raise _no_connection(address) from error
            if isinstance(error, OSError):
                raise unreachable_error(address, error) from error
            raise

    def ask(
        self, request: Request, headers: Sequence[tuple[str, str]], deadline: float, max_answer_bytes: int
    ) -> Answer:
        """Send and receive. Raises _Lost, TimeoutError, InvalidInput."""
        self._deadline = deadline
        reader = AnswerReader(max_answer_bytes)
        lost = "the server closed it"
        try:
            self._send([request.head(self._address, headers, self._left()), *request.body])
        except _BROKEN as error:
            # It may have refused the request before it had all of it, and said why.
            lost = error.strerror or lost
        while True:
            self._socket.settimeout(self._left())
            try:
                data = self._socket.recv(_READ_BYTES)
            except TimeoutError:
                raise
            except OSError as error:
                raise _Lost(error.strerror or str(error), has_begun=reader.has_begun) from error
            if reader.feed(data) if data else reader.end():
                assert reader.answer is not None
                return reader.answer
            if not data:
                raise _Lost(lost, has_begun=reader.has_begun)

    def is_quiet(self) -> bool:
        """Return whether an idle connection is still open and has nothing to say, as it must be."""
        try:
            poll = select.poll()
            poll.register(self._socket, select.POLLIN)
            return not poll.poll(0)
        except (OSError, ValueError):
            return False

    def close(self) -> None:
        """Close it."""
        with contextlib.suppress(OSError):
            self._socket.close()

    def _send(self, pieces: list[bytes | memoryview]) -> None:
        small = sum(len(piece) for piece in pieces) <= 64 << 10
        for piece in [b"".join(pieces)] if small else pieces:
            view = memoryview(piece).cast("B") if len(piece) else memoryview(b"")
            while len(view):
                self._socket.settimeout(self._left())
                view = view[self._socket.send(view[:_READ_BYTES]) :]

    def _left(self) -> float:
        """Return the seconds until the deadline. Raises TimeoutError when there are none."""
        left = self._deadline - self._clock.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _no_connection(address: Address) -> DeadlineExceeded:
    return DeadlineExceeded(
        f"no connection to '{address.url}' within the time that was left",
        hint="check the URL, and what stands between",
        code="deadline_exceeded",
    )


def _connected(address: Address, left: Callable[[], float]) -> socket.socket:
    """Connect to the first of the host's addresses that takes us."""
    trouble: OSError = OSError(f"'{address.dial}' has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(address.dial, address.port, type=socket.SOCK_STREAM):
        found = socket.socket(family, kind, protocol)
        try:
            found.settimeout(left())
            found.connect(where)
        except TimeoutError:
            found.close()
            raise
        except OSError as error:
            found.close()
            trouble = error
        except BaseException:
            found.close()
            raise
        else:
            return found
    raise trouble
