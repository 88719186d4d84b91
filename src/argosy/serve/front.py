"""A front: a process that only speaks HTTP with callers, several of them on one port (SO_REUSEPORT).

Worth it where many cores wait for one event loop: reading HTTP and JSON is most of what a small request costs. It
decodes and checks requests, hands tensors to the gateway over its Unix socket and writes answers; everything that is
decided is decided there. It keeps what it has asked until it is answered, so a restart of the gateway loses nothing:
the requests are sent again, within their deadlines.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from argosy.core.clock import Clock, SystemClock
from argosy.core.config import from_plain, traces_endpoint
from argosy.core.errors import ArgosyError, DeadlineExceeded, InvalidInput, NotFound, Unavailable, from_dict
from argosy.core.logs import configure_logs, get_logger
from argosy.core.tensors import Signature
from argosy.serve import wire
from argosy.serve.access import Access, AccessRules, check_exposure
from argosy.serve.carriers import Carrier, CarryingFront
from argosy.serve.connection import Exchange
from argosy.serve.control import FrontConfig
from argosy.serve.dataplane import Client
from argosy.serve.heads import Head
from argosy.serve.http import HttpFront
from argosy.serve.listening import Listening, allow_descriptors, keep_forever, listen
from argosy.serve.tls import CertificateFiles

log = get_logger()

_TICK_S = 0.025
_SWEEP_S = 0.25
_REPORT_S = 1.0
_REDIAL_S = 0.05
_GRACE_S = 4.0
_SLACK_S = 0.25
"""The gateway's own word that a deadline has passed comes first; only if it says nothing, the front does."""
_MAX_WAITING = 8192
_SPARE_DESCRIPTORS = 64


def main(config: dict[str, Any]) -> None:
    """Run a front until SIGTERM; then what was accepted is answered."""
    import uvloop

    settings = from_plain(config, FrontConfig, where="front")
    configure_logs(settings.log_level, process="front", front=settings.name)
    allow_descriptors(settings.max_connections + _SPARE_DESCRIPTORS)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, SystemClock()))


class Asked:
    """A request that was handed to the gateway. Has what `HttpFront` reads in a finished call."""

    __slots__ = ("body", "deadline", "error", "failover", "frame", "on_done", "outputs", "plane", "prediction", "ref")

    def __init__(
        self, plane: "RemotePlane", frame: wire.Infer | wire.Page, body: list[bytes | memoryview], deadline: float
    ) -> None:
        self.plane = plane
        self.frame = frame
        self.body = body
        self.deadline = deadline
        self.on_done: Callable[[Any], None] = _ignore
        self.outputs: list[wire.Tensor] = []
        self.error: ArgosyError | None = None
        self.ref = ""
        self.prediction = ""
        self.failover = ""

    def cancel(self) -> None:
        """Forget it: nobody waits for it any more."""
        if self.plane.waiting.pop(self.frame.call, None) is not None:
            self.plane.send(wire.Forget(self.frame.call))


def _ignore(asked: Asked) -> None:
    del asked


def _nothing_told(told: wire.Told) -> None:
    del told


class RemoteEndpoint:
    """An endpoint as a front knows it."""

    __slots__ = ("name", "signatures")

    def __init__(self, name: str, signatures: Mapping[str, Signature]) -> None:
        self.name = name
        self.signatures = signatures


class _Tally:
    """Counts what happens here, until it is reported."""

    def __init__(self) -> None:
        self.counts: dict[tuple[str, tuple[str, ...]], float] = {}

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        self.counts[name, labels] = self.counts.get((name, labels), 0.0) + by


class RemotePlane:
    """The gateway's data plane, from another process: what `HttpFront` needs of `DataPlane`."""

    def __init__(self, config: FrontConfig, clock: Clock, later: Callable[[Callable[[], None]], object]) -> None:
        self.clock = clock
        self.counters = _Tally()
        self.endpoints: dict[str, RemoteEndpoint] = {}
        self.waiting: dict[int, Asked] = {}
        self.carrier: Carrier = {}
        """What the caller of the request that is being handled says of its trace."""
        self.on_told: Callable[[wire.Told], object] = _nothing_told
        self._config = config
        self._later = later
        self._transport: asyncio.WriteTransport | None = None
        self._out: list[bytes | memoryview] = []
        self._count = 0

    # What `HttpFront` calls ----------------------------------------------------------------------------------------

    def endpoint(self, name: str) -> RemoteEndpoint:
        """Return an endpoint, or raise NotFound, which tells no others' names: they are not for everybody."""
        found = self.endpoints.get(name)
        if found is None:
            raise NotFound(
                f"there is no endpoint '{name[:100]}'",
                hint="list those you may use: GET /, or RepositoryIndex",
                code="unknown_endpoint",
            )
        return found

    def signature(self, endpoint: RemoteEndpoint, number: str = "") -> Signature:
        """Return what callers of an endpoint, or of one of its versions by number, must send."""
        found = endpoint.signatures.get(number)
        if found is None and number:
            known = ", ".join(sorted(set(endpoint.signatures) - {""}))
            raise NotFound(
                f"endpoint '{endpoint.name}' does not serve version '{number[:40]}'; it serves: {known}",
                code="unknown_version",
            )
        if found is None:
            raise Unavailable(
                f"no replica of endpoint '{endpoint.name}' has been ready yet",
                hint="it is being loaded; retry",
                code="not_ready",
                retry_after_s=1.0,
            )
        return found

    def infer(
        self,
        endpoint: RemoteEndpoint,
        tensors: Mapping[str, wire.Tensor],
        on_done: Callable[[Any], None],
        *,
        timeout_s: float = 0.0,
        caller: str = "",
        number: str = "",
        client: Client | None = None,
    ) -> Asked:
        """Hand a request to the gateway; `on_done` is called once with what came back, unless it is cancelled."""
        timeout_s = timeout_s or self._config.timeout_s
        frame = wire.Infer(
            self._next(), endpoint.name, number, timeout_s, caller,
            client.name if client is not None else "", client.weight if client is not None else 1.0,
            tuple([(t.name, t.datatype, t.shape, len(t.data)) for t in tensors.values()]),
            self.carrier or None,
        )  # fmt: skip
        return self._ask(frame, [t.data for t in tensors.values()], timeout_s, on_done)

    def forward(self, exchange: Exchange, refuse: Callable[[Exchange, ArgosyError], None]) -> None:
        """Have the gateway answer a request as a whole; `refuse` says that it didn't."""
        head = exchange.head
        frame = wire.Page(self._next(), head.method, head.target, head.headers, exchange.keep_alive)

        def done(asked: Asked) -> None:
            if asked.error is not None:
                refuse(exchange, asked.error)
                return
            exchange.on_cancel = None
            exchange.data = list(asked.body)
            exchange.connection.flush()

        exchange.on_cancel = self._ask(frame, [bytes(exchange.body)], self._config.timeout_s, done).cancel

    # What the uplink calls -----------------------------------------------------------------------------------------

    def connected(self, transport: asyncio.WriteTransport) -> None:
        """Say hello, and ask again what the former gateway has not answered."""
        self._transport = transport
        self._out = []
        self.send(wire.FrontHello(self._config.name, os.getpid()))
        now = self.clock.monotonic()
        for asked in self.waiting.values():
            left = max(0.001, asked.deadline - now)
            again = (
                msgspec.structs.replace(asked.frame, timeout_s=left) if isinstance(asked.frame, wire.Infer) else None
            )
            self.send(again or asked.frame, asked.body)

    def lost(self) -> None:
        """Wait for the next gateway."""
        self._transport = None

    def take(self, frame: wire.Frame, body: memoryview) -> None:
        """Take what the gateway says."""
        if isinstance(frame, wire.Told):
            self.endpoints = {name: RemoteEndpoint(name, found) for name, found in frame.signatures.items()}
            self.on_told(frame)
        elif isinstance(frame, wire.Inferred):
            asked = self.waiting.pop(frame.call, None)
            if asked is not None:
                _fill(asked, frame, body)
                self._finish(asked)
        elif isinstance(frame, wire.Written):
            asked = self.waiting.pop(frame.call, None)
            if asked is not None:
                asked.body = [bytes(body)]
                self._finish(asked)

    def tick(self) -> None:
        """End what got no answer in time."""
        now = self.clock.monotonic()
        for asked in [a for a in self.waiting.values() if now > a.deadline + _SLACK_S]:
            del self.waiting[asked.frame.call]
            self.send(wire.Forget(asked.frame.call))
            asked.error = DeadlineExceeded(
                "the gateway did not answer within the request's time", hint="it may be starting; send it again"
            )
            self._finish(asked)

    def report(self, connections: int) -> None:
        """Tell the gateway what was counted here."""
        if self._transport is not None:
            counts, self.counters.counts = self.counters.counts, {}
            self.send(wire.Counted(tuple((name, labels, by) for (name, labels), by in counts.items()), connections))

    def send(self, message: wire.Message, body: list[bytes | memoryview] | None = None) -> None:
        """Send a frame at the end of this turn; without a gateway it is dropped, and what matters is asked again."""
        if self._transport is None:
            return
        if not self._out:
            self._later(self._flush)
        self._out += wire.encode(message, body or ())

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(out)

    def _ask(
        self,
        frame: wire.Infer | wire.Page,
        body: list[bytes | memoryview],
        timeout_s: float,
        on_done: Callable[[Any], None],
    ) -> Asked:
        if len(self.waiting) >= _MAX_WAITING:
            self.counters.count("argosy_refused_total", "too_much_at_once")
            raise Unavailable(
                f"{len(self.waiting)} requests are under way; at most {_MAX_WAITING} may",
                hint="retry after the time in Retry-After",
                code="too_much_at_once",
                retry_after_s=1.0,
            )
        asked = self.waiting[frame.call] = Asked(self, frame, body, self.clock.monotonic() + timeout_s)
        asked.on_done = on_done
        self.send(frame, body)
        return asked

    def _finish(self, asked: Asked) -> None:
        try:
            asked.on_done(asked)
        except Exception:
            # The outermost point of one request: the others go on.
            log.exception("answer_not_delivered")

    def _next(self) -> int:
        self._count += 1
        return self._count


def _fill(asked: Asked, frame: wire.Inferred, body: memoryview) -> None:
    asked.ref, asked.prediction, asked.failover = frame.ref, frame.prediction, frame.failover
    asked.error = from_dict(frame.error) if frame.error is not None else None
    at = 0
    for name, datatype, shape, size in frame.outputs:
        asked.outputs.append(wire.Tensor(name, datatype, shape, body[at : at + size]))
        at += size


class RemoteFront(HttpFront):
    """HTTP whose inferences are decoded here, and whose other pages are the gateway's."""

    def _other(self, head: Head) -> Callable[[Exchange], None]:
        del head
        return self._forward

    def _forward(self, exchange: Exchange) -> None:
        plane = cast("Any", self.plane)
        plane.forward(exchange, self.refuse)


class CarryingRemoteFront(CarryingFront, RemoteFront):
    """The same, for a gateway that makes spans."""


class _Uplink(asyncio.Protocol):
    """The connection to the gateway."""

    def __init__(self, plane: RemotePlane, lost: asyncio.Event) -> None:
        self._plane = plane
        self._lost = lost
        self._reader = wire.FrameReader()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._plane.connected(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self._plane.lost()
        self._lost.set()

    def data_received(self, data: bytes) -> None:
        try:
            for frame, body in self._reader.feed(data):
                self._plane.take(frame, body)
        except ArgosyError as error:
            log.warning("gateway_not_understood", error=error.message)
            if self._transport is not None:
                self._transport.abort()


class _Front:
    """One front's parts on a running event loop."""

    def __init__(self, config: FrontConfig, clock: Clock) -> None:
        self._loop = asyncio.get_running_loop()
        self._config = config
        self._clock = clock
        self.plane = RemotePlane(config, clock, self._loop.call_soon)
        self.access = Access(clock, None)
        plane: Any = self.plane
        self.http = (CarryingRemoteFront if traces_endpoint() else RemoteFront)(
            plane, self.access, clock, max_body_bytes=config.max_body_bytes, receive_s=config.receive_s,
            host=config.host, hosts=config.hosts,
        )  # fmt: skip
        self.certificate = CertificateFiles(Path(config.tls_cert), Path(config.tls_key)) if config.tls_cert else None
        self.http.scheme = "https" if self.certificate is not None else "http"
        self.is_told = asyncio.Event()
        self.plane.on_told = self._told

    def _told(self, told: wire.Told) -> None:
        rules = from_plain(told.access, AccessRules, where="access") if told.access is not None else None
        try:
            # A front of former settings may outlive its gateway for a moment, and hear what a less open one is told.
            check_exposure(
                self._config.host, has_tls=self.certificate is not None, is_guarded=rules is None or rules.is_on
            )
        except InvalidInput as error:
            log.warning("access_not_believed", error=error.message)
            rules = None
        self.access.set(rules)
        self.http.heads.forget()
        self.http.grpc_port = told.grpc_port
        self.is_told.set()

    async def stay_connected(self) -> None:
        """Dial the gateway, and again whenever it has gone."""
        while True:
            lost = asyncio.Event()
            with contextlib.suppress(OSError):
                await self._loop.create_unix_connection(lambda: _Uplink(self.plane, lost), self._config.socket)  # noqa: B023
                await lost.wait()
            await asyncio.sleep(_REDIAL_S)

    def tick(self) -> None:
        """Look at deadlines and slow clients, for ever."""
        try:
            self.plane.tick()
            self.http.tick()
        except Exception:
            # The outermost loop of the process: without it slow clients would stay.
            log.exception("tick_failed")
        self._loop.call_later(_TICK_S, self.tick)

    def sweep(self) -> None:
        """Look at the certificate, for ever."""
        if self.certificate is not None:
            self.certificate.refresh()
        self._loop.call_later(_SWEEP_S, self.sweep)

    def report(self) -> None:
        """Tell the gateway what was counted, for ever."""
        self.plane.report(len(self.http.connections))
        self._loop.call_later(_REPORT_S, self.report)

    async def finish(self) -> None:
        """Answer what was accepted, then hang up."""
        deadline = self._clock.monotonic() + _GRACE_S
        for connection in list(self.http.connections):
            connection.finish()
        while self._clock.monotonic() < deadline and any(c.is_busy for c in self.http.connections):  # noqa: ASYNC110
            # For the process's last moments an event per answer isn't worth it.
            await asyncio.sleep(0.02)


async def _serve(config: FrontConfig, clock: Clock) -> None:
    loop = asyncio.get_running_loop()
    front = _Front(config, clock)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    uplink = loop.create_task(front.stay_connected())
    ended = loop.create_task(stop.wait())
    told = loop.create_task(front.is_told.wait())
    await asyncio.wait({told, ended}, return_when=asyncio.FIRST_COMPLETED)
    if not stop.is_set():
        listener = listen(config.host, config.port, is_shared=True)
        listening = Listening(
            front.http,
            front.certificate,
            max_connections=config.max_connections,
            receive_s=config.receive_s,
            refused=lambda reason: front.plane.counters.count("argosy_refused_total", reason),
        )
        outer = await listening.open(listener)
        front.tick()
        front.sweep()
        front.report()
        keep_forever()
        log.info("front_listens", host=config.host, port=config.port)
        await ended
        log.info("front_stops")
        outer.close()
        await front.finish()
    told.cancel()
    uplink.cancel()
