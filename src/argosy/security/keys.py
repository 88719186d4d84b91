"""The keys of this home: one Ed25519 key of its own, and the public keys it trusts.

Source: RFC 8032 (Ed25519). A key is named by the first 128 bits of the SHA-256 of its 32 public bytes.
"""

import base64
import binascii
import contextlib
import hashlib
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Self

from argosy.core.config import private_folder
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.core.files import create_exclusive

if TYPE_CHECKING:
    # Imported when first used: reading `argosy --help` needs no cryptography.
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_SIZE = 32


def key_id_of(public_key: bytes) -> str:
    """Return the name of a public key: 32 hex digits."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def public_text(public_key: bytes) -> str:
    """Return a public key as one word that can be mailed and pasted."""
    return "argosy-ed25519:" + base64.b64encode(public_key).decode()


def parse_public(text: str) -> bytes:
    """Read what `public_text` wrote; InvalidInput for anything else, also for another spelling of the same key."""
    try:
        public_key = base64.b64decode(text.strip().removeprefix("argosy-ed25519:"), validate=True)
    except (binascii.Error, ValueError):
        public_key = b""
    if len(public_key) != _SIZE or public_text(public_key) != text.strip():
        raise InvalidInput(
            f"{text[:80]!r} is not a public key", hint="it looks like 'argosy-ed25519:' and 44 letters and digits"
        )
    return public_key


class KeyRing:
    """Signs with this home's own key, and verifies with the keys it trusts.

    Nothing is read or made before it is needed, so a reader that never signs never makes a key.
    """

    def __init__(self, folder: Path | None = None, *, seed: bytes | None = None) -> None:
        self._folder = folder
        self._seed = seed
        self._private: Ed25519PrivateKey | None = None
        self._public = b""
        self._known: dict[str, bytes] = {}
        self._verifiers: dict[str, Ed25519PublicKey] = {}
        self._lock = threading.RLock()

    @classmethod
    def open(cls, home: Path) -> Self:
        """Use the keys in `home/keys`; the private key is made there on first use, readable by this user alone."""
        return cls(home / "keys")

    @classmethod
    def in_memory(cls, seed: bytes | None = None) -> Self:
        """Make a key ring that leaves nothing behind, for tests; `seed` (32 bytes) makes it the same each time."""
        return cls(None, seed=seed if seed is not None else os.urandom(_SIZE))

    @property
    def key_id(self) -> str:
        """The name of this home's own key."""
        return key_id_of(self.public_key)

    @property
    def public_key(self) -> bytes:
        """The 32 public bytes of this home's own key."""
        self._own()
        return self._public

    def sign(self, data: bytes) -> bytes:
        """Return the signature of `data` by this home's own key, 64 bytes."""
        return self._own().sign(data)

    def verify(self, key_id: str, data: bytes, signature: bytes) -> None:
        """Check that the trusted key `key_id` signed `data`.

        Raises IntegrityError with code `unknown_key` or `bad_signature`.
        """
        public_key = self._find(key_id)
        if not verifies(public_key, data, signature, self._verifiers):
            raise IntegrityError(
                f"the signature by key {key_id} does not match what was signed", code="bad_signature", key=key_id
            )

    def trust(self, public_key: bytes) -> str:
        """Accept signatures by `public_key` from now on, and return its name; harmless when it is trusted already."""
        if len(public_key) != _SIZE:
            raise InvalidInput(f"an Ed25519 public key has {_SIZE} bytes, this has {len(public_key)}")
        key_id = key_id_of(public_key)
        with self._lock:
            if self._lookup(key_id) is None:
                self._known[key_id] = public_key
                if self._folder is not None:
                    with contextlib.suppress(Conflict):  # another process trusted it at the same time
                        private_folder(self._folder)
                        create_exclusive(self._trusted(key_id), public_text(public_key).encode() + b"\n")
        return key_id

    def trusted(self) -> list[str]:
        """Return the names of all keys whose signatures are accepted, this home's own included if it was made."""
        found = set(self._known)
        if self._folder is not None:
            found |= {path.stem for path in (self._folder / "trusted").glob("*.pub")}
            if (self._folder / "ed25519.key").exists():
                found.add(self.key_id)
        elif self._seed is not None:
            found.add(self.key_id)
        return sorted(found)

    def _find(self, key_id: str) -> bytes:
        found = self._lookup(key_id)
        if found is None:
            raise IntegrityError(
                f"this was signed by key {key_id[:64]}, which is not trusted here",
                hint="ask its owner for the public key, check it, and run: argosy keys trust <public key>",
                code="unknown_key",
                key=key_id[:64],
            )
        return found

    def _lookup(self, key_id: str) -> bytes | None:
        if found := self._known.get(key_id):
            return found
        if len(key_id) != _SIZE or not key_id.isalnum():  # it becomes a file name below
            return None
        if self._folder is not None:
            # Read at each miss: another process may have trusted the key a moment ago.
            with contextlib.suppress(FileNotFoundError):
                found = parse_public(self._trusted(key_id).read_text(encoding="ascii"))
                if key_id_of(found) == key_id:
                    self._known[key_id] = found
                    return found
        if (self._seed or self._private_path_exists()) and self.key_id == key_id:
            self._known[key_id] = self.public_key
            return self.public_key
        return None

    def _private_path_exists(self) -> bool:
        return self._folder is not None and (self._folder / "ed25519.key").exists()

    def _trusted(self, key_id: str) -> Path:
        assert self._folder is not None
        return self._folder / "trusted" / f"{key_id}.pub"

    def _own(self) -> "Ed25519PrivateKey":
        with self._lock:
            if self._private is None:
                from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

                seed = self._seed if self._folder is None else self._load_or_make(self._folder)
                assert seed is not None
                self._private = Ed25519PrivateKey.from_private_bytes(seed)
                self._public = self._private.public_key().public_bytes_raw()
            return self._private

    def _load_or_make(self, folder: Path) -> bytes:
        path = folder / "ed25519.key"
        if not path.exists():
            private_folder(folder)
            # Of several first commands at once one wins, and all of them then read the winner's key.
            with contextlib.suppress(Conflict):
                create_exclusive(path, base64.b64encode(os.urandom(_SIZE)) + b"\n", mode=0o600)
        return _read_private(path)


def verifies(
    public_key: bytes, data: bytes, signature: bytes, cache: "dict[str, Ed25519PublicKey] | None" = None
) -> bool:
    """Return whether `signature` is one of `data` by `public_key`; `cache` keeps parsed keys, which costs less."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    name = public_key.hex()
    try:
        verifier = (cache or {}).get(name) or Ed25519PublicKey.from_public_bytes(public_key)
        verifier.verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    if cache is not None:
        cache[name] = verifier
    return True


def _read_private(path: Path) -> bytes:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise NotFound(f"there is no private key at '{path}'") from error
    except OSError as error:
        raise InvalidInput(f"the private key '{path}' can't be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        text = stream.read(256)
    if mode & 0o077:
        raise InvalidInput(
            f"the private key '{path}' can be read by others (mode {mode & 0o777:o})", hint=f"run: chmod 600 '{path}'"
        )
    try:
        seed = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        seed = b""
    if len(seed) != _SIZE:
        raise IntegrityError(
            f"the private key '{path}' is damaged",
            hint="restore it from a copy; without one, move it away and have the new key admitted: argosy keys trust",
            code="key_damaged",
        )
    return seed
