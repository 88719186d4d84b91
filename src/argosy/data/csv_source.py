"""CSV files as people have them: any usual delimiter, quotes, missing values, numbers, dates and texts."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.data.arrow_columns import from_batches, to_table
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Table, headerless_hint, name_columns

# What counts as a missing number; Arrow's own list leaves out the question mark of the UCI archive. In a text column
# these stay what they are: "None" may be a category.
_NULLS = ["", "?", "NA", "N/A", "n/a", "NaN", "nan", "-nan", "NULL", "null", "None", "none", "#N/A", "-", "."]
_BLOCK_BYTES = 16 << 20
_CONVERSION = re.compile(r"column #(\d+): CSV conversion error")
_MOST_BYTES = (1 << 31) - 1  # Arrow counts a block's bytes in 32 bits


def read_csv(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read a CSV file with a header line; the delimiter (comma, semicolon, tab or bar) is seen from it."""
    del image_size
    try:
        from pyarrow import csv as arrow_csv
        from pyarrow import lib
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    text = _head(path)
    header, delimiter, blank_lines = _header(text)
    names = name_columns(header, path.name)
    decimal_point = _decimal_point(text, delimiter)
    size = path.stat().st_size

    def options(block: int, types: dict[str, Any] | None = None) -> dict[str, Any]:
        return {
            "read_options": arrow_csv.ReadOptions(
                block_size=block, column_names=names, skip_rows=blank_lines, skip_rows_after_names=1
            ),
            "parse_options": arrow_csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            "convert_options": arrow_csv.ConvertOptions(
                null_values=_NULLS, strings_can_be_null=False, decimal_point=decimal_point, column_types=types
            ),
        }

    def parse(block: int) -> Any:
        return arrow_csv.read_csv(path, **options(block))

    try:
        if scratch.is_large(size):
            return _in_pieces(path, names, options, scratch)
        try:
            arrow = parse(_BLOCK_BYTES)
        except lib.ArrowInvalid as error:
            # Types are guessed from the first block: a column of whole numbers may hold 3.5 further down.
            if "conversion error" not in str(error) or not _BLOCK_BYTES < size < _MOST_BYTES:
                raise
            arrow = parse(size + 1)
    except lib.ArrowInvalid as error:
        raise InvalidInput(
            f"'{path.name}' can't be read as CSV: {_short(str(error))}",
            hint=headerless_hint(names) or f"it was read with {delimiter!r} between columns and {len(names)} of them",
            path=str(path),
        ) from error
    return to_table(arrow, names, "table", path.name)


def _in_pieces(path: Path, names: list[str], options: Callable[..., dict[str, Any]], scratch: Scratch) -> Table:
    """Read a file block by block. Where a guess at a type doesn't hold further down, begin again with a wider one."""
    from pyarrow import csv as arrow_csv
    from pyarrow import lib

    types: dict[str, Any] = {}
    while True:
        try:
            with arrow_csv.open_csv(path, **options(_BLOCK_BYTES, types)) as batches:
                guessed = batches.schema
                return from_batches(batches, names, "table", path.name, scratch)
        except lib.ArrowInvalid as error:
            found = _CONVERSION.search(str(error))
            if found is None:
                raise
            name = names[int(found[1])]
            wider = _wider(types.get(name, guessed.field(name).type))
            if wider is None:
                raise
            types[name] = wider


def _wider(kind: Any) -> Any:
    """Return the type to try where values of a column don't fit into `kind`; None behind the last, which is text."""
    import pyarrow as pa
    from pyarrow import types

    if types.is_string(kind):
        return None
    if types.is_null(kind) or types.is_integer(kind):
        return pa.float64()
    if types.is_date(kind) or (types.is_timestamp(kind) and kind.unit == "s"):
        return pa.timestamp("us")
    return pa.string()


def _head(path: Path) -> str:
    """Return the first lines, about a million characters. Raises InvalidInput when they are no text."""
    with path.open("rb") as stream:
        head = stream.read(1 << 20)
    if b"\x00" in head[:4096]:
        raise InvalidInput(f"'{path.name}' is not text", hint="save it as CSV in UTF-8", path=str(path))
    try:
        # A character may be cut in two at the end of what was read.
        text = head[: head.rfind(b"\n") + 1 or len(head)].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"'{path.name}' is not UTF-8 at byte {error.start}", hint="save it as CSV in UTF-8", path=str(path)
        ) from error
    if not text.strip():
        raise InvalidInput(f"the data file '{path.name}' holds nothing but white space", path=str(path))
    return text


def _header(text: str) -> tuple[list[str], str, int]:
    """Return the column names, the delimiter, and how many blank lines stand before."""
    first = text.lstrip("\r\n")
    best: list[str] = []
    chosen = ","
    for delimiter in (",", ";", "\t", "|"):
        found = next(csv.reader(io.StringIO(first, newline=""), delimiter=delimiter))
        if len(found) > len(best):
            best, chosen = found, delimiter
    return best, chosen, text[: len(text) - len(first)].count("\n")


def _decimal_point(text: str, delimiter: str) -> str:
    """Return the comma where it stands in most fractions, as in files from German or French spreadsheets."""
    if delimiter == ",":
        return "."
    commas, points = (len(re.findall(rf"(?<![\w.,])-?\d+{sign}\d+(?![\w.,])", text)) for sign in (",", r"\."))
    return "," if commas > points else "."


def _short(text: str) -> str:
    line = text.replace("\n", " ")
    return line if len(line) <= 200 else line[:200] + "…"
