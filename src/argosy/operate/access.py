"""What an operator can say about access: grant a key, revoke it, lift the need of keys. One entry of the log each."""

import math
from collections.abc import Sequence
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.operate.desired import Desired
from argosy.operate.grants import GRANTED, LEAST_WEIGHT, LIFTED, MOST_WEIGHT, REVOKED, grant_data
from argosy.operate.transactions import Accepted, AsWanted, RegistryLike, transact
from argosy.registry.versions import check_name
from argosy.security.api_keys import ApiKey, make_key
from argosy.serve.access import EVERY

MAX_KEYS = 10_000
"""All keys travel to the gateway in one message, and stand in one file."""


class Granted(msgspec.Struct, frozen=True, kw_only=True):
    """A key that was granted. Nobody can show it again."""

    name: str
    id: str
    key: str
    endpoints: tuple[str, ...]
    weight: float
    expires: float
    summary: str
    undo: str
    entry: int

    def __repr__(self) -> str:
        return f"Granted({self.name}, {self.id})"


def grant(
    registry: RegistryLike,
    name: str,
    *,
    endpoints: Sequence[str] = (),
    weight: float = 1.0,
    lasts_s: float = 0.0,
    clock: Clock,
    key: ApiKey | None = None,
) -> Granted:
    """Grant `name` a key for these endpoints (none given: all of them), for `lasts_s` seconds (0: until revoked).

    `key` is a new one unless given. From the first grant on nobody uses the gateway without a key. Raises InvalidInput,
    and Conflict when `name` has a key that still works.
    """
    check_name(name)
    for endpoint in endpoints:
        check_name(endpoint)
    if not LEAST_WEIGHT <= weight <= MOST_WEIGHT:
        raise InvalidInput(f"a weight of {weight:g} is not possible; use {LEAST_WEIGHT:g} to {MOST_WEIGHT:g}")
    if not (0 <= lasts_s < math.inf):
        raise InvalidInput(f"a key can't last {lasts_s:g} s")
    made = key or make_key()
    now = clock.now()
    expires = now + lasts_s if lasts_s else 0.0
    allowed = tuple(sorted(set(endpoints))) or (EVERY,)

    def check(state: Desired) -> None:
        former = state.access.by_name.get(name)
        if former is not None and not former.is_expired(now):
            raise Conflict(
                f"'{name}' has a key already (id {former.id})",
                hint=f"grant another name one, or take this one back first: argosy access revoke {name}",
                code="key_exists",
            )
        if len(state.access.by_name) >= MAX_KEYS:
            raise Conflict(f"there are {MAX_KEYS} keys already", hint="revoke some: argosy access list")

    def answer(state: Desired, seq: int) -> Accepted:
        is_first = len(state.access.by_name) == 1
        what = "every endpoint" if EVERY in allowed else ", ".join(f"'{endpoint}'" for endpoint in allowed)
        summary = f"'{name}' may use {what}" + ("; from now on nobody does without a key" if is_first else "")
        return Accepted(endpoint="", is_changed=True, summary=summary, undo=f"argosy access revoke {name}", entry=seq)

    data = grant_data(made.id, made.digest, allowed, weight, expires)
    accepted = transact(registry.log, (GRANTED, name), check, lambda _: data, answer)
    return Granted(
        name=name,
        id=made.id,
        key=made.text,
        endpoints=allowed,
        weight=weight,
        expires=expires,
        summary=accepted.summary,
        undo=accepted.undo,
        entry=accepted.entry,
    )


def revoke(registry: RegistryLike, name: str) -> Accepted:
    """Take a key back. Whoever else holds one keeps it; when nobody does, the gateway stays closed. Raises NotFound."""

    def check(state: Desired) -> None:
        if name in state.access.by_name:
            return
        if registry.log.last(REVOKED, name) is not None:
            raise AsWanted(Accepted(endpoint="", is_changed=False, summary=f"the key of '{name}' was revoked already"))
        known = ", ".join(f"'{other}'" for other in sorted(state.access.by_name))
        raise NotFound(
            f"nobody called '{name}' has a key; known are: {known or 'none'}",
            hint="see them with: argosy access list",
            known=sorted(state.access.by_name),
        )

    def answer(state: Desired, seq: int) -> Accepted:
        left = len(state.access.by_name)
        summary = f"the key of '{name}' is not valid any more"
        if not left:
            summary += "; nobody has one now, so nobody is served"
        return Accepted(endpoint="", is_changed=True, summary=summary, entry=seq)

    def data(state: Desired) -> dict[str, Any]:
        return {"id": state.access.by_name[name].id}

    return transact(registry.log, (REVOKED, name), check, data, answer)


def lift(registry: RegistryLike) -> Accepted:
    """End access control: every key is gone, and whoever reaches the gateway may use it.

    Raises Conflict where others can reach it.
    """

    def check(state: Desired) -> None:
        if not state.access.is_on:
            raise AsWanted(Accepted(endpoint="", is_changed=False, summary="no key is needed already"))
        if not state.gateway.is_loopback:
            raise Conflict(
                f"the gateway listens on {state.gateway.host}, where others reach it, and so needs access control",
                hint="take it back to this machine first: argosy gateway set --host 127.0.0.1",
                code="not_loopback",
            )

    def answer(state: Desired, seq: int) -> Accepted:
        del state
        summary = "no key is needed any more; whoever reaches this machine's loopback address may use every endpoint"
        return Accepted(endpoint="", is_changed=True, summary=summary, undo="argosy access grant <name>", entry=seq)

    return transact(registry.log, (LIFTED, "gateway"), check, lambda _: {}, answer)
