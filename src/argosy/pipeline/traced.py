"""A run as a trace: one span for the run, one for each stage it executes, made from what the run tells anyway."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from argosy.core.progress import Progress, Reporter
from argosy.core.tracing import Tracing, open_tracing

if TYPE_CHECKING:
    from opentelemetry.trace import Span


@contextlib.contextmanager
def traced_run(project: str, report: Reporter) -> Iterator[Reporter]:
    """Yield what to report to; `report` itself while tracing is off. Raises PluginError when the library is missing."""
    tracing = open_tracing("argosy-run", share=1.0)
    if tracing is None:
        yield report
        return
    spans = _RunSpans(tracing, project, report)
    try:
        yield spans
    except BaseException as error:
        spans.end(error)
        raise
    else:
        spans.end(None)
    finally:
        tracing.close()


class _RunSpans:
    """Listens to a run, and passes on what it hears."""

    def __init__(self, tracing: Tracing, project: str, report: Reporter) -> None:
        from opentelemetry.trace import set_span_in_context

        self._tracer = tracing.tracer
        self._report = report
        self._run = self._tracer.start_span(f"run {project}", attributes={"argosy.project": project})
        self._inside = set_span_in_context(self._run)
        self._stage: Span | None = None

    def __call__(self, news: Progress) -> None:
        """Begin or end a stage's span where the news says so."""
        self._report(news)
        if news.message == "started":
            self._stage = self._tracer.start_span(
                f"stage {news.stage}", context=self._inside, attributes={"argosy.stage": news.stage}
            )
        elif news.message == "finished" and self._stage is not None:
            numbers = {f"argosy.{k}": v for k, v in news.values.items() if isinstance(v, int | float | str)}
            self._stage.set_attributes(numbers)
            self._stage.end()
            self._stage = None

    def end(self, error: BaseException | None) -> None:
        """End what is open; with `error`, as failed by it."""
        from opentelemetry.trace import Status, StatusCode

        for span in (self._stage, self._run):
            if span is not None:
                if error is not None:
                    span.set_status(Status(StatusCode.ERROR, str(error)[:300]))
                span.end()
