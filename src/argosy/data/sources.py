"""Reading the user's files: one module per kind, one table that says which."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.plugins import Plugins
from argosy.data.location import IMAGE_SUFFIXES, KINDS, located
from argosy.data.scratch import IN_MEMORY, Scratch

Column = np.ndarray[Any, np.dtype[Any]]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """What was read: named columns of one length.

    Columns of a table are one-dimensional: numbers, truth values, datetime64[us], or objects (`str`, None where
    missing). Arrays and images have more dimensions. `unusable` says of the columns that can't be used, why.
    """

    columns: dict[str, Column]
    kind: str
    where: str
    unusable: dict[str, str] = {}

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.columns.values()), ()))

    def names(self) -> str:
        """Return the names of the columns as an error shows them, at most 40."""
        names = [repr(name) for name in self.columns]
        return ", ".join(names[:40]) + (f" and {len(names) - 40} more" if len(names) > 40 else "")


class Source(Protocol):
    """Reads one kind of file. Raises InvalidInput that names the file for whatever is wrong with it."""

    def __call__(self, path: Path, *, image_size: int, scratch: Scratch) -> Table:
        """Return everything in `path`; what doesn't fit into memory lies in `scratch`."""
        ...


SOURCES = Plugins[Source](
    "argosy.sources",
    {
        "csv": "argosy.data.csv_source:read_csv",
        "jsonl": "argosy.data.jsonl_source:read_jsonl",
        "parquet": "argosy.data.parquet_source:read_parquet",
        "npz": "argosy.data.npz_source:read_npz",
        "images": "argosy.data.image_source:read_images",
        "texts": "argosy.data.text_source:read_texts",
    },
    extras=dict.fromkeys(("csv", "jsonl", "parquet", "images"), "train"),
)


def read(path_or_url: str, base: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read a CSV, JSON Lines, Parquet or NPZ file or a folder of images or of texts; relative paths start at `base`.

    What is too large for memory is read in pieces and lies in `scratch`; its columns act as arrays do.

    Raises NotFound, or InvalidInput that says what is wrong and where.
    """
    with located(path_or_url, base, scratch.room) as path:
        if path.is_dir():
            kind = _folder_kind(path)
        else:
            kind = KINDS.get(path.suffix.lower(), "")
            if not kind:
                raise InvalidInput(
                    f"'{path_or_url}' ends in none of {', '.join(KINDS)} and is no folder of images or texts",
                    hint="convert it to CSV or Parquet",
                )
            if path.stat().st_size == 0:
                raise InvalidInput(f"the data file '{path_or_url}' is empty", path=str(path))
        table = SOURCES.load(kind)(path, image_size=image_size, scratch=scratch)
    table = msgspec.structs.replace(table, where=path_or_url)
    if table.rows == 0:
        raise InvalidInput(f"'{path_or_url}' has columns but no rows: {table.names()}", path=path_or_url)
    return table


def _folder_kind(path: Path) -> str:
    """Texts, if folders of classes hold some and no image: beside images a text is a note."""
    found = {file.suffix.lower() for file in path.glob("*/**/*") if not file.name.startswith(".")}
    return "texts" if ".txt" in found and found.isdisjoint(IMAGE_SUFFIXES) else "images"


def name_columns(found: Sequence[str], where: str) -> list[str]:
    """Return usable column names: stripped, unnamed ones named by position as pandas does.

    Raises InvalidInput when a name occurs twice: it would be unclear which one is meant.
    """
    names = [str(name).strip() or f"Unnamed: {position}" for position, name in enumerate(found)]
    twice = sorted({name for name in names if names.count(name) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise InvalidInput(
            f"'{where}' has more than one column called {', '.join(map(repr, twice[:10]))}",
            hint="give every column a name of its own" + (f"; {_HEADERLESS}" if all(map(is_number, names)) else ""),
            columns=twice,
        )
    return names


_HEADERLESS = "the first line looks like data: a CSV file needs a line of column names first"


def headerless_hint(names: Sequence[str]) -> str:
    """Return a hint when column names look like a row of data, else ''."""
    numbers = [name for name in names if is_number(name) and not name.strip().isdigit()]
    return _HEADERLESS if len(numbers) * 2 > len(names) else ""


def is_number(text: str) -> bool:
    """Return whether `text` reads as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True
