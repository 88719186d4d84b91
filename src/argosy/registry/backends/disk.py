"""Objects as files of a folder, with the one atomic writer: durable when the call returns, never half-written."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote

from argosy.core.errors import ArgosyError, Conflict, Denied, InvalidInput, NotFound, Unavailable
from argosy.core.files import create_exclusive, resolve_inside, write_atomic
from argosy.registry.store import check_key, check_prefix

_PIECE_BYTES = 1 << 20


def open_disk(url: str) -> "DiskStore":
    """Open `file:///absolute/path`; the folder is made by the first write."""
    path = Path(unquote(url.removeprefix("file://")))
    if not path.is_absolute():
        raise InvalidInput(f"{url!r} has no absolute path", hint="write three slashes: file:///srv/argosy")
    return DiskStore(path)


class DiskStore:
    """An ObjectStore in a folder; any number of processes may use it at once, also on a shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`; raise NotFound."""
        try:
            with self._open(key) as stream:
                return stream.read()
        except OSError as error:
            raise _translated(error, key) from error

    def pieces(self, key: str) -> Iterator[bytes]:
        """Yield the bytes under `key`, a megabyte at a time; raise NotFound."""
        try:
            with self._open(key) as stream:
                while piece := stream.read(_PIECE_BYTES):
                    yield piece
        except OSError as error:
            raise _translated(error, key) from error

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under a new `key`; raise Conflict if there is one."""
        path = self._path(key)
        if path.exists():  # saves the loser of a race the fsync of a file that nobody will read
            raise Conflict(f"'{key}' exists already", key=key)
        create_exclusive(path, data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under `key`, whatever was there."""
        write_atomic(self._path(key), data)

    def exists(self, key: str) -> bool:
        """Return whether something is under `key`."""
        return self._path(key).is_file()

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Return the keys in the folder `prefix`, sorted, those > `after`."""
        return self._walk(self.root / check_prefix(prefix), prefix, after)

    def delete(self, key: str) -> None:
        """Remove what is under `key`; harmless when nothing is there."""
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise _translated(error, key) from error

    def _open(self, key: str) -> BinaryIO:
        return os.fdopen(os.open(self._path(key), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb")

    def _path(self, key: str) -> Path:
        return resolve_inside(self.root, check_key(key))

    def _walk(self, folder: Path, prefix: str, after: str) -> Iterator[str]:
        try:
            with os.scandir(folder) as entries:
                # A folder sorts as its keys do: with the slash behind its name.
                found = sorted(e.name + "/" * e.is_dir(follow_symlinks=False) for e in entries if not e.is_symlink())
        except (FileNotFoundError, NotADirectoryError):
            return
        except OSError as error:
            raise _translated(error, prefix) from error
        for name in found:
            key = prefix + name
            if key.endswith("/"):
                if key > after or after.startswith(key):
                    yield from self._walk(folder / name, key, after)
            elif key > after and not key.endswith(".tmp"):  # what a killed writer left is not an object
                with contextlib.suppress(InvalidInput):
                    yield check_key(key)


def _translated(error: OSError, key: str) -> ArgosyError:
    if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
        return NotFound(f"there is nothing under '{key}'", key=key)
    if isinstance(error, PermissionError):
        return Denied(
            f"'{key}' can't be accessed: {error.strerror}", hint="check the permissions of the store", key=key
        )
    return Unavailable(f"'{key}' can't be read: {error.strerror}", key=key)
