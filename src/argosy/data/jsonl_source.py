"""JSON Lines: an object per line."""

from pathlib import Path

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.arrow_columns import from_batches, to_table
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Table, name_columns

_BLOCK_BYTES = 16 << 20
_MOST_BYTES = (1 << 31) - 1  # Arrow counts a block's bytes in 32 bits


def read_jsonl(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read a file of JSON objects, one per line; a field that a line lacks is missing there.

    Raises InvalidInput for what is no such file. Of a file that is read in pieces, the first block says the fields and
    their types.
    """
    del image_size
    try:
        from pyarrow import json as arrow_json
        from pyarrow import lib
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    size = path.stat().st_size
    try:
        if scratch.is_large(size):
            options = arrow_json.ReadOptions(block_size=_BLOCK_BYTES)
            with arrow_json.open_json(path, read_options=options) as batches:
                names = name_columns(batches.schema.names, path.name)
                return from_batches(batches, names, "table", path.name, scratch)
        options = arrow_json.ReadOptions(block_size=min(size + 1, _MOST_BYTES))
        arrow = arrow_json.read_json(path, read_options=options)
    except (lib.ArrowException, ValueError) as error:
        line = str(error).replace("\n", " ")
        raise InvalidInput(
            f"'{path.name}' can't be read as JSON Lines: {line[:200]}",
            hint='every line is an object such as {"size": 1.5, "label": "a"}',
            path=str(path),
        ) from error
    return to_table(arrow, name_columns(arrow.column_names, path.name), "table", path.name)
