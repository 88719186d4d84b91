"""A folder of texts, one folder per class."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.sources import Table

_SUFFIX = ".txt"
_MOST_BYTES = 4 << 30  # of all texts together, as they are held in memory


def read_texts(path: Path, *, image_size: int = 0, scratch: Scratch = IN_MEMORY) -> Table:
    """Read `path/<class>/*.txt` (UTF-8) into the columns "text" and "label", the folders' names.

    Raises InvalidInput that names the file.
    """
    del image_size, scratch  # texts to learn from are held in memory, as their tokens are
    files = sorted(texts_in(path))
    total = sum(file.stat().st_size for file in files)
    if total > _MOST_BYTES:
        raise InvalidInput(f"{len(files)} texts have {total / 1e9:.1f} GB together, more than {_MOST_BYTES / 1e9:.1f}")
    texts = np.empty(len(files), dtype=object)
    labels = np.empty(len(files), dtype=object)
    for row, file in enumerate(files):
        texts[row] = _read(file, path)
        labels[row] = file.relative_to(path).parts[0]
    return Table(columns={"text": texts, "label": labels}, kind="texts", where=path.name)


def texts_in(path: Path) -> Iterator[Path]:
    """Yield the texts in folders of classes."""
    for folder in path.iterdir():
        if folder.is_dir() and not folder.name.startswith("."):
            found = folder.rglob("*")
            yield from (p for p in found if p.suffix.lower() == _SUFFIX and not p.name.startswith(".") and p.is_file())


def _read(file: Path, root: Path) -> str:
    try:
        return file.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            f"'{file.relative_to(root)}' is not UTF-8 at byte {error.start}",
            hint="convert it, such as with: iconv -f latin1 -t utf-8",
            path=str(file),
        ) from error
