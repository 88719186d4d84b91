"""What callers say of their traces (W3C Trace Context), taken along to where spans are made. Knows nothing of spans."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from argosy.serve.connection import Exchange
from argosy.serve.http import HttpFront

Carrier = dict[str, str]
_MAX_PARENT, _MAX_STATE = 200, 512


def carrier_of(parent: str | bytes | None, state: str | bytes | None) -> Carrier:
    """Return `traceparent` and `tracestate` as a caller gave them, bounded; empty when it belongs to no trace.

    >>> carrier_of(b"00-ab-cd-01", None)
    {'traceparent': '00-ab-cd-01'}
    """
    if not parent:
        return {}
    found = {"traceparent": _text(parent, _MAX_PARENT)}
    if state:
        found["tracestate"] = _text(state, _MAX_STATE)
    return found


@contextmanager
def carried(plane: Any, carrier: Carrier) -> Iterator[None]:
    """Have the inferences that are begun inside belong to the caller's trace."""
    plane.carrier = carrier
    try:
        yield
    finally:
        plane.carrier = {}


def _text(given: str | bytes, most: int) -> str:
    cut = given[:most]
    return cut.decode("latin-1") if isinstance(cut, bytes) else cut


class CarryingFront(HttpFront):
    """HTTP that takes along what callers say of their traces."""

    def handle(self, exchange: Exchange) -> None:
        """Answer a request; an inference it starts belongs to the caller's trace."""
        headers = exchange.head.headers
        parent = headers.get(b"traceparent")
        if parent is None:
            super().handle(exchange)
            return
        with carried(self.plane, carrier_of(parent, headers.get(b"tracestate"))):
            super().handle(exchange)
