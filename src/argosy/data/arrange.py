"""Rows of columns as callers send them, also of columns that are larger than memory."""

from collections.abc import Mapping, Sequence
from typing import cast

import numpy as np

from argosy.core.tensors import DATATYPES, TensorSpec
from argosy.data.fit import raw_inputs
from argosy.data.scratch import Scratch, SpooledColumn
from argosy.data.shuffle import Indices
from argosy.data.steps import Array, Arrays
from argosy.data.storage import row_bytes

MOST_FITTED_BYTES = 256 << 20
"""Of the training rows that preparation is fitted on. A median of so many says as much as one of all."""
_LEAST_FITTED = 1000
_PIECE_BYTES = 32 << 20


def take_rows(columns: Mapping[str, Array], rows: Indices) -> dict[str, Array]:
    """Return these rows of all columns, held in memory."""
    return {name: column[rows] for name, column in columns.items()}


def spread(columns: Mapping[str, Array], rows: Indices, most_bytes: int = 0) -> Indices:
    """Return `rows`, or as many of them, evenly spread, as fit into `most_bytes`; 0: into `MOST_FITTED_BYTES`."""
    most = max(_LEAST_FITTED, (most_bytes or MOST_FITTED_BYTES) // max(1, sum(map(row_bytes, columns.values()))))
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def arranged(specs: Sequence[TensorSpec], columns: Mapping[str, Array], rows: Indices, scratch: Scratch) -> Arrays:
    """Return the raw inputs of `rows` (ascending) as callers send them: `fit.raw_inputs`, piece by piece."""
    columns = {name: columns[name] for spec in specs for name in (spec.columns or (spec.name,))}
    each = max(1, sum(map(row_bytes, columns.values())))
    if not scratch.is_large(len(rows) * each):
        return raw_inputs(specs, take_rows(columns, rows))
    filled: Arrays = {}
    texts: dict[str, SpooledColumn] = {}
    for spec in specs:
        dtype = np.dtype(DATATYPES[spec.datatype][0])
        if dtype.kind == "O":
            texts[spec.name] = scratch.column()
        else:
            filled[spec.name] = scratch.empty((len(rows), *spec.shape[1:]), dtype)
    at_once = max(1, _PIECE_BYTES // each)
    for start in range(0, len(rows), at_once):
        piece = raw_inputs(specs, take_rows(columns, rows[start : start + at_once]))
        for name, array in piece.items():
            if name in texts:
                texts[name].append(array)
            else:
                filled[name][start : start + len(array)] = array
    both = filled | cast("Arrays", texts)
    return {spec.name: both[spec.name] for spec in specs}
