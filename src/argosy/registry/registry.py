"""One object with everything that is kept: keys, store, blobs, log, versions."""

from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.core.digest import sha256
from argosy.registry.blobs import Blobs
from argosy.registry.log import Log
from argosy.registry.store import ObjectStore, open_store
from argosy.registry.versions import Versions
from argosy.security.keys import KeyRing


class Registry:
    """What `settings` say, wired together; nothing is read or written before it is used.

    In the home: `keys/` (own key, trusted keys, and how far each log was seen: keep these), `index/` and `cache/`
    (can be deleted at any time).
    """

    def __init__(
        self, settings: Settings, *, clock: Clock, store: ObjectStore | None = None, keys: KeyRing | None = None
    ) -> None:
        home = settings.home
        self.clock = clock
        # By the store's address, so that a log put in the place of another is noticed.
        name = sha256(settings.store.rstrip("/").encode()).removeprefix("sha256:")[:16]
        self.keys = keys if keys is not None else KeyRing.open(home)
        self.store = store if store is not None else open_store(settings.store)
        self.blobs = Blobs(self.store, home / "cache")
        self.log = Log(
            self.store,
            self.keys,
            clock,
            settings.actor,
            home / "index" / f"{name}.sqlite",
            remembered=home / "keys" / "seen" / f"{name}.head",
        )
        self.versions = Versions(self.log, self.blobs, self.keys)


def open_registry(settings: Settings, clock: Clock) -> Registry:
    """Return the registry of this home and its store."""
    return Registry(settings, clock=clock)
