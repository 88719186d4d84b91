"""Parquet files."""

from pathlib import Path
from typing import Any

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.arrow_columns import from_batches, to_table
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Table, name_columns

_BATCH_BYTES = 16 << 20


def read_parquet(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read a Parquet file; an index that pandas stored beside the columns is left out."""
    del image_size
    try:
        from pyarrow import lib, parquet
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    try:
        # Mapped: else all of a row group is read before its first rows are given.
        with parquet.ParquetFile(path, memory_map=True, pre_buffer=False) as file:
            size = _unpacked_bytes(file)
            if scratch.is_large(size):
                wanted = _without_index(file.schema_arrow.names)
                rows = max(1, _BATCH_BYTES * file.metadata.num_rows // size)
                batches = file.iter_batches(rows, columns=wanted)
                return from_batches(batches, name_columns(wanted, path.name), "table", path.name, scratch)
            arrow = file.read()
    except (lib.ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"'{path.name}' can't be read as Parquet: {error}", path=str(path)) from error
    arrow = arrow.select(_without_index(arrow.column_names))
    return to_table(arrow, name_columns(arrow.column_names, path.name), "table", path.name)


def _without_index(names: list[str]) -> list[str]:
    return [name for name in names if not name.startswith("__index_level_")]


def _unpacked_bytes(file: Any) -> int:
    groups = range(file.metadata.num_row_groups)
    return sum(int(file.metadata.row_group(number).total_byte_size) for number in groups)
