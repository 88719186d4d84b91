"""Who was granted access, as the log says: a part of desired state, folded entry by entry.

    access.granted  NAME   id, digest, endpoints, weight, expires    from here on a key is needed
    access.revoked  NAME
    access.lifted   every key is gone, and none is needed any more

An entry that can't be understood grants nothing, and still closes: a key is needed from it on.
"""

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from argosy.serve.access import AccessKey, AccessRules

GRANTED = "access.granted"
REVOKED = "access.revoked"
LIFTED = "access.lifted"
KINDS = (GRANTED, REVOKED, LIFTED)

LEAST_WEIGHT, MOST_WEIGHT = 0.01, 100.0
_ID = re.compile(r"[a-z2-7]{8}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """One key that was granted and not revoked; it may have expired."""

    name: str
    id: str
    digest: str
    endpoints: tuple[str, ...]
    weight: float
    expires: float
    """Wall clock, seconds; 0: never."""
    granted: float
    actor: str
    """Who granted it."""

    def is_expired(self, now: float) -> bool:
        """Return whether its time is over."""
        return bool(self.expires) and now >= self.expires


class Grants:
    """The fold."""

    def __init__(self) -> None:
        self.is_on = False
        """Whether a key is needed."""
        self.by_name: dict[str, Grant] = {}
        self._rules: AccessRules | None = None

    def apply(self, kind: str, subject: str, data: dict[str, Any], *, time: float, actor: str) -> None:
        """Take in one entry."""
        self._rules = None
        if kind == LIFTED:
            self.is_on = False
            self.by_name = {}
            return
        self.is_on = True
        self.by_name.pop(subject, None)
        if kind == GRANTED:
            grant = _grant(subject, data, time, actor)
            if grant is not None:
                self.by_name[subject] = grant

    def rules(self) -> AccessRules:
        """Return what the gateway is to enforce; the same object until an entry changes it."""
        if self._rules is None:
            self._rules = AccessRules(is_on=self.is_on, keys=tuple(self._keys()))
        return self._rules

    def _keys(self) -> Iterator[AccessKey]:
        for _, grant in sorted(self.by_name.items()):
            yield AccessKey(
                id=grant.id,
                name=grant.name,
                digest=grant.digest,
                endpoints=grant.endpoints,
                weight=grant.weight,
                expires=grant.expires,
            )


def grant_data(key_id: str, digest: str, endpoints: tuple[str, ...], weight: float, expires: float) -> dict[str, Any]:
    """Return the data of an entry that grants a key."""
    return {"id": key_id, "digest": digest, "endpoints": list(endpoints), "weight": weight, "expires": expires}


def _grant(name: str, data: dict[str, Any], time: float, actor: str) -> Grant | None:
    try:
        grant = msgspec.convert(data | {"name": name, "granted": time, "actor": actor}, Grant)
    except msgspec.ValidationError:
        return None
    is_sound = (
        _ID.fullmatch(grant.id)
        and _DIGEST.fullmatch(grant.digest)
        and grant.endpoints
        and LEAST_WEIGHT <= grant.weight <= MOST_WEIGHT
        and grant.expires >= 0
    )
    return grant if is_sound else None
