"""Whether two models gave the same answers."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput

Array = npt.NDArray[Any]


def answers_agree(a: Mapping[str, Array], b: Mapping[str, Array], *, tolerance: float) -> npt.NDArray[np.bool_]:
    """Return for each row whether the answers `a` and `b` are the same.

    Compared is the output "label" if both have one; else the place of the largest value of the first float output with
    more than one value per row; else every output, each number to `tolerance` of the larger of the two. A row with a
    number that is not finite never agrees. Raises InvalidInput when the answers have no output in common, or
    different numbers of rows.
    """
    names = [name for name in a if name in b]
    if not names:
        raise InvalidInput(f"the answers have no output in common: {', '.join(a)} and {', '.join(b)}")
    if "label" in names:
        first, second = _pair(a, b, "label")
        same = _same_texts(first, second)
        return same & _finite(a, names, len(same)) & _finite(b, names, len(same))
    for name in names:
        first, second = _pair(a, b, name)
        if first.dtype.kind == "f" and first.ndim > 1 and first.shape[-1] > 1:
            chosen = np.asarray(first.argmax(axis=-1) == second.argmax(axis=-1))
            return _rows(chosen) & _finite(a, [name], len(first)) & _finite(b, [name], len(first))
    agree = np.ones(len(a[names[0]]), dtype=bool)
    for name in names:
        first, second = _pair(a, b, name)
        if len(first) != len(agree):
            raise InvalidInput(f"the output '{name}' has {len(first)} rows, others {len(agree)}")
        agree &= _rows(_close(first, second, tolerance))
    return agree


def _pair(a: Mapping[str, Array], b: Mapping[str, Array], name: str) -> tuple[Array, Array]:
    first, second = np.asarray(a[name]), np.asarray(b[name])
    if first.shape != second.shape:
        raise InvalidInput(
            f"the output '{name}' has shape {list(first.shape)} in one answer and {list(second.shape)} in the other"
        )
    return first, second


def _same_texts(first: Array, second: Array) -> npt.NDArray[np.bool_]:
    # Labels come as str from the finish steps and as bytes from the wire.
    if first.dtype.kind in "OSU":
        pairs = zip(first.ravel().tolist(), second.ravel().tolist(), strict=True)
        same = np.array([_text(x) == _text(y) for x, y in pairs], dtype=bool).reshape(first.shape)
    else:
        same = np.asarray(first == second)
    return _rows(same)


def _text(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def _close(first: Array, second: Array, tolerance: float) -> npt.NDArray[np.bool_]:
    if first.dtype.kind not in "biuf":
        return _same_texts(first, second)
    x, y = first.astype(np.float64), second.astype(np.float64)
    with np.errstate(invalid="ignore", over="ignore"):
        close = np.abs(x - y) <= tolerance * np.maximum(np.abs(x), np.abs(y))
    return np.asarray(close & np.isfinite(x) & np.isfinite(y))


def _finite(outputs: Mapping[str, Array], names: list[str], rows: int) -> npt.NDArray[np.bool_]:
    finite = np.ones(rows, dtype=bool)
    for name in names:
        array = np.asarray(outputs[name])
        if array.dtype.kind == "f" and len(array) == rows:
            finite &= _rows(np.isfinite(array))
    return finite


def _rows(cells: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    return np.asarray(cells.all(axis=tuple(range(1, cells.ndim))))
