"""What a conversion proves, as it is written beside its output."""

import msgspec

from argosy.formats.conversion.sandbox import Confined
from argosy.formats.parity import ParityReport


class StepReport(msgspec.Struct, frozen=True, kw_only=True):
    """One converter, and what came of it against the original."""

    source: str
    target: str
    does: str
    parity: ParityReport
    tolerances: dict[str, float]
    """Largest difference that each output may have, as a share of its scale."""
    confined: Confined


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """One conversion from file to file."""

    source: str
    source_format: str
    out: str
    target_format: str
    digests: dict[str, str]
    """Of the files that were written, by name."""
    inputs: list[dict[str, object]]
    samples: int
    samples_from: str
    """`generated`, or the file they are from."""
    steps: list[StepReport]
    passed: bool
    notes: list[str] = []

    @property
    def parity(self) -> ParityReport:
        """How far the output is from the original."""
        return self.steps[-1].parity
