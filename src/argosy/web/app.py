"""The admin API: what the command line shows, as JSON, and the reports of versions. It only reads; the page acts."""

from collections.abc import Callable, Mapping
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from argosy.core.errors import ArgosyError, InvalidInput, NotFound, Unavailable
from argosy.registry.registry import Registry
from argosy.registry.versions import Version
from argosy.web.feed import Looks, Stages
from argosy.web.runs import read_runs

_OF_REPORTS = {"content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox"}
"""A report has its style in itself. A script in it would be no report of ours, and is not run."""
REPORT = "training.html"
PICTURES = {"compression.png": "image/png"}
"""Pictures that may be shown, by the name of the file in the version."""
_STATUS: dict[type[ArgosyError], int] = {NotFound: 404, InvalidInput: 400, Unavailable: 503}
_MOST_ENTRIES = 200


class Admin:
    """The answers of the admin API, from one registry and one observer."""

    def __init__(self, registry: Registry, observer: Looks, stages: Stages) -> None:
        self._registry = registry
        self._observer = observer
        self._stages = stages

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
                "has_report": has_report(version),
            }
            for version in reversed(self._registry.versions.list())
        ]

    def report(self, query: Mapping[str, str]) -> Response:
        """Return the page about the training of `version`. Raises NotFound."""
        version = self._registry.versions.get(query.get("version", ""))
        if not has_report(version):
            raise NotFound(f"{version} has no report of a training")
        content = self._registry.versions.open_file(version, REPORT)
        return Response(content, 200, _OF_REPORTS, media_type="text/html")

    def picture(self, query: Mapping[str, str]) -> Response:
        """Return a picture of `version`, one of `PICTURES`. Raises NotFound."""
        version = self._registry.versions.get(query.get("version", ""))
        name = query.get("name", "")
        if name not in pictures_of(version):
            raise NotFound(f"{version} has no such picture")
        content = self._registry.versions.open_file(version, name)
        return Response(content, 200, {"content-security-policy": "default-src 'none'"}, media_type=PICTURES[name])

    def runs(self, _: Mapping[str, str]) -> Any:
        """Return what runs now, and the last runs, newest first."""
        self._registry.log.refresh()
        return {"now": list(self._stages()), "runs": read_runs(self._registry.log)}

    def entries(self, _: Mapping[str, str]) -> Any:
        """Return the newest entries of the log, newest first, without their data."""
        log = self._registry.log
        log.refresh()
        found = list(log.entries(after=max(0, log.head - _MOST_ENTRIES)))
        names = ("seq", "time", "actor", "kind", "subject")
        return [{name: getattr(entry, name) for name in names} for entry in reversed(found)]


def has_report(version: Version) -> bool:
    """Return whether a version has a page about its training."""
    # Files of a model of one's own are its code, whatever they are called.
    return version.manifest.format != "python" and REPORT in version.manifest.files


def pictures_of(version: Version) -> list[str]:
    """Return the names of a version's pictures."""
    return [name for name in PICTURES if version.manifest.format != "python" and name in version.manifest.files]


def create_app(admin: Admin) -> Starlette:
    """Return the ASGI application of the admin API; `guard.Guard` stands before it."""
    table: list[tuple[str, Callable[[Mapping[str, str]], Any]]] = [
        ("/api/state", admin.state),
        ("/api/versions", admin.versions),
        ("/api/log", admin.entries),
        ("/api/runs", admin.runs),
        ("/report", admin.report),
        ("/picture", admin.picture),
    ]
    return Starlette(routes=[_route(path, what) for path, what in table])


def _route(path: str, what: Callable[[Mapping[str, str]], Any]) -> Route:
    async def endpoint(request: Request) -> Response:
        try:
            found = await run_in_threadpool(what, request.query_params)
            return found if isinstance(found, Response) else _json(200, found)
        except ArgosyError as error:
            status = next((code for kind, code in _STATUS.items() if isinstance(error, kind)), 500)
            return _json(status, {"error": error.as_dict()})

    return Route(path, endpoint, methods=["GET"])


def _json(status: int, value: Any) -> Response:
    return Response(msgspec.json.encode(value, enc_hook=str), status, media_type="application/json")
