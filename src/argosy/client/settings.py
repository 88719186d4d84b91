"""Whom to ask, and with which key, when nobody says: what this machine's settings have."""

from argosy.client.http1 import Address, key_header
from argosy.core.config import load_settings

DEFAULT_URL = "http://127.0.0.1:8700"
URL_FILE = "gateway.url"
"""The gateway writes its address to a file of this name beside its socket."""


def default_url() -> str:
    """Return the address of the gateway that serves this `ARGOSY_HOME`, else the usual one."""
    try:
        return (load_settings().runtime / URL_FILE).read_text().strip() or DEFAULT_URL
    except OSError:
        return DEFAULT_URL


def standing_headers(address: Address, api_key: str | None) -> tuple[tuple[str, str], ...]:
    """Return the headers that go with every request: who we are, and the key; None takes it from the settings."""
    from argosy.core.version import __version__

    key = str(getattr(load_settings(), "api_key", "")) if api_key is None else api_key
    return (("user-agent", f"argosy/{__version__}"), *key_header(address, key))
