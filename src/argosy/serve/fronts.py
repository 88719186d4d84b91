"""The gateway's side of its fronts: processes that take HTTP off its hands where one event loop is not enough.

A front reads and writes HTTP and JSON; queues, batches, routes and counts stay here, in one place, so nothing about
rollouts, deadlines or metrics changes with the number of fronts. Whatever is not an inference, a front passes on whole.
"""

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Protocol

import msgspec

from argosy.core.errors import ArgosyError, Internal, Unavailable, to_dict
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.serve import wire
from argosy.serve.access import Access
from argosy.serve.carriers import carried
from argosy.serve.connection import Exchange
from argosy.serve.dataplane import Call, DataPlane
from argosy.serve.heads import Head
from argosy.serve.http import HttpFront

log = get_logger()

_MAX_CALLS = 16_384
"""Requests of one front that may be under way."""


class _Share(msgspec.Struct, frozen=True):
    """Whose share of a busy queue a front's request takes."""

    name: str
    weight: float


class _Reply:
    """Stands where an exchange has its connection: what is written goes back to the front."""

    is_open = True

    def __init__(self, peer: "FrontPeer", number: int) -> None:
        self._peer = peer
        self._number = number
        self.exchange: Exchange | None = None

    def flush(self) -> None:
        """Send the answer."""
        if self.exchange is not None and self.exchange.data is not None:
            self._peer.send(wire.Written(self._number), list(self.exchange.data))


class Host(Protocol):
    """What a peer needs of the gateway it belongs to."""

    plane: DataPlane
    access: Access
    grpc_port: int
    peers: "set[FrontPeer]"

    @property
    def front(self) -> HttpFront:
        """What answers the pages."""
        ...


class FrontPeer:
    """One connected front."""

    def __init__(
        self,
        hello: wire.FrontHello,
        transport: asyncio.WriteTransport,
        host: Host,
        later: Callable[[Callable[[], None]], object],
    ) -> None:
        self.hello = hello
        self.connections = 0
        self._transport = transport
        self._host = host
        self._later = later
        self._calls: dict[int, Call] = {}
        self._out: list[bytes | memoryview] = []
        host.peers.add(self)
        self.tell()
        log.info("front_joined", front=hello.front)

    def tell(self) -> None:
        """Say what there is to be asked for, and who may ask."""
        plane = self._host.plane
        known: dict[str, dict[str, Signature]] = {}
        for name, endpoint in plane.endpoints.items():
            found = {"": plane.signatures.get(endpoint.plan.serving)}
            for number in endpoint.numbers():
                pinned = endpoint.digest_of(number)
                found[number] = plane.signatures.get(pinned[0]) if pinned else None
            known[name] = {number: signature for number, signature in found.items() if signature is not None}
        rules = self._host.access.rules
        access = msgspec.to_builtins(rules) if rules is not None else None
        self.send(wire.Told(known, access, max(0, self._host.grpc_port)))

    def take(self, frame: wire.Frame, body: memoryview) -> bool:
        """Do what a frame of the front asks; False if it is none of a front's."""
        if isinstance(frame, wire.Infer):
            self._infer(frame, body)
        elif isinstance(frame, wire.Forget):
            call = self._calls.pop(frame.call, None)
            if call is not None:
                call.cancel()
        elif isinstance(frame, wire.Page):
            self._page(frame, body)
        elif isinstance(frame, wire.Counted):
            self.connections = frame.connections
            for name, labels, by in frame.counts:
                self._host.plane.counters.count(name, *labels, by=by)
        else:
            return False
        return True

    def gone(self) -> None:
        """Forget what it asked for: its callers have gone with it, or it will ask again."""
        self._host.peers.discard(self)
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.cancel()
        log.info("front_gone", front=self.hello.front, in_flight=len(calls))

    def send(self, message: wire.Message, body: list[bytes | memoryview] | None = None) -> None:
        """Send a frame at the end of this turn of the loop, together with the others."""
        if not self._out:
            self._later(self._flush)
        self._out += wire.encode(message, body or ())

    def _flush(self) -> None:
        out, self._out = self._out, []
        if not self._transport.is_closing():
            self._transport.writelines(out)

    def _infer(self, frame: wire.Infer, body: memoryview) -> None:
        plane = self._host.plane
        tensors = {}
        at = 0
        for name, datatype, shape, size in frame.inputs:
            tensors[name] = wire.Tensor(name, datatype, shape, body[at : at + size])
            at += size
        if len(self._calls) >= _MAX_CALLS or frame.call in self._calls:
            error = Unavailable("a front asks for too much at once", code="too_much_at_once", retry_after_s=1.0)
            self.send(wire.Inferred(frame.call, error=to_dict(error)))
            return
        try:
            # The front has looked at the key, but maybe under rules that have changed since.
            self._host.access.check_holder(frame.key, frame.endpoint)
            with carried(plane, frame.carrier) if frame.carrier else nullcontext():
                self._calls[frame.call] = plane.infer(
                    plane.endpoint(frame.endpoint),
                    tensors,
                    lambda call: self._done(frame.call, call),
                    timeout_s=frame.timeout_s,
                    caller=frame.caller,
                    number=frame.number,
                    client=_Share(frame.key, frame.weight) if frame.key else None,
                )
        except ArgosyError as error:
            self.send(wire.Inferred(frame.call, error=to_dict(error)))
        except Exception:
            # The outermost point of one request: the others go on.
            log.exception("request_failed")
            self.send(wire.Inferred(frame.call, error=to_dict(Internal("the request could not be processed"))))

    def _done(self, number: int, call: Call) -> None:
        self._calls.pop(number, None)
        if call.error is not None:
            self.send(wire.Inferred(number, call.ref, error=to_dict(call.error)))
            return
        outputs = tuple([(t.name, t.datatype, t.shape, len(t.data)) for t in call.outputs])
        self.send(
            wire.Inferred(number, call.ref, call.prediction, call.failover, outputs), [t.data for t in call.outputs]
        )

    def _page(self, frame: wire.Page, body: memoryview) -> None:
        head = Head()
        head.method, head.target, head.headers = frame.method, frame.target, frame.headers
        head.keep_alive = frame.keep_alive
        reply = _Reply(self, frame.call)
        connection: Any = reply
        exchange = Exchange(connection, head, bytes(body))
        reply.exchange = exchange
        self._host.front.handle(exchange)
