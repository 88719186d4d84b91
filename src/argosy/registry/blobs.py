"""Bytes named by their SHA-256: weights, graphs, data sets, reports."""

import contextlib
import hashlib
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from argosy.core.digest import check_digest, sha256, sha256_file
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.core.files import WrongDigest, resolve_inside, write_pieces
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
        with _content(data) as content:
            digest = sha256(content)
            key = _key(digest)
            try:
                self._store.create(key, content)
            except Conflict:
                if _digest_of(self._store.pieces(key)) != digest:
                    self._store.put(key, content)
        return digest

    def get(self, digest: str) -> bytes:
        """Return the bytes of `digest`, hashed on the way.

        Raises NotFound (`blob_missing`), or IntegrityError (`blob_corrupt`) for a single flipped bit.
        """
        try:
            content = self._store.get(_key(digest))
        except NotFound as error:
            raise _missing(digest) from error
        if (found := sha256(content)) != digest:
            raise _damaged(digest, found)
        return content

    def fetch(self, digest: str) -> Path:
        """Return a local file with the bytes of `digest`, verified now; a damaged copy is fetched again."""
        path = resolve_inside(self._cache, _key(digest))
        with contextlib.suppress(FileNotFoundError):
            if sha256_file(path) == digest:
                return path
        try:
            # What is damaged never gets its name.
            write_pieces(path, self._store.pieces(_key(digest)), mode=0o444, digest=digest)
        except NotFound as error:
            raise _missing(digest) from error
        except WrongDigest as error:
            raise _damaged(digest, error.found) from error
        return path

    def exists(self, digest: str) -> bool:
        """Return whether the store holds `digest`; its bytes are not checked."""
        return self._store.exists(_key(digest))


def _key(digest: str) -> str:
    name = check_digest(digest).removeprefix("sha256:")
    return f"blobs/sha256/{name[:2]}/{name}"


@contextlib.contextmanager
def _content(data: bytes | Path) -> Iterator[memoryview]:
    """Give the bytes, those of a file by mapping it: it may be larger than memory."""
    if not isinstance(data, Path):
        yield memoryview(data)
        return
    try:
        with data.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            found = mmap.mmap(stream.fileno(), size, access=mmap.ACCESS_READ) if size else None
    except OSError as error:
        raise InvalidInput(f"'{data}' can't be read: {error.strerror}", path=str(data)) from error
    if found is None:  # nothing can't be mapped
        yield memoryview(b"")
        return
    # Closed by whoever lets go of it last: a store that fails in the middle still holds a piece, in its traceback.
    yield memoryview(found)


def _digest_of(pieces: Iterator[bytes]) -> str:
    found = hashlib.sha256()
    for piece in pieces:
        found.update(piece)
    return f"sha256:{found.hexdigest()}"


def _missing(digest: str) -> NotFound:
    return NotFound(
        f"the store holds no blob {digest}",
        hint="run the stage that made it again, or restore the store from a copy",
        code="blob_missing",
        digest=digest,
    )


def _damaged(digest: str, found: str) -> IntegrityError:
    return IntegrityError(
        f"blob {digest} is damaged: its bytes hash to {found}",
        hint="run the stage that made it again, which writes it anew, or restore the store from a copy",
        code="blob_corrupt",
        digest=digest,
        found=found,
    )
