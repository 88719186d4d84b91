"""Bytes under keys: what blobs and log are kept in, on a disk or in a cloud."""

import re
from collections.abc import Callable, Iterator
from typing import Protocol

from argosy.core.errors import InvalidInput
from argosy.core.plugins import Plugins

_KEY = re.compile(r"(?!.*\.tmp$)[A-Za-z0-9_][A-Za-z0-9._@=+-]*(/[A-Za-z0-9_][A-Za-z0-9._@=+-]*)*")
_FOLDER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9._@=+-]*/)*")


class ObjectStore(Protocol):
    """Bytes under keys such as `log/0001.json`. Every store passes tests/conformance/test_object_store.py.

    Whatever succeeded is durable, and seen by every later call of any process. Errors: NotFound, Conflict, Denied,
    Unavailable (worth another try), InvalidInput (a key no store takes).
    """

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`; raise NotFound."""
        ...

    def pieces(self, key: str) -> Iterator[bytes]:
        """Yield the bytes under `key` piece by piece, of which none is larger than some megabytes; raise NotFound."""
        ...

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under a new `key`; of several callers exactly one succeeds, the others get Conflict."""
        ...

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under `key`, whatever was there; a reader sees all of the old or all of the new."""
        ...

    def exists(self, key: str) -> bool:
        """Return whether something is under `key`."""
        ...

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Return the keys in the folder `prefix` (empty, or ending with `/`) at any depth, sorted, those > `after`."""
        ...

    def delete(self, key: str) -> None:
        """Remove what is under `key`; harmless when nothing is there."""
        ...


STORES: Plugins[Callable[[str], ObjectStore]] = Plugins(
    "argosy.stores",
    {
        "file": "argosy.registry.backends.disk:open_disk",
        "memory": "argosy.registry.backends.memory:open_memory",
        "s3": "argosy.registry.backends.cloud:open_cloud",
        "az": "argosy.registry.backends.cloud:open_cloud",
        "gs": "argosy.registry.backends.cloud:open_cloud",
    },
)


def open_store(url: str) -> ObjectStore:
    """Return the store at `url`, such as `file:///srv/argosy` or `s3://bucket/folder`; nothing is contacted yet.

    Credentials of clouds come from their usual environment variables, never from the URL.
    """
    scheme, separator, _ = url.partition("://")
    if not separator:
        raise InvalidInput(
            f"{url!r} is not the URL of a store", hint="write file:///folder, s3://bucket/folder, az:// or gs://"
        )
    return STORES.load(scheme)(url)


def check_key(key: str) -> str:
    """Return `key` if every store takes it; raise InvalidInput for `..`, odd characters and empty parts."""
    if len(key) > 900 or not _KEY.fullmatch(key):
        raise InvalidInput(f"{key[:100]!r} is not a key: letters, digits and ._@=+- between single slashes")
    return key


def check_prefix(prefix: str) -> str:
    """Return `prefix` if it is empty or names a folder, with a slash at its end; raise InvalidInput otherwise."""
    if not _FOLDER.fullmatch(prefix):
        raise InvalidInput(f"{prefix[:100]!r} is not a folder of keys; it must be empty or end with '/'")
    return prefix
