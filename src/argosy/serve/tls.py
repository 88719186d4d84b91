"""TLS 1.3 in front of the gateway: a certificate that is read again when its files change, and an accepting end.

Clients are accepted here and not by the event loop's own server, because that would hide connections that are stuck in
the handshake: they count like others, end after a few seconds, and each one gets the certificate of its moment.
"""

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

from argosy.core.errors import InvalidInput
from argosy.core.logs import get_logger

log = get_logger()

_ACCEPTS_PER_TURN = 64
_NO_DESCRIPTORS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_RELIEF_S = 0.1
_GOODBYE_S = 1.0
"""Time for a client to confirm the end of its connection."""

Stamp = tuple[tuple[int, int, int, int], ...]


def make_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """Return what a handshake needs, TLS 1.3 only. Raises InvalidInput when the files don't fit."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without the function a key with a passphrase would make OpenSSL ask for it on the terminal, and wait.
        context.load_cert_chain(certificate, key, password=_no_passphrase)
    except (OSError, ValueError) as error:  # an error of TLS is an OSError
        raise InvalidInput(
            f"the certificate '{certificate}' with the key '{key}' can't be used: {getattr(error, 'strerror', error)}",
            hint="check both files: argosy gateway show",
            code="bad_certificate",
        ) from error
    return context


class CertificateFiles:
    """A certificate and its key on disk. `context` is for the next handshake; connections keep what they have."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._files = (certificate, key)
        self._seen = self._stamp()
        self.context = make_context(certificate, key)

    def refresh(self) -> bool:
        """Read the files again if they have changed; return whether others are in use now.

        Files that don't fit leave the former ones in use: the one is always written before the other.
        """
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        # Taken before reading: what changes while it is read is seen the next time.
        self._seen = stamp
        try:
            self.context = make_context(*self._files)
        except InvalidInput as error:
            log.warning("certificate_not_reloaded", error=error.message)
            return False
        log.info("certificate_reloaded", path=str(self._files[0]))
        return True

    def _stamp(self) -> Stamp:
        found = []
        for path in self._files:
            with contextlib.suppress(OSError):
                status = path.stat()
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)


class TlsListener:
    """Accepts clients and takes them through the handshake, each on its own and within `handshake_s`."""

    def __init__(
        self,
        listener: socket.socket,
        files: CertificateFiles,
        make_protocol: Callable[[], asyncio.BaseProtocol],
        *,
        handshake_s: float,
        has_room: Callable[[int], bool],
        refused: Callable[[str], None],
    ) -> None:
        """`has_room(n)`: whether one more client may come while `n` are in the handshake; `refused` counts reasons."""
        self._listener = listener
        self._files = files
        self._make_protocol = make_protocol
        self._handshake_s = handshake_s
        self._has_room = has_room
        self._refused = refused
        self._loop = asyncio.get_running_loop()
        self._relief: asyncio.TimerHandle | None = None
        self.handshakes: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Accept from now on."""
        self._listener.setblocking(False)
        self._relief = None
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        """Accept nobody any more, and end the handshakes under way."""
        if self._relief is not None:
            self._relief.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        for task in list(self.handshakes):
            task.cancel()

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            try:
                client, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in _NO_DESCRIPTORS:
                    # Asking again at once would find the same and take all the time there is.
                    log.warning("no_descriptors", error=error.strerror)
                    self._loop.remove_reader(self._listener)
                    self._relief = self._loop.call_later(_RELIEF_S, self.start)
                    return
                continue  # this client has gone before it was accepted
            client.setblocking(False)
            if not self._has_room(len(self.handshakes)):
                self._refused("too_many_connections")
                client.close()
                continue
            task = self._loop.create_task(self._shake_hands(client))
            self.handshakes.add(task)
            task.add_done_callback(self.handshakes.discard)

    async def _shake_hands(self, client: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(
                self._make_protocol,
                client,
                ssl=self._files.context,
                ssl_handshake_timeout=self._handshake_s,
                ssl_shutdown_timeout=_GOODBYE_S,
            )
        except OSError:  # errors of TLS and timeouts among them
            self._refused("tls_handshake")


def _no_passphrase() -> str:
    raise InvalidInput("the private key is encrypted", code="bad_private_key")
