"""A small HTTP server on 127.0.0.1 for what belongs to monitoring: metrics to read, alerts to take.

It runs in a thread beside the loop of its process and costs nothing until somebody asks: libraries are imported with
the first connection. Every request needs the secret of the home, because loopback is shared with every user of the
machine. Size, time and number of requests at once are bounded.
"""

import contextlib
import hmac
import os
import socket
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.core.config import Settings, private_folder
from argosy.core.errors import ArgosyError, Conflict, Denied, InvalidInput, NotFound
from argosy.core.files import create_exclusive, write_atomic

if TYPE_CHECKING:
    from socketserver import BaseServer

HOST = "127.0.0.1"
MAX_BODY_BYTES = 1_000_000
"""Alertmanager's notification of a hundred alerts has about 100 kB."""
REQUEST_S = 10.0
"""A request that is not there and answered by then is cut."""
MOST_AT_ONCE = 8

Answer = tuple[bytes, str]
"""A body and its content type."""
Route = Callable[[bytes], Answer]
"""Takes the body. An ArgosyError it raises becomes the answer."""
Refused = Callable[[str], None]
"""Takes the code of a refusal."""

_STATUS = {"denied": 401, "not_found": 404, "invalid_input": 400, "body_too_large": 413, "unavailable": 503}


def monitoring_token(settings: Settings) -> Path:
    """Return the file of the secret that reads metrics and brings alerts, made on first use."""
    path = settings.home / "keys" / "monitoring.token"
    with contextlib.suppress(Conflict):
        if not path.exists():
            private_folder(path.parent)
            create_exclusive(path, os.urandom(32).hex().encode(), mode=0o600)
    return path


def _say_nothing(code: str) -> None:
    del code


class Taken(msgspec.Struct, frozen=True):
    """Where a server listens, as its file says."""

    port: int
    pid: int


def read_taken(path: Path) -> Taken | None:
    """Return what a server wrote about itself; None: there was none yet, or the file was spoilt."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Taken)
    except (OSError, msgspec.MsgspecError):
        return None


class LoopbackServer:
    """Answers `routes`, by method and path, until `close`."""

    def __init__(
        self,
        routes: Mapping[tuple[str, str], Route],
        *,
        token: str,
        place: Path,
        port: int = 0,
        refused: Refused = _say_nothing,
    ) -> None:
        """`place`: the file that says where it listens. `port` 0: the one it had last, else any free one.

        Raises Conflict when a port that was asked for is somebody else's.
        """
        self._routes = dict(routes)
        self._token = token
        self.refused = refused
        self._room = threading.BoundedSemaphore(MOST_AT_ONCE)
        self._listening = _listen(place, port)
        self.port: int = self._listening.getsockname()[1]
        write_atomic(place, msgspec.json.encode(Taken(self.port, os.getpid())), mode=0o600)
        self._is_closed = False
        self._thread = threading.Thread(target=self._accept, name="argosy-loopback", daemon=True)

    def start(self) -> "LoopbackServer":
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Listen no longer."""
        self._is_closed = True
        with contextlib.suppress(OSError):
            self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()

    def answer(self, method: str, path: str, authorization: str, body: bytes) -> tuple[int, bytes, str]:
        """Return status, body and content type for a request."""
        try:
            self._admit(authorization)
            route = self._routes.get((method, path))
            if route is None:
                known = ", ".join(sorted(f"{m} {p}" for m, p in self._routes))
                raise NotFound(f"there is no {method[:10]} {path[:100]!r} here; there is: {known}")
            return 200, *route(body)
        except ArgosyError as error:
            self.refused(error.code)
            status = _STATUS.get(error.code) or _STATUS.get(type(error).code, 500)
            return status, msgspec.json.encode({"error": error.as_dict()}, enc_hook=str), "application/json"

    def _admit(self, authorization: str) -> None:
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), self._token.encode()):
            raise Denied(
                "this address is for whoever holds the secret of this home",
                hint="send it as 'Authorization: Bearer ...'; its file is keys/monitoring.token of ARGOSY_HOME",
            )

    def _accept(self) -> None:
        while not self._is_closed:
            try:
                connection, address = self._listening.accept()
            except OSError:
                continue  # closed, or a caller that hung up at once
            if not self._room.acquire(blocking=False):
                self.refused("too_many")
                connection.close()
                continue
            try:
                threading.Thread(target=self._serve, args=(connection, address), daemon=True).start()
            except RuntimeError:  # no room for another thread
                connection.close()
                self._room.release()

    def _serve(self, connection: socket.socket, address: tuple[str, int]) -> None:
        # However slowly a request drips in, it is over by then.
        guard = threading.Timer(REQUEST_S, _cut, args=(connection,))
        guard.daemon = True
        guard.start()
        try:
            connection.settimeout(REQUEST_S)
            _handler(self)(connection, address, None)
        except OSError:
            pass
        finally:
            guard.cancel()
            _cut(connection)
            connection.close()
            self._room.release()


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def _listen(place: Path, port: int) -> socket.socket:
    former = read_taken(place)
    tries = [port] if port else [former.port, 0] if former is not None else [0]
    for wanted in tries:
        listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, wanted))
            listening.listen(16)
        except OSError as error:
            listening.close()
            if wanted != tries[-1]:
                continue
            raise Conflict(
                f"port {wanted} of {HOST} can't be taken: {error.strerror}", hint="choose another", code="port_in_use"
            ) from error
        return listening
    raise Conflict(f"no port of {HOST} is free", code="port_in_use")  # pragma: no cover - the loop returns or raises


def _handler(server: LoopbackServer) -> Callable[[socket.socket, Any, "BaseServer | None"], object]:
    """Return what speaks HTTP on one connection. Imported late: 20 ms and 3 MB."""
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        timeout = REQUEST_S
        server_version = "argosy"
        sys_version = ""

        def do_GET(self) -> None:
            self._respond(*server.answer("GET", self._path, self.headers.get("authorization", ""), b""))

        def do_POST(self) -> None:
            try:
                body = self._body()
            except ArgosyError as error:
                server.refused(error.code)
                status = _STATUS.get(error.code, 400)
                text = msgspec.json.encode({"error": error.as_dict()}, enc_hook=str)
                self._respond(status, text, "application/json")
                return
            self._respond(*server.answer("POST", self._path, self.headers.get("authorization", ""), body))

        @property
        def _path(self) -> str:
            return self.path.partition("?")[0]

        def _body(self) -> bytes:
            given = self.headers.get("content-length", "")
            if not given.isascii() or not given.isdigit():
                raise InvalidInput("a body needs its length", hint="send the header content-length")
            if len(given) > 9 or int(given) > MAX_BODY_BYTES:
                raise InvalidInput(
                    f"the body has {given[:20]} bytes; at most {MAX_BODY_BYTES} are read", code="body_too_large"
                )
            found = self.rfile.read(int(given))
            if len(found) != int(given):
                raise InvalidInput(f"the body ended after {len(found)} of {given} bytes")
            return found

        def _respond(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the library's
            del format, args

    return Handler  # type: ignore[return-value]
