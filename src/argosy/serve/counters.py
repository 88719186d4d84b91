"""What operators count. Plain numbers while serving; prometheus-client writes them out when somebody asks.

Incrementing prometheus-client's own objects costs 1 to 2 us each; a request increments four.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from argosy.core.metrics import METRICS, Part

if TYPE_CHECKING:
    from prometheus_client.core import Metric

Labels = tuple[str, ...]
_MAX_SERIES = 10_000


class Cell:
    """One counter: add to `value`."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0.0


class Histogram:
    """One histogram with fixed buckets."""

    __slots__ = ("buckets", "counts", "total")

    def __init__(self, buckets: tuple[float, ...]) -> None:
        self.buckets = buckets
        self.counts = [0] * (len(buckets) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Add a value."""
        self.counts[bisect_left(self.buckets, value)] += 1
        self.total += value

    def observe_all(self, values: Iterable[float]) -> None:
        """Add many values."""
        counts, buckets = self.counts, self.buckets
        for value in values:
            counts[bisect_left(buckets, value)] += 1
            self.total += value


class Counters:
    """Counters and histograms by name and labels; names and labels must stand in `core.metrics`.

    Label values come from routes and codes, never from requests, so that their number is bounded; a bound on the
    series guards against mistakes.
    """

    def __init__(self) -> None:
        self._cells: dict[tuple[str, Labels], Cell] = {}
        self._histograms: dict[tuple[str, Labels], Histogram] = {}
        self._gauges: list[Callable[[], Iterable[tuple[str, Labels, float]]]] = []

    def cell(self, name: str, *labels: str) -> Cell:
        """Return a counter, to be held by whoever counts often."""
        key = (name, labels)
        found = self._cells.get(key)
        if found is None:
            found = Cell()
            if len(self._cells) < _MAX_SERIES:
                self._cells[key] = found
        return found

    def histogram(self, name: str, *labels: str) -> Histogram:
        """Return a histogram, to be held by whoever counts often."""
        key = (name, labels)
        found = self._histograms.get(key)
        if found is None:
            found = Histogram(METRICS[name].buckets)
            if len(self._histograms) < _MAX_SERIES:
                self._histograms[key] = found
        return found

    def count(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        self.cell(name, *labels).value += by

    def gauges(self, read: Callable[[], Iterable[tuple[str, Labels, float]]]) -> None:
        """Ask `read` for (name, labels, value) whenever the metrics are written out."""
        self._gauges.append(read)

    def get(self, name: str, *labels: str) -> float:
        """Return a counter's value."""
        found = self._cells.get((name, labels))
        return found.value if found else 0.0

    def series(self, name: str) -> Iterator[tuple[Labels, float]]:
        """Return the labels and values of a counter."""
        return ((labels, cell.value) for (found, labels), cell in self._cells.items() if found == name)

    def summed(self, name: str, *labels: str) -> tuple[int, float]:
        """Return how many values a histogram has, and their sum."""
        found = self._histograms.get((name, labels))
        return (sum(found.counts), found.total) if found else (0, 0.0)

    def samples(self) -> list[tuple[str, Labels, float]]:
        """Return every counter and gauge as (name, labels, value)."""
        counted = [(name, labels, cell.value) for (name, labels), cell in self._cells.items()]
        return counted + [sample for read in self._gauges for sample in read()]

    def expose(self) -> tuple[bytes, str]:
        """Return the text of the gateway's `/metrics` and its content type."""
        return expose("gateway", self.samples(), self._histograms)


def expose(
    part: Part,
    samples: Iterable[tuple[str, Labels, float]],
    histograms: Mapping[tuple[str, Labels], Histogram] | None = None,
) -> tuple[bytes, str]:
    """Return the metrics of one part of Argosy as Prometheus reads them, and their content type."""
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
    from prometheus_client.registry import Collector

    families = list(_families(part, list(samples), histograms or {}))

    class Snapshot(Collector):
        def collect(self) -> "Iterator[Metric]":
            yield from families

    registry = CollectorRegistry()
    registry.register(Snapshot())
    return generate_latest(registry), CONTENT_TYPE_LATEST


def _families(
    part: Part, samples: list[tuple[str, Labels, float]], histograms: Mapping[tuple[str, Labels], Histogram]
) -> "Iterator[Metric]":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    for name, metric in METRICS.items():
        if metric.part != part:
            continue
        if metric.kind == "histogram":
            histogram = HistogramMetricFamily(name, metric.help, labels=metric.labels)
            for (found, labels), held in histograms.items():
                if found == name:
                    histogram.add_metric(labels, _cumulative(held), held.total)
            yield histogram
            continue
        kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
        family = kind(name, metric.help, labels=metric.labels)
        for found, labels, value in samples:
            if found == name:
                family.add_metric(labels, value)
        yield family


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    found = []
    seen = 0
    for bound, count in zip((*histogram.buckets, float("inf")), histogram.counts, strict=True):
        seen += count
        found.append(("+Inf" if bound == float("inf") else str(float(bound)), float(seen)))
    return found
