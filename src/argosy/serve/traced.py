"""Requests as spans: what the gateway does with one, from its arrival to its answer. Loaded only while tracing is on.

    infer m                 the whole request; child of the caller's span if it sent a `traceparent`
      queue                 from the queue's end to a replica's hands
      batch                 one attempt, with whom it shared the run
        replica             the time the replica says it took

All of them are made here, from times that are taken anyway and from what the replica answers, so replicas know nothing
of tracing.
"""

from collections.abc import Callable, Mapping
from random import Random
from typing import Any, NamedTuple

from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.serve.batcher import Work
from argosy.serve.carriers import CarryingFront
from argosy.serve.control import GatewayConfig
from argosy.serve.dataplane import Call, DataPlane
from argosy.serve.endpoint import Endpoint
from argosy.serve.gateway_front import GatewayFront
from argosy.serve.wire import Tensor

_PROPAGATOR = TraceContextTextMapPropagator()
_MAX_TRACED = 10_000


class _Attempt(NamedTuple):
    queued: float
    started: float
    ref: str
    replica: str
    batch: int
    requests: int
    rows: int


class _Trace:
    __slots__ = ("attempts", "offset", "span")

    def __init__(self, span: Span, offset: float) -> None:
        self.span = span
        self.offset = offset
        """From monotonic seconds to those since 1970: one for the whole trace, so that its spans fit together."""
        self.attempts: list[_Attempt] = []

    def at(self, monotonic: float) -> int:
        return int((monotonic + self.offset) * 1e9)


class TracedDataPlane(DataPlane):
    """The data plane, with a trace of each request that is sampled."""

    is_traced = True

    def __init__(
        self,
        config: GatewayConfig,
        clock: Clock,
        random: Random,
        later: Callable[[Callable[[], None]], object],
        tracer: Tracer,
    ) -> None:
        super().__init__(config, clock, random, later)
        self._tracer = tracer
        self._traces: dict[Work, _Trace] = {}
        self._run_s = 0.0

    def infer(
        self, endpoint: Endpoint, tensors: Mapping[str, Tensor], on_done: Callable[[Call], None], **given: Any
    ) -> Call:
        """Start an inference, and its trace if it is sampled."""
        call = super().infer(endpoint, tensors, on_done, **given)
        context: Context | None = _PROPAGATOR.extract(self.carrier) if self.carrier else None
        offset = self.clock.now() - self.clock.monotonic()
        span = self._tracer.start_span(
            f"infer {endpoint.route.name}",
            context=context if context is not None else Context(),
            kind=SpanKind.SERVER,
            start_time=int((call.arrived + offset) * 1e9),
        )
        if span.is_recording() and len(self._traces) < _MAX_TRACED:
            self._traces[call] = _Trace(span, offset)
        return call

    def dispatched(self, ref: str, works: list[Work], now: float) -> None:
        """Count a batch, and note for each traced request in it whose hands it is in."""
        super().dispatched(ref, works, now)
        if not self._traces:
            return
        traced = [(work, trace) for work in works if (trace := self._traces.get(work)) is not None]
        if not traced:
            return
        batch = works[0].batch
        replicas = self.pool.replicas.values()
        replica = next((one.hello.replica for one in replicas if one.batch is batch), "")
        rows = sum(work.inputs.rows for work in works)
        number = batch.id if batch is not None else 0
        for work, trace in traced:
            trace.attempts.append(_Attempt(work.queued, now, ref, replica, number, len(works), rows))

    def ran(self, ref: str, run_s: float) -> None:
        """Count a run; its requests are answered next."""
        super().ran(ref, run_s)
        self._run_s = run_s

    def finish(self, call: Call) -> None:
        """Finish the call, then its trace."""
        trace = self._traces.pop(call, None)
        super().finish(call)
        if trace is not None:
            self._end(trace, call, call.error.code if call.error is not None else "ok")

    def cancelled(self, call: Call) -> None:
        """Forget the call, and end its trace."""
        trace = self._traces.pop(call, None)
        super().cancelled(call)
        if trace is not None:
            self._end(trace, call, "cancelled")

    def _end(self, trace: _Trace, call: Call, code: str) -> None:
        now = self.clock.monotonic()
        span = trace.span
        inside = set_span_in_context(span)
        for attempt, following in zip(trace.attempts, [*trace.attempts[1:], None], strict=True):
            end = following.queued if following is not None else now
            failure = (call.first.message if call.first is not None else "") if following is not None else ""
            self._attempt(trace, attempt, end, inside, failure, run_s=0.0 if following or call.error else self._run_s)
        span.set_attributes(
            {
                "argosy.endpoint": call.endpoint.route.name,
                "argosy.version": call.ref,
                "argosy.code": code,
                "argosy.rows": call.inputs.rows,
                "argosy.attempts": call.attempts,
            }
        )
        if call.prediction:
            span.set_attribute("argosy.prediction", call.prediction)
        if call.error is not None and not isinstance(call.error, InvalidInput):
            span.set_status(Status(StatusCode.ERROR, call.error.message[:300]))
        span.end(trace.at(now))

    def _attempt(
        self, trace: _Trace, attempt: _Attempt, end: float, inside: Context, failure: str, *, run_s: float
    ) -> None:
        start = self._tracer.start_span
        start("queue", context=inside, start_time=trace.at(attempt.queued)).end(trace.at(attempt.started))
        batch = start(
            "batch",
            context=inside,
            start_time=trace.at(attempt.started),
            attributes={
                "argosy.version": attempt.ref,
                "argosy.replica": attempt.replica,
                "argosy.batch": attempt.batch,
                "argosy.batch.requests": attempt.requests,
                "argosy.batch.rows": attempt.rows,
            },
        )
        if 0.0 < run_s <= end - attempt.started:
            context = set_span_in_context(batch)
            attributes = {"argosy.replica": attempt.replica}
            replica = start("replica", context=context, start_time=trace.at(end - run_s), attributes=attributes)
            replica.end(trace.at(end))
        if failure:
            batch.set_status(Status(StatusCode.ERROR, failure[:300]))
        batch.end(trace.at(end))


class TracedFront(CarryingFront, GatewayFront):
    """The gateway's HTTP, which takes along what callers say of their traces."""
