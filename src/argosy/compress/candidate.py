"""One result of the search, with everything that was measured on it."""

from pathlib import Path
from typing import Any, Literal

import msgspec

from argosy.compress.config import Budget
from argosy.core.units import format_size, format_time

# Medians of one and the same model differ by up to this much when a machine of two cores is busy.
_CLEARLY = 1.1


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long one run takes for a batch, in seconds, and how that compares with the original in the same session."""

    batch: int
    p50_s: float
    p95_s: float
    cpu_s: float
    """Processor time of one run, of all threads."""
    ratio: float = 1.0
    """p50 divided by the original's, both measured in turns; below 1 is faster."""
    runs: int = 0
    interrupted: float = 0.0
    """Share of the runs during which others were given the processor; these count by their processor time."""


class Quality(msgspec.Struct, frozen=True, kw_only=True):
    """How good the answers are on the validation part, beside the original's."""

    measure: str
    """accuracy, r2, cosine (of vectors, to the original's) or perplexity."""
    value: float
    drop: float = 0.0
    """The original's value less this one's; of perplexity the share by which it has grown."""
    drop_high: float = 0.0
    """With 80 % confidence the drop on fresh data is below this."""
    drop_surely: float = 1.0
    """The same with 97.5 % confidence."""
    seen_drop: float = 0.0
    """The drop on training samples, less what the original knows of these by heart: the points by which it is better
    on them than on the validation part. Says little when it is small, and much when it isn't."""
    agreement: float = 1.0
    """Share of the items with the original's answer."""
    lost: int = 0
    """Items the original has right and this one wrong; for regression: further off than the original."""
    won: int = 0
    """The other way round."""
    items: int = 0


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A compressed model, or the try to make one. The original is the candidate with an empty recipe."""

    name: str
    recipe: list[tuple[str, dict[str, Any]]]
    status: Literal["measured", "stopped", "failed"]
    reason: str = ""
    """Why it was stopped or has failed."""
    given_up: float = 0.0
    """The drop at which its training was stopped; 0: none was begun."""
    file: str = ""
    """Name of the ONNX file in the search's folder."""
    folder: str = ""
    digest: str = ""
    engine: str = "onnxruntime"
    """What it runs on."""
    size_bytes: int = 0
    size_ratio: float = 1.0
    """Size divided by the original's."""
    timings: list[Timing] = []
    quality: Quality | None = None
    changed: dict[str, Any] = {}
    skipped: list[str] = []
    seconds: float = 0.0
    """What making and judging it took."""

    @property
    def path(self) -> Path:
        """The ONNX file."""
        return Path(self.folder) / self.file

    @property
    def p50_s(self) -> float:
        """Median time of one sample."""
        return self.timings[0].p50_s

    @property
    def p95_s(self) -> float:
        """95th percentile of the time of one sample."""
        return self.timings[0].p95_s

    @property
    def latency_ratio(self) -> float:
        """Geometric mean, over the batch sizes, of the median time divided by the original's."""
        product = 1.0
        for timing in self.timings:
            product *= timing.ratio
        return float(product ** (1 / len(self.timings))) if self.timings else 1.0

    @property
    def is_slower(self) -> bool:
        """Whether it takes longer than the original: on the whole, or clearly at some measured batch size."""
        return self.latency_ratio > 1.0 or any(timing.ratio > _CLEARLY for timing in self.timings)

    @property
    def cost(self) -> float:
        """Latency ratio times size ratio: what the selection minimizes."""
        return self.latency_ratio * self.size_ratio

    def misses(self, budget: Budget) -> dict[str, float]:
        """Return what of the budget is not kept, each with the factor by which it is missed (above 1)."""
        found: dict[str, float] = {}
        if self.quality is not None and self.quality.drop > budget.max_drop:
            # One point more counts as much as a doubling, also when no loss at all is allowed.
            found["max_drop"] = 1.0 + (self.quality.drop - budget.max_drop) / max(budget.max_drop, 0.01)
        if self.size_bytes > budget.size_bytes:
            found["size"] = self.size_bytes / budget.size_bytes
        if self.timings and self.p95_s > budget.latency_p95_s:
            found["latency_p95"] = self.p95_s / budget.latency_p95_s
        if self.is_slower:
            found["not slower"] = max(timing.ratio for timing in self.timings)
        return found

    def says(self) -> str:
        """Return the measured facts in a line."""
        if self.status != "measured" or self.quality is None:
            return f"{self.name}: {self.reason}"
        faster = 1 / self.latency_ratio
        return (
            f"{self.name}: {format_size(self.size_bytes)} ({1 / self.size_ratio:.1f}x smaller), "
            f"p95 {format_time(self.p95_s)} ({faster:.1f}x faster), "
            f"{self.quality.drop * 100:.1f} points lost, {self.quality.agreement:.1%} agree"
        )
