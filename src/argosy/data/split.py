"""Which row goes into which part."""

from typing import Any

import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput
from argosy.data.shuffle import Indices, permutation


def split_rows(
    strata: npt.NDArray[Any], *, validation: float, test: float, seed: int, rare_in_train: bool = False
) -> dict[str, Indices]:
    """Split rows 0..n-1 into disjoint "train", "validation" and "test" that together are all rows.

    `strata` holds a number per row; every part gets its share of each stratum, to within a row. With `rare_in_train`
    each stratum has at least one row in train, so a class of one member can be learned. Rows stay in their order
    within a part. `test` may be 0. Raises InvalidInput when a wanted part would be empty.
    """
    n = len(strata)
    # Rows of a stratum side by side in random order; then every k-th row of this list is a stratified sample.
    shuffled = permutation(n, seed)
    order = shuffled[np.argsort(strata[shuffled], kind="stable")]
    in_test = _every(n, test)
    rest = order[~in_test]
    in_validation = _every(len(rest), min(1.0, validation / (1.0 - test)))
    parts = {"train": rest[~in_validation], "validation": rest[in_validation], "test": order[in_test]}
    if rare_in_train:
        _give_back_rare(parts, strata)
    wanted = ["train", *(["validation"] if validation else []), *(["test"] if test else [])]
    empty = [name for name in wanted if len(parts[name]) == 0]
    if empty:
        shares = f"validation = {validation:g}, test_share = {test:g}"
        raise InvalidInput(
            f"{n} rows are too few: with {shares} the {empty[0]} part would be empty",
            hint="give more rows, or larger shares",
            rows=n,
        )
    return {name: np.sort(rows) for name, rows in parts.items()}


def _every(n: int, share: float) -> npt.NDArray[np.bool_]:
    """Mark round(n * share) of n places, evenly spread."""
    # 1e-9: 0.1 * 30 may come out as 2.9999999999999996.
    steps = np.floor(np.arange(n + 1) * share + 0.5 + 1e-9)
    return np.asarray(np.diff(steps) > 0)


def _give_back_rare(parts: dict[str, Indices], strata: npt.NDArray[Any]) -> None:
    """Exchange one row of each stratum that train lacks for one of train's most common stratum, so sizes stay."""
    for name in ("validation", "test"):
        for kind in np.setdiff1d(strata[parts[name]], strata[parts["train"]]):
            given = int(np.flatnonzero(strata[parts[name]] == kind)[0])
            kinds, counts = np.unique(strata[parts["train"]], return_counts=True)
            taken = int(np.flatnonzero(strata[parts["train"]] == kinds[counts.argmax()])[0])
            if counts.max() > 1:
                parts["train"][taken], parts[name][given] = parts[name][given], parts["train"][taken]
            else:  # train has single rows only: there is none it could spare
                parts["train"] = np.append(parts["train"], parts[name][given])
                parts[name] = np.delete(parts[name], given)


def strata_of_numbers(y: npt.NDArray[Any], bins: int = 10) -> npt.NDArray[np.int64]:
    """Return which tenth of the values each is in, so that parts of a regression cover the same range."""
    ranks = np.argsort(np.argsort(y, kind="stable"), kind="stable")
    return np.asarray(ranks * bins // max(1, len(y)), dtype=np.int64)
