"""The admin API and the page in the browser: what the command line shows, for looking at. Loopback only, read only."""

from collections.abc import Callable, Mapping
from importlib import resources
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from argosy.core.errors import ArgosyError, Internal, InvalidInput, NotFound, Unavailable
from argosy.operate.view import Observer
from argosy.registry.registry import Registry
from argosy.registry.versions import Version

Policy = Literal["read"]
"""Who may use a route. Everything here only reads; acting needs roles, which come with access control."""

_NO_SCRIPTS_FROM_ELSEWHERE = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_REPORT = "training.html"
# A report has its style in itself. A script in it would be no report of ours, and is not run.
_OF_REPORTS = _NO_SCRIPTS_FROM_ELSEWHERE | {
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"
}
_STATUS: dict[type[ArgosyError], int] = {NotFound: 404, InvalidInput: 400, Unavailable: 503}
_MOST_ENTRIES = 200


class Admin:
    """The answers of the admin API, from one registry and one observer."""

    def __init__(self, registry: Registry, observer: Observer) -> None:
        self._registry = registry
        self._observer = observer

    def state(self, _: Mapping[str, str]) -> Any:
        """Return endpoints, replicas and rollouts, as `argosy watch --once --json`."""
        return self._observer.look()

    def versions(self, _: Mapping[str, str]) -> Any:
        """Return every version with its evaluation, newest first."""
        return [
            {
                "version": str(version),
                "digest": version.digest,
                "role": version.manifest.role,
                "created": version.manifest.created,
                "size_bytes": version.manifest.size_bytes,
                "passed": version.manifest.evaluation.passed,
                "metrics": version.manifest.evaluation.metrics,
                "has_report": _has_report(version),
            }
            for version in reversed(self._registry.versions.list())
        ]

    def report(self, query: Mapping[str, str]) -> Response:
        """Return the page about the training of `version`. Raises NotFound."""
        version = self._registry.versions.get(query.get("version", ""))
        if not _has_report(version):
            raise NotFound(f"{version} has no report of a training")
        content = self._registry.versions.open_file(version, _REPORT)
        return Response(content, 200, _OF_REPORTS, media_type="text/html")

    def entries(self, _: Mapping[str, str]) -> Any:
        """Return the newest entries of the log, newest first, without their data."""
        log = self._registry.log
        log.refresh()
        found = list(log.entries(after=max(0, log.head - _MOST_ENTRIES)))
        names = ("seq", "time", "actor", "kind", "subject")
        return [{name: getattr(entry, name) for name in names} for entry in reversed(found)]


def _has_report(version: Version) -> bool:
    # Files of a model of one's own are its code, whatever they are called.
    return version.manifest.format != "python" and _REPORT in version.manifest.files


def create_app(registry: Registry, observer: Observer, host: str, port: int) -> Starlette:
    """Return the ASGI application. A request for another host is refused, so that no foreign page can reach it."""
    admin = Admin(registry, observer)
    allowed = {f"{host}:{port}", f"localhost:{port}"}
    table: list[tuple[str, Policy, Callable[[Mapping[str, str]], Any] | str]] = [
        ("/", "read", "page.html"),
        ("/page.js", "read", "page.js"),
        ("/page.css", "read", "page.css"),
        ("/api/state", "read", admin.state),
        ("/api/versions", "read", admin.versions),
        ("/api/log", "read", admin.entries),
        ("/report", "read", admin.report),
    ]
    return Starlette(routes=[_route(path, policy, what, allowed) for path, policy, what in table])


def _route(path: str, policy: Policy, what: Callable[[Mapping[str, str]], Any] | str, allowed: set[str]) -> Route:
    if policy != "read":
        raise Internal(f"route '{path}' has no policy that is known, so the admin API does not start")

    async def endpoint(request: Request) -> Response:
        if request.headers.get("host", "") not in allowed:
            return _json(421, {"error": {"code": "foreign_host", "message": "this page is for this machine only"}})
        if isinstance(what, str):
            return _file(what)
        try:
            found = await run_in_threadpool(what, request.query_params)
            return found if isinstance(found, Response) else _json(200, found)
        except ArgosyError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
            return _json(status, {"error": error.as_dict()})

    return Route(path, endpoint, methods=["GET"])


def _json(status: int, value: Any) -> Response:
    body = msgspec.json.encode(value, enc_hook=str)
    return Response(body, status, _NO_SCRIPTS_FROM_ELSEWHERE, media_type="application/json")


def _file(name: str) -> Response:
    kinds = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
    found = resources.files("argosy.web") / name
    if not found.is_file():
        raise NotFound(f"there is no '{name}'")
    return Response(found.read_bytes(), 200, _NO_SCRIPTS_FROM_ELSEWHERE, media_type=kinds[name.rpartition(".")[2]])
