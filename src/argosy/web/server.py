"""Runs the page: one process in the foreground, on loopback."""

import socket
from collections.abc import Callable
from typing import Any

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.core.errors import Conflict, InvalidInput
from argosy.core.plugins import missing
from argosy.operate.view import Observer
from argosy.registry.registry import Registry

_LOOPBACK = ("127.0.0.1", "localhost")


def bind(host: str, port: int) -> socket.socket:
    """Take the address before anything is said about it. Raises InvalidInput off loopback, Conflict when it is used."""
    if host not in _LOOPBACK:
        raise InvalidInput(
            f"the page would be open to others on '{host}': without access control it is served on loopback only",
            hint="use 127.0.0.1, and a tunnel such as: ssh -L 8710:127.0.0.1:8710",
        )
    taken = socket.socket()
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        taken.bind((host, port))
    except OSError as error:
        taken.close()
        raise Conflict(
            f"port {port} is in use by another program", hint="choose another with --port", code="port_in_use"
        ) from error
    return taken


def serve(
    taken: socket.socket,
    *,
    registry: Registry,
    observer: Observer,
    launcher: Launcher,
    settings: Settings,
    clock: Clock,
    is_read_only: bool,
    tell: Callable[[str], None],
) -> None:
    """Serve the page until interrupted; `tell` gets each link that lets a browser in, the first one when it answers.

    Raises PluginError when the extra `ui` is not installed, Internal when a route has no policy.
    """
    try:
        import uvicorn

        from argosy.web.live import make_page
    except ModuleNotFoundError as error:
        raise missing(error, "ui") from error

    host, port = taken.getsockname()[:2]
    guard = make_page(
        registry=registry,
        observer=observer,
        launcher=launcher,
        settings=settings,
        clock=clock,
        address=f"{host}:{port}",
        role="viewer" if is_read_only else "operator",
        tell=tell,
    )

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            if self.started:
                tell(guard.link)

    # A browser sends little: whatever is larger than this did not come from the page.
    config: Any = uvicorn.Config(
        guard, log_level="warning", ws="websockets-sansio", ws_max_size=1 << 20, timeout_graceful_shutdown=2
    )
    Server(config).run(sockets=[taken])
