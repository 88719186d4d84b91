"""`AsyncClient`: the same calls on asyncio."""

import asyncio
import contextlib
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from types import TracebackType
from typing import Any, Self

from argosy.client.calls import Calls, Send, T, Talk
from argosy.client.http1 import Address, Answer, AnswerReader, Request, address_of, tls_context
from argosy.client.messages import Metadata, Model, Prediction
from argosy.client.pool import lost_error, unreachable_error
from argosy.client.settings import default_url, standing_headers
from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import ArgosyError, InvalidInput

_READ_BYTES = 256 << 10
_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class AsyncClient:
    """`argosy.Client` for asyncio: the same arguments, methods and errors, each method a coroutine.

    One client belongs to one event loop. Cancelling a call closes its connection, which tells the gateway.
    """

    def __init__(
        self,
        url: str = "",
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 2,
        ca_file: str | Path | None = None,
        connect_to: str = "",
        connections: int = 64,
        max_answer_bytes: int = 256 << 20,
        clock: Clock | None = None,
        randomness: Random | None = None,
    ) -> None:
        address = address_of(url or default_url(), connect_to)
        self._clock = clock or SystemClock()
        chance = randomness or Random()  # noqa: S311 - how long to wait, no secret
        self._calls = Calls(address, self._clock, chance, timeout_s=timeout_s, retries=retries)
        self._pool = _Pool(
            address,
            tls_context(address, ca_file),
            standing_headers(address, api_key),
            clock=self._clock,
            size=connections,
            max_answer_bytes=max_answer_bytes,
        )

    @property
    def url(self) -> str:
        """Where the requests go."""
        return self._calls.address.url

    async def predict(
        self, endpoint: str, inputs: Any, *, timeout_s: float | None = None, caller: str = ""
    ) -> Prediction:
        """Ask for a prediction, see `Client.predict`."""
        return await self._run(self._calls.predict(endpoint, inputs, timeout_s, caller))

    async def infer(
        self,
        endpoint: str,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        version: str = "",
        timeout_s: float | None = None,
        caller: str = "",
    ) -> Prediction:
        """Ask with whole tensors by name, see `Client.infer`."""
        return await self._run(
            self._calls.infer(endpoint, inputs, outputs, version, timeout_s=timeout_s, caller=caller)
        )

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """Return the endpoints that are served."""
        return await self._run(self._calls.models(timeout_s))

    async def metadata(self, name: str, *, timeout_s: float | None = None) -> Metadata:
        """Return what an endpoint takes and gives."""
        return await self._run(self._calls.metadata(name, timeout_s))

    async def ready(self, name: str, *, timeout_s: float | None = None) -> bool:
        """Return whether an endpoint can answer now."""
        return await self._run(self._calls.ready(name, timeout_s))

    async def wait_ready(self, name: str, timeout_s: float = 60.0) -> None:
        """Return when an endpoint can answer; DeadlineExceeded says why not."""
        await self._run(self._calls.wait_ready(name, timeout_s))

    async def close(self) -> None:
        """Close the connections."""
        self._pool.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"AsyncClient({self.url!r})"

    async def _run(self, talk: Talk[T]) -> T:
        try:
            step = next(talk)
            while True:
                answer: Answer | None = None
                try:
                    if isinstance(step, Send):
                        async with asyncio.timeout(max(0.0, step.deadline - self._clock.monotonic())):
                            answer = await self._pool.exchange(step.request, step.deadline)
                    else:
                        await asyncio.sleep(step.seconds)
                except (ArgosyError, TimeoutError) as error:
                    step = talk.throw(error)
                else:
                    step = talk.send(answer)
        except StopIteration as end:
            result: T = end.value
            return result


class _Pool:
    """At most `size` connections, used one request at a time."""

    def __init__(
        self,
        address: Address,
        tls: ssl.SSLContext | None,
        headers: Sequence[tuple[str, str]],
        *,
        clock: Clock,
        size: int,
        max_answer_bytes: int,
    ) -> None:
        self._address = address
        self._tls = tls
        self._headers = headers
        self._clock = clock
        self._max_answer_bytes = max_answer_bytes
        self._places = asyncio.Semaphore(size)
        self._idle: list[_Streams] = []
        self._is_closed = False

    async def exchange(self, request: Request, deadline: float) -> Answer:
        """Send and receive; the caller's timeout bounds it. Raises Unavailable, InvalidInput, IntegrityError."""
        async with self._places:
            while True:
                if self._is_closed:
                    raise InvalidInput("this client is closed", code="client_closed")
                streams, is_used = await self._take()
                reader = AnswerReader(self._max_answer_bytes)
                is_clean = False
                try:
                    answer = await self._talk(streams, request, reader, deadline)
                    is_clean = answer.keep_alive and not self._is_closed
                except OSError as error:
                    # A server may close a connection that waited here at the moment we send on it.
                    if is_used and not reader.has_begun:
                        continue
                    raise lost_error(self._address, error.strerror or str(error)) from error
                else:
                    return answer
                finally:
                    if is_clean:
                        self._idle.append(streams)
                    else:
                        _hang_up(streams)

    def close(self) -> None:
        """Close what is idle now, and what is in use when its answer has come."""
        self._is_closed = True
        while self._idle:
            _hang_up(self._idle.pop())

    async def _take(self) -> tuple[_Streams, bool]:
        while self._idle:
            streams = self._idle.pop()
            if not streams[0].at_eof() and not streams[1].is_closing():
                return streams, True
            _hang_up(streams)
        address = self._address
        name = address.host if self._tls else None
        try:
            return await asyncio.open_connection(
                address.dial, address.port, ssl=self._tls, server_hostname=name, limit=_READ_BYTES
            ), False
        except TimeoutError:
            raise
        except OSError as error:
            raise unreachable_error(address, error) from error

    async def _talk(self, streams: _Streams, request: Request, reader: AnswerReader, deadline: float) -> Answer:
        incoming, outgoing = streams
        left = deadline - self._clock.monotonic()
        with contextlib.suppress(ConnectionError):
            # It may refuse the request before it has all of it, and say why.
            outgoing.writelines([request.head(self._address, self._headers, left), *request.body])
            await outgoing.drain()
        while True:
            data = await incoming.read(_READ_BYTES)
            if reader.feed(data) if data else reader.end():
                assert reader.answer is not None
                return reader.answer
            if not data:
                raise ConnectionResetError("the server closed it")


def _hang_up(streams: _Streams) -> None:
    with contextlib.suppress(OSError, RuntimeError):
        streams[1].transport.abort()
