"""From Arrow tables to NumPy columns; shared by CSV, JSON Lines and Parquet."""

from collections.abc import Iterable
from typing import Any, cast

import numpy as np

from argosy.data.scratch import Scratch
from argosy.data.sources import Column, Table


def to_table(arrow: Any, names: list[str], kind: str, where: str) -> Table:
    """Turn an Arrow table into columns; nested and binary ones are listed as unusable, unnamed empty ones left out."""
    columns: dict[str, Column] = {}
    unusable: dict[str, str] = {}
    for name, column in zip(names, arrow.columns, strict=True):
        if name.startswith("Unnamed: ") and column.null_count == len(column):
            continue  # what a comma at the end of every line makes
        found = _to_numpy(column)
        if found is None:
            unusable[name] = f"it holds {column.type}"
        else:
            columns[name] = found
    return Table(columns=columns, kind=kind, where=where, unusable=unusable)


def from_batches(batches: Iterable[Any], names: list[str], kind: str, where: str, scratch: Scratch) -> Table:
    """Do the same with record batches of one schema, of which one at a time is held; the columns lie in `scratch`."""
    import pyarrow as pa

    columns = scratch.columns(names)
    filled, unusable = dict.fromkeys(names, False), {}
    for batch in batches:
        # Types that depend on what is missing may differ between batches; `SpooledColumn` brings them together.
        for name, column in zip(names, pa.Table.from_batches([batch]).columns, strict=True):
            found = None if name in unusable else _to_numpy(column)
            if found is None:
                unusable[name] = f"it holds {column.type}"
                continue
            filled[name] |= column.null_count < len(column)
            columns[name].append(found)
    pa.default_memory_pool().release_unused()
    is_empty = {name for name in names if name.startswith("Unnamed: ") and not filled[name]}
    kept = {name: column for name, column in columns.items() if name not in unusable and name not in is_empty}
    left_out = {name: why for name, why in unusable.items() if name not in is_empty}
    return Table(columns=cast("dict[str, Column]", kept), kind=kind, where=where, unusable=left_out)


def _to_numpy(column: Any) -> Column | None:
    import pyarrow as pa
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column = column.cast(kind.value_type)
        kind = column.type
    if types.is_null(kind):
        return np.full(len(column), np.nan)
    if types.is_boolean(kind) and column.null_count:
        return np.asarray(column.cast(pa.uint8()).cast(pa.float64()).to_numpy())
    if types.is_decimal(kind) or types.is_duration(kind):
        seconds = column.cast(pa.duration("us")).cast(pa.int64()) if types.is_duration(kind) else column
        return np.asarray(seconds.cast(pa.float64()).to_numpy()) * (1e-6 if types.is_duration(kind) else 1.0)
    if types.is_date(kind) or types.is_timestamp(kind):
        # Arrow keeps zoned times in UTC; sub-microseconds are cut off, more than FP32 days can tell anyway.
        return np.asarray(column.cast(pa.timestamp("us", tz=getattr(kind, "tz", None)), safe=False).to_numpy())
    if types.is_time(kind):
        column, kind = column.cast(pa.string()), pa.string()
    if types.is_string(kind) or types.is_large_string(kind):
        return np.asarray(column.to_numpy(), dtype=object)
    if types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind):
        return np.asarray(column.to_numpy())
    return None
