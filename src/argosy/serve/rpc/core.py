"""grpc's core with the gateway's event loop in place of grpc's own servers for Python.

The public asyncio server can't be shown to hostile clients: one call whose path is not UTF-8 ends it for everybody
(tests/fault/test_grpc_faults.py sends such calls), and it can neither end a wait for a message that never comes nor let
go of a client that never takes its answer. The public threaded one needs a thread per waiting call. This uses what both
are made of, `grpc._cython.cygrpc`, and less than half the CPU of the former (measured: 0.13 ms per empty call, 64 at
once, in place of 0.3). That module has no promise of stability, so all that is used of it is used here, checked before
the first use, and has been there since 2018.

A thread waits for an event of the core, hands it to the loop and rests; the loop takes it and whatever else has come
meanwhile, and sends the thread to wait again. So no call is ever looked at by two threads.
"""

import asyncio
import contextlib
import ctypes
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import grpc

from argosy.core.errors import PluginError
from argosy.core.logs import get_logger

try:
    from grpc._cython import cygrpc
except ImportError:  # pragma: no cover - no release known to do without
    cygrpc = None

log = get_logger()

Trailers = Sequence[tuple[str, str]]

_USED = {
    "CompletionQueue": ("poll", "shutdown"),
    "Server": (
        "register_completion_queue", "add_http2_port", "start", "request_call", "shutdown", "cancel_all_calls",
        "destroy",
    ),
    "ReceiveCloseOnServerOperation": ("cancelled",), "ReceiveMessageOperation": ("message",),
    "SendInitialMetadataOperation": (), "SendMessageOperation": (), "SendStatusFromServerOperation": (),
}  # fmt: skip
_CALLS_AHEAD = 64
"""Calls the core may take before it hears from us."""
_EVENTS_PER_TURN = 256
_OK = 0
_NO_FLAGS = 0
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # glibc, <malloc.h>
_KEPT_BYTES = 4 << 20


class CoreCall:
    """One call of a client, as the core knows it."""

    __slots__ = ("_call", "deadline", "metadata", "path")

    def __init__(self, event: Any, on_over: Callable[[bool], None]) -> None:
        """`on_over(is_cancelled)` is called once, when nothing more can be told to the client, or it has been told."""
        self._call = event.call
        self.path: bytes = event.call_details.method
        self.deadline: float = event.call_details.deadline
        """Wall clock, seconds; infinite when the client gave none."""
        self.metadata: Sequence[tuple[str, str | bytes]] = event.invocation_metadata
        self._call.start_server_batch(
            (cygrpc.ReceiveCloseOnServerOperation(_NO_FLAGS),),
            lambda event: on_over(event.batch_operations[0].cancelled()),
        )

    def receive(self, on_message: Callable[[bytes | None], None]) -> None:
        """Read the message; None when the client ended or broke off without one."""
        self._call.start_server_batch(
            (cygrpc.ReceiveMessageOperation(_NO_FLAGS),), lambda event: on_message(event.batch_operations[0].message())
        )

    def answer(self, message: bytes, trailers: Trailers) -> None:
        """Send the one message and the trailing metadata. To be called once, and not with `refuse`."""
        self._finish((cygrpc.SendMessageOperation(message, _NO_FLAGS),), _OK, "", trailers)

    def refuse(self, status: int, details: str, trailers: Trailers) -> None:
        """Send a status other than OK. To be called once, and not with `answer`."""
        self._finish((), status, details, trailers)

    def cancel(self) -> None:
        """Break off; harmless when it is over."""
        self._call.cancel()

    def _finish(self, message: tuple[Any, ...], status: int, details: str, trailers: Trailers) -> None:
        self._call.start_server_batch(
            (
                cygrpc.SendInitialMetadataOperation((), _NO_FLAGS),
                *message,
                cygrpc.SendStatusFromServerOperation(trailers, status, details, _NO_FLAGS),
            ),
            _ignore,
        )


def _ignore(event: Any) -> None:
    del event


class Core:
    """A server of the core. All methods are for the event loop's thread."""

    def __init__(
        self, options: Sequence[tuple[str, int]], accept: Callable[[Any], None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """`accept` gets the event of each new call, to make a `CoreCall` of it. PluginError: grpcio doesn't fit."""
        check_grpcio()
        share_heaps()
        # What clients send wrong is told to them; grpc would also write a stack into the log for each of it.
        logging.getLogger("grpc").setLevel(logging.CRITICAL)
        self._accept = accept
        self._loop = loop
        self._queue = cygrpc.CompletionQueue()
        self._server = cygrpc.Server(tuple(options), False)
        self._server.register_completion_queue(self._queue)
        self._is_ending = False
        self._ended = loop.create_future()
        self._may_wait = threading.Lock()  # released by the loop, taken by the thread
        self._may_wait.acquire()
        self._waiter = threading.Thread(target=self._wait, name="grpc-events", daemon=True)

    def listen(self, address: str, credentials: Any = None) -> bool:
        """Take an address, before `start`; return whether it could be had."""
        try:
            if credentials is None:
                return bool(self._server.add_http2_port(address.encode()))
            return bool(self._server.add_http2_port(address.encode(), credentials._credentials))  # noqa: SLF001
        except RuntimeError:
            return False

    def start(self) -> None:
        """Serve."""
        self._server.start()
        for _ in range(_CALLS_AHEAD):
            self._request()
        self._waiter.start()

    async def stop(self, grace_s: float) -> None:
        """Take no calls any more, wait for those under way, at most `grace_s`, and end. To be called once."""
        if not self._waiter.is_alive():
            # The core wants a server to have been started before it ends.
            self._server.start()
            self._waiter.start()
        self._is_ending = True
        self._server.shutdown(self._queue, lambda _: self._ended.set_result(None))
        try:
            await asyncio.wait_for(asyncio.shield(self._ended), grace_s)
        except TimeoutError:
            self._server.cancel_all_calls()
            await self._ended
        self._server.destroy()
        self._queue.shutdown()
        await asyncio.to_thread(self._waiter.join)

    def _request(self) -> None:
        self._server.request_call(self._queue, self._queue, self._called)

    def _called(self, event: Any) -> None:
        if not event.success:
            return  # the server ends
        if not self._is_ending:
            self._request()
        self._accept(event)

    def _wait(self) -> None:
        """Bring events to the loop: the life of a thread."""
        while True:
            try:
                event = self._queue.poll()
            except Exception:
                log.exception("grpc_event_lost")
                continue
            if event.tag is None:
                return  # the queue has been shut down, and nothing is left in it
            self._loop.call_soon_threadsafe(self._take, event)
            # A call that has ended must not be kept by a name here until the next event comes.
            del event
            self._may_wait.acquire()

    def _take(self, event: Any) -> None:
        """Take an event, and those that came after it."""
        for _ in range(_EVENTS_PER_TURN):
            try:
                event.tag(event)
            except Exception:
                # The outermost point of one event: the others go on.
                log.exception("grpc_event_failed")
            event = self._queue.poll(deadline=0)
            if event.tag is None:
                break  # nothing has come
        else:
            self._loop.call_soon(self._take, event)
            return
        self._may_wait.release()


def share_heaps() -> None:
    """Have the core's threads, which are still to be started, use two heaps and not one each; without glibc, nothing.

    They receive large messages in small pieces, and what one of them frees the others can't use. Measured with messages
    of 16 MiB: a gateway grew to 230 MB and stayed there; so, and with `give_back_memory`, to 145, and back to 70.
    `malloc_trim` leaves the free end of the second heap as it is, which left 94 to 99 MB on a busy machine; glibc
    itself gives it back above a threshold, which must be held down, as it grows with the largest piece ever freed.
    """
    with contextlib.suppress(AttributeError, OSError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_ARENA_MAX, 2)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)


def give_back_memory() -> None:
    """Give free memory back to the system, in some milliseconds; without glibc, do nothing."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def check_grpcio() -> None:
    """Raise PluginError unless the installed grpcio has what is used here."""
    missing = [
        f"{name}.{part}"
        for name, parts in _USED.items()
        for part in ("__name__", *parts)
        if not hasattr(getattr(cygrpc, name, None), part)
    ]
    if missing:
        raise PluginError(
            f"gRPC can't be served with grpcio {grpc.__version__}: its {', '.join(missing[:3])} is not there",
            hint="install a version of grpcio that this Argosy was tested with, or turn gRPC off: --grpc-port -1",
            code="grpcio_not_usable",
        )
