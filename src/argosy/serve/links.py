"""The gateway's end of its Unix socket: replicas and fronts say hello there, the controller asks."""

import asyncio
import os
import socket
import struct
from collections.abc import Callable
from typing import Any, cast

from argosy.core.errors import ArgosyError, Internal, InvalidInput, to_dict
from argosy.core.logs import get_logger
from argosy.serve import wire
from argosy.serve.fronts import FrontPeer
from argosy.serve.glance import Glance
from argosy.serve.pool import Pool, Replica

log = get_logger()

_MAX_LINKS = 1024


class Link(asyncio.Protocol):
    """One connection: a replica's after its `Hello`, a front's after its `FrontHello`, or somebody's who asks."""

    def __init__(
        self,
        pool: Pool,
        answer: Callable[[wire.Ask], Any],
        links: "set[Link]",
        make_peer: Callable[[wire.FrontHello, asyncio.WriteTransport], FrontPeer],
    ) -> None:
        self._pool = pool
        self._make_peer = make_peer
        self._front: FrontPeer | None = None
        self._answer = answer
        self._links = links
        self._reader = wire.FrameReader()
        self._replica: Replica | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take processes of this user only, and not endlessly many."""
        self._transport = cast("asyncio.Transport", transport)
        if len(self._links) >= _MAX_LINKS or not _is_ours(transport.get_extra_info("socket")):
            log.warning("link_refused", links=len(self._links))
            self._transport.abort()
            return
        self._links.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Give a replica's work to others."""
        del exc
        self._links.discard(self)
        if self._replica is not None:
            replica, self._replica = self._replica, None
            self._pool.gone(replica)
        if self._front is not None:
            front, self._front = self._front, None
            front.gone()

    def data_received(self, data: bytes) -> None:
        """Take frames; a peer that sends anything else is cut off."""
        try:
            for frame, body in self._reader.feed(data):
                self._take(frame, body)
        except ArgosyError as error:
            log.warning("link_broken", error=error.message)
            self.hang_up()

    def hang_up(self) -> None:
        """Close at once."""
        if self._transport is not None:
            self._transport.abort()

    def _take(self, frame: wire.Frame, body: memoryview) -> None:
        replica = self._replica
        if isinstance(frame, wire.Done) and replica is not None:
            self._pool.heard(replica)
            replica.done(frame, body)
            self._pool.finished(replica)
        elif isinstance(frame, wire.Beat) and replica is not None:
            self._pool.heard(replica)
        elif isinstance(frame, wire.Hello) and replica is not None:
            replica.greeted(frame)
            self._pool.learned(replica)
        elif isinstance(frame, wire.Leaving) and replica is not None:
            self._pool.leaving(replica)
        elif isinstance(frame, wire.Hello) and self._transport is not None:
            self._replica = Replica(frame, self._transport, self._pool, Glance(self._transport))
            self._pool.joined(self._replica)
        elif self._front is not None and self._front.take(frame, body):
            pass
        elif isinstance(frame, wire.FrontHello) and replica is None and self._transport is not None:
            self._front = self._make_peer(frame, self._transport)
        elif isinstance(frame, wire.Ask) and self._transport is not None:
            self._transport.writelines(wire.encode(self._answered(frame)))
        else:
            raise InvalidInput(f"a frame of the kind {type(frame).__name__} has no place here", code="bad_frame")

    def _answered(self, ask: wire.Ask) -> wire.Answer:
        try:
            return wire.Answer(self._answer(ask))
        except ArgosyError as error:
            return wire.Answer(None, to_dict(error))
        except Exception as error:
            log.exception("ask_failed", what=ask.what)
            return wire.Answer(None, to_dict(Internal(f"the gateway could not do '{ask.what}': {error}")))


def _is_ours(peer: socket.socket | None) -> bool:
    """Return whether the process at the other end belongs to this user (or to root)."""
    if peer is None:
        return False
    found = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", found)[1]
    return uid in (os.getuid(), 0)
