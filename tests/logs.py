"""Logs, stores that fail, and homes, for tests of everything that stands on the registry."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Denied, IntegrityError
from argosy.registry.backends.memory import MemoryStore
from argosy.registry.log import Log
from argosy.registry.store import ObjectStore
from argosy.security.keys import KeyRing

SEED = bytes(range(32))


def make_log(store: ObjectStore, home: Path, *, keys: KeyRing | None = None, actor: str = "ada") -> Log:
    """A log of the home in `home`; the same home gives the same memory, index and (unless given) key."""
    return Log(
        store,
        keys or KeyRing.in_memory(SEED),
        FakeClock(),
        actor,
        home / "index" / "log.sqlite",
        remembered=home / "seen.head",
    )


def filled(store: ObjectStore, home: Path, entries: int) -> Log:
    """A log with `entries` entries, the first included."""
    log = make_log(store, home)
    for number in range(entries - 1):
        log.append("thing.happened", f"thing-{number % 5}", {"number": number, "text": 'a "b" ü', "share": 0.25})
    return log


def bad_entry(action: Callable[[], object]) -> int:
    """Run `action`, which must find the log tampered with, and return the entry it names."""
    with pytest.raises(IntegrityError) as caught:
        action()
    assert caught.value.code == "log_tampered", caught.value
    return int(caught.value.context["seq"])


class WrappedStore:
    """A store that passes everything on to another."""

    def __init__(self, inner: ObjectStore | None = None) -> None:
        self.inner = inner if inner is not None else MemoryStore()

    def get(self, key: str) -> bytes:
        return self.inner.get(key)

    def pieces(self, key: str) -> Iterator[bytes]:
        return self.inner.pieces(key)

    def create(self, key: str, data: bytes | memoryview) -> None:
        self.inner.create(key, data)

    def put(self, key: str, data: bytes | memoryview) -> None:
        self.inner.put(key, data)

    def exists(self, key: str) -> bool:
        return self.inner.exists(key)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return self.inner.list(prefix, after)

    def delete(self, key: str) -> None:
        self.inner.delete(key)


class CountingStore(WrappedStore):
    """A store that writes down what it was asked."""

    def __init__(self, inner: ObjectStore | None = None) -> None:
        super().__init__(inner)
        self.asked: list[str] = []

    def get(self, key: str) -> bytes:
        self.asked.append(key)
        return super().get(key)

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        self.asked.append(f"list {prefix}")
        return super().list(prefix, after)


class FaultyStore(WrappedStore):
    """A store whose next writes fail: before they reach the store, or after, so that the answer is lost."""

    def __init__(self, inner: ObjectStore | None = None) -> None:
        super().__init__(inner)
        self.before: list[Exception] = []
        self.after: list[Exception] = []

    def create(self, key: str, data: bytes | memoryview) -> None:
        if self.before:
            raise self.before.pop(0)
        super().create(key, data)
        if self.after:
            raise self.after.pop(0)


class ReadOnlyStore(WrappedStore):
    """A store for somebody who may only read."""

    def create(self, key: str, data: bytes | memoryview) -> None:
        raise Denied("read only")

    put = create

    def delete(self, key: str) -> None:
        raise Denied("read only")
