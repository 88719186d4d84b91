"""The section `[compress]`: a budget, not a method. Imports nothing heavy: every command reads this."""

import math

import msgspec
from msgspec import field

from argosy.compress.table import PASSES
from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.core.units import format_size, format_time, parse_drop, parse_size, parse_time

PASS_NAMES = ("slim", "factorize", "distill", "prune", "quantize", "optimize")
"""The built-in passes, in the order in which they can follow one another."""


class Budget(msgspec.Struct, frozen=True, kw_only=True):
    """What a compressed model must keep. Infinity where nothing was asked."""

    max_drop: float
    """Largest loss of the quality measure (accuracy, R2), as a share of one."""
    size_bytes: float = math.inf
    """Largest model file."""
    latency_p95_s: float = math.inf
    """Largest 95th percentile of the time for one sample, on this machine and one core."""
    time_limit_s: float = math.inf
    """After this, the best so far is taken."""

    @property
    def is_bounded(self) -> bool:
        """Whether it says how small or how fast."""
        return math.isfinite(self.size_bytes) or math.isfinite(self.latency_p95_s)

    def __str__(self) -> str:
        points = f"{self.max_drop * 100:g}"
        parts = [f"at most {points} point{'' if points == '1' else 's'} lost"]
        if math.isfinite(self.size_bytes):
            parts.append(f"at most {format_size(self.size_bytes)}")
        if math.isfinite(self.latency_p95_s):
            parts.append(f"p95 at most {format_time(self.latency_p95_s)}")
        return ", ".join(parts)


class CompressConfig(Config, frozen=True):
    """What the compressed model must keep; which passes may be tried to get there."""

    max_drop: str = "1pt"
    """Largest loss of accuracy (for regression: of R2) against the original, in percentage points, 0 to 100."""
    size: str = ""
    """Largest model file, such as "1MB"; empty: as small as it gets."""
    latency_p95: str = ""
    """Largest 95th percentile of the time for one sample on one core of this machine, such as "2ms"; empty: as fast as
    it gets."""
    passes: list[str] = field(default_factory=lambda: list(PASS_NAMES))
    """What may be tried, alone and together: slim (fewer channels or blocks, fine-tuned), factorize (low rank), distill
    (a smaller student, trained for long), prune (zeros, for size only), quantize (int8), optimize (the engine)."""
    epochs: int = 0
    """Passes over the training part in each fine-tuning; 0: by the amount of data."""
    time_limit: str = ""
    """No training is begun that would not end by then, and after it, when something is within the budget, nothing at
    all: the best so far is taken. Empty: until the search has ended."""
    seed: int = 0
    """Of the fine-tuning and the choice of calibration samples, 0 or more."""

    def check(self) -> None:
        """Raise InvalidInput for a budget that nothing could meet, before anything is run."""
        self.budget()
        for name in self.passes:
            # The table reads the installed packages, which takes longer than all other checks together.
            if name not in PASS_NAMES and name not in (known := PASSES.names()):
                raise InvalidInput(f"[compress] passes names {name!r}; known are: {', '.join(known)}", known=known)
        if not self.passes:
            raise InvalidInput(
                "[compress] passes is empty, so nothing can be compressed",
                hint="take the line out to try everything, or remove [compress]",
            )
        if len(set(self.passes)) != len(self.passes):
            raise InvalidInput(f"[compress] passes names one of them twice: {', '.join(self.passes)}")
        if not 0 <= self.epochs <= 10_000:
            raise InvalidInput(f"[compress] epochs = {self.epochs} is impossible; it must be 0 (automatic) to 10000")
        if not 0 <= self.seed < 2**63:
            raise InvalidInput(f"[compress] seed = {self.seed} is impossible; it must be 0 or more and below 2**63")

    def budget(self) -> Budget:
        """Return the budget in base units; raise InvalidInput where it can't be read or nothing could meet it."""
        try:
            drop = parse_drop(self.max_drop)
            size = float(parse_size(self.size)) if self.size else math.inf
            latency = parse_time(self.latency_p95) if self.latency_p95 else math.inf
            limit = parse_time(self.time_limit) if self.time_limit else math.inf
        except InvalidInput as error:
            raise InvalidInput(f"[compress] {error.message}", hint=error.hint) from error
        except OverflowError as error:
            raise InvalidInput("[compress] a number in the budget is beyond all measure") from error
        if not 0 <= drop <= 1:
            raise InvalidInput(
                f"[compress] max_drop = {self.max_drop!r} is impossible; nothing loses more than 100 points",
                hint='"1pt" is usual',
            )
        for name, text, value in (
            ("size", self.size, size),
            ("latency_p95", self.latency_p95, latency),
            ("time_limit", self.time_limit, limit),
        ):
            if value <= 0:
                raise InvalidInput(
                    f"[compress] {name} = {text!r} is impossible; it must be more than 0",
                    hint=f"take the line out if {name} doesn't matter",
                )
        return Budget(max_drop=drop, size_bytes=size, latency_p95_s=latency, time_limit_s=limit)
