"""`inference.GRPCInferenceService`: messages to the data plane and back. What a request means is decided elsewhere.

Request metadata: `authorization`, `argosy-timeout` and `argosy-caller`, as over HTTP. Every answered inference has the
trailing metadata `argosy-prediction` and `argosy-version`, and `argosy-failover` when another version than the drawn
one answered; every error has `argosy-code`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import grpc

from argosy import __version__
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Internal, InvalidInput, Unavailable
from argosy.core.logs import get_logger
from argosy.serve import v2
from argosy.serve.access import NOBODY, Access, Caller
from argosy.serve.dataplane import Call, DataPlane
from argosy.serve.deadlines import timeout_of
from argosy.serve.endpoint import version_number
from argosy.serve.rpc import codec, messages
from argosy.serve.rpc.describe import model_config, model_metadata
from argosy.serve.rpc.status import details_of, status_of, trailers_of

log = get_logger()

EXTENSIONS = ("model_repository", "model_configuration")
_SLOW_MESSAGES = 8
"""So many messages may take longer than `receive_s` to arrive, and the longest of them are given up for others."""
_BYTES_PER_S = 256 << 10
"""The slowest that a large message may come in."""
# The core ends a call at its client's deadline by cancelling it, a little before or after our clock says so.
_DEADLINE_PRECISION_S = 0.02


class _Method(NamedTuple):
    answer: Callable[["_Rpc", bytes], Awaitable[Any]]
    is_open: bool = False
    """For everybody, also without a key."""


class InferenceService:
    """The methods, and what is bounded over all calls. Lives on the gateway's event loop."""

    def __init__(
        self,
        plane: DataPlane,
        access: Access,
        clock: Clock,
        *,
        max_calls: int,
        max_body_bytes: int,
        receive_s: float,
        timeout_s: float,
    ) -> None:
        self.plane = plane
        self.access = access
        self.clock = clock
        self.max_calls = max_calls
        self.timeout_s = timeout_s
        self.calls = 0
        """Calls that are not over, those too whose client does not take its answer."""
        self.receiving: dict[_Rpc, float] = {}
        """Calls whose message has not arrived yet, the oldest first, and since when."""
        self._receive_s = receive_s
        self._longest_s = receive_s + max_body_bytes / _BYTES_PER_S

    def service(self, details: Any) -> Any:
        """Return what answers a call, by its method's name; None for an unknown one. grpc asks this for every call."""
        method = METHODS.get(details.method)
        if method is None:
            return None
        # As if the client streamed its one message: only so can a wait for a message that never comes be ended.
        return grpc.stream_unary_rpc_method_handler(_Rpc(self, method, details.invocation_metadata).run)

    def check(self, now: float) -> None:
        """Give up calls whose message takes too long. Called a few times a second."""
        slow = [rpc for rpc, since in self.receiving.items() if now - since > self._receive_s]
        for index, rpc in enumerate(slow):
            if index < len(slow) - _SLOW_MESSAGES or now - self.receiving[rpc] > self._longest_s:
                rpc.give_up()


class _Rpc:
    """One call."""

    __slots__ = ("_context", "_is_late", "_metadata", "_method", "_service", "_task")

    def __init__(self, service: InferenceService, method: _Method, metadata: Any) -> None:
        self._service = service
        self._method = method
        self._metadata: dict[str, Any] = dict(metadata)
        self._context: Any = None
        self._task: asyncio.Task[Any] | None = None
        self._is_late = False

    async def run(self, requests: Any, context: Any) -> bytes:
        """Answer; whatever goes wrong is told as a status."""
        del requests
        self._context = context
        service = self._service
        service.calls += 1
        context.add_done_callback(self._over)
        try:
            return await self._answer()
        except ArgosyError as error:
            refusal = error
        except (grpc.aio.BaseError, grpc.RpcError):
            raise  # the core's own: the client has gone, or the server stops
        except Exception:
            # The outermost point of one call: the others go on.
            log.exception("request_failed")
            refusal = Internal("the request could not be processed", hint="see the gateway's log")
        await context.abort(status_of(refusal), details_of(refusal), trailers_of(refusal))
        raise AssertionError  # abort always raises

    def give_up(self) -> None:
        """Wait no longer for the message."""
        if self._task is not None:
            self._is_late = True
            self._task.cancel()

    def caller(self) -> Caller:
        """Return who calls; Denied without a valid key where one is needed."""
        if self._method.is_open:
            return NOBODY
        return self._service.access.caller_of(self._metadata.get("authorization"))

    async def _answer(self) -> bytes:
        service = self._service
        if service.calls > service.max_calls:
            service.plane.counters.count("argosy_refused_total", "too_many_calls")
            raise Unavailable("too many calls are under way", hint="send it again", code="too_many_calls")
        self.caller()  # before the message is read: whoever has no key costs no more than this
        answer = await self._method.answer(self, await self._message())
        return answer if isinstance(answer, bytes) else answer.SerializeToString()

    async def _message(self) -> bytes:
        service = self._service
        self._task = asyncio.current_task()
        service.receiving[self] = service.clock.monotonic()
        try:
            found = await self._context.read()
        except asyncio.CancelledError:
            if not self._is_late or self._task is None:
                raise
            self._task.uncancel()
            raise DeadlineExceeded("the message did not arrive in time", code="request_timeout") from None
        finally:
            service.receiving.pop(self, None)
            self._task = None
        if found is grpc.aio.EOF:
            raise InvalidInput("the call ended without a message", code="bad_message")
        return found  # type: ignore[no-any-return]

    def _over(self, context: Any) -> None:
        del context
        self._service.calls -= 1

    # Methods -------------------------------------------------------------------------------------------------------

    async def infer(self, data: bytes) -> bytes:
        """ModelInfer."""
        plane = self._service.plane
        message, raw = codec.parse_infer(data)
        caller = self.caller()
        caller.check(message.model_name)
        endpoint = plane.endpoint(message.model_name)
        number = message.model_version
        signature = plane.signature(endpoint, number)
        asked = codec.read_request(message, raw)
        if asked.outputs:
            v2.check_outputs(signature, asked)
        timeout_s = self._timeout()
        future: asyncio.Future[Call] = asyncio.get_running_loop().create_future()

        def done(call: Call) -> None:
            if not future.done():
                future.set_result(call)

        call = plane.infer(
            endpoint,
            asked.inputs,
            done,
            timeout_s=timeout_s,
            caller=str(self._metadata.get("argosy-caller", ""))[:256],
            number=number,
            client=caller if caller.name else None,
        )
        try:
            await future
        except asyncio.CancelledError:
            # The core cancels at the client's deadline too; then the call is left to the plane, which counts it as
            # what it is, not answered in time, on the same tick.
            left_s = self._context.time_remaining()
            if left_s is None or left_s > _DEADLINE_PRECISION_S:
                call.cancel()
            raise
        if call.error is not None:
            raise call.error
        named = (("argosy-prediction", call.prediction), ("argosy-version", call.ref))
        self._context.set_trailing_metadata((*named, ("argosy-failover", call.failover)) if call.failover else named)
        return codec.encode_response(
            asked, endpoint.route.name, version_number(call.ref), call.outputs, call.prediction
        )

    def _timeout(self) -> float:
        """Return the seconds for an inference; 0: the gateway's own default.

        `argosy-timeout` stands in for the default as over HTTP; the client's deadline can only shorten either.
        """
        named = timeout_of(self._metadata.get("argosy-timeout"))
        left_s = self._context.time_remaining()
        if left_s is None:
            return named
        if left_s <= 0:
            raise DeadlineExceeded("the call's deadline had passed before it was read", hint="give it more time")
        return min(named or self._service.timeout_s, left_s)  # type: ignore[no-any-return]

    async def model_ready(self, data: bytes) -> Any:
        """ModelReady."""
        plane = self._service.plane
        asked = codec.parse(messages.ModelReadyRequest, data)
        self.caller().check(asked.name)
        endpoint = plane.endpoint(asked.name)
        found = endpoint.digest_of(asked.version) if asked.version else (endpoint.plan.serving, "")
        return messages.ModelReadyResponse(ready=found is not None and found[0] in plane.pool.ready)

    async def model_metadata(self, data: bytes) -> Any:
        """ModelMetadata."""
        asked = codec.parse(messages.ModelMetadataRequest, data)
        self.caller().check(asked.name)
        endpoint = self._service.plane.endpoint(asked.name)
        return model_metadata(endpoint, self._service.plane.signature(endpoint, asked.version))

    async def model_config(self, data: bytes) -> Any:
        """ModelConfig."""
        plane = self._service.plane
        asked = codec.parse(messages.ModelConfigRequest, data)
        self.caller().check(asked.name)
        endpoint = plane.endpoint(asked.name)
        signature = plane.signature(endpoint, asked.version)
        found = endpoint.digest_of(asked.version) if asked.version else (endpoint.plan.serving, "")
        sizes = [r.hello.max_batch for r in plane.pool.replicas.values() if found and r.hello.digest == found[0]]
        return model_config(endpoint, signature, max(sizes, default=0))

    async def repository_index(self, data: bytes) -> Any:
        """RepositoryIndex: what this caller may use."""
        asked = codec.parse(messages.RepositoryIndexRequest, data)
        caller = self.caller()
        answer = messages.RepositoryIndexResponse()
        for name, endpoint in self._service.plane.endpoints.items():
            if caller.may(name) and not (asked.ready and endpoint.plan.is_held):
                answer.models.add(
                    name=name,
                    version=version_number(endpoint.plan.serving_ref),
                    state="UNAVAILABLE" if endpoint.plan.is_held else "READY",
                    reason=endpoint.plan.note,
                )
        return answer

    async def server_metadata(self, data: bytes) -> Any:
        """ServerMetadata."""
        del data
        return messages.ServerMetadataResponse(name="argosy", version=__version__, extensions=EXTENSIONS)

    async def server_live(self, data: bytes) -> Any:
        """ServerLive."""
        del data
        return messages.ServerLiveResponse(live=True)

    async def server_ready(self, data: bytes) -> Any:
        """ServerReady."""
        del data
        held = any(endpoint.plan.is_held for endpoint in self._service.plane.endpoints.values())
        return messages.ServerReadyResponse(ready=not held)


METHODS = {
    f"/{messages.SERVICE}/{name}": method
    for name, method in {
        "ServerLive": _Method(_Rpc.server_live, is_open=True),
        "ServerReady": _Method(_Rpc.server_ready, is_open=True),
        "ServerMetadata": _Method(_Rpc.server_metadata),
        "ModelReady": _Method(_Rpc.model_ready),
        "ModelMetadata": _Method(_Rpc.model_metadata),
        "ModelInfer": _Method(_Rpc.infer),
        "ModelConfig": _Method(_Rpc.model_config),
        "RepositoryIndex": _Method(_Rpc.repository_index),
    }.items()
}
"""Every method by the path of its calls."""
