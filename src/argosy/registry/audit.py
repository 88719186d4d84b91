"""Reading every byte of the log again, and naming the first entry that is not what it was."""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from argosy.core.errors import IntegrityError
from argosy.registry.entries import Chain, entry_key, tampered
from argosy.registry.packs import PACK, first_beyond, pack_end, pack_key, read_object
from argosy.registry.remembered import Head
from argosy.registry.store import ObjectStore


class AuditReport(msgspec.Struct, frozen=True, kw_only=True):
    """What `argosy audit verify` found whole."""

    entries: int
    packs: int
    head_hash: str
    """Stands for the whole history; note it elsewhere to prove later that nothing was changed."""
    genesis: str
    """The hash of the first entry; it names the log."""
    keys: list[str]
    """The ids of all keys that may write, the creator's included."""


class Audit(NamedTuple):
    """The report, and whether the local index has to be made again."""

    report: AuditReport
    stale_index: bool


def audit(store: ObjectStore, known: Head | None, indexed_hash: Callable[[int], str]) -> Audit:
    """Follow the log from its first entry to its last, byte by byte, packs included.

    `known` is the head this home remembers; `indexed_hash` says what the index holds for an entry, to find the place
    where a history that was rewritten by somebody with a trusted key departs from the one seen here.
    """
    chain, genesis, packs, differing = Chain(), "", 0, 0
    pack: _Pack | None = None
    while (raw := _next(store, chain.head)) is not None:
        if chain.head % PACK == 0:
            pack = _Pack.read(store, pack_end(chain.head + 1))
            packs += pack is not None
        chain.accept(raw)
        genesis = genesis or chain.head_hash
        if pack is not None:
            pack.compare(chain.head, raw)
        if not differing and indexed_hash(chain.head) not in ("", chain.head_hash):
            differing = chain.head
        if known is not None:
            check_known(known, chain.head, chain.head_hash, differing)
    if known is not None and known.seq > chain.head:
        raise cut_off(known, chain.head)
    keys = sorted(chain.admitted)
    report = AuditReport(entries=chain.head, packs=packs, head_hash=chain.head_hash, genesis=genesis, keys=keys)
    return Audit(report, bool(differing) or bool(indexed_hash(chain.head + 1)))


def check_known(known: Head, seq: int, found: str, differing: int = 0) -> None:
    """Raise IntegrityError if entry `seq` is one this home remembers, and is another one now."""
    if seq == 1 and found != known.genesis:
        raise tampered(1, "is not the one this home has seen before: the log was replaced by another")
    if seq == known.seq and found != known.hash:
        raise tampered(differing or seq, "is not the one this home has seen before: history was rewritten")


def cut_off(known: Head, head: int) -> IntegrityError:
    """Make the error for a log that is shorter than this home remembers."""
    error = tampered(head + 1, f"is missing: this home has seen the log up to entry {known.seq}", seen=known.seq)
    error.hint += "; if the store was emptied on purpose, use another ARGOSY_HOME"
    return error


def _next(store: ObjectStore, head: int) -> bytes | None:
    key = entry_key(head + 1)
    raw = read_object(store, key)
    if raw is None and (later := first_beyond(store, head)):
        raw = read_object(store, key)  # it may have been written between the two looks
        if raw is None:
            raise tampered(head + 1, f"is missing, but '{later}' is there")
    return raw


class _Pack:
    """A pack being compared with the entries it repeats."""

    def __init__(self, data: bytes, end: int) -> None:
        self._data = data
        self._end = end
        self._offset = 0

    @classmethod
    def read(cls, store: ObjectStore, end: int) -> "_Pack | None":
        data = read_object(store, pack_key(end))
        return None if data is None else cls(data, end)

    def compare(self, seq: int, raw: bytes) -> None:
        line = self._data[self._offset : self._offset + len(raw) + 1]
        self._offset += len(raw) + 1
        if line != raw + b"\n" or (seq == self._end and len(self._data) != self._offset):
            raise tampered(seq, f"differs from its copy in '{pack_key(self._end)}'", object=pack_key(self._end))
