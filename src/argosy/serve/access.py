"""Who may ask what: keys, what each may use, and the policy of every path. Whatever is in doubt is refused.

A caller sends its key in `Authorization: Bearer argosy_…`. Here only digests of keys are known (security/api_keys.py).
As long as nobody was ever granted a key, everybody on this machine may use everything; from the first grant on a key is
needed, also when the last one has been revoked or has expired, until access control is lifted in so many words.
"""

import hmac
import ipaddress
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from argosy.core.clock import Clock
from argosy.core.config import Config
from argosy.core.digest import digest_of
from argosy.core.errors import Denied, Internal, InvalidInput, Unavailable
from argosy.security.api_keys import MAX_KEY_CHARACTERS, key_digest, key_id

EVERY = "*"
"""Stands for every endpoint; no endpoint can be called so."""

Policy = Literal["open", "key", "endpoint"]
"""open: for everybody. key: any key, and what it may not use is not shown. endpoint: a key for that endpoint."""

POLICIES: Mapping[str, Policy] = {
    "/v2/health/live": "open",
    "/v2/health/ready": "open",
    "/": "key",
    "/metrics": "key",
    "/v2": "key",
    "/v2/repository/index": "key",
    "/v2/models/stats": "key",
    "/openapi.json": "key",
    "/docs": "open",  # the page holds nothing; it asks for a key and reads /openapi.json with it
    "/predict/{endpoint}": "endpoint",
    "/v2/models/{endpoint}": "endpoint",
    "/v2/models/{endpoint}/ready": "endpoint",
    "/v2/models/{endpoint}/infer": "endpoint",
    "/v2/models/{endpoint}/config": "endpoint",
    "/v2/models/{endpoint}/stats": "endpoint",
    "/v2/models/{endpoint}/versions/{number}": "endpoint",
    "/v2/models/{endpoint}/versions/{number}/ready": "endpoint",
    "/v2/models/{endpoint}/versions/{number}/infer": "endpoint",
    "/v2/models/{endpoint}/versions/{number}/config": "endpoint",
    "/v2/models/{endpoint}/versions/{number}/stats": "endpoint",
}
"""The policy of every path of the gateway. A gateway with a path that is not here does not start."""

_MAX_KNOWN = 4096
_MAX_HEADER = MAX_KEY_CHARACTERS + 64
_NOBODYS_DIGEST = "0" * 64


class AccessKey(Config, frozen=True):
    """One key, as the gateway knows it."""

    id: str
    name: str
    """Who holds it."""
    digest: str
    """`security.api_keys.key_digest` of the key."""
    endpoints: tuple[str, ...]
    """What it may use; `"*"` stands for everything. Nothing is not everything."""
    weight: float = 1.0
    """Its share of a busy gateway, against others."""
    expires: float = 0.0
    """Wall clock, seconds; 0: never."""


class AccessRules(Config, frozen=True):
    """Who may use a gateway."""

    is_on: bool
    """Whether a key is needed. Without a default: rules that say nothing about it are no rules."""
    keys: tuple[AccessKey, ...] = ()

    @property
    def digest(self) -> str:
        """Names these rules: equal rules have equal digests."""
        return digest_of(self)


class Caller:
    """Whoever asks: the holder of a key, or anybody (name "") where no key is needed."""

    __slots__ = ("_may_all", "endpoints", "expires", "name", "weight")

    def __init__(self, name: str, weight: float = 1.0, endpoints: Iterable[str] = (), expires: float = 0.0) -> None:
        self.name = name
        self.weight = weight
        self.endpoints = frozenset(endpoints)
        self.expires = expires or math.inf
        """Wall clock, seconds; infinite: never."""
        self._may_all = EVERY in self.endpoints

    def may(self, endpoint: str) -> bool:
        """Return whether this caller may use an endpoint of that name; whether there is one is another question."""
        return self._may_all or endpoint in self.endpoints

    def check(self, endpoint: str) -> None:
        """Raise Denied (code `forbidden`) unless this caller may use the endpoint."""
        if not (self._may_all or endpoint in self.endpoints):
            raise Denied(
                f"the key of '{self.name}' is not for endpoint '{endpoint[:80]}'",
                hint="ask the operator for a key that is",
                code="forbidden",
            )


ANYBODY = Caller("", endpoints=(EVERY,))
"""The caller where no key is needed."""
NOBODY = Caller("")
"""The caller of what is open to everybody: may use no endpoint."""


class Access:
    """The rules in force. `rules` None: they are not known yet, so everybody is turned away for the moment."""

    def __init__(self, clock: Clock, rules: AccessRules | None) -> None:
        self._clock = clock
        self._known: dict[bytes | str, Caller] = {}
        self.set(rules)

    def set(self, rules: AccessRules | None) -> None:
        """Put other rules in force, at once and for every request that is not answered yet."""
        self._is_off = False  # whatever happens below, nothing is open that should be closed
        self._known = {}
        keys = rules.keys if rules is not None else ()
        self._keys = {key.id: (key, Caller(key.name, key.weight, key.endpoints, key.expires)) for key in keys}
        self._holders = {caller.name: caller for _, caller in self._keys.values()}
        self.rules = rules
        self._is_off = rules is not None and not rules.is_on

    @property
    def is_on(self) -> bool:
        """Whether a key is needed."""
        return not self._is_off

    def caller_of(self, authorization: bytes | str | None) -> Caller:
        """Return who sends this `Authorization`. A known key costs one look-up of the header as it was sent.

        Raises Denied (code `unauthorized`) without a valid key, and Unavailable while the rules are not known.
        """
        if self._is_off:
            return ANYBODY
        if authorization is not None:
            caller = self._known.get(authorization)
            if caller is not None and self._clock.now() < caller.expires:
                return caller
        return self._examine(authorization)

    def check_holder(self, name: str, endpoint: str) -> None:
        """Raise Denied unless the holder of a key may use an endpoint now, for a request that was admitted elsewhere.

        `name` is empty where no key was needed. Raises Unavailable while the rules are not known.
        """
        if self._is_off:
            return
        caller = self._holders.get(name)
        if self.rules is None:
            raise _unknown()
        if caller is None or self._clock.now() >= caller.expires:
            raise Denied("the key sent with this request is not valid any more", code="unauthorized")
        caller.check(endpoint)

    def _examine(self, authorization: bytes | str | None) -> Caller:
        if self.rules is None:
            raise _unknown()
        text = _bearer(authorization)
        key, caller = self._keys.get(key_id(text), (None, NOBODY))
        # An unknown id takes as long as a wrong secret.
        if not hmac.compare_digest(key_digest(text), key.digest if key else _NOBODYS_DIGEST) or key is None:
            said = "the key sent with this request is not valid" if authorization else "this request needs a key"
            raise Denied(
                said, hint="send a key that was granted, as: Authorization: Bearer argosy_…", code="unauthorized"
            )
        if key.expires and self._clock.now() >= key.expires:
            raise Denied(f"the key of '{key.name}' has expired", hint="ask for a new one", code="unauthorized")
        if len(self._known) >= _MAX_KNOWN:
            # One key can be sent in many spellings (`bearer`, `BEARER`, more spaces); nobody needs that many.
            self._known.clear()
        self._known[authorization or b""] = caller
        return caller


def check_policies(paths: Iterable[str]) -> None:
    """Raise Internal unless each of these paths has a policy: what nobody thought about must not be open."""
    missing = sorted(path for path in paths if path not in POLICIES)
    if missing:
        raise Internal(
            f"'{missing[0]}' has no policy that says who may use it, so the gateway does not start",
            hint="give it one in serve/access.py",
            code="no_policy",
        )


def check_exposure(host: str, *, has_tls: bool, is_guarded: bool) -> None:
    """Raise InvalidInput for an address that others can reach, unless there are both TLS and access control."""
    if is_loopback(host):
        return
    missing = [what for what, there in (("TLS", has_tls), ("access control", is_guarded)) if not there]
    if missing:
        raise InvalidInput(
            f"the gateway was asked to listen on {host}, where others could reach it, without {' and '.join(missing)}",
            hint="grant a key (argosy access grant <name>), then give the address and a certificate together: argosy "
            "gateway set --host <address> --tls-cert <file> --tls-key <file>",
            code="not_loopback",
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach an address. Raises InvalidInput for what is no address."""
    try:
        address = ipaddress.ip_address("127.0.0.1" if host == "localhost" else host)
    except ValueError as error:
        raise InvalidInput(
            f"the gateway was asked to listen on {host!r}, which is not an address",
            hint="use 127.0.0.1, or the address of a network interface",
        ) from error
    return address.is_loopback


def own_names(host: str) -> tuple[str, ...]:
    """Return the name that an address to listen on is for callers: itself, and none where it is every interface."""
    return () if host in ("0.0.0.0", "::") else (host,)  # noqa: S104 - compared, not bound


def url_of(host: str, hosts: Sequence[str], port: int, *, has_tls: bool) -> str:
    """Return the address by which callers reach a gateway."""
    name = (*hosts, *own_names(host), "127.0.0.1")[0]
    return f"{'https' if has_tls else 'http'}://{f'[{name}]' if ':' in name else name}:{port}"


def _unknown() -> Unavailable:
    return Unavailable("the gateway does not know yet who may use it", hint="send it again", code="access_unknown")


def _bearer(authorization: bytes | str | None) -> str:
    """Return the token of an `Authorization` header, empty for anything else (RFC 6750, section 2.1)."""
    if authorization is None:
        return ""
    if len(authorization) > _MAX_HEADER:
        return ""
    text = authorization.decode("latin-1") if isinstance(authorization, bytes) else authorization
    scheme, _, token = text.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
