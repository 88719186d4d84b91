"""Made-up rows of a version's inputs for measuring: of realistic sizes and magnitudes, and the same each time.

A version carries no samples of its data. What its preparation was fitted on says much about them, though: means and
scales of columns, known categories. For the rest, texts are words, images are pictures, numbers are of magnitude one.
"""

import math
import random
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from argosy.core.tensors import DATATYPES, Signature, TensorSpec

Array = np.ndarray[Any, np.dtype[Any]]

TEXT_BYTES = (48, 200, 720)
"""A short sentence, two sentences, a paragraph: about 9, 35 and 130 English words."""
_SIZES = (8, 32, 128)
"""Of one free dimension, such as a sequence's."""
_SIDES = (32, 96, 224)
"""Of each of several free dimensions, such as a picture's height and width."""
_PICTURE = 224
_SEED = 1
_VOCABULARY = (
    "a about after again all also although an and another any are around as at away back be because been before below "
    "between boat both bring but by call can captain carry clear cloud coast cold crew current day deck did distance "
    "do down during each early east either engine enough evening every far few find first five follow for four from "
    "full further give go good great had half hand harbour has have heavy her here high him his hold hour how however "
    "if in inside into is island it its just keep known land large last late leave less light like line little long "
    "look lost made make many map may measure mile might mist more morning most much must narrow near never new next "
    "night no north not nothing now of off old on once one only open or other our out over own part passage people "
    "perhaps place possible pull quite rather reach remember report rest right river rope round sail same sand say "
    "sea second see seven several shallow she ship shore short should side since six slowly small so some soon sound "
    "south stand steady still storm stream such sun take tell ten than that the their them then there these they thing "
    "this those though three through tide time to together too toward travel turn two under until up upon us very wait "
    "was watch water wave way we weather well were west what when where which while who wide will wind with without "
    "wood word work would year yet you your"
)


class Samples:
    """Rows for one version. `prepare`: the plain steps of its manifest; `examples`: rows that its author gave."""

    def __init__(
        self,
        signature: Signature,
        prepare: Sequence[Mapping[str, Any]] = (),
        examples: Mapping[str, Array] | None = None,
    ) -> None:
        self._signature = signature
        self._prepare = prepare
        self._examples = examples or {}
        self.takes_texts = not examples and any(spec.content == "text" for spec in signature.inputs)
        """Whether rows of different lengths can share a batch, because the version pads them."""
        self._free = {} if self.takes_texts or examples else _free_sizes(signature)
        self.lengths = TEXT_BYTES if self.takes_texts else tuple(self._free) or (0,)
        """Bytes of a row that are worth trying, ascending; (0,) where all rows are alike."""

    def batch(self, lengths: Sequence[int]) -> dict[str, Array]:
        """Return inputs with a row for each of `lengths`, which must be of `self.lengths` and equal but for texts."""
        if self._examples:
            return {name: self._repeated(rows, len(lengths)) for name, rows in self._examples.items()}
        return {spec.name: self._input(spec, lengths) for spec in self._signature.inputs}

    def _repeated(self, rows: Array, count: int) -> Array:
        return rows[np.arange(count) % len(rows)] if self._signature.is_batched and len(rows) else rows

    def _input(self, spec: TensorSpec, lengths: Sequence[int]) -> Array:
        randomness = random.Random(f"{_SEED} {spec.name} {len(lengths)} {sum(lengths)}")  # noqa: S311 - not secrets
        rows = len(lengths) if self._signature.is_batched else 1
        size = self._free.get(lengths[0], 1)
        shape = tuple(
            (rows if axis == 0 and spec.is_batched else size) if extent == -1 else extent
            for axis, extent in enumerate(spec.shape)
        )
        if spec.datatype == "BYTES":
            return self._bytes(spec, shape, lengths, randomness)
        return self._numbers(spec, shape, randomness)

    def _bytes(self, spec: TensorSpec, shape: tuple[int, ...], lengths: Sequence[int], rnd: random.Random) -> Array:
        found = np.empty(shape, dtype=object)
        flat = found.reshape(-1)
        per_row = max(1, flat.size // max(1, len(lengths)))
        picture = _png(_PICTURE) if spec.content == "image" else b""
        known = self._categories(spec.name)
        for index in range(flat.size):
            if picture:
                flat[index] = picture
            elif spec.content == "text":
                flat[index] = _text(lengths[min(index // per_row, len(lengths) - 1)], rnd)
            else:
                options = known.get(index % per_row)
                flat[index] = rnd.choice(options).encode() if options else _text(8, rnd)
        return found

    def _categories(self, name: str) -> dict[int, list[str]]:
        """Return texts that the preparation knows, by position in a row."""
        found: dict[int, list[str]] = {}
        for step in self._prepare:
            if step.get("input") != name:
                continue
            for position, column in enumerate(step.get("columns", ())):
                if step.get("step") == "one-hot":
                    found[column] = list(step["categories"][position])
                elif step.get("step") == "dates":
                    found[column] = ["2024-05-01"]
        return found

    def _numbers(self, spec: TensorSpec, shape: tuple[int, ...], rnd: random.Random) -> Array:
        dtype = np.dtype(DATATYPES[spec.datatype][0])
        values = np.random.default_rng(rnd.getrandbits(32))
        if dtype == np.uint8:
            return values.integers(0, 256, shape, dtype=np.uint8)
        if dtype.kind != "f":
            # Ids and masks: one is a valid index almost everywhere, and no row is masked as a whole.
            return np.ones(shape, dtype=dtype)
        numbers = values.standard_normal(shape)
        for step in self._prepare:
            if step.get("step") == "standardize" and step.get("input") == spec.name:
                mean, scale = np.asarray(step["mean"], float), np.asarray(step["scale"], float)
                if mean.shape == scale.shape and mean.size in (1, *shape[-1:]):
                    numbers = mean + scale * numbers
            elif step.get("step") == "scale" and step.get("input") == spec.name and step.get("factor"):
                numbers = np.abs(numbers).clip(0, 1) / abs(float(step["factor"]))
        return numbers.astype(dtype)


def _free_sizes(signature: Signature) -> dict[int, int]:
    """Return sizes to try for the free dimensions beside the batch, by the bytes of a row that they make."""
    most = max((sum(1 for size in spec.shape[1:] if size == -1) for spec in signature.inputs), default=0)
    if not most:
        return {}
    found = {}
    for size in _SIZES if most == 1 else _SIDES:
        row_bytes = 0
        for spec in signature.inputs:
            item = DATATYPES[spec.datatype][1] or 8
            row_bytes += item * math.prod(size if extent == -1 else extent for extent in spec.shape[1:])
        found[row_bytes] = size
    return found


def _text(length: int, rnd: random.Random) -> bytes:
    vocabulary = _VOCABULARY.split()
    words: list[str] = []
    size = 0
    while size <= length:
        words.append(rnd.choice(vocabulary))
        size += len(words[-1]) + 1
    return " ".join(words).encode()[:length]


def _png(side: int) -> bytes:
    """Return a picture of soft colours with some grain, in the PNG format (ISO/IEC 15948), 8-bit RGB."""
    y, x = np.mgrid[0:side, 0:side] / side
    grain = np.random.default_rng(_SEED).normal(0, 6, (side, side, 3))
    soft = np.stack([np.sin(3 * x + y), np.cos(2 * y - x), x * y], axis=-1) * 90 + 128
    rows = np.zeros((side, 1 + 3 * side), dtype=np.uint8)  # each row begins with its filter: 0, none
    rows[:, 1:] = (soft + grain).clip(0, 255).astype(np.uint8).reshape(side, -1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(rows.tobytes(), 1)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
