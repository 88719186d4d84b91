"""`watch` and `endpoints list`."""

from argosy.cli.endpoint_view import LineView, picture
from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.errors import NotFound
from argosy.operate.processes import start_controller
from argosy.operate.view import EndpointView, SystemView

_EVERY_S = 0.25


def watch(endpoint: str, *, once: bool, as_json: bool) -> None:
    """Show endpoints; live while a rollout is under way or a terminal looks."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    view = workspace.observer.look()
    if endpoint:
        find(view, endpoint)
    output.result(view)
    if as_json:
        return
    running = any(e.rollout for e in view.endpoints if endpoint in ("", e.name))
    if once or not (output.is_live or running):
        output.console.print(picture(view, endpoint))
        return
    if view.controller == "down" and any(e.state != "stopped" for e in view.endpoints):
        # To look on while nobody moves the rollout would be to wait for ever.
        start_controller(workspace.settings, workspace.launcher)
        output.line("the controller was down and has been started")
    if output.is_live:
        _live(output, workspace, endpoint, until_end=running)
    else:
        _lines(output, workspace, endpoint)


def find(view: SystemView, name: str) -> EndpointView:
    """Return an endpoint's view. Raises NotFound with the names there are."""
    for found in view.endpoints:
        if found.name == name:
            return found
    known = ", ".join(f"'{e.name}'" for e in view.endpoints) or "none"
    raise NotFound(
        f"there is no endpoint '{name}'; there is: {known}", hint="argosy deploy MODEL --name NAME makes one"
    )


def _live(output: Output, workspace: Workspace, endpoint: str, *, until_end: bool) -> None:
    from rich.live import Live

    with Live(console=output.console, refresh_per_second=8) as live:
        while True:
            view = workspace.observer.look()
            live.update(picture(view, endpoint))
            if until_end and not any(e.rollout for e in view.endpoints if endpoint in ("", e.name)):
                return
            workspace.clock.sleep(_EVERY_S)


def _lines(output: Output, workspace: Workspace, endpoint: str) -> None:
    tellers: dict[str, LineView] = {}
    while True:
        view = workspace.observer.look()
        shown = [e for e in view.endpoints if endpoint in ("", e.name)]
        for found in shown:
            teller = tellers.setdefault(found.name, LineView(output, after=0))
            teller.show(found, view.time)
        if not any(found.rollout for found in shown):
            return
        workspace.clock.sleep(_EVERY_S)
