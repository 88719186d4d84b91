"""Pages about what is served: the OpenAPI document, and the page that people read."""

import base64
import functools
import hashlib
import re
from collections.abc import Callable, Iterable
from importlib import resources

import msgspec

from argosy.core.tensors import Signature
from argosy.core.version import __version__
from argosy.serve.endpoint import Endpoint
from argosy.serve.openapi import Described, describe


def openapi(
    endpoints: Iterable[Endpoint],
    signature_of: Callable[[Endpoint], Signature | None],
    url: str,
    *,
    grpc: str = "",
    needs_key: bool = False,
) -> bytes:
    """Return the document of these endpoints, for callers who know the gateway as `url`."""
    described = tuple(
        Described(e.route.name, e.plan.serving_ref, tuple(e.numbers()), signature_of(e)) for e in endpoints
    )
    return _written(described, url, grpc, needs_key)


# A page that many look at is written once; some callers, each with its own view, and both names of this machine fit.
@functools.lru_cache(maxsize=32)
def _written(described: tuple[Described, ...], url: str, grpc: str, needs_key: bool) -> bytes:  # noqa: FBT001
    return msgspec.json.encode(describe(described, url, release=__version__, grpc=grpc, needs_key=needs_key))


@functools.cache
def docs() -> tuple[bytes, str]:
    """Return the page and its headers.

    It holds no data and loads nothing from elsewhere: it reads the document with the key that is typed into it. Its
    policy names its own script and style by their digests, so that nothing else could run in it.
    """
    text = resources.files("argosy.serve").joinpath("docs.html").read_text("utf-8")
    policy = (
        f"default-src 'none'; script-src {_digest(text, 'script')}; style-src {_digest(text, 'style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = (
        f"content-type: text/html; charset=utf-8\r\ncontent-security-policy: {policy}\r\n"
        "x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\ncache-control: no-cache\r\n"
    )
    return text.encode(), headers


def _digest(page: str, tag: str) -> str:
    found = re.search(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    inside = found[1] if found else ""
    return f"'sha256-{base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()}'"
