"""Which part of an answer each feature is responsible for: the common form of every explainer."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, sqrt
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput
from argosy.core.plugins import Plugins
from argosy.explain.config import ExplainConfig

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Predict = Callable[[Array], Array]
"""Rows in, one number per row out, such as the probability of one class."""

_MOST_PATCHES = 64


@dataclass(frozen=True, eq=False)
class Explanation:
    """How the difference between one answer and the average answer is shared out among the features.

    `values` has one number per group of elements (per element when no groups were given); together they give
    `prediction - base`. `standard_error` is how far each may be off from having drawn only some orders of features;
    below some 20 `permutations` it is a guess itself.
    `groups` has the shape of the row and says which group each of its elements belongs to.
    """

    values: Floats
    base: float
    prediction: float
    standard_error: Floats
    permutations: int
    seconds: float
    groups: npt.NDArray[np.intp]


class Explainer(Protocol):
    """One method. Every explainer passes tests/conformance/test_explainers.py."""

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
        """Explain `predict(row)` against the rows of `background`; see `explain_row`."""
        ...


EXPLAINERS: Plugins[type[Explainer]] = Plugins(
    "argosy.explainers",
    {
        "shapley": "argosy.explain.shapley:ShapleyExplainer",
    },
)


def explain_row(
    predict: Predict,
    row: Array,
    background: Array,
    *,
    seconds: float,
    seed: int,
    clock: Clock,
    groups: Array | None = None,
) -> Explanation:
    """Explain one row by sampled Shapley values within `seconds`.

    `row` may have any shape; `background` holds rows of that shape, over which a feature that counts as unknown
    varies. `groups` gives each element of the row the number of the feature it belongs to, 0 to n - 1; by default each
    is a feature of its own. `predict` is called with up to a few thousand rows at once. Raises InvalidInput.
    """
    return EXPLAINERS.load("shapley")().explain(
        predict, row, background, seconds=seconds, seed=seed, clock=clock, groups=groups
    )


def explain(predict: Predict, row: Array, rows: Array, config: ExplainConfig, clock: Clock) -> Explanation:
    """Explain one row as `config` says, against a sample of `rows`; an image ([C, H, W]) by square patches."""
    config.check()
    explainer = EXPLAINERS.load(config.method)()
    drawn = rows
    if len(rows) > config.background:
        chosen = np.random.default_rng(config.seed).choice(len(rows), config.background, replace=False)
        drawn = rows[np.sort(chosen)]
    groups = square_patches(row.shape, config.patch) if row.ndim == 3 else None
    return explainer.explain(predict, row, drawn, seconds=config.seconds, seed=config.seed, clock=clock, groups=groups)


def square_patches(shape: tuple[int, ...], side: int = 0) -> npt.NDArray[np.intp]:
    """Number the squares of `side` pixels of an image [C, H, W] (or [H, W]), all channels of a pixel together.

    0 chooses the smallest side that gives at most 64 squares. Those at the right and lower edge may be smaller.

    >>> square_patches((2, 4), 2).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]
    """
    if len(shape) not in (2, 3) or min(shape) < 1 or side < 0:
        raise InvalidInput(
            f"patches of {side} pixels can't be laid over the shape {list(shape)}; it takes [height, width] or "
            "[channels, height, width] and 1 or more pixels"
        )
    height, width = shape[-2:]
    if side == 0:
        side = max(1, int(sqrt(height * width / _MOST_PATCHES)))
        while ceil(height / side) * ceil(width / side) > _MOST_PATCHES:
            side += 1
    plane = (np.arange(height) // side)[:, None] * ceil(width / side) + (np.arange(width) // side)[None, :]
    return np.broadcast_to(plane, shape).astype(np.intp)
