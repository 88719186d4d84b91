"""Where data files are: on this machine, or in an object store. Light: planning a run needs no NumPy."""

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from argosy.core.errors import NotFound

KINDS = {".csv": "csv", ".tsv": "csv", ".txt": "csv", ".data": "csv", ".parquet": "parquet", ".pq": "parquet"}
KINDS |= {".npz": "npz", ".jsonl": "jsonl", ".ndjson": "jsonl"}
IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp"})


@contextlib.contextmanager
def located(path_or_url: str, base: Path, room: Path | None = None) -> Iterator[Path]:
    """Give a path of the data on this machine, for as long as it is read.

    What comes from an object store lies in the folder `room` for that time, or in the system's for temporary files.
    """
    if "://" not in path_or_url or path_or_url.startswith("file://"):
        is_url = path_or_url.startswith("file://")
        path = Path(unquote(urlsplit(path_or_url).path)) if is_url else base / Path(path_or_url).expanduser()
        if not path.exists():
            raise NotFound(
                f"there is no data file '{path_or_url}'; looked for '{path}'",
                hint=_alike(path) or "check [data] train and test in argosy.toml",
                path=str(path),
            )
        yield path
        return
    from argosy.registry.store import open_store

    folder, _, name = path_or_url.rstrip("/").rpartition("/")
    with tempfile.TemporaryDirectory(prefix="argosy-data-", dir=room) as temporary:
        path = Path(temporary) / name
        with path.open("wb") as stream:
            for piece in open_store(folder).pieces(name):
                stream.write(piece)
        yield path


def _alike(path: Path) -> str:
    if not path.parent.is_dir():
        return ""
    near = sorted(p.name for p in path.parent.iterdir() if p.suffix.lower() in KINDS)[:10]
    return f"data files there: {', '.join(near)}" if near else ""
