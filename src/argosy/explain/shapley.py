"""Shapley values by drawing orders of the features: asks the model for answers and nothing else."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.explain.explainer import Array, Explanation, Floats, Predict

_BLOCK_ROWS = 2048
_BLOCK_ELEMENTS = 2**22
"""Rows given to the model at once have at most so many elements together (unless one row has more)."""
_LEAST_PAIRS = 4
_LEAST_SPARE = 24
"""Second and later pairs of background rows from which the spread between orders is believed."""
_MOST_PAIRS = 50_000
_EXACT_ENOUGH = 0.005
"""Ends when the largest standard error is below this share of the largest value: finer than any picture shows."""
_SLICES = 20
"""One call of the model takes at most about this part of the time, so that the end is not overrun by much."""


@dataclass
class _Sums:
    """What the walks against each background row gave so far: counts, sums and sums of squares, per row and feature."""

    counts: npt.NDArray[np.intp]
    sums: Floats
    squares: Floats

    def add(self, rows: npt.NDArray[np.intp], shares: Floats) -> None:
        # No row occurs twice in a block, so plain indexing adds every one of them.
        self.counts[rows] += 1
        self.sums[rows] += shares
        self.squares[rows] += shares**2


class ShapleyExplainer:
    """Shapley values of one answer, exact for linear models and for two features, sampled otherwise.

    A walk goes from a background row to the explained one, putting in one feature after the other in a random order;
    what a feature changes is its share. Each order is also walked backwards with the same background row (antithetic
    pairs), and background rows take turns, so after the first turn shares add up to `prediction - base` exactly.
    Time: 2 (features - 1) answers per pair. Memory: background rows x features.
    Sources: Štrumbelj, Kononenko, Explaining prediction models and individual predictions, 2014 (background rows are
    drawn with the order); Castro, Gómez, Tejada 2009 (one walk serves all features); Mitchell et al., Sampling
    permutations for Shapley value estimation, 2022 (antithetic pairs).
    """

    def explain(
        self,
        predict: Predict,
        row: Array,
        background: Array,
        *,
        seconds: float,
        seed: int,
        clock: Clock,
        groups: Array | None = None,
    ) -> Explanation:
        """Explain `predict(row)`; runs until the time is over or the values are exact enough."""
        started = clock.monotonic()
        numbers = _checked_groups(row, background, groups)
        if seconds <= 0:
            raise InvalidInput(f"{seconds:g} seconds are not enough to explain anything; give more than 0")
        features = int(numbers.max()) + 1
        prediction = float(_ask(predict, row[None])[0])
        at_background = np.concatenate(
            [_ask(predict, background[i : i + _BLOCK_ROWS]) for i in range(0, len(background), _BLOCK_ROWS)]
        )
        base = float(at_background.mean())
        draw = np.random.default_rng(seed)
        sums = _Sums(
            np.zeros(len(background), np.intp),
            np.zeros((len(background), features)),
            np.zeros((len(background), features)),
        )
        turn = draw.permutation(len(background))
        pairs, size = 0, 1
        values = errors = np.zeros(features)
        while True:
            before = clock.monotonic()
            rows, turn = turn[:size], turn[size:]
            orders = draw.permuted(np.tile(np.arange(features), (len(rows), 1)), axis=1)
            shares = _walk(
                predict, row, numbers, orders, prediction, starts=background[rows], at_starts=at_background[rows]
            )
            sums.add(rows, shares)
            pairs += len(rows)
            if not len(turn):
                turn = draw.permutation(len(background))
            now = clock.monotonic()
            if pairs >= _LEAST_PAIRS:
                values, errors = _estimate(sums, prediction - base)
                if now - started >= seconds or pairs >= _MOST_PAIRS or _is_exact(values, errors, sums):
                    break
            if now - before < seconds / _SLICES / 2:
                size = min(2 * size, max(1, _BLOCK_ROWS // max(1, 2 * (features - 1))))
        return Explanation(
            values=values,
            base=base,
            prediction=prediction,
            standard_error=errors,
            permutations=2 * pairs,
            seconds=clock.monotonic() - started,
            groups=numbers,
        )


def _checked_groups(row: Array, background: Array, groups: Array | None) -> npt.NDArray[np.intp]:
    if row.size == 0 or background.ndim != row.ndim + 1 or background.shape[1:] != row.shape or not len(background):
        raise InvalidInput(
            f"a row of shape {list(row.shape)} needs a background of shape {['n', *row.shape]} with n >= 1, "
            f"not {list(background.shape)}"
        )
    if groups is None:
        return np.arange(row.size, dtype=np.intp).reshape(row.shape)
    numbers = np.asarray(groups)
    if numbers.shape != row.shape or not np.issubdtype(numbers.dtype, np.integer):
        raise InvalidInput(
            f"groups must be whole numbers of the row's shape {list(row.shape)}, "
            f"not {numbers.dtype} of shape {list(numbers.shape)}"
        )
    found = np.unique(numbers)
    if found[0] != 0 or found[-1] != len(found) - 1:
        raise InvalidInput(
            f"groups must use every number from 0 on; found {found[:8].tolist()}", hint="renumber them without gaps"
        )
    return numbers.astype(np.intp)


def _ask(predict: Predict, rows: Array) -> Floats:
    scores = np.asarray(predict(rows), np.float64)
    if scores.shape == (len(rows), 1):
        scores = scores[:, 0]
    if scores.shape != (len(rows),):
        raise InvalidInput(
            f"predict gave shape {list(scores.shape)} for {len(rows)} rows; it must give one number per row",
            hint="choose one output, such as lambda rows: probabilities(rows)[:, 3]",
        )
    if not np.isfinite(scores).all():
        raise InvalidInput("predict gave a number that is not finite, so nothing can be explained from it")
    return scores


def _walk(
    predict: Predict,
    row: Array,
    numbers: npt.NDArray[np.intp],
    orders: npt.NDArray[np.intp],
    prediction: float,
    *,
    starts: Array,
    at_starts: Floats,
) -> Floats:
    """Return each feature's share, averaged over the walk in each order and the one in its reverse: [pairs, features].

    Feature `order[k]` is put in at step k of the walk and at step `features - 1 - k` of the reverse one.
    """
    pairs, features = orders.shape
    steps = np.empty_like(orders)
    np.put_along_axis(steps, orders, np.broadcast_to(np.arange(features), orders.shape), axis=1)
    when = np.stack([steps, features - 1 - steps], axis=1)
    at = np.empty((pairs, 2, features + 1))
    at[:, :, 0] = at_starts[:, None]
    at[:, :, features] = prediction
    inner = at[:, :, 1:features]
    answers = np.empty(inner.size)
    chunk = min(_BLOCK_ROWS, max(1, _BLOCK_ELEMENTS // row.size))
    for first in range(0, inner.size, chunk):
        flat = np.arange(first, min(first + chunk, inner.size))
        pair, direction, step = np.unravel_index(flat, inner.shape)
        is_in = when[pair, direction] <= step[:, None]
        points = np.where(is_in[:, numbers], row, starts[pair]).astype(row.dtype, copy=False)
        answers[flat] = _ask(predict, points)
    at[:, :, 1:features] = answers.reshape(inner.shape)
    gained: Floats = np.take_along_axis(np.diff(at, axis=2), when, axis=2).mean(axis=1)
    return gained


def _estimate(sums: _Sums, total: float) -> tuple[Floats, Floats]:
    """Return values that add up to `total`, and their standard errors."""
    if sums.counts.min() == 0:
        return _before_the_first_turn(sums, total)
    counts = sums.counts[:, None]
    means = sums.sums / counts
    values = means.mean(axis=0)
    spare = int((sums.counts - 1).sum())
    if spare < _LEAST_SPARE and len(means) > 1:
        # Too few orders per row to know their spread; the spread between rows is usually greater, never unknown.
        errors = means.std(axis=0, ddof=1) / np.sqrt(len(means))
    else:
        within = np.maximum(sums.squares - counts * means**2, 0).sum(axis=0) / spare
        errors = np.sqrt(within * (1 / sums.counts).sum()) / len(means)
    return values, errors


def _before_the_first_turn(sums: _Sums, total: float) -> tuple[Floats, Floats]:
    """Correct for the background rows that were not drawn yet, whose answers are known.

    A regression of each share on the walk's whole gain; the slopes add up to 1, so the corrected values add up
    to `total` (a control variate: Owen, Monte Carlo theory, chapter 8).
    """
    shares = sums.sums[sums.counts > 0]
    values = shares.mean(axis=0)
    gains = shares.sum(axis=1)
    off = gains - gains.mean()
    spread = float(off @ off)
    # Scale-free: rounding alone makes equal gains differ in the last digits.
    is_flat = spread <= 1e-20 * max(1.0, float(gains @ gains))
    slopes = np.full(len(values), 1 / len(values)) if is_flat else off @ shares / spread
    rest = shares - values - off[:, None] * slopes
    # Mean and slope were fitted, so two numbers fewer are free.
    errors = np.sqrt((rest**2).sum(axis=0) / (len(shares) - 2) / len(shares))
    return values + slopes * (total - float(gains.mean())), errors


def _is_exact(values: Floats, errors: Floats, sums: _Sums) -> bool:
    # Twice around, so that a feature that rarely matters is not believed to be nothing from a few walks.
    has_seen_enough = sums.counts.min() >= 2 and (sums.counts - 1).sum() >= 2 * _LEAST_SPARE
    return bool(has_seen_enough and errors.max() <= _EXACT_ENOUGH * np.abs(values).max())
