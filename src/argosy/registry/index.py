"""A local SQLite copy of the log for queries. It can be deleted or damaged at any time: it is made again."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from argosy.core.digest import sha256
from argosy.registry.entries import Entry

T = TypeVar("T")

# Counted up when the table changes; an index of another version is made again.
_VERSION = 1
_SCHEMA = f"""
CREATE TABLE entries (seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, subject TEXT NOT NULL, hash TEXT NOT NULL,
                      raw BLOB NOT NULL);
CREATE INDEX by_kind ON entries (kind, subject, seq);
CREATE INDEX by_subject ON entries (subject, seq);
PRAGMA user_version = {_VERSION};
"""
_WAIT_S = 5.0
_DAMAGED = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_SCHEMA}


class IndexLost(Exception):
    """The index had to be emptied."""


class Row(NamedTuple):
    """An entry as the index keeps it: the very bytes of the store, and their hash."""

    entry: Entry
    hash: str
    raw: bytes


class Index:
    """Entries 1 to `top()` without a gap. Each method may raise IndexLost; the index is empty and usable then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._losses = 0
        try:
            self._db = _connect(path)
        except (sqlite3.Error, OSError):
            self._replace(damaged=True)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __del__(self) -> None:
        # A process that ends without closing is the rule; from Python 3.13 on, leaving this to SQLite warns.
        with contextlib.suppress(Exception):
            self._db.close()

    def top(self) -> int:
        """Return the number of the last entry, 0 when empty."""
        return int(self._guard(lambda: self._db.execute("SELECT ifnull(max(seq), 0) FROM entries").fetchone()[0]))

    def extend(self, rows: Iterable[Row]) -> None:
        """Add entries; those known already are skipped. Raises IndexLost when they would leave a gap."""
        values = [(r.entry.seq, r.entry.kind, r.entry.subject, r.hash, r.raw) for r in rows]

        def insert() -> bool:
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                top = self._db.execute("SELECT ifnull(max(seq), 0) FROM entries").fetchone()[0]
                if values[0][0] > top + 1:
                    return False
                self._db.executemany("INSERT OR IGNORE INTO entries VALUES (?, ?, ?, ?, ?)", values)
                return True

        if values and not self._guard(insert):
            raise IndexLost  # somebody deleted or emptied it under us

    def clear(self) -> None:
        """Remove all entries."""

        def delete() -> None:
            with self._db:
                self._db.execute("DELETE FROM entries")

        self._guard(delete)

    def find(
        self,
        *,
        after: int = 0,
        upto: int,
        kind: str | None = None,
        subject: str | None = None,
        limit: int = 256,
        newest_first: bool = False,
    ) -> list[Row]:
        """Return up to `limit` entries with `after` < seq <= `upto` that match."""
        where = (
            "seq > ? AND seq <= ?" + " AND kind = ?" * (kind is not None) + " AND subject = ?" * (subject is not None)
        )
        order = "DESC" if newest_first else "ASC"
        query = f"SELECT seq, kind, subject, hash, raw FROM entries WHERE {where} ORDER BY seq {order} LIMIT ?"  # noqa: S608 - only constants
        values = (after, upto, *(value for value in (kind, subject) if value is not None), limit)
        return [self._row(*found) for found in self._guard(lambda: self._db.execute(query, values).fetchall())]

    def hash_of(self, seq: int) -> str:
        """Return the hash of entry `seq`, empty when it is not there."""
        found = self._guard(lambda: self._db.execute("SELECT hash FROM entries WHERE seq = ?", (seq,)).fetchone())
        return str(found[0]) if found else ""

    def _row(self, seq: int, kind: str, subject: str, hash_: str, raw: bytes) -> Row:
        # SQLite has no checksums: the copy proves itself by the hash that the log gave it.
        try:
            entry = msgspec.json.decode(raw, type=Entry)
            if (
                isinstance(raw, bytes)
                and sha256(raw) == hash_
                and (entry.seq, entry.kind, entry.subject) == (seq, kind, subject)
            ):
                return Row(entry, hash_, raw)
        except (msgspec.DecodeError, UnicodeDecodeError):
            pass
        self._replace(damaged=True)
        raise IndexLost

    def _guard(self, action: Callable[[], T]) -> T:
        try:
            return action()
        except sqlite3.Error as error:
            self._replace(damaged=(getattr(error, "sqlite_errorcode", 0) & 0xFF) in _DAMAGED)
            raise IndexLost from error

    def _replace(self, *, damaged: bool) -> None:
        """Start empty: with a new file if the old one was damaged, else (full, read-only, locked) in memory."""
        with contextlib.suppress(sqlite3.Error, AttributeError):
            self._db.close()
        self._losses += 1
        if damaged and self._losses <= 2:
            with contextlib.suppress(OSError, sqlite3.Error):
                for suffix in ("", "-wal", "-shm"):
                    self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
                self._db = _connect(self.path)
                return
        self._db = _connect(None)


def _connect(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Calls come under the log's own lock, from whichever thread holds it.
    db = sqlite3.connect(path or ":memory:", timeout=_WAIT_S, isolation_level=None, check_same_thread=False)
    try:
        db.execute("PRAGMA journal_mode = WAL")
        # What a power cut takes is read again from the store; a killed process loses nothing.
        db.execute("PRAGMA synchronous = OFF")
        _make_tables(db)
    except sqlite3.Error:
        db.close()
        raise
    return db


def _make_tables(db: sqlite3.Connection) -> None:
    if db.execute("PRAGMA user_version").fetchone()[0] == _VERSION:
        return
    db.execute("BEGIN IMMEDIATE")
    # Asked again behind the lock: of several processes that find no table, one makes it.
    if db.execute("PRAGMA user_version").fetchone()[0] != _VERSION:
        db.execute("DROP TABLE IF EXISTS entries")
        for statement in filter(str.strip, _SCHEMA.split(";")):
            db.execute(statement)
    db.execute("COMMIT")
