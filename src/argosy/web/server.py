"""Runs the page: one process in the foreground, on loopback."""

import socket

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


def serve(registry: Registry, observer: Observer, host: str, taken: socket.socket) -> None:
    """Serve the page until interrupted. Raises PluginError when the extra `ui` is not installed."""
    try:
        import uvicorn

        from argosy.web.app import create_app
    except ModuleNotFoundError as error:
        raise missing(error, "ui") from error
    app = create_app(registry, observer, host, taken.getsockname()[1])
    uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off")).run(sockets=[taken])
