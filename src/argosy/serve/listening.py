"""Letting clients in: the port, how many may come, TLS; the same for the gateway and for its fronts."""

import asyncio
import contextlib
import errno
import fcntl
import gc
import os
import resource
import socket
from collections.abc import Callable
from pathlib import Path
from typing import cast

from argosy.core.errors import Conflict, InvalidInput
from argosy.serve.connection import Connection
from argosy.serve.http import HttpFront
from argosy.serve.tls import CertificateFiles, TlsListener


def listen(host: str, port: int, *, is_shared: bool = False, takes_clients: bool = True) -> socket.socket:
    """Return a listening socket; Conflict says which port is taken.

    `is_shared`: other processes of this user listen on the same port, and the system spreads clients over them.
    Without `takes_clients` the port is only held.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if is_shared:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        listener.bind((host, port))
        if takes_clients:
            listener.listen(1024)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise Conflict(
                f"port {port} on {host} is in use by another process",
                hint=f"choose another port, or see who has it: ss -ltnp 'sport = :{port}'",
                code="port_in_use",
                port=port,
            ) from error
        if error.errno == errno.EACCES:
            raise InvalidInput(
                f"port {port} on {host} may not be opened by this user", hint="choose a port above 1023"
            ) from error
        raise InvalidInput(f"the gateway can't listen on {host}:{port}: {error.strerror}") from error
    return listener


def allow_descriptors(wanted: int) -> None:
    """Raise this process's own limit on open files, as far as it may: each client takes one.

    The kernel's table of them is made large enough at once: while it grows, a process with several threads stands still
    for milliseconds, and hundreds of clients that come together would make it grow again and again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < limit:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    with Path(os.devnull).open() as any_file, contextlib.suppress(OSError):
        os.close(fcntl.fcntl(any_file, fcntl.F_DUPFD_CLOEXEC, limit - 1))


class Listening:
    """Accepts clients for one HTTP front, up to a bound."""

    def __init__(
        self,
        front: HttpFront,
        certificate: CertificateFiles | None,
        *,
        max_connections: int,
        receive_s: float,
        refused: Callable[[str], None],
    ) -> None:
        self._front = front
        self._certificate = certificate
        self._max_connections = max_connections
        self._receive_s = receive_s
        self._refused = refused

    async def open(self, listener: socket.socket) -> asyncio.AbstractServer | TlsListener:
        """Let clients in; return what `close` keeps them out again."""
        if self._certificate is None:
            loop = asyncio.get_running_loop()
            return await loop.create_server(self._connection, sock=listener, backlog=1024)
        found = TlsListener(
            listener,
            self._certificate,
            lambda: Connection(self._front),
            handshake_s=self._receive_s,
            has_room=lambda waiting: len(self._front.connections) + waiting < self._max_connections,
            refused=self._refused,
        )
        found.start()
        return found

    def _connection(self) -> asyncio.Protocol:
        """Return a protocol for a new client; beyond the bound, one that hangs up."""
        if len(self._front.connections) >= self._max_connections:
            self._refused("too_many_connections")
            return _Refusal()
        return Connection(self._front)


class _Refusal(asyncio.Protocol):
    """Tells one client too many to come again."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        client = cast("asyncio.WriteTransport", transport)
        body = b'{"error":"too many connections are open","code":"too_many_connections"}'
        client.write(
            b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
            b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        )
        client.close()


def keep_forever() -> None:
    """Spare what there is now from being looked at by every garbage collection; it would only delay answers."""
    gc.collect()
    gc.freeze()
    # Requests leave no cycles behind, but a batch of them is more objects than the collector's usual threshold, so it
    # would walk through all that are under way again and again: a sixth of a small request's cost.
    gc.set_threshold(20_000, 20, 50)
