"""`ui`: the page in the browser."""

import os
import sys

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.web.server import bind, serve


def ui(port: int, *, read_only: bool, browser: bool) -> None:
    """Serve the page until Ctrl-C. Raises PluginError when the extra `ui` is not installed."""
    output = Output()
    workspace = Workspace()
    links: list[str] = []

    def tell(link: str) -> None:
        links.append(link)
        if len(links) > 1:
            output.line(f"[dim]opened; for another browser: {link}[/]")
            return
        output.line(f"open [bold]{link}[/]")
        output.line("  the link works once, for one browser; stop with Ctrl-C")
        if browser and output.is_live and _has_desktop():
            import webbrowser

            webbrowser.open(link)

    serve(
        bind("127.0.0.1", port),
        registry=workspace.registry,
        observer=workspace.observer,
        launcher=workspace.launcher,
        settings=workspace.settings,
        clock=workspace.clock,
        is_read_only=read_only,
        tell=tell,
    )


def _has_desktop() -> bool:
    # Without one, Python's webbrowser would start a browser inside the terminal.
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
