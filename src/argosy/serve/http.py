"""HTTP to the data plane and back: paths, headers and statuses. What a request means is decided elsewhere.

    GET  /                                     what is served here
    POST /predict/{endpoint}                   plain JSON with named inputs (serve/plain.py)
    POST /v2/models/{m}[/versions/{v}]/infer   Open Inference Protocol v2, JSON or binary tensors (serve/v2.py)
    GET  /v2/models/{m}[/versions/{v}][/ready] metadata, readiness; /config and /stats as Triton's clients ask for them
    GET  /v2, /v2/health/live, /v2/health/ready; POST /v2/repository/index; GET /metrics
    GET  /openapi.json, /docs                  all of this for programs, and as a page to try it on (serve/openapi.py)

Request headers: `argosy-timeout` (seconds, or with a unit: `250ms`), `argosy-caller` (whom sticky routing keeps on one
version). Every answered inference has `argosy-prediction` and `argosy-version`, and `argosy-failover` when another
version than the drawn one answered.
"""

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol
from urllib.parse import unquote

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Denied, Internal, InvalidInput, NotFound
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.serve import contents, plain, triton, v2
from argosy.serve.access import NOBODY, POLICIES, Access, check_policies, own_names
from argosy.serve.connection import Connection, Exchange, Rounds
from argosy.serve.dataplane import Client
from argosy.serve.deadlines import timeout_of
from argosy.serve.endpoint import version_number
from argosy.serve.heads import UNKNOWN, Head, Heads
from argosy.serve.wire import Tensor

log = get_logger()

# What a class of errors means here; codes below are more precise.
_STATUS_OF_KIND = {
    "invalid_input": 400, "not_found": 404, "conflict": 409, "denied": 403, "unavailable": 503,
    "deadline_exceeded": 504, "integrity": 500, "plugin": 501, "internal": 500,
}  # fmt: skip
_STATUS_OF_CODE = {
    "body_too_large": 413, "head_too_large": 431, "method_not_allowed": 405, "media_type": 415, "encoding": 415,
    "foreign_host": 421, "foreign_origin": 403, "request_timeout": 408, "text_too_large": 413, "image_too_large": 413,
    "unauthorized": 401,
}  # fmt: skip
# curl's -d sends the form type when none is given; the body is read as JSON all the same.
_MEDIA_TYPES = {"", "application/json", "application/octet-stream", "application/x-www-form-urlencoded", "text/plain"}
# Facts of an error that callers may see.
_SHOWN = ("path", "input", "known")
_MOST_SHOWN = 20
_NEVER = math.inf
MODEL = "/v2/models/{endpoint}"
VERSION = "/v2/models/{endpoint}/versions/{number}"


class Asked(Protocol):
    """A request for an inference on its way."""

    error: ArgosyError | None
    outputs: Sequence[Tensor]
    ref: str
    prediction: str
    failover: str

    def cancel(self) -> None:
        """Forget it."""
        ...


class Plane(Protocol):
    """What answers requests: the data plane of this process (`DataPlane`), or another's (`front.RemotePlane`)."""

    @property
    def endpoints(self) -> Mapping[str, Any]:
        """The endpoints by name."""
        ...

    @property
    def counters(self) -> Any:
        """Where `count(name, *labels)` adds one."""
        ...

    def endpoint(self, name: str) -> Any:
        """Return an endpoint; NotFound."""
        ...

    def signature(self, endpoint: Any, number: str = "") -> Signature:
        """Return what callers of an endpoint, or of one of its versions by number, must send."""
        ...

    def infer(
        self,
        endpoint: Any,
        tensors: Mapping[str, Tensor],
        on_done: Callable[[Any], None],
        *,
        timeout_s: float = 0.0,
        caller: str = "",
        number: str = "",
        client: Client | None = None,
    ) -> Asked:
        """Start an inference; `on_done` is called once, later, unless it is cancelled."""
        ...


class HttpFront:
    """HTTP with callers: who may come in, who asks, inferences and errors. What else there is, subclasses say."""

    def __init__(
        self,
        plane: Plane,
        access: Access,
        clock: Clock,
        *,
        max_body_bytes: int,
        receive_s: float,
        host: str,
        hosts: Iterable[str] = (),
    ) -> None:
        """`host` is the address it listens on, `hosts` are other names it may be called by."""
        self.plane = plane
        self.access = access
        self.now = clock.monotonic()
        self._clock = clock
        self.heads = Heads()
        self.max_body_bytes = max_body_bytes
        self.receive_s = receive_s
        self.connections: set[Connection] = set()
        self._rounds = Rounds(self.connections)
        self.receiving_bytes = 0
        self.scheme = "http"
        self.grpc_port = 0
        """Where gRPC is served beside us; 0 if it is not."""
        self._hosts = _allowed_hosts(host, hosts)
        self._pages: dict[str, tuple[str, Callable[[Exchange], None]]] = {}
        """Method and answer of each path without a name in it."""
        self._paths: dict[str, tuple[str, Callable[[str, str, Exchange], None]]] = {
            "/predict/{endpoint}": ("POST", self._predict),
            f"{MODEL}/infer": ("POST", self._infer),
            f"{VERSION}/infer": ("POST", self._infer),
        }
        """The same of the paths of an endpoint."""
        check_policies(self._paths)

    def tick(self) -> None:
        """Close clients that take too long."""
        self.now = self._clock.monotonic()
        self._rounds.step(self.now)

    def admit(self, head: Head) -> ArgosyError | None:
        """Refuse what no path would accept, before its body is read."""
        headers = head.headers
        if head.method not in ("GET", "HEAD", "POST"):
            return InvalidInput(f"the method {head.method} is not used here", code="method_not_allowed")
        if b"host" not in headers:
            return InvalidInput("the request has no Host header", code="bad_http")  # RFC 9112, section 3.2
        # A page of another site can make a browser send requests here; its name, resolved to this address, stands in
        # Host (DNS rebinding), and its address in Origin.
        if host_of(headers.get(b"host", b"")) not in self._hosts:
            return InvalidInput(
                f"this server is not called {headers.get(b'host', b'')[:100].decode('latin-1')!r}",
                hint=f"use one of: {', '.join(sorted(self._hosts))}",
                code="foreign_host",
            )
        origin = headers.get(b"origin", b"")
        if origin and host_of(origin.partition(b"://")[2]) not in self._hosts:
            return InvalidInput("requests from pages of other sites are refused", code="foreign_origin")
        try:
            self._authorize(head)
        except ArgosyError as error:
            return error
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            return InvalidInput("compressed bodies are not accepted; send the body as it is", code="encoding")
        media = _media_type(headers)
        is_image = contents.is_image(media) and head.target.startswith(b"/predict/")
        if head.method == "POST" and media not in _MEDIA_TYPES and not is_image:
            return InvalidInput(
                f"bodies of the type {media[:60]!r} are not accepted; send application/json", code="media_type"
            )
        return None

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or when its inference is done."""
        head = exchange.head
        try:
            # Also for a head that is known, or was admitted a moment ago: what was revoked since, ends now.
            expires = head.caller.expires
            if head.rules is not self.access.rules or (expires != _NEVER and self._clock.now() >= expires):
                self._authorize(head)
            if head.route is None:
                head.route = self._route(head)
            head.route(exchange)
        except ArgosyError as error:
            self.refuse(exchange, error)
        except Exception:
            # The outermost point of one request: the others go on.
            log.exception("request_failed")
            self.refuse(exchange, Internal("the request could not be processed", hint="see the gateway's log"))

    def refuse(self, exchange: Exchange, error: ArgosyError) -> None:
        """Answer with an error: its message as Triton's clients expect it, its code, and where in the request it is."""
        status = _STATUS_OF_CODE.get(error.code) or _STATUS_OF_KIND.get(type(error).code, 500)
        body: dict[str, Any] = {"error": error.message, "code": error.code}
        if error.hint:
            body["hint"] = error.hint
        body |= {key: value for key, value in error.context.items() if key in _SHOWN}
        if error.code == "unknown_endpoint":
            caller = exchange.head.caller
            body["known"] = [name for name in self.plane.endpoints if caller.may(name)][:_MOST_SHOWN]
        headers = ""
        if "retry_after_s" in error.context:
            headers = f"retry-after: {max(1, round(error.context['retry_after_s']))}\r\n"
        elif status == 405:
            headers = f"allow: {self._allowed(exchange.head)}\r\n"
        elif status == 401:
            headers = "www-authenticate: Bearer\r\n"
        exchange.respond_json(status, body, headers)

    # Paths -------------------------------------------------------------------------------------------------------

    def _authorize(self, head: Head) -> None:
        """Find out who sends a head, and raise Denied unless they may use its path (Unavailable while that is unknown).

        A path without a policy is none of ours (`check_policies`); that, too, only holders of a key are told.
        """
        path, endpoint, _ = place_of(head.target)
        policy = POLICIES.get(path, "key")
        head.caller, head.rules = NOBODY, UNKNOWN
        try:
            if policy != "open":
                head.caller = self.access.caller_of(head.headers.get(b"authorization"))
            if policy == "endpoint":
                head.caller.check(endpoint)
        except Denied as error:
            self.plane.counters.count("argosy_refused_total", error.code)
            raise
        head.rules = self.access.rules

    def _route(self, head: Head) -> Callable[[Exchange], None]:
        """Return what answers a head, found out once for each that is seen again (serve/heads.py)."""
        path, name, number = place_of(head.target)
        if path in self._pages:
            method, page = self._pages[path]
            _need(head, method)
            return page
        if path in self._paths:
            method, answer = self._paths[path]
            _need(head, method)
            if method == "POST":
                head.facts = _facts(head.headers)
            return functools.partial(answer, name, number)
        return self._other(head)

    def _other(self, head: Head) -> Callable[[Exchange], None]:
        """Return what answers a head whose path is none of those known here; NotFound if nothing does."""
        shown = head.target.partition(b"?")[0][:200].decode("latin-1")
        if not shown.startswith("/"):
            raise InvalidInput("the request's target is not a path", code="bad_http")
        known = triton.not_offered(shown.strip("/").split("/"))
        if known is not None:
            raise known
        raise NotFound(f"there is nothing at '{shown}'", hint="GET / lists what is served", code="unknown_path")

    def _allowed(self, head: Head) -> str:
        """Return what stands in `Allow` for the path of a head."""
        path = place_of(head.target)[0]
        known = self._pages.get(path) or self._paths.get(path)
        return {"GET": "GET, HEAD", "POST": "POST"}[known[0]] if known else "GET, HEAD, POST"

    def _infer(self, name: str, number: str, exchange: Exchange) -> None:
        plane = self.plane
        facts: _Facts = exchange.head.facts
        endpoint = plane.endpoint(name)
        if number:
            plane.signature(endpoint, number)  # a version that is not there matters more than what was sent to it
        asked = v2.decode_request(exchange.body, facts.header_length)
        if asked.outputs:
            v2.check_outputs(plane.signature(endpoint, number), asked)

        def done(call: Asked) -> None:
            if call.error is not None:
                self.refuse(exchange, call.error)
                return
            try:
                pieces, size = v2.encode_response(asked, name, version_number(call.ref), call.outputs, call.prediction)
            except ArgosyError as error:
                self.refuse(exchange, error)
                return
            if size is None:
                kind = "content-type: application/json\r\n"
            else:
                kind = f"content-type: application/octet-stream\r\ninference-header-content-length: {size}\r\n"
            exchange.respond(200, pieces, kind + _named(call))

        exchange.on_cancel = plane.infer(
            endpoint,
            asked.inputs,
            done,
            timeout_s=facts.timeout_s or asked.timeout_s,
            caller=facts.caller,
            number=number,
            client=exchange.head.caller,
        ).cancel

    def _predict(self, name: str, number: str, exchange: Exchange) -> None:
        plane = self.plane
        facts: _Facts = exchange.head.facts
        endpoint = plane.endpoint(name)
        signature = plane.signature(endpoint)
        asked = (plain.of_image if facts.is_image else plain.decode_request)(exchange.body, signature)

        def done(call: Asked) -> None:
            if call.error is not None:
                self.refuse(exchange, call.error)
                return
            try:
                body = plain.encode_response(
                    signature,
                    call.outputs,
                    is_single=asked.is_single,
                    endpoint=name,
                    ref=call.ref,
                    prediction=call.prediction,
                )
            except ArgosyError as error:
                self.refuse(exchange, error)
                return
            exchange.respond(200, [body], "content-type: application/json\r\n" + _named(call))

        exchange.on_cancel = plane.infer(
            endpoint,
            asked.inputs,
            done,
            timeout_s=facts.timeout_s,
            caller=facts.caller,
            number=number,
            client=exchange.head.caller,
        ).cancel


class _Facts(NamedTuple):
    """What an inference's head says beside its path."""

    timeout_s: float
    caller: str
    header_length: int | None
    is_image: bool


def _facts(headers: dict[bytes, bytes]) -> _Facts:
    return _Facts(
        timeout_of(headers.get(b"argosy-timeout")),
        headers.get(b"argosy-caller", b"")[:256].decode("latin-1"),
        _header_length(headers.get(b"inference-header-content-length")),
        contents.is_image(_media_type(headers)),
    )


def _allowed_hosts(host: str, hosts: Iterable[str]) -> frozenset[str]:
    names = (*own_names(host), *hosts, "localhost", "127.0.0.1", "::1")
    return frozenset(f"[{name}]" if ":" in name else name.lower() for name in names)


def place_of(target: bytes) -> tuple[str, str, str]:
    """Return the path of a target as `POLICIES` writes it, the endpoint and the number in it; ("", "", "") for others.

    The one place where a target is read: what is allowed for a path and what answers it can't differ.
    """
    path = target.partition(b"?")[0].decode("latin-1")
    if not path.startswith("/"):
        return "", "", ""
    parts = [unquote(part) for part in path.strip("/").split("/")]
    match parts:
        case ["predict", name]:
            return "/predict/{endpoint}", name, ""
        case ["v2", "models", "stats"]:
            return "/v2/models/stats", "", ""
        case ["v2", "models", name]:
            return MODEL, name, ""
        case ["v2", "models", name, "infer" | "ready" | "config" | "stats" as what]:
            return f"{MODEL}/{what}", name, ""
        case ["v2", "models", name, "versions", number]:
            return VERSION, name, number
        case ["v2", "models", name, "versions", number, "infer" | "ready" | "config" | "stats" as what]:
            return f"{VERSION}/{what}", name, number
    return path.rstrip("/") or "/", "", ""


def _need(head: Head, method: str) -> None:
    if method not in (head.method, "GET" if head.method == "HEAD" else ""):
        raise InvalidInput(f"this path takes {method}, but {head.method} was sent", code="method_not_allowed")


def _named(call: Asked) -> str:
    if call.failover:
        return (
            f"argosy-prediction: {call.prediction}\r\nargosy-version: {call.ref}\r\n"
            f"argosy-failover: {call.failover}\r\n"
        )
    return f"argosy-prediction: {call.prediction}\r\nargosy-version: {call.ref}\r\n"


def host_of(value: bytes) -> str:
    """Return the name in a Host header or an authority, without its port."""
    text = value.strip().lower().decode("latin-1")
    name, colon, port = text.rpartition(":")
    return name if colon and port.isdigit() else text


def _media_type(headers: dict[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")


def _header_length(text: bytes | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or len(text) > 18:
        raise InvalidInput(
            f"Inference-Header-Content-Length is {text[:40].decode('latin-1')!r}, not a number of bytes",
            code="wrong_size",
        )
    return int(text)
