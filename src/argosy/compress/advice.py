"""Which way of making this model smaller or faster pays here: measured on it in minutes, without training anything.

What needs no training is tried and judged. Of what does, the structure is cut and timed untrained, which says all about
size and speed and nothing about quality.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.compress.candidate import Candidate
from argosy.compress.config import CompressConfig
from argosy.compress.passes import Sketch, float_module
from argosy.compress.passes.graph import traced
from argosy.compress.passes.kinds import takes_tokens
from argosy.compress.quality import PreparedData
from argosy.compress.search import Search
from argosy.compress.tries import label
from argosy.core.clock import SystemClock
from argosy.core.progress import Reporter, silent
from argosy.core.units import format_size
from argosy.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

_QUICK = ("optimize", "quantize")
_SKETCHED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("slim", {"ratio": 0.5}),
    ("slim", {"ratio": 0.75}),
    ("factorize", {"energy": 0.9}),
    ("factorize", {"energy": 0.8}),
)
_SKETCHED_TEXTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("slim", {"blocks": 0.34}),
    ("slim", {"blocks": 0.5}),
    ("slim", {"ratio": 0.5}),
    ("slim", {"embeddings": 0.9}),
    ("factorize", {"energy": 0.8}),
)


class Waste(msgspec.Struct, frozen=True, kw_only=True):
    """Two layers that are equal to one: nothing stands between them that isn't linear."""

    first: str
    second: str
    weights: int
    one_weights: int
    """Of the single layer that does the same."""

    def says(self) -> str:
        """Return the fact, and what to do."""
        return (
            f"'{self.first}' and '{self.second}' follow one another without an activation, so together they are one "
            f"linear layer ({self.weights} weights, {self.one_weights} would do); put an activation between them, or "
            "make them one"
        )


class Option(msgspec.Struct, frozen=True, kw_only=True):
    """A way to compress, and what it comes to here."""

    name: str
    method: str
    times_smaller: float
    times_faster: float
    drop: float | None
    """Measured on the validation part; None for what has to be trained first."""
    agreement: float | None = None

    def row(self) -> dict[str, str]:
        """Return a line of the table."""
        return {
            "method": self.name,
            "smaller": f"{self.times_smaller:.1f}x",
            "faster": f"{self.times_faster:.2f}x",
            "drop": "after training" if self.drop is None else f"{self.drop * 100:.2f} pt",
            "agreement": "" if self.agreement is None else f"{self.agreement:.2%}",
        }


class Advice(msgspec.Struct, frozen=True, kw_only=True):
    """What to do, in sentences, and the numbers they follow from."""

    size_bytes: int
    options: list[Option]
    wastes: list[Waste]
    says: list[str]


def advise(
    original_onnx: Path, dataset: PreparedData, config: CompressConfig, work: Path, report: Reporter = silent
) -> Advice:
    """Try what needs no training, sketch what does, and say which to take."""
    quick = msgspec.structs.replace(config, passes=[name for name in _QUICK if name in config.passes] or list(_QUICK))
    search = Search(original_onnx, None, dataset, quick, TrainConfig(), work, report, SystemClock())
    search.explore(search.root)
    options = [_measured(c) for c in search.candidates if c.status == "measured" and c.quality is not None]
    for name, settings in _SKETCHED_TEXTS if takes_tokens(search.root) else _SKETCHED:
        sketch = search.sketch(search.root, name, settings)
        if sketch is not None:
            options.append(_sketched(label([(name, settings)]), name, sketch, search.size))
    wastes = wasted(search)
    return Advice(
        size_bytes=search.size,
        options=sorted(options, key=lambda option: -option.times_faster * option.times_smaller),
        wastes=wastes,
        says=[*_says(options, config.budget().max_drop, search.size), *(waste.says() for waste in wastes)],
    )


def wasted(search: Search) -> list[Waste]:
    """Return pairs of linear layers that are equal to one; none where the graph can't be read as layers."""
    try:
        return stacked(float_module(search.root))
    except Exception:  # noqa: BLE001 - advice on the rest is worth having without it
        return []


def stacked(module: "nn.Module") -> list[Waste]:
    """Return pairs of linear layers of which one is all that reaches the other."""
    from torch import nn

    graph = traced(module)
    layers = dict(graph.named_modules())
    found = []
    for node in graph.graph.nodes:
        first: Any = layers.get(str(node.target)) if node.op == "call_module" else None
        if not isinstance(first, nn.Linear) or len(node.users) != 1:
            continue
        after = next(iter(node.users))
        while after.op == "call_module" and isinstance(layers[str(after.target)], nn.Identity | nn.Dropout):
            if len(after.users) != 1:
                break
            after = next(iter(after.users))
        second: Any = layers.get(str(after.target)) if after.op == "call_module" else None
        if not isinstance(second, nn.Linear):
            continue
        one = first.in_features * second.out_features
        both = first.weight.numel() + second.weight.numel()
        # Through a narrow middle two thin matrices are a low rank, and meant so.
        if one <= both:
            found.append(Waste(first=str(node.target), second=str(after.target), weights=both, one_weights=one))
    return found


def _measured(candidate: Candidate) -> Option:
    assert candidate.quality is not None
    return Option(
        name=candidate.name,
        method="+".join(name for name, _ in candidate.recipe),
        times_smaller=1 / candidate.size_ratio,
        times_faster=1 / candidate.latency_ratio,
        drop=candidate.quality.drop,
        agreement=candidate.quality.agreement,
    )


def _sketched(label: str, method: str, sketch: Sketch, size: int) -> Option:
    return Option(
        name=f"{label}, then as above",
        method=method,
        times_smaller=size / sketch.size_bytes,
        times_faster=1 / sketch.ratio,
        drop=None,
    )


def _says(options: list[Option], max_drop: float, size: int) -> list[str]:
    keeping = [option for option in options if option.drop is not None and option.drop <= max_drop]
    sketched = [option for option in options if option.drop is None]
    points = f"{max_drop * 100:g} points"
    found = []
    if keeping:
        fast = max(keeping, key=lambda option: option.times_faster)
        small = max(keeping, key=lambda option: option.times_smaller)
        found.append(
            f"for speed without training: {fast.name}, {fast.times_faster:.1f}x as fast and {fast.times_smaller:.1f}x "
            f"smaller, with {_points(fast)} lost"
        )
        if small.name != fast.name:
            found.append(f"for size: {small.name}, {small.times_smaller:.1f}x smaller ({format_size(size)} before)")
    else:
        found.append(f"nothing that needs no training keeps {points}")
    if sketched:
        best = max(sketched, key=lambda option: option.times_faster * option.times_smaller)
        most = max((option.times_faster for option in keeping), default=1.0)
        if best.times_faster > most:
            found.append(
                f"further only by training: {best.name} would be {best.times_faster:.1f}x as fast and "
                f"{best.times_smaller:.1f}x smaller; what it loses, argosy compress finds out"
            )
        else:
            found.append("thinner structures would be no faster here than what needs no training")
    return found


def _points(option: Option) -> str:
    return f"{(option.drop or 0.0) * 100:.2f} points"
