"""Packs: 256 entries in one object, so that opening a long log needs few reads. And what lies behind a head."""

import contextlib
from collections.abc import Iterator

from argosy.core.errors import NotFound
from argosy.registry.entries import entry_key, tampered
from argosy.registry.store import ObjectStore

PACK = 256


def pack_end(seq: int) -> int:
    """Return the number of the last entry of the pack that `seq` belongs to."""
    return -(-seq // PACK) * PACK


def pack_key(end: int) -> str:
    """Return the name of the pack whose last entry is `end`."""
    return f"log/packs/{end:020d}.jsonl"


def join_pack(raws: list[bytes]) -> bytes:
    """Return the pack of these entries: the bytes of each, and a line break behind each."""
    return b"".join(raw + b"\n" for raw in raws)


def split_pack(pack: bytes, end: int) -> list[bytes]:
    """Return the 256 entries of a pack; IntegrityError names the first that is not there."""
    lines = pack.split(b"\n")
    if len(lines) != PACK + 1 or lines[-1]:
        first = end - PACK + min(len(lines), PACK)
        raise tampered(first, f"is cut off in its pack '{pack_key(end)}'", object=pack_key(end))
    return lines[:PACK]


def read_object(store: ObjectStore, key: str) -> bytes | None:
    """Return what is under `key`, None when nothing is."""
    with contextlib.suppress(NotFound):
        return store.get(key)
    return None


def read_after(store: ObjectStore, seq: int) -> Iterator[list[bytes]]:
    """Return the bytes of all entries behind `seq`, some at a time, from packs where there are."""
    is_first, unpacked = True, 0
    while (raw := read_object(store, entry_key(seq + 1))) is not None:
        end = pack_end(seq + 1)
        # One piece of news is the usual case and needs no second look; more of it may come as a pack.
        pack = None if is_first or end == unpacked else read_object(store, pack_key(end))
        if pack is None:
            found = [raw]
            unpacked = 0 if is_first else end
        else:
            found = split_pack(pack, end)[seq - end :]
        yield found
        seq += len(found)
        is_first = False


def first_beyond(store: ObjectStore, head: int) -> str:
    """Return an object that can only be there if there is an entry behind `head`, or nothing."""
    for prefix, after in (("log/", entry_key(head)), ("log/packs/", pack_key(head))):
        key = next(iter(store.list(prefix, after=after)), "")
        if key.startswith(prefix) and key.removeprefix(prefix)[:20].isdigit():
            return key
    return ""
