"""What an entry of the log is, and the rules that chain one to the next. Pure: no storage, no clock."""

import base64
import binascii
from typing import Any, Self

import msgspec

from argosy.core.digest import canonical, sha256
from argosy.core.errors import Denied, IntegrityError, InvalidInput
from argosy.security.envelope import from_base64, pae
from argosy.security.keys import KeyRing, key_id_of, parse_public, public_text, verifies

CREATED = "log.created"
KEY_TRUSTED = "key.trusted"
MAX_ENTRY_BYTES = 1 << 20
_TYPE = "application/vnd.argosy.entry.v1+json"


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One fact, numbered and signed. Its object in the store is its canonical JSON, so it can be read with `cat`."""

    seq: int
    """1 for the first entry, and no number is left out."""
    time: float
    """Seconds since 1970 by the writer's clock; it orders nothing, `seq` does."""
    actor: str
    """Who wrote it, as they say themselves; what is proven is `key`."""
    kind: str
    """What happened, such as `version.published`."""
    subject: str
    """What it happened to, such as the name of a model."""
    data: dict[str, Any]
    """The rest of the fact, as plain JSON."""
    prev: str
    """The hash of the entry before; empty in the first."""
    key: str
    """The id of the key that signed."""
    nonce: str
    """Random, so that a writer can tell its own entry from an equal one of its twin after a lost answer."""
    signature: str = ""
    """Ed25519 over the DSSE encoding of the entry with this field empty, in base64."""

    @property
    def hash(self) -> str:
        """The digest of the whole entry, signature included: what the next one holds in `prev`."""
        return sha256(canonical(self))


def entry_key(seq: int) -> str:
    """Return the name of an entry's object; names sort as numbers do."""
    return f"log/{seq:020d}.json"


def tampered(seq: int, what: str, **context: Any) -> IntegrityError:
    """Make the error that names the first entry that can't be trusted."""
    return IntegrityError(
        f"entry {seq} of the log {what}",
        hint=f"restore '{entry_key(seq)}' from a copy of the store; the entries before it are whole",
        code="log_tampered",
        seq=seq,
        **context,
    )


class Chain:
    """The rules of the log, and how far it was followed: entries go in one by one, in order.

    `admitted` are the keys whose entries are accepted: the creator's, and those admitted by an accepted entry.
    """

    def __init__(self, head: int = 0, head_hash: str = "", admitted: dict[str, bytes] | None = None) -> None:
        self.head = head
        self.head_hash = head_hash
        self.admitted = dict(admitted or {})
        self._verifiers: dict[str, Any] = {}

    @classmethod
    def resume(cls, head: int, head_hash: str, admissions: list[Entry]) -> Self:
        """Go on after entries that were followed before; `admissions` are those that admitted keys."""
        return cls(head, head_hash, {str(e.data["key"]): parse_public(str(e.data["public_key"])) for e in admissions})

    def copy(self) -> "Chain":
        """Return a chain that goes on from here by itself."""
        copied = Chain(self.head, self.head_hash, self.admitted)
        copied._verifiers = self._verifiers
        return copied

    def accept(self, raw: bytes) -> Entry:
        """Follow one more entry and return it; IntegrityError (`log_tampered`, `seq`) if it can't stand there.

        The bytes must be the very ones that were written: what decodes to the same entry but is spelled differently
        is refused, so that every changed byte is found.
        """
        seq = self.head + 1
        try:
            entry = msgspec.json.decode(raw, type=Entry)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise tampered(seq, "can't be decoded") from error
        if not _spelled_as(entry, raw):
            raise tampered(seq, "was re-encoded: it is not spelled the way it was signed")
        if entry.seq != seq:
            raise tampered(seq, f"holds the number {entry.seq}: entries were exchanged or removed")
        if entry.prev != self.head_hash:
            raise tampered(seq, "does not follow the entry before it")
        admission = _admission(entry)
        signer = self._signer(entry, admission)
        if not verifies(signer, _signed_bytes(entry), _decoded(entry.signature), self._verifiers):
            raise tampered(seq, f"does not carry a valid signature of key {entry.key[:64]}")
        if admission is not None:
            self.admitted[key_id_of(admission)] = admission
        self.head, self.head_hash = seq, sha256(raw)
        return entry

    def _signer(self, entry: Entry, admission: bytes | None) -> bytes:
        if entry.seq == 1:
            if entry.kind != CREATED or admission is None:
                raise tampered(1, "does not say who created the log")
            if key_id_of(admission) != entry.key:
                raise tampered(1, "is not signed by the key it names as the log's creator")
            return admission
        if entry.kind == CREATED:
            raise tampered(entry.seq, "creates the log a second time")
        signer = self.admitted.get(entry.key)
        if signer is None:
            raise tampered(
                entry.seq,
                f"is signed by key {entry.key[:64]}, which nobody admitted to this log",
                reason="key_not_admitted",
            )
        return signer


def sign_entry(entry: Entry, keys: KeyRing) -> bytes:
    """Return the bytes of `entry` signed by the own key of `keys`.

    Raises InvalidInput when its data is not plain JSON, or more than 1 MiB of it.
    """
    try:
        signature = base64.b64encode(keys.sign(_signed_bytes(entry))).decode()
        raw = canonical(msgspec.structs.replace(entry, signature=signature))
        decoded = msgspec.json.decode(raw, type=Entry)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InvalidInput(f"an entry '{entry.kind}' must hold plain JSON values: {error}") from error
    # An entry nobody can read back would end the log for everybody.
    if not _spelled_as(decoded, raw):
        raise InvalidInput(f"an entry '{entry.kind}' holds values that JSON can't give back as they were")
    if len(raw) > MAX_ENTRY_BYTES:
        raise InvalidInput(
            f"an entry '{entry.kind}' has {len(raw)} bytes, the most is {MAX_ENTRY_BYTES}",
            hint="keep large data as a blob and put its digest into the entry",
        )
    return raw


def admission_data(public_key: bytes) -> dict[str, Any]:
    """Return the data of an entry that admits a key."""
    return {"key": key_id_of(public_key), "public_key": public_text(public_key)}


def not_admitted(keys: KeyRing) -> Denied:
    """Make the error for a writer whose key the log does not know."""
    return Denied(
        f"this log does not accept entries by your key {keys.key_id}",
        hint=f"ask somebody who may write to it to run: argosy keys trust {public_text(keys.public_key)}",
        code="key_not_admitted",
        key=keys.key_id,
    )


def _admission(entry: Entry) -> bytes | None:
    if entry.kind not in (CREATED, KEY_TRUSTED):
        return None
    try:
        public_key = parse_public(str(entry.data["public_key"]))
        if entry.data["key"] == key_id_of(public_key):
            return public_key
    except (KeyError, InvalidInput):
        pass
    raise tampered(entry.seq, "admits a key but does not hold one")


def _spelled_as(entry: Entry, raw: bytes) -> bool:
    try:
        return canonical(entry) == raw
    except (TypeError, ValueError, OverflowError):
        return False


def _signed_bytes(entry: Entry) -> bytes:
    return pae(canonical(msgspec.structs.replace(entry, signature="")), _TYPE)


def _decoded(signature: str) -> bytes:
    try:
        return from_base64(signature)
    except (binascii.Error, ValueError):
        return b""
