"""API keys: random words that callers send, of which everybody else keeps only a digest.

    argosy_<id: 8>_<secret: 52>        letters a-z and digits 2-7 (RFC 4648, base 32)

The id is public: it names the key in lists and logs. The secret has 256 random bits, so its plain SHA-256 can be kept
without salt or stretching: there is nothing to guess. The prefix lets scanners of repositories find a key that leaked.
"""

import base64
import hashlib
import os
import re
from collections.abc import Callable
from typing import NamedTuple

_FORM = re.compile(r"argosy_([a-z2-7]{8})_[a-z2-7]{52}")
MAX_KEY_CHARACTERS = 68
"""The length of every key; what is longer need not be looked at."""


class ApiKey(NamedTuple):
    """A new key. `text` is shown once and kept nowhere."""

    id: str
    text: str
    digest: str

    def __repr__(self) -> str:
        return f"ApiKey({self.id})"


def make_key(randomness: Callable[[int], bytes] = os.urandom) -> ApiKey:
    """Return a new key from 5 + 32 random bytes; `randomness` must be fit for secrets."""
    identity = base64.b32encode(randomness(5)).decode().lower()
    secret = base64.b32encode(randomness(32)).decode().rstrip("=").lower()
    text = f"argosy_{identity}_{secret}"
    return ApiKey(identity, text, key_digest(text))


def key_id(text: str) -> str:
    """Return the public id in a key, empty for what has not the form of one."""
    found = _FORM.fullmatch(text)
    return found[1] if found else ""


def key_digest(text: str) -> str:
    """Return what is kept of a key: 64 hex digits."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
