"""Parquet files."""

from pathlib import Path

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.arrow_columns import to_table
from argosy.data.sources import Table, name_columns


def read_parquet(path: Path, *, image_size: int = 0) -> Table:
    """Read a Parquet file; an index that pandas stored beside the columns is left out."""
    del image_size
    try:
        from pyarrow import lib, parquet
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    try:
        with parquet.ParquetFile(path) as file:
            arrow = file.read()
    except (lib.ArrowException, OSError, ValueError) as error:
        raise InvalidInput(f"'{path.name}' can't be read as Parquet: {error}", path=str(path)) from error
    stored = [name for name in arrow.column_names if name.startswith("__index_level_")]
    arrow = arrow.drop_columns(stored) if stored else arrow
    return to_table(arrow, name_columns(arrow.column_names, path.name), "table", path.name)
