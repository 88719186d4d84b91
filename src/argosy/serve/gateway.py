"""The gateway process: listens for callers on HTTP and gRPC, and for replicas and the controller on a Unix socket."""

import asyncio
import contextlib
import os
import random
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.core.clock import Clock, SystemClock
from argosy.core.config import from_plain, prefer_environment, private_folder
from argosy.core.errors import ArgosyError, Conflict, InvalidInput, NotFound, PluginError
from argosy.core.files import FileLock, write_atomic
from argosy.core.logs import configure_logs, get_logger
from argosy.core.tensors import Signature
from argosy.serve import wire
from argosy.serve.access import Access, AccessRules, check_exposure, url_of
from argosy.serve.access_file import AccessFile
from argosy.serve.control import LISTENING, EndpointRoute, GatewayConfig, GatewayStatus
from argosy.serve.dataplane import DataPlane
from argosy.serve.fronts import FrontPeer
from argosy.serve.gateway_front import GatewayFront
from argosy.serve.keeper import ControllerKeeper
from argosy.serve.links import Link
from argosy.serve.listening import Listening, allow_descriptors, keep_forever, listen
from argosy.serve.prediction_id import MIN_KEY_BYTES
from argosy.serve.tls import CertificateFiles, TlsListener
from argosy.serve.waking import NAME, Waker

if TYPE_CHECKING:
    from argosy.core.tracing import Tracing
    from argosy.serve.rpc.server import GrpcFront

log = get_logger()

_TICK_S = 0.025
_SETTLE_S = 3.0
"""Time for living replicas to find a restarted gateway; they look for it every second at least."""
_SWEEP_S = 0.25
_GRACE_S = 4.0
_SPARE_DESCRIPTORS = 1280
_MAX_SOCKET_PATH = 107  # Linux, <sys/un.h>: sun_path holds 108 bytes with the final zero


class SavedState(msgspec.Struct, forbid_unknown_fields=True):
    """What a restarted gateway needs to serve before the controller has spoken."""

    routes: list[EndpointRoute]
    signatures: dict[str, Signature]


def main(config: dict[str, Any]) -> None:
    """Run a gateway until SIGTERM; then what was accepted is answered, for at most four seconds."""
    import uvloop

    settings = from_plain(config, GatewayConfig, where="gateway")
    configure_logs(settings.log_level, process="gateway")
    check_config(settings)
    private_folder(Path(settings.socket).parent)
    lock = FileLock(Path(f"{settings.socket}.lock"))
    if not lock.acquire():
        raise Conflict(f"another gateway already serves '{settings.socket}'", code="gateway_running")
    allow_descriptors(settings.max_connections + _SPARE_DESCRIPTORS)
    listener = listen(settings.host, settings.port, is_shared=bool(settings.fronts), takes_clients=not settings.fronts)
    reserved = reserve(settings, listener.getsockname()[1])
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, SystemClock(), listener, reserved))
    finally:
        listener.close()
        if reserved is not None:
            reserved.close()
        with contextlib.suppress(OSError):
            Path(settings.socket).unlink()
        lock.release()


def check_config(config: GatewayConfig) -> None:
    """Raise InvalidInput for values that can't work or would open the gateway to others."""
    if bool(config.tls_cert) != bool(config.tls_key):
        raise InvalidInput("a certificate needs its private key, and the key its certificate")
    check_exposure(config.host, has_tls=bool(config.tls_cert), is_guarded=config.is_guarded)
    if not 0 <= config.port <= 65535:
        raise InvalidInput(f"port {config.port} does not exist; give one up to 65535, or 0 for any free one")
    if not -1 <= config.grpc_port <= 65535:
        raise InvalidInput(
            f"port {config.grpc_port} does not exist; give one up to 65535 for gRPC, 0 for any free one, or -1 for none"
        )
    if not 1 <= config.max_body_bytes <= wire.MAX_BODY_BYTES // 4:
        raise InvalidInput(
            f"max_body_bytes is {config.max_body_bytes}; give at most {wire.MAX_BODY_BYTES // 4}, because numbers "
            "can take four times as much as tensors"
        )
    if len(os.fsencode(config.socket)) > _MAX_SOCKET_PATH:
        raise InvalidInput(
            f"the socket's path '{config.socket}' is longer than the {_MAX_SOCKET_PATH} bytes Linux allows",
            hint="set ARGOSY_RUNTIME to a shorter folder",
        )
    try:
        size = len(bytes.fromhex(config.key))
    except ValueError:
        size = 0
    if not MIN_KEY_BYTES <= size <= 64:
        raise InvalidInput(f"the key for prediction ids must be {MIN_KEY_BYTES} to 64 bytes in hex")


def reserve(config: GatewayConfig, http_port: int) -> socket.socket | None:
    """Return a socket that holds the port of gRPC until its server takes it; None when there is to be none.

    Raises Conflict when the port that was asked for is taken.
    """
    if config.grpc_port < 0:
        return None
    if config.grpc_port:
        return listen(config.host, config.grpc_port)
    for port in (config.grpc_before, http_port + 1):
        if 0 < port <= 65535:
            with contextlib.suppress(Conflict, InvalidInput):
                return listen(config.host, port)
    return listen(config.host, 0)


def listen_unix(path: str) -> socket.socket:
    """Return the listening Unix socket; the caller holds the lock that says nobody else has it."""
    # A file that is still there was left by a gateway that was killed.
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(path)
    Path(path).chmod(0o600)
    return listener


def _tracing() -> "Tracing | None":
    """Return the gateway's tracing, None while it is off; without the library it serves all the same."""
    from argosy.core.tracing import open_tracing

    try:
        return open_tracing("argosy-gateway", share=0.1)
    except PluginError as error:
        log.warning("tracing_off", error=error.message, hint=error.hint)
        return None


def _make_plane(config: GatewayConfig, clock: Clock, chance: random.Random, tracing: "Tracing | None") -> DataPlane:
    later = asyncio.get_running_loop().call_soon
    if tracing is None:
        return DataPlane(config, clock, chance, later)
    from argosy.serve.traced import TracedDataPlane

    return TracedDataPlane(config, clock, chance, later, tracing.tracer)


def _front_class(tracing: "Tracing | None") -> type[GatewayFront]:
    if tracing is None:
        return GatewayFront
    from argosy.serve.traced import TracedFront

    return TracedFront


class Gateway:
    """One gateway's parts on a running event loop."""

    def __init__(self, config: GatewayConfig, clock: Clock, port: int) -> None:
        loop = asyncio.get_running_loop()
        chance = random.Random()  # noqa: S311 - draws versions, seeded by the system; secrets come from elsewhere
        self.tracing = _tracing()
        self.plane = _make_plane(config, clock, chance, self.tracing)
        self._access_file = AccessFile(Path(config.state).with_name("access.json"))
        self.access = Access(clock, self._access_file.load(is_guarded=config.is_guarded))
        self.front = _front_class(self.tracing)(
            self.plane,
            self.access,
            clock,
            max_body_bytes=config.max_body_bytes,
            receive_s=config.receive_s,
            host=config.host,
            hosts=config.hosts,
        )
        self.certificate = CertificateFiles(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None
        self.front.scheme = "https" if self.certificate is not None else "http"
        self.grpc: GrpcFront | None = None
        self.grpc_port = 0 if config.grpc_port >= 0 else -1
        self.links: set[Link] = set()
        self.peers: set[FrontPeer] = set()
        """Fronts that are connected."""
        self.keeper = ControllerKeeper(config.keeper, clock)
        self._config = config
        self._clock = clock
        self._port = port
        self._started = clock.now()
        self._loop = loop
        self._restore()
        self.plane.on_routes = self._routes_changed
        self.plane.counters.gauges(self._gauges)
        self.wake = self.plane.on_held = Waker(Path(config.socket).with_name(NAME), clock, self.keeper.hurry)

    def link(self) -> Link:
        """Return a protocol for a new peer on the Unix socket."""
        return Link(
            self.plane.pool,
            self.answer,
            self.links,
            lambda hello, transport: FrontPeer(hello, transport, self, self._loop.call_soon),
        )

    def answer(self, ask: wire.Ask) -> Any:
        """Do what the controller asks."""
        if ask.what == "status":
            if ask.given == "controller":
                self.keeper.heard()
            return msgspec.to_builtins(self.status())
        if ask.what == "set_routes":
            self.plane.set_routes(from_plain(ask.given, list[EndpointRoute], where="routes"))
            return None
        if ask.what == "set_access":
            self._set_access(from_plain(ask.given, AccessRules, where="access"))
            return None
        if ask.what == "windows":
            ack = from_plain(ask.given or {}, dict[str, int], where="windows")
            # Buckets are numbers, which a plain mapping may not have as keys in every encoding; msgpack has them.
            return [msgspec.to_builtins(window, str_keys=False) for window in self.plane.windows.closed(ack)]
        if ask.what == "drain":
            replica = self.plane.pool.replicas.get(str(ask.given))
            if replica is not None:
                self.plane.pool.drain(replica)
            return None
        raise NotFound(f"the gateway can't be asked for '{ask.what}'", code="unknown_ask")

    def status(self) -> GatewayStatus:
        """Return what this gateway sees."""
        return GatewayStatus(
            pid=os.getpid(),
            host=self._config.host,
            port=self._port,
            grpc_port=self.grpc_port,
            started=self._started,
            asked={name: getattr(self._config, name) for name in LISTENING},
            access=self.access.rules.digest if self.access.rules is not None else "",
            replicas=tuple(replica.status() for replica in self.plane.pool.replicas.values()),
            endpoints=tuple(self.plane.statuses()),
            versions=tuple(self.plane.pool.statuses()),
            fronts=tuple(sorted(peer.hello.front for peer in self.peers)),
            windows_waiting=self.plane.windows.waiting,
            windows_dropped=self.plane.windows.dropped,
        )

    def tick(self) -> None:
        """Look at deadlines, replicas, windows and slow clients, for ever."""
        try:
            self.plane.tick()
            self.front.tick()
        except Exception:
            # The outermost loop of the process: without it slow clients would stay.
            log.exception("tick_failed")
        self._loop.call_later(_TICK_S, self.tick)

    def sweep(self) -> None:
        """Look at what changes seldom, for ever: saved state, gRPC's slow clients, who is held, the certificate."""
        try:
            self._look_around()
        except Exception:
            # An outermost loop, too.
            log.exception("sweep_failed")
        self._loop.call_later(_SWEEP_S, self.sweep)

    def _look_around(self) -> None:
        if self.plane.endpoints:
            self.keeper.look()
        if self.grpc is not None:
            self.grpc.check(self._clock.monotonic())
        if self.plane.holds:
            self.wake()
        if self.certificate is not None and self.certificate.refresh() and self.grpc is not None:
            self.grpc.renew_certificate()

    async def listen(self, listener: socket.socket) -> asyncio.AbstractServer | TlsListener:
        """Let clients in; return what `close` keeps them out again."""
        listening = Listening(
            self.front,
            self.certificate,
            max_connections=self._config.max_connections,
            receive_s=self._config.receive_s,
            refused=lambda reason: self.plane.counters.count("argosy_refused_total", reason),
        )
        return await listening.open(listener)

    async def open_grpc(self, reserved: socket.socket) -> None:
        """Serve gRPC on the port that was reserved. HTTP is served meanwhile: grpc takes a while to be imported."""
        port: int = reserved.getsockname()[1]
        front = await asyncio.to_thread(_import_grpc_front)
        try:
            self.grpc = front(self.plane, self.access, self._clock, self._config)
        except PluginError as error:
            log.warning("grpc_not_served", error=error.message, hint=error.hint)
            self.grpc_port = -1
            return
        finally:
            reserved.close()
        await self.grpc.start(port)
        self.grpc_port = self.front.grpc_port = port
        self._tell_fronts()
        keep_forever()
        log.info("grpc_listens", host=self._config.host, port=port)

    async def finish(self) -> None:
        """Answer what was accepted, then hang up."""
        deadline = self._clock.monotonic() + _GRACE_S
        grpc_end = self._loop.create_task(self.grpc.stop(_GRACE_S)) if self.grpc is not None else None
        for connection in list(self.front.connections):
            connection.finish()
        while self._clock.monotonic() < deadline and any(c.is_busy for c in self.front.connections):  # noqa: ASYNC110
            # For the process's last moments an event per answer isn't worth it.
            await asyncio.sleep(0.02)
        if grpc_end is not None:
            await grpc_end
        for link in list(self.links):
            link.hang_up()
        if self.tracing is not None:
            await asyncio.to_thread(self.tracing.close)

    def _set_access(self, rules: AccessRules) -> None:
        check_exposure(self._config.host, has_tls=self.certificate is not None, is_guarded=rules.is_on)
        self.access.set(rules)
        self.front.heads.forget()
        self._tell_fronts()
        self._access_file.save(rules)
        log.info("access_set", is_on=rules.is_on, keys=len(rules.keys))

    def _restore(self) -> None:
        path = Path(self._config.state)
        try:
            saved = msgspec.json.decode(path.read_bytes(), type=SavedState)
            self.plane.signatures.update(saved.signatures)
            self.plane.settle(_SETTLE_S)
            self.plane.set_routes(saved.routes)
        except FileNotFoundError:
            return
        except (OSError, msgspec.MsgspecError, ArgosyError) as error:
            # The controller pushes the routes again within a second; a spoilt file must not keep the gateway down.
            log.warning("routes_not_restored", error=str(error))
            return
        log.info("routes_restored", endpoints=sorted(self.plane.endpoints))

    def _routes_changed(self) -> None:
        self._tell_fronts()
        self._save()

    def _tell_fronts(self) -> None:
        for peer in self.peers:
            peer.tell()

    def _gauges(self) -> list[tuple[str, tuple[str, ...], float]]:
        connections = len(self.front.connections) + sum(peer.connections for peer in self.peers)
        return [("argosy_connections", (), float(connections)), ("argosy_fronts", (), float(len(self.peers)))]

    def _save(self) -> None:
        routes = [endpoint.route for endpoint in self.plane.endpoints.values()]
        state = msgspec.json.encode(SavedState(routes, self.plane.signatures))
        try:
            write_atomic(Path(self._config.state), state, mode=0o600)
        except (OSError, ArgosyError) as error:
            # Serving matters more: after a restart the routes come from the controller alone.
            log.warning("routes_not_saved", error=str(error))


def _import_grpc_front() -> "type[GrpcFront]":
    prefer_environment(
        # Its core would write a line into the log for whatever a client sends wrong, and so let clients fill it.
        GRPC_VERBOSITY="NONE",
        # TLS 1.3 has its own list. With a secret that nobody shares as the only other choice, no older one is spoken.
        GRPC_SSL_CIPHER_SUITES="ECDHE-PSK-CHACHA20-POLY1305",
    )
    from argosy.serve.rpc.server import GrpcFront

    return GrpcFront


async def _serve(config: GatewayConfig, clock: Clock, listener: socket.socket, reserved: socket.socket | None) -> None:
    loop = asyncio.get_running_loop()
    port: int = listener.getsockname()[1]
    gateway = Gateway(config, clock, port)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    meeting = listen_unix(config.socket)
    inner = await loop.create_unix_server(gateway.link, sock=meeting, backlog=256)
    # With fronts the port is only held, so that it stays ours: clients come to the fronts.
    outer = await gateway.listen(listener) if not config.fronts else None
    gateway.tick()
    gateway.sweep()
    keep_forever()
    url = url_of(config.host, config.hosts, port, has_tls=bool(config.tls_cert))
    _write_url(config, url)
    log.info("gateway_listens", host=config.host, port=port, url=url)
    opening = loop.create_task(_open_grpc(gateway, reserved, stop)) if reserved is not None else None
    await stop.wait()
    log.info("gateway_stops")
    if outer is not None:
        outer.close()
    if opening is not None:
        opening.cancel()
    await gateway.finish()
    inner.close()
    if opening is not None:
        with contextlib.suppress(asyncio.CancelledError):
            await opening


def _write_url(config: GatewayConfig, url: str) -> None:
    """Tell clients on this machine where the gateway is (client/settings.py reads it)."""
    try:
        write_atomic(Path(config.socket).with_name("gateway.url"), f"{url}\n".encode())
    except (OSError, ArgosyError) as error:
        log.warning("url_not_written", error=str(error))


async def _open_grpc(gateway: Gateway, reserved: socket.socket, stop: asyncio.Event) -> None:
    try:
        await gateway.open_grpc(reserved)
    except Exception:
        # Half a gateway would look healthy to whoever watches HTTP; one that ends is started again.
        stop.set()
        raise
