"""Bytes named by their SHA-256: weights, graphs, data sets, reports."""

import contextlib
from pathlib import Path

from argosy.core.digest import check_digest, sha256
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.core.files import resolve_inside, write_atomic
from argosy.registry.store import ObjectStore


class Blobs:
    """Immutable bytes in a store; `cache` is a folder for those that must be files, and can be deleted any time."""

    def __init__(self, store: ObjectStore, cache: Path) -> None:
        self._store = store
        self._cache = cache

    def put(self, data: bytes | Path) -> str:
        """Keep `data`, or the bytes of a file, and return their digest; what is there already is kept once.

        A damaged blob of the same digest is replaced.
        """
        content = _read(data) if isinstance(data, Path) else bytes(data)
        digest = sha256(content)
        key = _key(digest)
        try:
            self._store.create(key, content)
        except Conflict:
            if self._store.get(key) != content:
                self._store.put(key, content)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`, hashed on the way.

        Raises NotFound (`blob_missing`), or IntegrityError (`blob_corrupt`) for a single flipped bit.
        """
        try:
            content = self._store.get(_key(digest))
        except NotFound as error:
            raise NotFound(
                f"the store holds no blob {digest}",
                hint="run the stage that made it again, or restore the store from a copy",
                code="blob_missing",
                digest=digest,
            ) from error
        if (found := sha256(content)) != digest:
            raise IntegrityError(
                f"blob {digest} is damaged: its bytes hash to {found}",
                hint="run the stage that made it again, which writes it anew, or restore the store from a copy",
                code="blob_corrupt",
                digest=digest,
                found=found,
            )
        return content

    def fetch(self, digest: str) -> Path:
        """Return a local file with the bytes of `digest`, verified now; a damaged copy is fetched again."""
        path = resolve_inside(self._cache, _key(digest))
        with contextlib.suppress(FileNotFoundError):
            if sha256(path.read_bytes()) == digest:
                return path
        write_atomic(path, self.get(digest), mode=0o444)
        return path

    def exists(self, digest: str) -> bool:
        """Return whether the store holds `digest`; its bytes are not checked."""
        return self._store.exists(_key(digest))


def _key(digest: str) -> str:
    name = check_digest(digest).removeprefix("sha256:")
    return f"blobs/sha256/{name[:2]}/{name}"


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"'{path}' can't be read: {error.strerror}", path=str(path)) from error
