"""The door of the page: who may come in, to what, and what a browser may do with it. Whatever is in doubt is refused.

The page acts on everything of this home, so a browser must show that it was opened by whoever started it. `argosy ui`
prints a link with a token that opens one session: it works once, and is followed by a cookie that scripts can't read
and that no other site can make a browser send. Every request must be addressed to this machine's own name, and whatever
is not a plain look must come from a page that was served here.
"""

import hmac
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal
from urllib.parse import parse_qs

import msgspec
from starlette.routing import Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from argosy.core.errors import Internal

Policy = Literal["token", "session"]
"""token: for whoever has the link. session: for a browser that came by the link."""

ENTER = "/enter"
POLICIES: Mapping[str, Policy] = {
    ENTER: "token",
    "/": "session",
    "/favicon.ico": "session",
    "/report": "session",
    "/picture": "session",
    "/api/state": "session",
    "/api/versions": "session",
    "/api/log": "session",
    "/api/runs": "session",
    "/_nicegui/*": "session",  # scripts and styles, out of the library's wheel
    "/_nicegui_ws/*": "session",  # the connection that keeps the page live and carries what is asked for
}
"""The policy of every path; `*` stands for all that follows. A page with a path that is not here does not start."""

_FOR_ALL = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
_CLOSED = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
_CODE_OF_LIBRARY = "script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
# Vue compiles its templates in the browser, which needs eval; Quasar and ECharts set styles in place. No script runs
# that is not in the wheel or named by this answer's nonce, and nothing is sent anywhere but here.
PAGE_POLICY = f"{_CLOSED}; {_CODE_OF_LIBRARY}connect-src 'self'; img-src 'self' data:; font-src 'self'"
_ASSETS_KEPT = "private, max-age=86400"
_MOST_PAGE_BYTES = 16 << 20


class Guard:
    """ASGI middleware around everything that the page is made of."""

    def __init__(self, app: ASGIApp, address: str, *, on_enter: Callable[[str], None] = lambda _: None) -> None:
        """Guard `app`, served at `address` (host and port).

        `on_enter` is told the next link when one has been used, for a second browser.
        """
        self._app = app
        self._hosts = {address, f"localhost:{address.rpartition(':')[2]}"}
        self._address = address
        self._on_enter = on_enter
        self._token = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        # Cookies are shared between the ports of a host: two pages on one machine must not throw each other out.
        self._cookie = f"argosy-ui-{address.rpartition(':')[2]}"

    @property
    def link(self) -> str:
        """The address that opens a session, once."""
        return f"http://{self._address}{ENTER}?token={self._token}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or hand it on."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        status, says = self._refuse(scope)
        if status:
            await _answer(scope, receive, send, status, says)
        elif scope["path"] == ENTER:
            await self._enter(scope, receive, send)
        elif scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _Dressed(send, scope["path"]))

    def _refuse(self, scope: Scope) -> tuple[int, str]:
        headers = _headers(scope)
        if headers.get("host", "") not in self._hosts:
            return 421, "This page is for this machine only."
        policy = policy_of(scope["path"])
        if policy is None:
            return 404, "There is nothing here."
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            return 405, "Nothing is changed by requests of this kind."
        acts = scope["type"] == "websocket"
        origin = headers.get("origin", "")
        if (acts or origin) and origin.partition("://")[2] not in self._hosts:
            return 403, "This was asked by a page from elsewhere."
        if policy == "token":
            return 0, ""
        if headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return 403, "This was asked by a page from elsewhere."
        if not hmac.compare_digest(_cookies(headers).get(self._cookie, "").encode(), self._session.encode()):
            return 401, "Open the link that 'argosy ui' has printed: it lets this browser in."
        return 0, ""

    async def _enter(self, scope: Scope, receive: Receive, send: Send) -> None:
        given = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        known = _cookies(_headers(scope)).get(self._cookie, "")
        is_inside = hmac.compare_digest(known.encode(), self._session.encode())
        if not hmac.compare_digest(given.encode(), self._token.encode()) and not is_inside:
            says = "This link was used already, or is of an earlier start. 'argosy ui' prints the one that works now."
            await _answer(scope, receive, send, 401, says)
            return
        cookie = ""
        if not is_inside:
            self._token = secrets.token_urlsafe(32)
            cookie = f"{self._cookie}={self._session}; Path=/; HttpOnly; SameSite=Strict"
            self._on_enter(self.link)
        # Not a redirect: after a click elsewhere its second request would not carry the cookie.
        page = '<!doctype html><title>Argosy</title><meta http-equiv="refresh" content="0;url=/">'
        await _answer(scope, receive, send, 200, page, cookie=cookie, is_page=True)


class _Dressed:
    """Adds the headers to an answer, and the nonce to the page's own scripts."""

    def __init__(self, send: Send, path: str) -> None:
        self._send = send
        self._is_page = path == "/"
        self._is_asset = path.startswith("/_nicegui/")
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [(k, v) for k, v in message["headers"] if not self._is_ours(k.decode("latin-1").lower())]
            nonce = secrets.token_urlsafe(16)
            policy = PAGE_POLICY.format(nonce=nonce) if self._is_page else _CLOSED
            own = {key.decode("latin-1").lower() for key, _ in headers}
            added = _FOR_ALL | {"cache-control": _ASSETS_KEPT if self._is_asset else "no-store"}
            if "content-security-policy" not in own:
                added["content-security-policy"] = policy
            headers += [(key.encode(), value.encode()) for key, value in added.items()]
            self._start = {**message, "headers": headers, "nonce": nonce}
            if not self._is_page:
                await self._send({key: value for key, value in self._start.items() if key != "nonce"})
        elif message["type"] == "http.response.body" and self._is_page:
            await self._finish(message)
        else:
            await self._send(message)

    def _is_ours(self, name: str) -> bool:
        return name == "cache-control" or (self._is_page and name == "content-length")

    async def _finish(self, message: Message) -> None:
        assert self._start is not None
        self._body += message.get("body", b"")
        if len(self._body) > _MOST_PAGE_BYTES:
            raise Internal(f"the page has more than {_MOST_PAGE_BYTES} bytes")
        if message.get("more_body"):
            return
        # Values stand in the page with '<' written as an entity, so only the library's own scripts begin like this.
        nonce = self._start.pop("nonce")
        body = self._body.replace(b"<script", f'<script nonce="{nonce}"'.encode())
        self._start["headers"].append((b"content-length", str(len(body)).encode()))
        await self._send(self._start)
        await self._send({"type": "http.response.body", "body": body})


def policy_of(path: str) -> Policy | None:
    """Return the policy of a path, None for one that is not known."""
    if path in POLICIES:
        return POLICIES[path]
    return next((p for name, p in POLICIES.items() if name.endswith("*") and path.startswith(name[:-1])), None)


def check_routes(routes: Iterable[Any], under: str = "") -> None:
    """Raise Internal for a route without a policy."""
    for route in routes:
        path = under + str(getattr(route, "path", ""))
        inside = getattr(route, "routes", None) if isinstance(route, Mount) else None
        if inside:
            check_routes(inside, path.rstrip("/"))
        elif policy_of(path) is None and policy_of(f"{path.rstrip('/')}/") is None:
            raise Internal(f"route '{path}' of the page has no policy, so the page does not start")


def _headers(scope: Scope) -> dict[str, str]:
    return {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}


def _cookies(headers: Mapping[str, str]) -> dict[str, str]:
    pairs = (part.strip().partition("=") for part in headers.get("cookie", "").split(";"))
    return {name: value for name, _, value in pairs}


async def _answer(
    scope: Scope, receive: Receive, send: Send, status: int, says: str, *, cookie: str = "", is_page: bool = False
) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 4403, "reason": says})
        return
    kind = "text/html; charset=utf-8" if is_page else "application/json"
    body = says.encode() if is_page else msgspec.json.encode({"error": {"code": _CODES[status], "message": says}})
    headers = _FOR_ALL | {"content-type": kind, "content-security-policy": _CLOSED, "cache-control": "no-store"}
    headers["content-length"] = str(len(body))
    if cookie:
        headers["set-cookie"] = cookie
    start = {"type": "http.response.start", "status": status}
    await send(start | {"headers": [(key.encode(), value.encode()) for key, value in headers.items()]})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})


_CODES = {
    401: "no_session",
    403: "foreign_origin",
    404: "not_found",
    405: "read_only",
    421: "foreign_host",
}
