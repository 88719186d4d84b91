"""One part of a data set, and what can be said of parts together: their digest, and rows that stand in two of them."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.digest import digest_of, sha256
from argosy.data.fit import Fitted
from argosy.data.prepare import FinishStep, steps_to_plain
from argosy.data.steps import Array, Arrays


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One part: raw inputs as a caller sends them, and the answers: int64 class numbers or float32 values."""

    inputs: Arrays
    y: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


def repeated(splits: Mapping[str, Split]) -> list[str]:
    """Tell of test rows that also stand in training: they make a model look better than it is."""
    seen = set(_row_hashes(splits["train"]))
    again = sum(row in seen for row in _row_hashes(splits["test"]))
    share = again / max(1, len(splits["test"]))
    return [f"{again} test rows ({share:.1%}) also stand in the training part, input and label"] if again else []


def _row_hashes(part: Split) -> Iterator[bytes]:
    arrays: list[Array] = [*part.inputs.values(), part.y]
    plain = [np.ascontiguousarray(a).reshape(len(a), -1).view(np.uint8) for a in arrays if a.dtype.kind != "O"]
    texts = [array for array in arrays if array.dtype.kind == "O"]
    for row in range(len(part)):
        content = b"".join(array[row].tobytes() for array in plain)
        content += repr([array[row : row + 1].tolist() for array in texts]).encode()
        yield hashlib.blake2b(content, digest_size=16).digest()


def digest_of_parts(
    splits: Mapping[str, Split],
    fitted: Fitted,
    finish: list[FinishStep],
    task: str,
    labels: Sequence[str],
) -> str:
    """Return one digest over everything that decides what a model sees."""
    parts = {
        name: {**{key: _array_digest(array) for key, array in part.inputs.items()}, "": _array_digest(part.y)}
        for name, part in splits.items()
    }
    steps, files = steps_to_plain(fitted.steps), [sha256(content) for content in fitted.files.values()]
    return digest_of([parts, steps, steps_to_plain(finish), fitted.specs, task, labels, *([files] if files else [])])


def _array_digest(array: Array) -> str:
    """Return a digest over dtype, shape and values, however the array lies in memory."""
    if array.dtype.kind == "O":
        return digest_of([list(array.shape), array.ravel().tolist()])
    head = f"{array.dtype.str} {array.shape} ".encode()
    return sha256(head + np.ascontiguousarray(array).tobytes())
