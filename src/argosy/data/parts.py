"""One part of a data set, and what can be said of parts together: their digest, and rows that stand in two of them."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.digest import digest_of, sha256
from argosy.data.fit import Fitted
from argosy.data.prepare import FinishStep, steps_to_plain
from argosy.data.shuffle import mix
from argosy.data.steps import Array, Arrays
from argosy.data.storage import pieces, plain_bytes


class Split(msgspec.Struct, frozen=True, kw_only=True):
    """One part: raw inputs as a caller sends them, and the answers: int64 class numbers or float32 values."""

    inputs: Arrays
    y: npt.NDArray[Any]

    def __len__(self) -> int:
        return len(self.y)


def repeated(splits: Mapping[str, Split]) -> list[str]:
    """Tell of test rows that also stand in training: they make a model look better than it is."""
    again = int(np.isin(_row_keys(splits["test"]), _row_keys(splits["train"])).sum())
    share = again / max(1, len(splits["test"]))
    return [f"{again} test rows ({share:.1%}) also stand in the training part, input and label"] if again else []


def _row_keys(part: Split) -> npt.NDArray[np.uint64]:
    """Return a number for each row that others have only by chance, one in 2^64."""
    keys = np.zeros(len(part), dtype=np.uint64)
    for array in (*part.inputs.values(), part.y):
        start = 0
        for piece in pieces(array):
            rows = slice(start, start + len(piece))
            found = _text_keys(piece) if array.dtype.kind == "O" else _number_keys(piece)
            keys[rows] = mix(mix(keys[rows] + np.uint64(1)) ^ found)
            start += len(piece)
    return keys


def _number_keys(rows: Array) -> npt.NDArray[np.uint64]:
    plain = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    padded = np.zeros((len(rows), -(-plain.shape[1] // 8) * 8), dtype=np.uint8)
    padded[:, : plain.shape[1]] = plain
    words = padded.view(np.uint64)
    places = np.arange(words.shape[1], dtype=np.uint64)
    # Each word is mixed with its place, so that the same words in another order have another sum.
    return np.asarray(mix(words ^ mix(places + np.uint64(1))).sum(axis=1, dtype=np.uint64))


def _text_keys(rows: Array) -> npt.NDArray[np.uint64]:
    lines = rows.reshape(len(rows), -1).tolist()
    found = [hashlib.blake2b(repr(line).encode(), digest_size=8).digest() for line in lines]
    return np.frombuffer(b"".join(found), dtype=np.uint64)


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
    """Return a digest over dtype, shape and values, however the array lies in memory or on a disk."""
    found = hashlib.sha256(f"{array.dtype.str} {array.shape} ".encode())
    for piece in pieces(array):
        if array.dtype.kind == "O":
            for text in piece.ravel().tolist():
                content = text.encode("utf-8", "surrogatepass")
                found.update(len(content).to_bytes(8, "little") + content)
        else:
            found.update(plain_bytes(piece))
    return f"sha256:{found.hexdigest()}"
