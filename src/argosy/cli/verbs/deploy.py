"""Wishes about endpoints and rollouts (`deploy`, `pause`, `rollback`, `up` ...): to the log first, then followed."""

import socket
from collections.abc import Callable
from pathlib import Path

import msgspec

from argosy.cli.endpoint_view import LineView, leader_line, picture
from argosy.cli.output import Output
from argosy.cli.project import FILE_NAME, Project, load_project, serving_rules
from argosy.cli.verbs.endpoints import plan_text
from argosy.cli.verbs.updates import note_project
from argosy.cli.verbs.watch import find
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError, Conflict, InvalidInput, NotFound, Unavailable
from argosy.core.units import format_time
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.gates import refuse_failed_gates
from argosy.operate.jobs.folders import place_of
from argosy.operate.jobs.keeper import start_scheduler
from argosy.operate.metric_files import file_metrics
from argosy.operate.processes import start_controller, stop_everything
from argosy.operate.transactions import Accepted, RegistryLike
from argosy.operate.view import EndpointView, SystemView
from argosy.registry.versions import Version

DEFAULT_PORT = 8700
_LOOK_EVERY_S = 0.1
_START_PATIENCE_S = 30.0
_GRPC_PATIENCE_S = 3.0


class RolledBack(ArgosyError):
    """The rollout ended with the former version; the reason says why."""

    code = "rolled_back"


def deploy(
    what: str,
    *,
    name: str,
    file: Path,
    changes: list[str] | None,
    replicas: int,
    port: int,
    grpc_port: int | None,
    now: bool,
    detach: bool,
    extra: list[Path] | None,
    requires: list[str] | None,
    prepare: Path | None,
    as_json: bool,
) -> None:
    """Serve a version, follow it until it is decided, and end with a URL and an undo."""
    from argosy.cli.verbs.import_model import import_model

    output = Output(as_json=as_json)
    workspace = Workspace()
    project = _project(file, changes)
    told = serving_rules(changes) if project is None and changes else None
    version = import_model(
        output, workspace, what, name, prepare=prepare, extra=extra or (), requires=requires or ()
    ) or _version(workspace, project, what)
    endpoint = name or version.name
    # A file's rules are for the endpoint it is about: deploying something else from its folder must not use them.
    rules = told or (project if project is not None and project.project.name == endpoint else None)
    kept = rules.endpoint if rules else None
    if replicas:
        kept = EndpointConfig(replicas=replicas) if kept is None else _with_replicas(kept, replicas)
    rollout = None if now or rules is None or rules.rollout is None else rules.rollout.with_parity(_parity(rules))
    if rollout is not None and rollout.metrics:
        folder = Path.cwd() if told else (file if file.is_dir() else file.parent).absolute()
        rollout = file_metrics(rollout, folder, workspace.registry.blobs.put)
    refuse_failed_gates(version)
    _choose_ports(output, workspace, port, grpc_port)
    accepted = commands.deploy(workspace.registry, version.digest, name=endpoint, endpoint=kept, rollout=rollout)
    # The first version of an endpoint has nothing to be compared with, and nothing to roll back to.
    is_first = not accepted.undo.startswith("argosy rollback")
    output.line(f"[bold]plan[/] {accepted.summary}{'' if is_first else _judged(rollout)}")
    known = workspace.observer.desired.endpoints.get(endpoint)
    config = kept or (known.config if known is not None else EndpointConfig())
    output.line(f"     {plan_text(workspace, version.digest, config)}")
    start_controller(workspace.settings, workspace.launcher)
    if project is not None and project.project.name == endpoint == version.name:
        note_project(workspace, endpoint, file, version)
    view = _follow(output, workspace, endpoint, accepted.rollout, accepted.entry, detach=detach)
    _end(output, _with_grpc(workspace, view), endpoint, accepted.undo)


def release(version: Version, *, file: Path, changes: list[str] | None, as_json: bool) -> None:
    """Deploy what a run has just made, by the rules of its file."""
    deploy(
        version.digest,
        name="",
        file=file,
        changes=changes,
        replicas=0,
        port=-1,
        grpc_port=None,
        now=False,
        detach=False,
        extra=None,
        requires=None,
        prepare=None,
        as_json=as_json,
    )


def _with_replicas(config: EndpointConfig, replicas: int) -> EndpointConfig:
    return msgspec.structs.replace(config, replicas=replicas)


def _parity(project: Project) -> float | None:
    bound = project.evaluate.bounds().get("parity")
    return bound.value if bound else None


def _project(file: Path, changes: list[str] | None) -> Project | None:
    path = file / FILE_NAME if file.is_dir() else file
    if not path.is_file():
        if not file.is_dir():
            raise NotFound(f"there is no '{path}'", hint="name the project file with --file")
        return None
    return load_project(file, changes)[0]


def _version(workspace: Workspace, project: Project | None, what: str) -> Version:
    if what:
        return workspace.registry.versions.get(what)
    if project is None:
        raise InvalidInput(
            f"there is nothing to deploy: no version was named and there is no '{FILE_NAME}' here",
            hint="name a version (argosy models list) or a file: argosy deploy model.onnx",
        )
    try:
        return workspace.registry.versions.get(project.project.name)
    except NotFound as error:
        raise NotFound(
            f"project '{project.project.name}' has no version yet", hint="make one with: argosy run"
        ) from error


def _judged(rollout: RolloutConfig | None) -> str:
    if rollout is None or rollout.style == "switch":
        return ""
    return (
        f"; judged by {', '.join(rollout.judged)}, false alarms at most {rollout.false_alarm:.1%}, "
        f"decided within {rollout.time_limit}"
    )


def _choose_ports(output: Output, workspace: Workspace, port: int, grpc_port: int | None) -> None:
    """Ask for a gateway at these ports, refusing one that is taken.

    `port` 0: any; -1: as before, or the default. `grpc_port` 0: any; -1: no gRPC; None: as before, or any.
    """
    view = workspace.observer.look()
    desired = workspace.observer.desired
    kept = desired.bound_port or desired.port
    wanted = wanted_grpc = None
    if port == -1 and view.gateway != "running" and not kept:
        wanted = DEFAULT_PORT if _is_free(DEFAULT_PORT) else 0
        if not wanted:
            output.line(f"port {DEFAULT_PORT} is in use, so a free one is taken")
    elif port == -1 and not desired.is_running:
        wanted = kept
    elif port != -1 and (view.gateway != "running" or port != kept):
        _refuse_taken(port, "--port")
        wanted = port
    if grpc_port is not None and grpc_port not in (desired.grpc_port, desired.bound_grpc_port or desired.grpc_port):
        _refuse_taken(grpc_port, "--grpc-port")
        wanted_grpc = grpc_port
    if wanted is not None or wanted_grpc is not None:
        commands.set_gateway(workspace.registry, port=wanted, grpc_port=wanted_grpc)


def _refuse_taken(port: int, flag: str) -> None:
    if port > 0 and not _is_free(port):
        raise Conflict(
            f"port {port} is in use by another program",
            hint=f"choose another with {flag}, or 0 for any free one",
            code="port_in_use",
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True


def _follow(
    output: Output, workspace: Workspace, endpoint: str, rollout: str, entry: int, *, detach: bool
) -> SystemView:
    """Look on until the rollout has ended (or, detached, until it is under way). Ctrl-C leaves it running."""
    teller = LineView(output, after=entry)
    started = workspace.clock.monotonic()
    if output.is_live:
        from rich.live import Live

        with Live(console=output.console, refresh_per_second=8, transient=True) as live:
            while True:
                view = workspace.observer.look()
                live.update(picture(view, endpoint))
                if _is_over(workspace, view, endpoint, rollout, started, detach=detach):
                    break
                workspace.clock.sleep(_LOOK_EVERY_S)
    else:
        while True:
            view = workspace.observer.look()
            teller.show(find(view, endpoint), view.time)
            if _is_over(workspace, view, endpoint, rollout, started, detach=detach):
                break
            workspace.clock.sleep(_LOOK_EVERY_S)
    return view


def _with_grpc(workspace: Workspace, view: SystemView) -> SystemView:
    """Look again until gRPC is served too, if it is to be: it starts a moment after HTTP."""
    began = workspace.clock.monotonic()
    while (
        view.gateway == "running"
        and not view.grpc
        and workspace.observer.desired.grpc_port >= 0
        and workspace.clock.monotonic() - began < _GRPC_PATIENCE_S
    ):
        workspace.clock.sleep(_LOOK_EVERY_S)
        view = workspace.observer.look()
    return view


def _is_over(
    workspace: Workspace, view: SystemView, endpoint: str, rollout: str, started: float, *, detach: bool
) -> bool:
    found = find(view, endpoint)
    waited = workspace.clock.monotonic() - started
    if view.controller == "down" and waited > 1.0:
        if waited > _START_PATIENCE_S:
            raise Unavailable(
                f"the controller does not stay up: {view.controller_error or 'see its log'}",
                hint="its log: argosy watch shows it is down; start it with argosy up",
                code="controller_down",
            )
        start_controller(workspace.settings, workspace.launcher)
    if view.gateway == "down" and view.gateway_error and waited > 1.0:
        raise Unavailable(f"the gateway can't start: {view.gateway_error}", code="gateway_down")
    if found.rollout is not None:
        return detach and found.rollout.phase not in (d.PENDING, d.WARMING)
    last = found.last
    if rollout and (last is None or last.rollout != rollout):
        return False
    if view.leader:
        return True  # whether its replicas answer, this home can't see
    if rollout and last is not None and last.outcome != d.PROMOTED:
        return True
    return _is_served(found, waited)


def _is_served(found: EndpointView, waited: float) -> bool:
    """Return whether the current version answers already. Raises Unavailable when its replicas don't start."""
    current = next((version for version in found.versions if version.role == "current"), None)
    if current is not None and current.error and not current.ready and waited > _START_PATIENCE_S / 3:
        raise Unavailable(f"no replica of {current.ref} starts: {current.error}", code="replicas_down")
    return bool(found.url) and current is not None and current.ready > 0


def _end(output: Output, view: SystemView, endpoint: str, undo: str) -> None:
    found = find(view, endpoint)
    output.result({"endpoint": found, "url": view.url, "grpc": view.grpc, "undo": undo})
    last = found.last
    if found.rollout is None and last is not None and last.outcome == d.ROLLED_BACK:
        served = next((v.ref for v in found.versions if v.role == "current"), "")
        raise RolledBack(
            f"{last.to.ref} was rolled back: {last.reason}",
            hint=(f"'{endpoint}' serves {served}; " if served else "") + f"the evidence: argosy why {last.rollout}",
            rollout=last.rollout,
        )
    if found.rollout is None and last is not None and last.outcome == d.LEFT:
        output.line(f"{last.to.ref} was judged in shadow: {last.reason}")
    if found.rollout is not None:
        output.line(f"the rollout of {found.rollout.to} goes on; follow it with: argosy watch {endpoint}")
    elif view.leader:
        output.line(f"[green]✓[/] {leader_line(view)}: ask for {endpoint} there")
        return
    else:
        current = next(v for v in found.versions if v.role == "current")
        output.line(
            f"[green]✓[/] {endpoint} serves [bold]{current.ref}[/], {current.ready} of {current.wanted} replicas ready"
        )
    output.line(f"  url   {found.url}")
    output.line(f"  v2    {view.url}/v2/models/{endpoint}")
    if view.grpc:
        output.line(f"  grpc  {view.grpc}")
    if undo:
        output.line(f"  undo  {undo}")


def rollback(endpoint: str, *, as_json: bool) -> None:
    """Put the former version back and say when that was true."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    began = workspace.clock.monotonic()
    accepted = commands.rollback(workspace.registry, endpoint)
    output.line(f"[bold]plan[/] {accepted.summary}")
    start_controller(workspace.settings, workspace.launcher)
    if accepted.is_changed:
        _follow(output, workspace, endpoint, accepted.rollout, accepted.entry, detach=False)
    view = workspace.observer.look()
    found = find(view, endpoint)
    current = next((v.ref for v in found.versions if v.role == "current"), "nothing")
    seconds = workspace.clock.monotonic() - began
    output.line(f"[green]✓[/] {endpoint} serves [bold]{current}[/], after {format_time(seconds)}")
    output.result({"endpoint": found, "changed": accepted.is_changed, "seconds": round(seconds, 3)})


def promote(endpoint: str, *, as_json: bool) -> None:
    """Promote the rollout under way, whatever the evidence."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.promote(workspace.registry, endpoint)
    output.line(f"[bold]plan[/] {accepted.summary}")
    start_controller(workspace.settings, workspace.launcher)
    view = _follow(output, workspace, endpoint, accepted.rollout, accepted.entry, detach=False)
    _end(output, view, endpoint, accepted.undo)


def abort(endpoint: str, *, as_json: bool) -> None:
    """End the rollout under way and say when that was true."""
    _wish(commands.abort, endpoint, as_json=as_json, follows=True)


def pause(endpoint: str, *, as_json: bool) -> None:
    """Let the rollout under way stay where it is."""
    _wish(commands.pause, endpoint, as_json=as_json, follows=False)


def resume(endpoint: str, *, as_json: bool) -> None:
    """Let a paused rollout go on."""
    _wish(commands.resume, endpoint, as_json=as_json, follows=False)


def _wish(command: Callable[[RegistryLike, str], Accepted], endpoint: str, *, as_json: bool, follows: bool) -> None:
    output = Output(as_json=as_json)
    workspace = Workspace()
    began = workspace.clock.monotonic()
    accepted = command(workspace.registry, endpoint)
    output.line(f"[bold]plan[/] {accepted.summary}")
    start_controller(workspace.settings, workspace.launcher)
    if follows and accepted.is_changed:
        _follow(output, workspace, endpoint, accepted.rollout, accepted.entry, detach=False)
    found = find(workspace.observer.look(), endpoint)
    seconds = workspace.clock.monotonic() - began
    if follows:
        current = next((v.ref for v in found.versions if v.role == "current"), "nothing")
        output.line(f"[green]✓[/] {endpoint} serves [bold]{current}[/], after {format_time(seconds)}")
    if accepted.undo:
        output.line(f"  undo  {accepted.undo}")
    output.result({"endpoint": found, "changed": accepted.is_changed, "seconds": round(seconds, 3)})


def remove(endpoint: str, *, as_json: bool) -> None:
    """Stop serving a name."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.remove(workspace.registry, endpoint)
    start_controller(workspace.settings, workspace.launcher)
    output.line(accepted.summary)
    output.result(accepted)


def up(*, as_json: bool) -> None:
    """Bring back what was deployed, and start the controller if it doesn't run."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.bring_back(workspace.registry)
    started = start_controller(workspace.settings, workspace.launcher)
    if workspace.jobs.is_wanted(place_of(workspace.settings.home)):
        start_scheduler(workspace.settings, workspace.launcher)
    output.line(f"{accepted.summary}; the controller {'was started' if started else 'runs already'}")
    view = workspace.observer.look()
    for found in view.endpoints:
        if found.state != "stopped" and found.rollout is None:
            view = _follow(output, workspace, found.name, "", accepted.entry, detach=False)
            output.line(f"[green]✓[/] {found.name}  {find(view, found.name).url}")
    output.result({"summary": accepted.summary, "started": started, "endpoints": view.endpoints})


def down(*, as_json: bool) -> None:
    """Stop everything of this home."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    if not workspace.settings.home.exists():
        output.line("nothing was ever started from this home")
        output.result({"stopped": []})
        return
    stopped = stop_everything(workspace.registry, workspace.launcher, workspace.settings, workspace.clock)
    output.line(f"stopped {len(stopped)} processes" if stopped else "nothing was running")
    output.line("what was deployed is remembered: argosy up brings it back")
    output.result({"stopped": stopped})
