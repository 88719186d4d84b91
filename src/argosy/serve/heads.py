"""Heads of HTTP requests, each parsed once: a client sends the same head again and again, and it means the same again.

On a keep-alive connection only the body changes from request to request. A head that was parsed, found right and
admitted is kept under its exact bytes; the next request that starts with these bytes needs one look-up instead of a
parser with a callback per header. Only heads without any state of their own are kept (see `is_plain`), so equal bytes
can't mean anything else the second time.
"""

from collections.abc import Callable
from typing import Any

from argosy.serve.access import NOBODY, Caller

END = b"\r\n\r\n"
UNKNOWN = object()
"""Stands for the rules of a head that nobody has looked at."""
MAX_KEPT_BYTES = 2048
"""A longer head is parsed each time: clients that send such ones put something new into each."""
_MAX_KEPT = 1024


class Head:
    """A request line and headers as received: header names in lower case, the last of repeated ones."""

    __slots__ = ("caller", "facts", "headers", "keep_alive", "length", "method", "route", "rules", "target")

    def __init__(self) -> None:
        self.method = ""
        self.target = b""
        self.headers: dict[bytes, bytes] = {}
        self.keep_alive = True
        self.length = 0
        """Bytes of the body by Content-Length; 0 also where the body comes in chunks."""
        self.route: Callable[[Any], None] | None = None
        """What answers it, found out when it is first needed."""
        self.facts: Any = None
        """What the route has read in the headers, so that it need not read them again."""
        self.caller: Caller = NOBODY
        """Who sends it."""
        self.rules: object = UNKNOWN
        """The access rules under which that was found out; under others it has to be found out again."""

    @property
    def is_plain(self) -> bool:
        """Whether the bytes after it are just `length` bytes of body and then the next request."""
        headers = self.headers
        return (
            self.keep_alive
            and b"transfer-encoding" not in headers
            and b"expect" not in headers
            and b"upgrade" not in headers
            and headers.get(b"connection", b"keep-alive").lower() == b"keep-alive"
        )


class Heads:
    """The heads that were seen lately."""

    def __init__(self) -> None:
        self._kept: dict[bytes, Head] = {}
        self.get = self._kept.get
        """Return the head with exactly these bytes, the empty line included, or None."""

    def keep(self, raw: bytes, head: Head) -> None:
        """Remember a head that was admitted."""
        if len(raw) > MAX_KEPT_BYTES or not head.is_plain:
            return
        if len(self._kept) >= _MAX_KEPT:
            # Clients whose heads differ each time fill it quickly; starting anew is cheaper than keeping an order.
            self._kept.clear()
        self._kept[raw] = head

    def forget(self) -> None:
        """Forget all, because what is admitted has changed."""
        self._kept.clear()
