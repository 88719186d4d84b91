"""Where the gateway listens and what it is called, as the log's `gateway.desired` entries say."""

import ipaddress
import re
from typing import Any

import msgspec

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.serve.access import check_exposure, is_loopback, own_names, url_of

MAX_FRONTS = 64
_LABEL = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)")


class GatewaySettings(Config, frozen=True):
    """What an operator decides about the gateway. The certificate and its key are files; only their paths are here."""

    host: str = "127.0.0.1"
    port: int = 0
    """0: any free one, which is then kept."""
    grpc_port: int = 0
    """The same for gRPC; -1: no gRPC."""
    tls_cert: str = ""
    """Path of the certificate with its chain (PEM); empty: no TLS."""
    tls_key: str = ""
    """Path of its private key (PEM)."""
    hosts: tuple[str, ...] = ()
    """Names by which callers may call this gateway, beside loopback names and the address it listens on."""

    fronts: int = 0
    """Processes that speak HTTP for the gateway, all on its port; 0: it does so itself, which is enough for some
    20,000 small requests a second."""

    @property
    def has_tls(self) -> bool:
        """Whether it speaks TLS."""
        return bool(self.tls_cert)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback(self.host)

    @property
    def address(self) -> str:
        """Address and port as people write them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def names(self) -> tuple[str, ...]:
        """What callers use as its name; its certificate must hold each of them."""
        return self.hosts or own_names(self.host)

    def check(self, *, is_guarded: bool) -> None:
        """Raise InvalidInput when a value is impossible, or would open the gateway to others unguarded."""
        if not 0 <= self.port <= 65535:
            raise InvalidInput(f"{self.port} is not a port; use 1 to 65535, or 0 for a free one")
        if not -1 <= self.grpc_port <= 65535:
            raise InvalidInput(
                f"{self.grpc_port} is not a port for gRPC; use 1 to 65535, 0 for a free one, or -1 for no gRPC"
            )
        if self.grpc_port == self.port > 0:
            raise InvalidInput(f"HTTP and gRPC can't share port {self.port}", hint="give gRPC another, or 0 for any")
        if bool(self.tls_cert) != bool(self.tls_key):
            given, missing = ("certificate", "private key") if self.tls_cert else ("private key", "certificate")
            raise InvalidInput(
                f"a {given} was given without its {missing}", hint="give both: --tls-cert <file> --tls-key <file>"
            )
        if not 0 <= self.fronts <= MAX_FRONTS:
            raise InvalidInput(f"{self.fronts} fronts are not possible; use 0 to {MAX_FRONTS}")
        for name in self.hosts:
            check_host(name)
        check_exposure(self.host, has_tls=self.has_tls, is_guarded=is_guarded)
        if not self.names:
            raise InvalidInput(
                f"the gateway was asked to listen on {self.host}, which is every interface and nobody's name, so every "
                "request from outside would be refused",
                hint="say how callers call it: --allow-host models.example",
            )

    def updated(self, found: dict[str, Any]) -> "GatewaySettings":
        """Return these settings with the fields that an entry has; an entry with a wrong one changes nothing."""
        known = {field: found[field] for field in self.__struct_fields__ if field in found}
        try:
            return msgspec.convert(self.plain() | known, GatewaySettings)
        except msgspec.ValidationError:
            return self

    def plain(self) -> dict[str, Any]:
        """Return every field as a plain value, defaults too: the form of an entry."""
        return {**msgspec.structs.asdict(self), "hosts": list(self.hosts)}

    def url(self, port: int) -> str:
        """Return the address that callers use."""
        return url_of(self.host, self.hosts, port, has_tls=self.has_tls)


def check_host(name: str) -> None:
    """Raise InvalidInput unless a `Host` header can hold `name` in lower case: a DNS name or an address, no port."""
    if len(name) > 253 or not (_is_address(name) or all(_LABEL.fullmatch(label) for label in name.split("."))):
        raise InvalidInput(
            f"{name[:80]!r} is not a host name", hint="give it as callers do, without scheme and port: models.example"
        )


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
