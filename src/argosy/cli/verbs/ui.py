"""`ui`: the page in the browser."""

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.web.server import bind, serve


def ui(port: int) -> None:
    """Serve the page until Ctrl-C."""
    output = Output()
    workspace = Workspace()
    host = "127.0.0.1"
    taken = bind(host, port)
    output.line(f"look at [bold]http://{host}:{taken.getsockname()[1]}[/]; stop with Ctrl-C")
    serve(workspace.registry, workspace.observer, host, taken)
