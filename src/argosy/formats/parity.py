"""Whether a converted model gives the original's answers, on real samples and on batches of several sizes."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import msgspec
import numpy as np

from argosy.core.errors import InvalidInput

Arrays: TypeAlias = dict[str, np.ndarray]
Answer: TypeAlias = Callable[[Arrays], Arrays]

# Float32 sums in another order differ by some 1e-6 of the largest term per layer; a wrong operator differs by far more.
TOLERANCE = 1e-3
# Largest difference by datatype, as a share of an output's scale. Each is some thousand times what one rounding costs
# in float32 and float64 (2^-24, 2^-53; layers add up, and fused layers round less often), and some ten times in the
# half formats (2^-11, 2^-8), whose errors are independent of each other. One step of 127 for int8. Whatever counts or
# names must be the same.
TOLERANCES = {
    "float64": 1e-6, "float32": TOLERANCE, "float16": 1e-2, "bfloat16": 5e-2, "int8": 1 / 127, "uint8": 1 / 255,
}  # fmt: skip


class ParityReport(msgspec.Struct, frozen=True, kw_only=True):
    """How far two models are apart."""

    max_abs: float
    """Largest difference of two numbers."""
    max_rel: float
    """Largest difference, divided by the largest absolute value the reference gives for the same output (or by 1)."""
    agreement: float
    """Share of samples with the same answer: the same largest class, the same number within the tolerance."""
    samples: int
    worst_sample: int
    """Position of the sample with the largest `max_rel`."""
    worst_output: str
    batch_sizes: tuple[int, ...]
    """How the samples were cut for the candidate; the reference always saw them all at once."""
    tolerance: float
    passed: bool
    """Whether `max_rel` is within the tolerance and every number that is finite in one is finite in the other."""

    def require(self, what: str) -> None:
        """Raise InvalidInput, naming the worst sample, unless the check has passed."""
        if not self.passed:
            raise InvalidInput(
                f"{what} answers differently from the original: output {self.worst_output!r} of sample "
                f"{self.worst_sample} is off by {self.max_rel:.3g} of its scale, {self.tolerance:g} is allowed; "
                f"{self.agreement:.1%} of {self.samples} samples agree",
                hint="the conversion is refused; look for operations that depend on training mode or on the batch size",
                code="parity",
                **msgspec.to_builtins(self),
            )


def check_arrays(
    reference: Callable[[np.ndarray], np.ndarray],
    candidate: Callable[[np.ndarray], np.ndarray],
    samples: np.ndarray,
    *,
    tolerance: float = TOLERANCE,
) -> ParityReport:
    """Do what `check_parity` does for models with one input and one output, given without names."""
    return check_parity(
        lambda inputs: {"output": reference(inputs["input"])},
        lambda inputs: {"output": candidate(inputs["input"])},
        {"input": samples},
        tolerance=tolerance,
    )


def check_parity(
    reference: Answer, candidate: Answer, samples: Arrays, *, tolerance: float = TOLERANCE
) -> ParityReport:
    """Run `samples` through both sides and compare what comes out, sample by sample.

    `samples` have the batch as first dimension. The candidate sees them all at once, one by one, and in uneven batches,
    so that a batch size frozen during conversion is found. Raises InvalidInput when there are no samples.
    """
    count = min((len(array) for array in samples.values()), default=0)
    if count == 0:
        raise InvalidInput("a parity check needs at least one sample; none was given")
    wanted = reference(samples)
    answers = ((rows, candidate({name: array[rows] for name, array in samples.items()})) for rows in cuts(count))
    return compare_answers(wanted, answers, count, tolerance=tolerance)


def cuts(count: int) -> list[slice]:
    """Return how a parity check cuts `count` samples into batches for the candidate."""
    found = []
    for size in dict.fromkeys(min(size, count) for size in (count, 1, 3)):
        # Single rows show what they can show in a few: the whole set is for the whole batch.
        stop = count if size == count else min(count, 4 * size)
        found += [slice(start, min(start + size, stop)) for start in range(0, stop, size)]
    return found


def compare_answers(
    wanted: Arrays, answers: Iterable[tuple[slice, Arrays]], count: int, *, tolerance: float | Mapping[str, float]
) -> ParityReport:
    """Compare a candidate's answers for batches of rows with those the reference gave for all `count` rows at once.

    `tolerance` may differ by output; the worst sample is then the one that exceeds its own the most.
    """
    limits = dict.fromkeys(wanted, tolerance) if isinstance(tolerance, float | int) else dict(tolerance)
    found = _Worst(samples=count)
    sizes: dict[int, None] = {}
    for rows, got in answers:
        sizes.setdefault(rows.stop - rows.start)
        _compare(wanted, got, rows, limits, found)
    worst_limit = limits.get(found.worst_output, 0.0)
    return ParityReport(
        max_abs=found.max_abs,
        max_rel=found.max_rel,
        agreement=1.0 - len(found.disagreeing) / count,
        samples=count,
        worst_sample=found.worst_sample,
        worst_output=found.worst_output,
        batch_sizes=tuple(size for size in sizes if size in (count, 1, 3) or len(sizes) == 1),
        tolerance=float(worst_limit),
        passed=found.max_rel <= worst_limit,
    )


def tolerance_for(*datatypes: str) -> float:
    """Return the tolerance of the coarsest of some datatypes; 0, so equality, for those that count or name."""
    return max((TOLERANCES.get(datatype, 0.0) for datatype in datatypes), default=TOLERANCE)


class _Worst:
    def __init__(self, samples: int) -> None:
        self.samples = samples
        self.max_abs = 0.0
        self.max_rel = 0.0
        self.excess = 0.0
        self.worst_sample = 0
        self.worst_output = ""
        self.disagreeing: set[int] = set()


def _compare(wanted: Arrays, got: Arrays, rows: slice, limits: Mapping[str, float], found: _Worst) -> None:
    if set(wanted) != set(got):
        raise InvalidInput(f"the original has the outputs {sorted(wanted)}, the converted model {sorted(got)}")
    for name, whole in wanted.items():
        want, have, tolerance = whole[rows], got[name], limits[name]
        if want.shape != have.shape:
            raise InvalidInput(
                f"output {name!r} has the shape {list(have.shape)} after conversion; the original gives "
                f"{list(want.shape)} for the same {rows.stop - rows.start} samples"
            )
        if want.dtype.kind not in "fiub":
            different = want != have
            relative = _per_row(different.astype(np.float64))
        else:
            scale = max(1.0, float(np.max(np.abs(whole[np.isfinite(whole)]), initial=0.0)))
            gap = _gaps(want, have)
            found.max_abs = max(found.max_abs, float(np.max(gap, initial=0.0)))
            relative = _per_row(gap) / scale
        worst = int(np.argmax(relative))
        excess = _excess(float(relative[worst]), tolerance)
        if excess > found.excess or not found.worst_output:
            found.max_rel, found.excess = float(relative[worst]), excess
            found.worst_sample, found.worst_output = rows.start + worst, name
        disagree = relative > tolerance
        if want.dtype.kind == "f" and want.ndim > 1 and want.shape[-1] > 1:
            disagree = np.any(np.argmax(want, -1) != np.argmax(have, -1), axis=tuple(range(1, want.ndim - 1)))
        found.disagreeing.update(rows.start + int(row) for row in np.flatnonzero(disagree))


def _excess(relative: float, tolerance: float) -> float:
    if tolerance > 0:
        return relative / tolerance
    return np.inf if relative > 0 else 0.0


def _gaps(want: np.ndarray, have: np.ndarray) -> np.ndarray:
    """Absolute differences; infinite where only one side is NaN, 0 where both are the same infinity or both NaN."""
    a, b = want.astype(np.float64), have.astype(np.float64)
    with np.errstate(invalid="ignore"):
        gap = np.abs(a - b)
    gap[(a == b) | (np.isnan(a) & np.isnan(b))] = 0.0
    gap[np.isnan(gap)] = np.inf
    return gap


def _per_row(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.reshape(len(values), -1).max(axis=1, initial=0.0))
