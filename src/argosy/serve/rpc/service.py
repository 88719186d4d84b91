"""`inference.GRPCInferenceService`: messages to the data plane and back. What a request means is decided elsewhere.

Request metadata: `authorization`, `argosy-timeout`, `argosy-caller` and `traceparent`, as over HTTP. Every answered
inference has the trailing metadata `argosy-prediction` and `argosy-version`, and `argosy-failover` when another version
than the drawn one answered; every error has `argosy-code`.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Internal, InvalidInput, NotFound, Unavailable
from argosy.core.logs import get_logger
from argosy.core.version import __version__
from argosy.serve import triton, v2
from argosy.serve.access import NOBODY, Access, Caller
from argosy.serve.carriers import carried, carrier_of
from argosy.serve.dataplane import Call, DataPlane
from argosy.serve.deadlines import timeout_of
from argosy.serve.endpoint import Endpoint, version_number
from argosy.serve.rpc import codec, messages
from argosy.serve.rpc.core import CoreCall, Trailers, give_back_memory
from argosy.serve.rpc.status import details_of, status_of, trailers_of

log = get_logger()

EXTENSIONS = tuple(name for name in triton.EXTENSIONS if name != "binary_tensor_data")
"""Raw tensors are a part of the protocol here."""
_SLOW_MESSAGES = 8
"""So many messages may take longer than `receive_s` to arrive; beyond that, the longest of them are given up."""
_BYTES_PER_S = 256 << 10
"""The slowest that large messages may go."""
_TRIM_BYTES, _TRIM_AFTER_S = 32 << 20, 2.0
# The core ends a call at its client's deadline by cancelling it, a little before or after our clock says so.
_DEADLINE_PRECISION_S = 0.02


class Rpc:
    """One call, from its head to its end."""

    __slots__ = ("_call", "_inference", "_is_answered", "_is_over", "_method", "_service", "metadata")

    def __init__(self, service: "InferenceService", event: Any) -> None:
        self._service = service
        self._is_answered = self._is_over = False
        self._inference: Call | None = None
        self._call = CoreCall(event, self._over)
        self.metadata: dict[str, Any] = dict(self._call.metadata)
        self._method = METHODS.get(self._call.path)
        service.calls += 1

    def start(self) -> None:
        """Look at the head, and read the message if the call is to go on."""
        self.attempt(self._admit)

    def attempt(self, step: Callable[[], None]) -> None:
        """Go one step; whatever goes wrong in it is told to the client, and the others go on."""
        try:
            step()
        except ArgosyError as error:
            self.refuse(error)
        except Exception:
            log.exception("request_failed")
            self.refuse(Internal("the request could not be processed", hint="see the gateway's log"))

    def _admit(self) -> None:
        service = self._service
        if self._method is None:
            raise NotFound(
                f"there is no method '{self._call.path[:200].decode('latin-1')}'",
                hint=f"the service is {messages.SERVICE}",
                code="unknown_method",
            )
        if service.calls > service.max_calls:
            service.plane.counters.count("argosy_refused_total", "too_many_calls")
            raise Unavailable("too many calls are under way", hint="send it again", code="too_many_calls")
        self.caller()  # before the message is read: whoever has no key costs no more than this
        service.receiving[self] = service.clock.monotonic()
        self._call.receive(self._received)

    def caller(self) -> Caller:
        """Return who calls; Denied without a valid key where one is needed."""
        if self._method is None or self._method.is_open:
            return NOBODY
        return self._service.access.caller_of(self.metadata.get("authorization"))

    def timeout_s(self, asked_s: float) -> float:
        """Return the seconds for an inference; 0: the gateway's own default.

        `argosy-timeout`, or what the request itself asks for, stands in for the default as over HTTP; the client's
        deadline can only shorten either.
        """
        named = timeout_of(self.metadata.get("argosy-timeout")) or asked_s
        if self._call.deadline == math.inf:
            return named
        left_s = self._left_s()
        if left_s <= 0:
            raise DeadlineExceeded("the call's deadline had passed before it was read", hint="give it more time")
        return min(named or self._service.timeout_s, left_s)

    def wait_for(self, inference: Call) -> None:
        """Cancel an inference should the client do so."""
        self._inference = inference

    def answer(self, message: bytes, trailers: Trailers = ()) -> None:
        """Answer, if that is not done."""
        if not self._is_answered and not self._is_over:
            self._is_answered = True
            self._await_taking(len(message))
            self._call.answer(message, trailers)

    def refuse(self, error: ArgosyError) -> None:
        """Answer with an error, if that is not done."""
        self._service.receiving.pop(self, None)
        if not self._is_answered and not self._is_over:
            self._is_answered = True
            self._await_taking(0)
            self._call.refuse(status_of(error), details_of(error), trailers_of(error))

    def cancel(self) -> None:
        """Break off: the client does not take its answer."""
        self._call.cancel()

    def _await_taking(self, size: int) -> None:
        service = self._service
        service.answering[self] = service.clock.monotonic() + service.receive_s + size / _BYTES_PER_S

    def _received(self, data: bytes | None) -> None:
        self._service.receiving.pop(self, None)
        method = self._method
        if self._is_answered or self._is_over or method is None:
            return
        self._service.received_bytes += len(data or b"")
        if data is None:
            self.refuse(InvalidInput("the call ended without a message", code="bad_message"))
        else:
            self.attempt(lambda: method.handle(self._service, self, data))

    def _over(self, is_cancelled: bool) -> None:  # noqa: FBT001
        service = self._service
        self._is_over = True
        service.calls -= 1
        service.receiving.pop(self, None)
        service.answering.pop(self, None)
        inference, self._inference = self._inference, None
        # At the client's deadline the core cancels too; the plane, whose deadline it is as well, then counts the
        # request as what it is: not answered in time.
        if is_cancelled and inference is not None and self._left_s() > _DEADLINE_PRECISION_S:
            inference.cancel()

    def _left_s(self) -> float:
        return self._call.deadline - self._service.clock.now()


class InferenceService:
    """The methods, and what is bounded over all calls."""

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
        self.receive_s = receive_s
        self.timeout_s = timeout_s
        self.calls = 0
        """Calls that are not over, those too whose client does not take its answer."""
        self.receiving: dict[Rpc, float] = {}
        """Calls whose message has not arrived yet, the oldest first, and since when."""
        self.answering: dict[Rpc, float] = {}
        """Calls whose answer the client has not taken yet, and until when it may."""
        self.received_bytes = 0
        """Of messages, since memory was given back."""
        self._idle_since = clock.monotonic()
        self._longest_s = receive_s + max_body_bytes / _BYTES_PER_S

    def accept(self, event: Any) -> None:
        """Take a new call."""
        Rpc(self, event).start()

    def check(self, now: float) -> None:
        """Give up on clients that take too long. Called a few times a second."""
        slow = [rpc for rpc, since in self.receiving.items() if now - since > self.receive_s]
        for index, rpc in enumerate(slow):
            if index < len(slow) - _SLOW_MESSAGES or now - self.receiving[rpc] > self._longest_s:
                rpc.refuse(DeadlineExceeded("the message did not arrive in time", code="request_timeout"))
        for rpc in [rpc for rpc, until in self.answering.items() if now > until]:
            rpc.cancel()
        if self.calls or self.received_bytes < _TRIM_BYTES:
            self._idle_since = now
        elif now - self._idle_since > _TRIM_AFTER_S:
            self.received_bytes = 0
            give_back_memory()

    def _endpoint(self, rpc: Rpc, name: str) -> Endpoint:
        """Return an endpoint that this caller may use; Denied and NotFound otherwise."""
        rpc.caller().check(name)
        return self.plane.endpoint(name)

    def end(self) -> None:
        """Wait no longer for messages: the gateway stops."""
        for rpc in list(self.receiving):
            rpc.refuse(Unavailable("the gateway stops", hint="send it again", code="stopping"))

    # Methods -------------------------------------------------------------------------------------------------------

    def infer(self, rpc: Rpc, data: bytes) -> None:
        """ModelInfer."""
        plane = self.plane
        received = codec.parse_infer(data)
        name, number = received.message.model_name, received.message.model_version
        endpoint = self._endpoint(rpc, name)
        if number:
            plane.signature(endpoint, number)  # a version that is not there matters more than what was sent to it
        asked = codec.read_request(received)
        if asked.outputs:
            v2.check_outputs(plane.signature(endpoint, number), asked)

        def answer(call: Call) -> None:
            if call.error is not None:
                raise call.error
            found = codec.encode_response(asked, name, version_number(call.ref), call.outputs, call.prediction)
            named = (("argosy-prediction", call.prediction), ("argosy-version", call.ref))
            rpc.answer(found, (*named, ("argosy-failover", call.failover)) if call.failover else named)

        told = rpc.metadata
        carrier = carrier_of(told.get("traceparent"), told.get("tracestate")) if plane.is_traced else None
        with carried(plane, carrier) if carrier else nullcontext():
            call = plane.infer(
                endpoint,
                asked.inputs,
                lambda call: rpc.attempt(lambda: answer(call)),
                timeout_s=rpc.timeout_s(asked.timeout_s),
                caller=str(told.get("argosy-caller", ""))[:256],
                number=number,
                client=rpc.caller(),
            )
        rpc.wait_for(call)

    def model_ready(self, rpc: Rpc, data: bytes) -> None:
        """ModelReady."""
        asked = codec.parse(messages.ModelReadyRequest, data)
        endpoint = self._endpoint(rpc, asked.name)
        found = endpoint.digest_of(asked.version) if asked.version else (endpoint.plan.serving, "")
        if found is None:
            self.plane.signature(endpoint, asked.version)  # which says that there is no such version
        is_ready = found is not None and self.plane.is_version_ready(endpoint, found[0])
        rpc.answer(messages.ModelReadyResponse(ready=is_ready).SerializeToString())

    def model_metadata(self, rpc: Rpc, data: bytes) -> None:
        """ModelMetadata."""
        asked = codec.parse(messages.ModelMetadataRequest, data)
        endpoint = self._endpoint(rpc, asked.name)
        found = v2.metadata(asked.name, endpoint.numbers(), self.plane.signature(endpoint, asked.version))
        answer = messages.ModelMetadataResponse(
            name=found["name"], versions=found["versions"], platform=found["platform"]
        )
        for listed, tensors in ((answer.inputs, found["inputs"]), (answer.outputs, found["outputs"])):
            for tensor in tensors:  # more is said of them over HTTP than this message has room for
                listed.add(name=tensor["name"], datatype=tensor["datatype"], shape=tensor["shape"])
        rpc.answer(answer.SerializeToString())

    def model_config(self, rpc: Rpc, data: bytes) -> None:
        """ModelConfig."""
        asked = codec.parse(messages.ModelConfigRequest, data)
        endpoint = self._endpoint(rpc, asked.name)
        signature = self.plane.signature(endpoint, asked.version)
        found = endpoint.digest_of(asked.version) if asked.version else (endpoint.plan.serving, "")
        hellos = [replica.hello for replica in self.plane.pool.replicas.values()]
        max_batch = max((hello.max_batch for hello in hellos if found and hello.digest == found[0]), default=0)
        config = triton.model_config(asked.name, signature, max_batch)
        rpc.answer(messages.ModelConfigResponse(config=config).SerializeToString())

    def model_statistics(self, rpc: Rpc, data: bytes) -> None:
        """ModelStatistics: of one endpoint, or of all that this caller may use."""
        asked = codec.parse(messages.ModelStatisticsRequest, data)
        if asked.name:
            endpoints = {asked.name: self._endpoint(rpc, asked.name)}
            if asked.version:
                self.plane.signature(endpoints[asked.name], asked.version)  # which says what is wrong with the number
        else:
            caller = rpc.caller()
            endpoints = {name: endpoint for name, endpoint in self.plane.endpoints.items() if caller.may(name)}
        versions = [
            (name, ref)
            for name, endpoint in endpoints.items()
            for ref in endpoint.refs()
            if asked.version in ("", version_number(ref))
        ]
        found = triton.statistics(self.plane.counters, versions)
        rpc.answer(messages.ModelStatisticsResponse(**found).SerializeToString())

    def repository_index(self, rpc: Rpc, data: bytes) -> None:
        """RepositoryIndex: what this caller may use."""
        asked = codec.parse(messages.RepositoryIndexRequest, data)
        caller = rpc.caller()
        answer = messages.RepositoryIndexResponse()
        for name, endpoint in self.plane.endpoints.items():
            if caller.may(name) and not (asked.ready and not endpoint.is_available):
                answer.models.add(
                    name=name,
                    version=version_number(endpoint.plan.serving_ref),
                    state="READY" if endpoint.is_available else "UNAVAILABLE",
                    reason=endpoint.plan.note,
                )
        rpc.answer(answer.SerializeToString())

    def server_metadata(self, rpc: Rpc, data: bytes) -> None:
        """ServerMetadata."""
        del data
        answer = messages.ServerMetadataResponse(name="argosy", version=__version__, extensions=EXTENSIONS)
        rpc.answer(answer.SerializeToString())

    def server_live(self, rpc: Rpc, data: bytes) -> None:
        """ServerLive."""
        del data
        rpc.answer(messages.ServerLiveResponse(live=True).SerializeToString())

    def server_ready(self, rpc: Rpc, data: bytes) -> None:
        """ServerReady."""
        del data
        is_held = any(not endpoint.is_available for endpoint in self.plane.endpoints.values())
        rpc.answer(messages.ServerReadyResponse(ready=not is_held).SerializeToString())


class _Method(NamedTuple):
    handle: Callable[[InferenceService, Rpc, bytes], None]
    is_open: bool = False
    """For everybody, also without a key."""


METHODS = {
    f"/{messages.SERVICE}/{name}".encode(): method
    for name, method in {
        "ServerLive": _Method(InferenceService.server_live, is_open=True),
        "ServerReady": _Method(InferenceService.server_ready, is_open=True),
        "ServerMetadata": _Method(InferenceService.server_metadata),
        "ModelReady": _Method(InferenceService.model_ready),
        "ModelMetadata": _Method(InferenceService.model_metadata),
        "ModelInfer": _Method(InferenceService.infer),
        "ModelConfig": _Method(InferenceService.model_config),
        "ModelStatistics": _Method(InferenceService.model_statistics),
        "RepositoryIndex": _Method(InferenceService.repository_index),
    }.items()
}
"""Every method by the path of its calls."""
