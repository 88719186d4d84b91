"""The append-only, hash-chained, signed log that says everything about the blobs, and everything else.

Each entry is one object, `log/<seq>.json`, written with create-if-absent: of several writers that saw the same head
one wins, the others read what it wrote and try again. Every 256 entries are repeated in one pack, so that opening
needs few reads. Source of the idea: Delta Lake (Armbrust et al. 2020, sections 3.1 and 3.2).
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from argosy.core.clock import Clock
from argosy.core.digest import sha256
from argosy.core.errors import ArgosyError, Conflict, Internal, InvalidInput, Unavailable
from argosy.registry.audit import AuditReport, audit, check_known, cut_off
from argosy.registry.entries import (
    CREATED,
    KEY_TRUSTED,
    Chain,
    Entry,
    admission_data,
    entry_key,
    not_admitted,
    sign_entry,
    tampered,
)
from argosy.registry.index import Index, IndexLost, Row
from argosy.registry.packs import PACK, first_beyond, join_pack, pack_key, read_after, read_object
from argosy.registry.remembered import Head, RememberedHead
from argosy.registry.store import ObjectStore
from argosy.security.keys import KeyRing, key_id_of

__all__ = ["AuditReport", "Entry", "Log"]

T = TypeVar("T")

# Each lost race means that another writer's entry went in, so this many in a row is a fault and not bad luck.
_MOST_RACES = 2000
_MOST_KEYS = 100_000


class Log:
    """The log in `store`, as far as this process has read it. Threads may share one, processes each open their own.

    Nothing is read before the first call. `index` is the file of the local copy; `remembered` the file that says how
    far this home has seen the log (beside the index when not given; keep it where nobody tidies up).
    """

    def __init__(
        self,
        store: ObjectStore,
        keys: KeyRing,
        clock: Clock,
        actor: str,
        index: Path,
        *,
        remembered: Path | None = None,
        nonce: Callable[[], str] = lambda: os.urandom(8).hex(),
    ) -> None:
        self._store = store
        self._keys = keys
        self._clock = clock
        self._actor = actor
        self._index_path = index
        self._remembered = RememberedHead(remembered or index.with_suffix(".head"))
        self._nonce = nonce
        self._lock = threading.RLock()
        self._chain = Chain()
        self._index: Index | None = None
        self._genesis = ""

    @property
    def head(self) -> int:
        """The number of the last entry read; 0 for a log that nobody has written to."""
        with self._lock:
            self._opened()
            return self._chain.head

    @property
    def head_hash(self) -> str:
        """The hash of the last entry read; it stands for the whole history before it."""
        with self._lock:
            self._opened()
            return self._chain.head_hash

    def append(
        self,
        kind: str,
        subject: str,
        data: "dict[str, Any] | Callable[[Log], dict[str, Any]]",
        *,
        check: "Callable[[Log], None] | None" = None,
    ) -> Entry:
        """Write one entry behind everything there is, and return it.

        `check` is called with everything read, and may raise (Conflict, Denied…): nothing is written then. What it saw
        is still true when the entry stands, because the entry is written at the very next number or not at all; when
        somebody else was faster, everything is read and checked again. `data` may be a function, called likewise.
        """
        if kind == CREATED:
            raise InvalidInput(f"an entry '{CREATED}' is written by the log itself")
        with self._lock:
            for _ in range(_MOST_RACES):
                if self.refresh() == 0:
                    self._write(CREATED, "log", admission_data(self._keys.public_key))
                    continue
                if self._keys.key_id not in self._chain.admitted:
                    raise not_admitted(self._keys)
                if check is not None:
                    check(self)
                entry = self._write(kind, subject, data(self) if callable(data) else data)
                if entry is not None:
                    self._pack()
                    return entry
        raise Unavailable(
            f"the log was written by others {_MOST_RACES} times while '{kind}' was tried", code="log_busy"
        )

    def trust(self, public_key: bytes) -> Entry:
        """Admit another writer: from the next entry on, entries signed by `public_key` are accepted by everybody."""

        def check(log: "Log") -> None:
            if key_id_of(public_key) in log.admitted():
                raise Conflict(f"key {key_id_of(public_key)} may write to this log already", code="key_known")

        return self.append(KEY_TRUSTED, key_id_of(public_key), admission_data(public_key), check=check)

    def admitted(self) -> list[str]:
        """Return the ids of the keys whose entries this log accepts."""
        with self._lock:
            self._opened()
            return sorted(self._chain.admitted)

    def refresh(self) -> int:
        """Read what others have written since, and return the number of the last entry.

        Costs one look for the next object when there is nothing new. Raises IntegrityError (`log_tampered`, `seq`).
        """
        with self._lock:
            index = self._opened()
            # Read before the store: an entry is remembered only after it was written.
            known = self._remembered.read()
            self._read_new(index)
            if known is not None and known.seq > self._chain.head:
                raise cut_off(known, self._chain.head)
            return self._chain.head

    def entries(self, *, after: int = 0, kind: str | None = None, subject: str | None = None) -> Iterator[Entry]:
        """Return the entries with seq > `after` that match, oldest first, as of the last refresh."""
        upto = self.head
        while True:
            rows = self._query(lambda i, a=after: i.find(after=a, upto=upto, kind=kind, subject=subject))  # type: ignore[misc]
            yield from (row.entry for row in rows)
            if not rows:
                return
            after = rows[-1].entry.seq

    def last(self, kind: str, subject: str) -> Entry | None:
        """Return the newest entry of this kind and subject, as of the last refresh."""
        upto = self.head
        rows = self._query(lambda i: i.find(upto=upto, kind=kind, subject=subject, limit=1, newest_first=True))
        return rows[0].entry if rows else None

    def verify(self) -> AuditReport:
        """Read and check every byte of the log anew, packs included, whatever the index says.

        Raises IntegrityError (`log_tampered`, `seq`) that names the first entry that was changed, removed, exchanged,
        cut off or replaced. An index that differs from the log is made again silently.
        """
        with self._lock:
            index = self._index or Index(self._index_path)
            try:
                found = audit(self._store, self._remembered.read(), _hashes_of(index))
                if found.stale_index:
                    with contextlib.suppress(IndexLost):
                        index.clear()
            finally:
                if index is not self._index:
                    index.close()
            self.refresh()
            return found.report

    def close(self) -> None:
        """Close the index; the log opens itself again when it is used again."""
        with self._lock:
            if self._index is not None:
                self._index.close()
            self._index, self._chain, self._genesis = None, Chain(), ""

    # ---- writing

    def _write(self, kind: str, subject: str, data: dict[str, Any]) -> Entry | None:
        """Create the next object; None when somebody else was faster."""
        chain = self._chain
        raw = sign_entry(
            Entry(
                seq=chain.head + 1,
                time=float(self._clock.now()),
                actor=self._actor,
                kind=kind,
                subject=subject,
                data=data,
                prev=chain.head_hash,
                key=self._keys.key_id,
                nonce=self._nonce(),
            ),
            self._keys,
        )
        # Held to the readers' rules before it is written: nobody can take an entry back.
        longer = chain.copy()
        entry = longer.accept(raw)
        try:
            self._store.create(entry_key(entry.seq), raw)
        except Conflict:
            # A retry below us may have met the object it had itself written a moment before. And S3 also answers
            # "conflict" to both of two writers at the same moment, when there is nothing to read yet.
            if read_object(self._store, entry_key(entry.seq)) != raw:
                return None
        self._chain = longer
        self._note([Row(entry, longer.head_hash, raw)], self._opened())
        return entry

    def _pack(self) -> None:
        """Write the pack that has just become complete, and the one before it if its writer was killed."""
        if self._chain.head % PACK:
            return
        # Packs only save time: whatever goes wrong here, the entry itself is written.
        with contextlib.suppress(ArgosyError):
            for end in range(max(self._chain.head - PACK, PACK), self._chain.head + 1, PACK):
                if not self._store.exists(pack_key(end)):
                    rows = self._query(lambda i, e=end: i.find(after=e - PACK, upto=e, limit=PACK))  # type: ignore[misc]
                    with contextlib.suppress(Conflict):
                        self._store.create(pack_key(end), join_pack([row.raw for row in rows]))

    # ---- reading

    def _opened(self) -> Index:
        if self._index is not None:
            return self._index
        index = Index(self._index_path)
        try:
            self._catch_up(index)
        except BaseException:
            index.close()
            self._chain, self._genesis = Chain(), ""
            raise
        self._index = index
        return index

    def _catch_up(self, index: Index) -> None:
        known = self._remembered.read()
        self._resume(index, known)
        is_cold = self._chain.head == 0
        self._read_new(index)
        while is_cold and (later := first_beyond(self._store, self._chain.head)):
            # Nothing but a list can show a first-time reader that an entry in the middle was removed.
            if not self._read_new(index):
                raise tampered(self._chain.head + 1, f"is missing, but '{later}' is there")
        if known is not None and known.seq > self._chain.head:
            raise cut_off(known, self._chain.head)

    def _resume(self, index: Index, known: Head | None) -> None:
        """Go on from the index if it is a copy of the log in the store and of what this home remembers, else empty it.

        The last entry vouches for all before it, so one read of the store is enough.
        """
        self._chain, self._genesis = Chain(), ""
        with contextlib.suppress(IndexLost):
            top, genesis = index.top(), index.hash_of(1)
            rows = index.find(after=top - 1, upto=top) if top else []
            is_remembered = known is None or (
                genesis == known.genesis and (known.seq > top or index.hash_of(known.seq) == known.hash)
            )
            if rows and is_remembered and read_object(self._store, entry_key(top)) == rows[0].raw:
                admissions = [
                    row.entry
                    for kind in (CREATED, KEY_TRUSTED)
                    for row in index.find(upto=top, kind=kind, limit=_MOST_KEYS)
                ]
                self._chain, self._genesis = Chain.resume(top, rows[0].hash, admissions), genesis
            else:
                index.clear()

    def _read_new(self, index: Index) -> bool:
        """Follow the entries behind the head; return whether there were any."""
        before = self._chain.head
        for raws in read_after(self._store, before):
            self._follow(raws, index)
        return self._chain.head > before

    def _follow(self, raws: list[bytes], index: Index) -> None:
        """Accept entries; those before a bad one stay accepted."""
        rows: list[Row] = []
        known = self._remembered.read()
        try:
            for raw in raws:
                if known is not None:
                    check_known(known, self._chain.head + 1, sha256(raw))
                entry = self._chain.accept(raw)
                rows.append(Row(entry, self._chain.head_hash, raw))
        finally:
            self._note(rows, index)

    def _note(self, rows: list[Row], index: Index) -> None:
        """Write accepted entries down: in the index, in the key ring, and how far this home has seen the log."""
        for entry in (row.entry for row in rows if row.entry.kind in (CREATED, KEY_TRUSTED)):
            # The creator is trusted on first use, whom the trusted admit by their signature. Versions signed by them
            # are then accepted where there is no log, in a replica. A home that can't be written trusts for as long
            # as this process lives.
            with contextlib.suppress(OSError, InvalidInput):
                self._keys.trust(self._chain.admitted[str(entry.data["key"])])
        if rows:
            if rows[0].entry.seq == 1:
                self._genesis = rows[0].hash
            with contextlib.suppress(IndexLost):  # the next query fills it again
                index.extend(rows)
            self._remembered.remember(Head(self._chain.head, self._chain.head_hash, self._genesis))

    def _query(self, ask: Callable[[Index], T]) -> T:
        with self._lock:
            index = self._opened()
            for _ in range(5):
                with contextlib.suppress(IndexLost):
                    if index.top() < self._chain.head:
                        self._refill(index)
                    return ask(index)
        raise Internal(f"the index '{self._index_path}' can't be kept, not even in memory")

    def _refill(self, index: Index) -> None:
        """Copy the entries up to the head from the store again, after the index was deleted or damaged."""
        index.clear()
        chain = Chain()
        for raws in read_after(self._store, 0):
            wanted = raws[: self._chain.head - chain.head]
            index.extend([Row(chain.accept(raw), chain.head_hash, raw) for raw in wanted])
            if chain.head == self._chain.head:
                break
        if chain.head_hash != self._chain.head_hash:
            raise tampered(min(chain.head + 1, self._chain.head), "is not the one that was read before")


def _hashes_of(index: Index) -> Callable[[int], str]:
    def hash_of(seq: int) -> str:
        try:
            return index.hash_of(seq)
        except IndexLost:
            return ""

    return hash_of
