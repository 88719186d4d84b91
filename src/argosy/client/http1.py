"""HTTP/1.1 as a client speaks it, without a socket: a request to bytes, bytes to a bounded answer."""

import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import httptools

from argosy.core.errors import InvalidInput

DEFAULT_PORTS = {"http": 80, "https": 443}
MAX_HEAD_BYTES = 64 << 10


class Address(NamedTuple):
    """Where a server is: what `url` says, taken apart."""

    url: str
    is_tls: bool
    host: str
    port: int
    prefix: str
    """Path before every path of ours, without a slash at its end; for a proxy that maps us below one."""
    dial: str
    """Whom to connect to: `host`, unless somebody knows a shorter way to it."""

    @property
    def authority(self) -> str:
        """What stands in the header Host."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS["https" if self.is_tls else "http"] else f"{host}:{self.port}"


def address_of(url: str, connect_to: str = "") -> Address:
    """Take a URL apart. Raises InvalidInput for anything but http(s)://host[:port][/path]."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise InvalidInput(f"{url!r} is not a URL: {error}", code="bad_url") from error
    if parts.username is not None or parts.password is not None:
        # Not repeated: a password may stand in it.
        raise InvalidInput("the URL holds a user name", hint="give an API key as api_key instead", code="bad_url")
    if parts.scheme not in DEFAULT_PORTS or not host or parts.query or parts.fragment:
        raise InvalidInput(
            f"{url!r} is not the URL of a gateway", hint="use http://host:port or https://host:port", code="bad_url"
        )
    is_tls = parts.scheme == "https"
    return Address(
        url=url.rstrip("/"),
        is_tls=is_tls,
        host=host,
        port=port or DEFAULT_PORTS[parts.scheme],
        prefix=_printable(parts.path.rstrip("/"), "URL"),
        dial=connect_to or host,
    )


def tls_context(address: Address, ca_file: str | Path | None) -> ssl.SSLContext | None:
    """Return how the server's certificate is verified, None for plain HTTP. `ca_file` replaces the system's roots."""
    if not address.is_tls:
        if ca_file is not None:
            raise InvalidInput(f"ca_file is given, but '{address.url}' has no TLS", hint="use https://", code="bad_url")
        return None
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise InvalidInput(
            f"'{ca_file}' holds no certificates that can be read: {error}", code="bad_ca_file"
        ) from error
    if ca_file is not None:
        # A server's own certificate, as it stands on its disk, is enough to know it by.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def key_header(address: Address, api_key: str) -> tuple[tuple[str, str], ...]:
    """Return the header that carries a key. Raises InvalidInput if it would travel over a network unencrypted."""
    if not api_key:
        return ()
    if not address.is_tls and not _is_this_machine(address.dial):
        raise InvalidInput(
            f"the API key is not sent to '{address.url}', because everybody on the way could read it",
            hint="use https://",
            code="key_in_the_clear",
        )
    return (("authorization", f"Bearer {_printable(api_key, 'API key', shown=False)}"),)


def _is_this_machine(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _printable(text: str, what: str, *, shown: bool = True) -> str:
    """Return a text that can't end a header or a request line; anything else is refused."""
    if not text.isascii() or any(c <= " " or c == "\x7f" for c in text):
        raise InvalidInput(
            f"the {what} {repr(text) + ' ' if shown else ''}holds spaces or characters that are not ASCII",
            code="bad_header",
        )
    return text


class Request(NamedTuple):
    """One request; `body` in pieces that are not copied."""

    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: Sequence[bytes | memoryview] = ()

    def head(self, address: Address, headers: Sequence[tuple[str, str]], timeout_s: float) -> bytes:
        """Return the bytes before the body; `timeout_s` is what the server is told it has."""
        size = sum(len(piece) for piece in self.body)
        lines = [f"{self.method} {address.prefix}{self.path} HTTP/1.1", f"host: {address.authority}"]
        lines += [f"{name}: {value}" for name, value in (*headers, *self.headers)]
        lines.append(f"argosy-timeout: {_rounded(timeout_s)}")
        if self.method == "POST":
            lines.append(f"content-length: {size}")
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


def _rounded(seconds: float) -> str:
    """Return a time with two digits that count.

    A gateway knows a head that it has seen before by its bytes, and need not parse it again: the same call should send
    the same head. That it may take a time for longer than it is, by five hundredths at most, does no harm: who asks
    keeps the exact one.
    """
    return f"{float(f'{min(600.0, max(0.001, seconds)):.2g}'):g}"


def text_header(name: str, value: str, *, most: int = 256) -> tuple[str, str]:
    """Return a header with any text in UTF-8. Raises InvalidInput for line breaks, and for more than `most` bytes."""
    data = value.encode("utf-8", "surrogatepass")
    if len(data) > most or any(c < " " or c == "\x7f" for c in value):
        raise InvalidInput(
            f"{name} {value[:40]!r} can't be sent: at most {most} bytes, without line breaks", code="bad_header"
        )
    # Heads are written as latin-1, which maps each character to the byte of its number.
    return name, data.decode("latin-1")


class Answer(NamedTuple):
    """One complete answer; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytearray
    keep_alive: bool


class AnswerReader:
    """Puts one answer together from what a socket delivers, up to `max_bytes` of body."""

    def __init__(self, max_bytes: int) -> None:
        self.has_begun = False
        """Whether any byte has come."""
        self.answer: Answer | None = None
        self._max_bytes = max_bytes
        self._parser = httptools.HttpResponseParser(self)
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self._body = bytearray()
        self._error: InvalidInput | None = None
        self._ends_with_connection = False

    def feed(self, data: bytes) -> bool:
        """Take bytes; return whether the answer is complete. Raises InvalidInput for what is no answer of HTTP/1.1."""
        self.has_begun = self.has_begun or bool(data)
        is_extra = self.answer is not None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as error:
            raise _not_http("it changed to another protocol") from error
        except httptools.HttpParserError as error:
            if self._error is None:
                raise _not_http(str(error)[:200]) from error
        if self._error is not None:
            raise self._error
        if is_extra:
            raise _not_http("it sent more than one answer")
        return self.answer is not None

    def end(self) -> bool:
        """Take the end of the connection; return whether that completes the answer."""
        if self._ends_with_connection and self.answer is None:
            self._finish(keep_alive=False)
        return self.answer is not None

    # The parser calls ----------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """Begin; a second answer would belong to nobody's request."""
        if self.answer is not None:
            self._error = _not_http("it sent more than one answer")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._error = self._error or _not_http(f"its head is larger than {MAX_HEAD_BYTES} bytes")
            return
        self._headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        """Refuse early what is announced to be too large."""
        if self._parser.get_http_version() not in ("1.0", "1.1"):
            self._error = self._error or _not_http(f"it speaks HTTP/{self._parser.get_http_version()}")
        length = self._headers.get("content-length", "")
        is_chunked = "transfer-encoding" in self._headers
        self._ends_with_connection = not length and not is_chunked and self._parser.get_status_code() not in (204, 304)
        if length.isascii() and length.isdigit() and int(length) > self._max_bytes:
            self._error = self._error or self._too_large()

    def on_body(self, data: bytes) -> None:
        """Take a part of the body."""
        if len(self._body) + len(data) > self._max_bytes:
            self._error = self._error or self._too_large()
        elif self._error is None:
            self._body += data

    def on_message_complete(self) -> None:
        """End, unless it was only an interim answer such as 100 Continue."""
        if self._parser.get_status_code() < 200:
            self._headers = {}
            self._head_bytes = 0
            return
        self._finish(keep_alive=self._parser.should_keep_alive())

    def _finish(self, *, keep_alive: bool) -> None:
        self.answer = Answer(self._parser.get_status_code(), self._headers, self._body, keep_alive)

    def _too_large(self) -> InvalidInput:
        return InvalidInput(
            f"the answer is larger than the {self._max_bytes} bytes that this client reads",
            hint="ask for fewer rows, or give the client a larger max_answer_bytes",
            code="answer_too_large",
        )


def _not_http(why: str) -> InvalidInput:
    return InvalidInput(
        f"what answers there does not speak HTTP/1.1 as a gateway does: {why}",
        hint="check host, port and whether it is http:// or https://",
        code="not_a_gateway",
    )
