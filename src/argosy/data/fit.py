"""Choosing and fitting the preparation steps, on training rows only."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPE_OF_NUMPY, TensorSpec
from argosy.data.config import DataConfig
from argosy.data.prepare import (
    Dates,
    Impute,
    Join,
    OneHot,
    Scale,
    Standardize,
    Step,
    Take,
    apply,
)
from argosy.data.steps import Array, Arrays

_SENTENCES = 1000
_MOST_CATEGORIES = 64
"""Of one text column; rarer ones are treated as never seen. 64 columns of zeros and ones are cheap, 10,000 aren't."""
# "id", "row_id", "PassengerId", but not "acid".
_ROW_NAMES = re.compile(r"(?i:(.*[_\s-])?(id|index|idx|row|rowid|row_number|uuid|guid))|.*[a-z](Id|ID)|Unnamed: \d+")


class Layout(msgspec.Struct, frozen=True, kw_only=True):
    """Which columns become which raw input. `notes` says what was left out and why, for the user."""

    numbers: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()
    array: str = ""
    arrays: tuple[str, ...] = ()
    """Several arrays, which the model takes one by one in this order."""
    notes: tuple[str, ...] = ()


class Fitted(msgspec.Struct, frozen=True, kw_only=True):
    """Preparation steps, the raw inputs they begin with, and the files of the version they need."""

    steps: list[Step]
    specs: tuple[TensorSpec, ...]
    files: dict[str, bytes] = {}
    about: str = ""
    """What callers should know of their inputs' way."""
    notes: tuple[str, ...] = ()


def is_text(column: Array) -> bool:
    """Return whether a column holds texts."""
    return column.dtype.kind == "O"


def choose_layout(columns: Mapping[str, Array], asked: Sequence[str] = ()) -> Layout:
    """Decide from training columns what a caller will have to send; `asked` columns are never left out.

    Raises InvalidInput when nothing is left, or when arrays of several dimensions can't be put together.
    """
    arrays = [name for name, column in columns.items() if column.ndim > 1]
    if arrays:
        if len(columns) > 1 and len(arrays) == len(columns) == len(asked):
            return Layout(arrays=tuple(asked))
        if len(columns) > 1:
            raise InvalidInput(
                f"there is more than one array to learn from: {', '.join(map(repr, columns))}",
                hint=f"choose one, such as [data] columns = [{arrays[0]!r}], or name all in the order in which the "
                "model takes them",
            )
        return Layout(array=arrays[0])
    notes: list[str] = []
    kept: list[str] = []
    for name, column in columns.items():
        why = "" if name in asked else useless(name, column)
        if why:
            notes.append(f"column '{name}' is left out: {why}")
        else:
            kept.append(name)
    if not kept:
        raise InvalidInput(
            "no column is left to learn from" + "".join(f"; {note}" for note in notes),
            hint="name the columns to use: [data] columns = [...]",
        )
    return Layout(
        numbers=tuple(name for name in kept if columns[name].dtype.kind in "biuf"),
        texts=tuple(name for name in kept if is_text(columns[name])),
        dates=tuple(name for name in kept if columns[name].dtype.kind == "M"),
        notes=tuple(notes),
    )


def useless(name: str, column: Array) -> str:
    """Return why nothing can be learned from a column of its own, or an empty text."""
    rows = len(column)
    if column.dtype.kind in "iu" and _ROW_NAMES.fullmatch(name):
        return "it numbers the rows" if len(np.unique(column)) == rows else ""
    if not is_text(column):
        return ""
    different = len(set(column.tolist()))
    if different > _MOST_CATEGORIES and different * 2 > rows:
        return f"it has {different} different texts in {rows} rows, so it names or describes rows" + (
            f"; to learn from its words say [data] text = {name!r}" if are_sentences(column) else ""
        )
    return ""


def are_sentences(column: Array) -> bool:
    """Return whether a column of texts has three words or more in most rows; fewer are names."""
    known = [text for text in column[:_SENTENCES].tolist() if text]
    return bool(known) and float(np.median([len(text.split()) for text in known])) >= 3


def input_specs(layout: Layout, columns: Mapping[str, Array]) -> tuple[TensorSpec, ...]:
    """Return the raw inputs as callers send them."""
    if names := layout.arrays or ((layout.array,) if layout.array else ()):
        return tuple(_array_spec(name, columns[name]) for name in names)
    specs = []
    if layout.numbers:
        specs.append(
            TensorSpec(name="features", datatype="FP32", shape=(-1, len(layout.numbers)), columns=layout.numbers)
        )
    if words := layout.texts + layout.dates:
        specs.append(TensorSpec(name="categories", datatype="BYTES", shape=(-1, len(words)), columns=words))
    return tuple(specs)


def _array_spec(name: str, found: Array) -> TensorSpec:
    dtype = "float32" if found.dtype == np.float64 else found.dtype.name
    return TensorSpec(name=name, datatype=DATATYPE_OF_NUMPY[dtype], shape=(-1, *found.shape[1:]))


def raw_inputs(specs: Sequence[TensorSpec], columns: Mapping[str, Array]) -> Arrays:
    """Arrange columns as a caller would send them: numbers rounded to FP32, texts as objects.

    Raises InvalidInput for a column that holds texts where training had numbers.
    """
    found: Arrays = {}
    for spec in specs:
        if not spec.columns:
            found[spec.name] = _as_datatype(columns[spec.name], spec)
            continue
        turn = as_texts if spec.datatype == "BYTES" else _as_float32
        dtype = object if spec.datatype == "BYTES" else np.float32
        rows = len(columns[spec.columns[0]])
        together = np.empty((rows, len(spec.columns)), dtype=dtype)
        for position, name in enumerate(spec.columns):
            together[:, position] = turn(columns[name], name)
        found[spec.name] = together
    return found


def _as_datatype(column: Array, spec: TensorSpec) -> Array:
    take = Take(input=spec.name, datatype=spec.datatype, shape=spec.shape)
    return apply([take], {spec.name: column})[spec.name]


def _as_float32(column: Array, name: str) -> Array:
    if column.dtype.kind not in "biuf":
        example = next((value for value in column.tolist() if value is not None), "")
        raise InvalidInput(
            f"the column '{name}' holds numbers for training, but {example!r} here",
            hint="both files need the same kind of values in a column",
            column=name,
        )
    with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which counts as missing
        return column.astype(np.float32)


def as_texts(column: Array, name: str = "") -> Array:
    """Return a column as stripped texts, '' where missing; whole numbers are written without a point."""
    del name
    texts = np.empty(len(column), dtype=object)
    kind = column.dtype.kind
    if kind == "O":
        texts[:] = ["" if value is None else value.strip() for value in column.tolist()]
    elif kind == "M":
        missing = np.isnat(column)
        texts[:] = np.where(missing, "", np.datetime_as_string(column, unit="auto") if len(column) else "").tolist()
    elif kind == "f":
        texts[:] = [_number_text(value) for value in column.tolist()]
    else:
        texts[:] = [str(value) for value in column.tolist()]
    return texts


def _number_text(value: float) -> str:
    if value != value:  # noqa: PLR0124  # NaN: missing
        return ""
    return str(int(value)) if value.is_integer() else repr(value)


def fit_preparation(
    config: DataConfig, train_columns: Mapping[str, Array], layout: Layout | None = None
) -> tuple[list[Step], tuple[TensorSpec, ...]]:
    """Fit the steps of `config.prepare` on training columns; return them and the raw inputs they begin with."""
    layout = layout or choose_layout(train_columns, config.columns)
    specs = input_specs(layout, train_columns)
    raw = raw_inputs(specs, train_columns)
    steps: list[Step] = [Take(input=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in specs]
    if layout.arrays:
        if config.prepare:
            raise InvalidInput(
                f"[data] prepare = {config.prepare} would treat {' and '.join(map(repr, layout.arrays))} alike; "
                "several arrays reach the model as they are",
                hint="leave prepare out, and scale the arrays before saving them",
            )
        # Nothing but whole numbers and bytes to float32.
        return [*steps, *(Scale(input=name, factor=1.0) for name in layout.arrays)], specs
    if layout.array:
        spec = specs[0]
        return [*steps, *_fit_array(config, raw[spec.name], spec), Join(inputs=(spec.name,))], specs
    parts: list[str] = []
    if layout.numbers:
        steps += _fit_numbers(config, "features", raw["features"])
        parts.append("features")
    if layout.dates:
        places = tuple(range(len(layout.texts), len(layout.texts) + len(layout.dates)))
        dates = Dates(input="categories", columns=places, names=layout.dates, output="dates")
        steps += [dates, *_fit_numbers(config, "dates", apply([dates], raw)["dates"])]
        parts.append("dates")
    if layout.texts:
        known = tuple(_categories(raw["categories"][:, place]) for place in range(len(layout.texts)))
        columns = tuple(range(len(layout.texts)))
        steps.append(OneHot(input="categories", columns=columns, categories=known, output="one_hot"))
        parts.append("one_hot")
    return [*steps, Join(inputs=tuple(parts))], specs


def _fit_array(config: DataConfig, x: Array, spec: TensorSpec) -> list[Step]:
    is_bytes = spec.datatype == "UINT8" and x.ndim >= 3
    names = config.prepare if config.prepare is not None else (["scale"] if is_bytes else ["standardize"])
    steps: list[Step] = []
    if x.ndim > 2:
        x = x.reshape(-1, 1)  # one statistic for the whole array: pixels have one unit
    if spec.datatype in ("FP16", "FP32", "FP64"):
        steps.append(Impute(input=spec.name, fill=_medians(x)))
    if "scale" in names:
        steps.append(Scale(input=spec.name, factor=1.0 / 255.0))
        x = apply(steps[-1:], {spec.name: x})[spec.name]
    return steps + _fit_scaling(names, spec.name, x)


def _fit_numbers(config: DataConfig, name: str, x: Array) -> list[Step]:
    names = ["standardize"] if config.prepare is None else config.prepare
    if "scale" in names:
        raise InvalidInput(
            "[data] prepare = 'scale' is for bytes, such as the pixels of images; this is a table",
            hint="use 'standardize' or 'minmax'",
        )
    return [Impute(input=name, fill=_medians(x)), *_fit_scaling(names, name, x)]


def _fit_scaling(names: Sequence[str], name: str, x: Array) -> list[Step]:
    if "standardize" in names:
        mean, scale = _mean_and_scale(x)
    elif "minmax" in names:
        low, high = _quantity(x, np.min), _quantity(x, np.max)
        mean, scale = low, high - low
    else:
        return []
    return [Standardize(input=name, mean=_plain(mean), scale=_plain(scale))]


def _medians(x: Array) -> tuple[float, ...]:
    # Rounded to float32 so that a filled value is one a caller could have sent.
    return _plain(_quantity(x, np.median).astype(np.float32))


def _mean_and_scale(x: Array) -> tuple[Array, Array]:
    mean = _quantity(x, np.mean)
    scale = _quantity(x, np.std)
    # A constant column's deviation comes out as rounding noise; dividing by it would blow noise up to features.
    constant = _quantity(x, np.min) == _quantity(x, np.max)
    return mean, np.where(constant, 0.0, scale)


def _quantity(x: Array, function: Any) -> Array:
    """Apply a statistic to the known values of each column, in float64; 0 where all are missing."""
    found = np.zeros(x.shape[1], dtype=np.float64)
    for column in range(x.shape[1]):
        values = x[:, column].astype(np.float64)
        known = values[np.isfinite(values)]
        if len(known):
            found[column] = function(known)
    return found


def _plain(values: Array) -> tuple[float, ...]:
    return tuple(float(value) + 0.0 for value in values)  # + 0.0: no negative zeros


def _categories(texts: Array) -> tuple[str, ...]:
    counts = Counter(texts.tolist())
    most = sorted(counts, key=lambda text: (-counts[text], text))[:_MOST_CATEGORIES]
    return tuple(sorted(most))
