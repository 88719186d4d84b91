"""`endpoints list|show|calibrate`: what is served, how, and why so."""

from typing import Any

import msgspec

from argosy.cli.endpoint_view import scaling_line
from argosy.cli.output import Output
from argosy.cli.verbs.models import when
from argosy.cli.verbs.updates import in_rows, of_endpoint
from argosy.cli.verbs.watch import find
from argosy.cli.workspace import Workspace
from argosy.core.errors import Conflict, Unavailable
from argosy.core.units import format_size, format_time
from argosy.operate.config import AUTO, EndpointConfig, to_plain
from argosy.operate.desired import Endpoint
from argosy.operate.layout import sizes
from argosy.operate.view import EndpointView, SystemView, VersionView
from argosy.serve.control import GatewayConfig, ReplicaConfig
from argosy.serve.profile import Profile, batch_text, decode, shape_text
from argosy.serve.profile_store import ProfileStore
from argosy.serve.snippets import snippets

_MOST_S = 300.0
_PATIENCE_S = 120.0


def list_endpoints(*, as_json: bool) -> None:
    """List all endpoints, one per line."""
    output = Output(as_json=as_json)
    view = Workspace().observer.look()
    output.result(view)
    rows = [
        (
            found.name,
            found.state,
            ", ".join(f"{v.ref} {v.share:.0%}" if v.share < 1 else v.ref for v in found.versions if v.share),
            ", ".join(f"{v.ready}/{v.wanted}" for v in found.versions if v.share),
            str(found.requests),
            f"{found.p50_ms:.2f} ms" if found.p50_ms else "",
            found.url,
        )
        for found in view.endpoints
    ]
    if rows:
        output.table(("endpoint", "state", "serves", "replicas", "requests", "median", "url"), rows)
    else:
        output.line("nothing is deployed; begin with: argosy deploy model.onnx")


def show(name: str, *, as_json: bool) -> None:
    """Show everything about one endpoint."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    view = workspace.observer.look()
    found = find(view, name)
    endpoint = workspace.observer.desired.endpoints[name]
    store = ProfileStore(workspace.settings.home)
    profiles = {version.ref: store.read(version.digest) for version in found.versions}
    page = {
        "endpoint": found,
        "settings": to_plain(endpoint.config),
        "calibration": profiles,
        "limits": _limits(endpoint.config),
        "urls": _urls(view, found),
        "snippets": _snippets(workspace, view, found),
        "updates": of_endpoint(workspace, name),
    }
    output.result(page)
    if not as_json:
        _Page(output).show(found, endpoint, page, workspace.clock.now())


def calibrate(name: str, *, as_json: bool) -> None:
    """Measure the versions of an endpoint again; whatever runs takes up the result within seconds."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    found = find(workspace.observer.look(), name)
    config = workspace.observer.desired.endpoints[name].config
    store = ProfileStore(workspace.settings.home)
    profiles = {}
    for version in (v for v in found.versions if v.role != "former"):
        output.line(f"measuring [bold]{version.ref}[/] on this machine; what else runs now makes the figures worse ...")
        profile = profiles[version.ref] = _measured(workspace, store, version, config)
        output.line(f"[green]✓[/] {profile.summary()}, after {format_time(profile.took_s)}")
        for reason in profile.reasons:
            output.line(f"    {_plain(reason)}")
    output.result({"endpoint": name, "calibration": profiles})


def _measured(workspace: Workspace, store: ProfileStore, version: VersionView, config: EndpointConfig) -> Profile:
    from argosy.serve.tuning import Process, Request

    settings = workspace.settings
    replica = ReplicaConfig(
        id="calibration",
        digest=version.digest,
        ref=version.ref,
        socket="",
        store=settings.store,
        home=str(settings.home),
        threads=1 if config.threads == AUTO else int(config.threads),
        memory_bytes=config.memory_bytes,
        log_level=settings.log_level,
    )
    lock = store.lock()
    until = workspace.clock.monotonic() + _PATIENCE_S
    while not lock.acquire():
        if workspace.clock.monotonic() > until:
            raise Conflict(
                f"something else has been calibrated on this machine for {_PATIENCE_S:.0f} s",
                hint="try again later; two calibrations at once would measure each other",
                code="calibrating",
            )
        workspace.clock.sleep(0.1)
    try:
        process = Process(Request(replica=replica, is_gentle=False))
        try:
            written = process.wait(_MOST_S)
        except BaseException:
            process.kill()
            raise
        profile = decode(written, version.digest, store.host)
        kept = store.keep(profile) if profile is not None else None
    finally:
        lock.release()
    if profile is None:
        raise Unavailable(
            f"'{version.ref}' could not be measured: its calibration ended without a result",
            hint="what it said stands above; try again, with more memory free",
            code="calibration_failed",
        )
    if kept is None:
        raise Unavailable(f"the profile of '{version.ref}' could not be written to '{store.folder}'", code="disk_full")
    return kept


def plan_text(workspace: Workspace, digest: str, config: EndpointConfig) -> str:
    """Return in a few words how a version will run, as far as its calibration on this machine is known."""
    profile = ProfileStore(workspace.settings.home).read(digest)
    replicas, threads = sizes(config, profile.advice if profile is not None else None)
    text = shape_text(replicas, threads)
    if profile is None:
        return f"{text}, no batches at first; a calibration on this machine follows"
    return f"{text}, {batch_text(profile.batching.get(threads))}: measured {when(profile.measured)[:10]}"


def _limits(config: EndpointConfig) -> dict[str, Any]:
    defaults = {field.name: field.default for field in msgspec.structs.fields(GatewayConfig)}
    names = ("timeout_s", "max_body_bytes", "queue_requests", "queue_bytes", "queue_wait_s", "max_connections")
    return {name: defaults[name] for name in names} | {"replica_memory_bytes": config.memory_bytes}


def _urls(view: SystemView, found: EndpointView) -> dict[str, str]:
    if not view.url:
        return {}
    urls = {
        "predict": found.url,
        "v2": f"{view.url}/v2/models/{found.name}",
        "description": f"{view.url}/docs",
    }
    return urls | ({"grpc": view.grpc} if view.grpc else {})


def _snippets(workspace: Workspace, view: SystemView, found: EndpointView) -> dict[str, str]:
    current = next((v for v in found.versions if v.role == "current"), None)
    if current is None or not view.url:
        return {}
    desired = workspace.observer.desired
    return snippets(
        found.name,
        workspace.registry.versions.get(current.digest).manifest.signature,
        view.url,
        grpc=view.grpc,
        needs_key=desired.access.is_on,
        ca_file=desired.gateway.tls_cert,
    )


class _Page:
    """Writes the page of one endpoint, in sections."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def show(self, found: EndpointView, endpoint: Endpoint, page: dict[str, Any], now: float) -> None:
        """Write all of it."""
        style = {"ready": "green", "idle": "green", "failed": "red", "stopped": "dim"}.get(found.state, "yellow")
        self._output.line(f"[bold]{_plain(found.name)}[/]  [{style}]{found.state}[/]  {_plain(found.note)}".rstrip())
        self._rows("where", page["urls"] or {"": "nothing is served; start it with: argosy up"})
        self._route(found, endpoint.config)
        for ref, profile in page["calibration"].items():
            self._calibration(ref, profile)
        if page["updates"] is not None:
            self._rows("updates", in_rows(page["updates"], now))
        self._rows("limits", _limits_in_words(page["limits"]))
        self._rows("answered", _numbers(found))
        for name, text in page["snippets"].items():
            self._head(f"ask it: {name}")
            for line in text.rstrip().splitlines():
                # As it is: escaped for markup, the backslash at a line's end would be doubled.
                self._output.console.print(f"  {line}".rstrip(), markup=False)

    def _head(self, title: str) -> None:
        self._output.line()
        self._output.line(f"[bold]{_plain(title)}[/]")

    def _rows(self, title: str, rows: dict[str, str]) -> None:
        self._head(title)
        width = max(map(len, rows), default=0)
        for name, text in rows.items():
            self._output.line(f"  {name:<{width}}  {_plain(text)}")

    def _route(self, found: EndpointView, config: EndpointConfig) -> None:
        self._head("route")
        self._output.line(
            f"  replicas = {_plain(repr(config.replicas))}, threads = {_plain(repr(config.threads))}, "
            f"backup = {_plain(repr(config.backup))}"
        )
        if found.scaling:
            self._output.line(f"  {_plain(scaling_line(found.scaling, found.current_ready))}")
        elif config.is_scaled:
            self._output.line("  scaling: no controller has said yet how many replicas the load calls for")
        for version in found.versions:
            self._output.line(
                f"  {version.role:<8}[bold]{_plain(version.ref)}[/]  {version.share:.0%} of the requests, "
                f"{version.ready} of {version.wanted} replicas ready"
            )
            for replica in version.replicas:
                threads = f", {replica.threads} thread{'s' * (replica.threads != 1)}" if replica.threads else ""
                batch = f", batches up to {replica.max_batch}" if replica.max_batch > 1 else ""
                self._output.line(
                    f"    pid {replica.pid:<8}{replica.state}{threads}{batch}, {replica.answered} answered, "
                    f"{replica.failed} failed"
                )
            if version.error:
                self._output.line(f"    [red]{_plain(version.error)}[/]")

    def _calibration(self, ref: str, profile: Profile | None) -> None:
        self._head(f"calibration of {ref}")
        if profile is None:
            self._output.line("  not known yet: it runs one row at a time until it was measured on this machine")
            return
        self._output.line(f"  {profile.summary()}")
        self._output.line(f"  [dim]measured {when(profile.measured)} in {format_time(profile.took_s)}[/]")
        for reason in profile.reasons:
            self._output.line(f"  - {_plain(reason)}")
        for threads, batching in sorted(profile.batching.items()):
            if threads != profile.threads:
                self._output.line(f"  - with {threads} threads: {_plain('; '.join(batching.in_words()))}")
        self._points(profile)

    def _points(self, profile: Profile) -> None:
        lengths = sorted({point.length_bytes for point in profile.points})
        for length in lengths:
            points = [p for p in profile.points if p.length_bytes == length]
            rows = ", ".join(f"{p.rows}: {format_time(p.seconds / p.rows)}" for p in points)
            what = f"rows of {length} bytes" if length else "rows"
            self._output.line(f"  [dim]{what} together, and the time of each: {_plain(rows)}[/]")


def _limits_in_words(limits: dict[str, Any]) -> dict[str, str]:
    memory = limits["replica_memory_bytes"]
    return {
        "deadline": f"{format_time(limits['timeout_s'])}, or what the header argosy-timeout says",
        "body": format_size(limits["max_body_bytes"]),
        "waiting": f"what is answered in {format_time(limits['queue_wait_s'])}, at most {limits['queue_requests']} "
        f"requests and {format_size(limits['queue_bytes'])} per version",
        "connections": str(limits["max_connections"]),
        "memory": f"{format_size(memory)} per replica" if memory else "half of the machine per replica",
    }


def _numbers(found: EndpointView) -> dict[str, str]:
    rows = {"requests": f"{found.requests}, of which {found.failed} failed; {found.waiting} wait now"}
    if found.p50_ms:
        rows["time"] = f"{found.p50_ms:.2f} ms median, {found.p95_ms:.2f} ms at 95 %"
    return rows


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
