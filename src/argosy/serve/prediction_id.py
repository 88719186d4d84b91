"""Names of predictions that say by themselves which version answered, and when: nothing has to be stored to ask why.

0a1b2c3d4e5f6071-019a2b3c4d5e-1f2e3d4c5b-9a8b7c6d5e
|                |            |          keyed BLAKE2b over the rest: only a holder of the key makes ids
|                |            random
|                milliseconds since 1970
the first 16 hex digits of the version's digest
"""

import hashlib
import re
from random import Random

import msgspec

from argosy.core.errors import IntegrityError, InvalidInput

_FORM = re.compile(r"([0-9a-f]{16})-([0-9a-f]{12})-([0-9a-f]{10})-([0-9a-f]{10})")
_TAG_BYTES = 5
MIN_KEY_BYTES = 16


class PredictionId(msgspec.Struct, frozen=True, kw_only=True):
    """What an id says."""

    version: str
    """The first 16 hex digits of the version's digest; `Versions.get` takes them."""
    time: float
    """Seconds since 1970, to the millisecond."""
    random: str


class Namer:
    """Gives predictions their ids."""

    def __init__(self, key: bytes, random: Random) -> None:
        self._random = random
        # Copying a hash that has taken its key costs half of making one.
        self._keyed = hashlib.blake2b(key=key, digest_size=_TAG_BYTES)
        self._last = ("", 0)
        self._start = ""

    def name(self, digest: str, time: float) -> str:
        """Return a new id for an answer that the version `digest` gave at `time`."""
        last = (digest, int(time * 1000))
        if last != self._last:
            self._last = last
            self._start = f"{digest.removeprefix('sha256:')[:16]}-{last[1]:012x}-"
        body = f"{self._start}{self._random.getrandbits(40):010x}"
        tag = self._keyed.copy()
        tag.update(body.encode())
        return f"{body}-{tag.hexdigest()}"


def encode(digest: str, time: float, random: Random, key: bytes) -> str:
    """Return a new id for an answer that the version `digest` gave at `time`."""
    return Namer(key, random).name(digest, time)


def decode(text: str, key: bytes) -> PredictionId:
    """Read an id, without asking anybody.

    Raises InvalidInput if `text` doesn't have the form of one, IntegrityError if it was not made with `key`.
    """
    found = _FORM.fullmatch(text.strip())
    if found is None:
        raise InvalidInput(
            f"{text!r} is not the id of a prediction",
            hint="take it from the header 'argosy-prediction' or the field 'prediction' of an answer",
            code="not_a_prediction_id",
        )
    version, milliseconds, random, tag = found.groups()
    if tag != _tag(f"{version}-{milliseconds}-{random}", key):
        raise IntegrityError(
            f"the prediction '{text.strip()}' was not answered here: its tag does not match",
            hint="ask on the machine (ARGOSY_HOME) whose gateway gave the answer, and copy the whole id",
            code="foreign_prediction",
        )
    return PredictionId(version=version, time=int(milliseconds, 16) / 1000, random=random)


def _tag(body: str, key: bytes) -> str:
    # Public values of equal length, so a plain comparison in `decode` gives away nothing a caller could use: whoever
    # asks why holds the key.
    return hashlib.blake2b(body.encode(), key=key, digest_size=_TAG_BYTES).hexdigest()
