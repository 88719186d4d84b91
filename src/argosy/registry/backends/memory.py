"""Objects in this process's memory, for tests and trials."""

import threading
from collections.abc import Iterator

from argosy.core.errors import Conflict, NotFound
from argosy.registry.store import check_key, check_prefix


def open_memory(url: str) -> "MemoryStore":
    """Open a new, empty store; `url` is `memory://`."""
    del url
    return MemoryStore()


class MemoryStore:
    """An ObjectStore that ends with its process; threads may share it."""

    def __init__(self) -> None:
        self._objects: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def get(self, key: str) -> bytes:
        """Return the bytes under `key`; raise NotFound."""
        try:
            return self._objects[check_key(key)]
        except KeyError:
            raise NotFound(f"there is nothing under '{key}'", key=key) from None

    def pieces(self, key: str) -> Iterator[bytes]:
        """Yield the bytes under `key`; raise NotFound."""
        yield self.get(key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under a new `key`; raise Conflict if there is one."""
        with self._lock:
            if check_key(key) in self._objects:
                raise Conflict(f"'{key}' exists already", key=key)
            self._objects[key] = bytes(data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        """Write `data` under `key`, whatever was there."""
        with self._lock:
            self._objects[check_key(key)] = bytes(data)

    def exists(self, key: str) -> bool:
        """Return whether something is under `key`."""
        return check_key(key) in self._objects

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        """Return the keys in the folder `prefix`, sorted, those > `after`."""
        check_prefix(prefix)
        with self._lock:
            found = sorted(key for key in self._objects if key.startswith(prefix) and key > after)
        return iter(found)

    def delete(self, key: str) -> None:
        """Remove what is under `key`; harmless when nothing is there."""
        with self._lock:
            self._objects.pop(check_key(key), None)
