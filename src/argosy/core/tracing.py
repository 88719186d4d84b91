"""Traces by OpenTelemetry, exported over OTLP/HTTP. Off unless the environment names a collector.

Everything but that name is OpenTelemetry's own: its variables (`OTEL_TRACES_SAMPLER`, `OTEL_EXPORTER_OTLP_HEADERS` and
so on) mean what its manual says. Nothing of it is imported while tracing is off.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from argosy.core.config import traces_endpoint, traces_sampler
from argosy.core.plugins import missing

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

FLUSH_S = 3.0
"""How long the last spans may take at the end of a process."""


class Tracing(NamedTuple):
    """A tracer, and what sends its last spans and ends it."""

    tracer: "Tracer"
    close: Callable[[], None]


def open_tracing(service: str, *, share: float) -> Tracing | None:
    """Return a tracer for `service`, None while tracing is off. Raises PluginError when the library is not there.

    `share`: of the traces that begin here, how many are kept where `OTEL_TRACES_SAMPLER` says nothing. One that began
    at a caller is kept if the caller keeps it.
    """
    if not traces_endpoint():
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    except ModuleNotFoundError as error:
        raise missing(error, "otel") from error
    sampler = None if traces_sampler() else ParentBased(TraceIdRatioBased(share))
    provider = TracerProvider(
        sampler=sampler, resource=Resource.create({"service.name": service}), shutdown_on_exit=False
    )
    # Its queue is bounded: spans are dropped, never requests held up, when the collector is slow or away.
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(timeout=FLUSH_S)))

    def close() -> None:
        provider.force_flush(int(FLUSH_S * 1000))
        provider.shutdown()

    return Tracing(provider.get_tracer("argosy"), close)
