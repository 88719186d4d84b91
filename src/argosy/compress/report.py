"""What a search has found: as values, as rows of a table, and as a picture."""

from pathlib import Path
from typing import Any

import msgspec

from argosy.compress.candidate import Candidate
from argosy.core.errors import Internal
from argosy.core.files import write_atomic
from argosy.core.plugins import missing
from argosy.core.units import format_size, format_time

# Middle tones: each has a contrast of at least 3 on white and on near-black, so one picture serves both themes.
_TEXT, _GRID, _BEST, _OTHER, _BASE = "#7d8590", "#7d859055", "#2f9e6e", "#4c8dd6", "#c77d2b"
# The kernel's own threads take the processor now and then on a quiet machine, too.
_NOISY = 0.25


class CompressResult(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome of a search: `chosen`, or when nothing keeps the budget, `nearest` and what would have to give."""

    budget: str
    max_drop: float
    original: Candidate
    candidates: list[Candidate]
    chosen: Candidate | None
    nearest: Candidate | None
    is_sure: bool
    """Whether the chosen one keeps the drop with 80 % confidence."""
    says: str
    """The outcome in a sentence."""
    hint: str = ""
    """What would have to give."""
    out_of_time: bool = False
    """Whether the time limit ended the search."""

    def report(self) -> dict[str, Any]:
        """Return everything that was found as plain values, without paths of this machine."""
        found: dict[str, Any] = msgspec.to_builtins(self)
        for candidate in (found["original"], found["chosen"], found["nearest"], *found["candidates"]):
            if candidate:
                candidate.pop("folder", None)
                candidate.pop("file", None)
        found["rows"] = self.rows()
        return found

    def values(self) -> dict[str, Any]:
        """Return the few facts about the chosen model that are worth a line in the log."""
        return self._facts(self.chosen)

    def nearest_values(self) -> dict[str, Any]:
        """Return the same facts about the nearest point, when nothing keeps the budget."""
        return self._facts(self.nearest)

    @property
    def interrupted(self) -> float:
        """Share of the runs, of those that the outcome rests on, during which others were given the processor."""
        last = (candidate for candidate in (self.original, self.chosen or self.nearest) if candidate is not None)
        timings = [timing for candidate in last for timing in candidate.timings]
        runs = sum(timing.runs for timing in timings)
        return sum(timing.interrupted * timing.runs for timing in timings) / runs if runs else 0.0

    def noise(self) -> str:
        """Tell of other programs that ran meanwhile; empty where they hardly did."""
        if self.interrupted < _NOISY:
            return ""
        return (
            f"other programs took the processor during {self.interrupted:.0%} of the timed runs; these count without "
            "what was taken"
        )

    def rows(self) -> list[dict[str, str]]:
        """Return the table, best first: every column is text ready to be shown."""
        finished = [c for c in self.candidates if c.status == "measured"]
        finished.sort(key=lambda c: (self.chosen is None or c.name != self.chosen.name, c.cost))
        rest = [c for c in self.candidates if c.status != "measured"]
        return [self._row(candidate) for candidate in (self.original, *finished, *rest)]

    def draw(self, path: Path) -> None:
        """Write the picture as PNG: the measure against latency, the size as the area; for light and dark pages."""
        if path.suffix != ".png":
            raise Internal(f"the picture is a PNG, but '{path.name}' was asked for")
        write_atomic(path, picture(self))

    def _facts(self, candidate: Candidate | None) -> dict[str, Any]:
        if candidate is None or candidate.quality is None:
            return {}
        return {
            "name": candidate.name,
            "passes": [{"pass": name, **settings} for name, settings in candidate.recipe],
            "engine": candidate.engine,
            "size_bytes": candidate.size_bytes,
            "original_size_bytes": self.original.size_bytes,
            "times_smaller": round(1 / candidate.size_ratio, 2),
            "latency_p50_ms": round(candidate.p50_s * 1e3, 4),
            "latency_p95_ms": round(candidate.p95_s * 1e3, 4),
            "original_latency_p95_ms": round(self.original.p95_s * 1e3, 4),
            "times_faster": round(1 / candidate.latency_ratio, 2),
            **{f"times_faster_batch_{t.batch}": round(1 / t.ratio, 2) for t in candidate.timings},
            candidate.quality.measure: round(candidate.quality.value, 4),
            "drop_points": round(candidate.quality.drop * 100, 2),
            "drop_points_high": round(candidate.quality.drop_high * 100, 2),
            "agreement": round(candidate.quality.agreement, 4),
            "is_sure": self.is_sure,
        }

    def _row(self, candidate: Candidate) -> dict[str, str]:
        is_chosen = self.chosen is not None and candidate.name == self.chosen.name
        row = {"": "chosen" if is_chosen else "", "model": candidate.name}
        quality = candidate.quality
        if candidate.status != "measured" or quality is None:
            return {**row, "result": f"{candidate.status}: {candidate.reason}"}
        row["size"] = f"{format_size(candidate.size_bytes)} (1/{1 / candidate.size_ratio:.2g})"
        for timing in candidate.timings:
            row[f"p50 / p95, batch {timing.batch}"] = f"{format_time(timing.p50_s)} / {format_time(timing.p95_s)}"
            row[f"faster, batch {timing.batch}"] = f"{1 / timing.ratio:.2f}x"
        row["CPU per sample"] = format_time(candidate.timings[-1].cpu_s / candidate.timings[-1].batch)
        row[quality.measure] = f"{quality.value:.2%}" if quality.measure == "accuracy" else f"{quality.value:.4f}"
        if not candidate.recipe:
            return row
        row["drop"] = f"{quality.drop * 100:.2f} pt (at most {quality.drop_high * 100:.2f})"
        row["agreement"] = f"{quality.agreement:.2%} ({quality.lost} lost, {quality.won} won of {quality.items})"
        return row


def picture(result: CompressResult) -> bytes:
    """Return the picture as PNG bytes; equal results give equal pictures."""
    import io

    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error

    # The object interface, not pyplot: no global state, no window system, safe in any thread.
    figure = Figure(figsize=(7.2, 4.2), dpi=144, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(facecolor="none")
    measured = [c for c in result.candidates if c.status == "measured" and c.quality is not None]
    measure = result.original.quality.measure if result.original.quality else "accuracy"
    for candidate in (result.original, *measured):
        _bubble(axes, result, candidate)
    if result.original.quality is not None:
        bound = result.original.quality.value - result.max_drop
        axes.axhline(bound, color=_TEXT, linewidth=1, linestyle="--")
        axes.annotate(
            "largest drop",
            (0.995, bound),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=_TEXT,
            size=8,
        )
    axes.set_xlabel("median time of one sample, ms")
    axes.set_ylabel(f"{measure} on the validation part")
    axes.set_title(f"{result.budget}\narea: size of the model file", size=9, color=_TEXT)
    axes.margins(0.15)
    axes.set_xlim(left=0)
    axes.grid(color=_GRID, linewidth=0.5)
    axes.tick_params(colors=_TEXT)
    for text in (axes.xaxis.label, axes.yaxis.label):
        text.set_color(_TEXT)
    for spine in axes.spines.values():
        spine.set_color(_GRID)
    buffer = io.BytesIO()
    # No date and version inside, so that equal results give equal bytes.
    figure.savefig(buffer, format="png", transparent=True, metadata={"Software": None})
    return buffer.getvalue()


def _bubble(axes: Any, result: CompressResult, candidate: Candidate) -> None:
    assert candidate.quality is not None
    is_chosen = result.chosen is not None and candidate.name == result.chosen.name
    is_original = not candidate.recipe
    colour = _BEST if is_chosen else _BASE if is_original else _OTHER
    at = (candidate.p50_s * 1e3, candidate.quality.value)
    axes.scatter(*at, s=900 * candidate.size_ratio, color=colour, alpha=0.9 if is_chosen else 0.45, linewidths=0)
    axes.scatter(*at, s=6, color=colour, linewidths=0)
    is_nearest = result.nearest is not None and candidate.name == result.nearest.name
    if is_chosen or is_original or is_nearest:
        axes.annotate(
            candidate.name,
            at,
            xytext=(0, 16 if is_original else -18),
            textcoords="offset points",
            ha="center",
            color=colour,
            size=8,
            weight="bold" if is_chosen else "normal",
        )
