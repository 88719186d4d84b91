"""`gateway show|set`: where the gateway listens, TLS, and the names it is called by."""

import socket
from pathlib import Path
from typing import Any

from argosy.cli.output import Output
from argosy.cli.verbs.models import when
from argosy.cli.workspace import Workspace
from argosy.core.config import private_folder
from argosy.core.errors import ArgosyError, Conflict, InvalidInput, Unavailable
from argosy.core.files import write_atomic
from argosy.operate import commands
from argosy.operate.desired import Desired
from argosy.operate.gateway_process import fits
from argosy.operate.gateway_settings import GatewaySettings, check_host
from argosy.operate.processes import gateway_socket, start_controller
from argosy.security.certificates import read_certificate, self_signed
from argosy.serve.control import GatewayClient, GatewayStatus

SELF_SIGNED_DAYS = 90
_PATIENCE_S = 20.0
_DAY_S = 86400.0


def show(*, as_json: bool) -> None:
    """Show what is wanted of the gateway, and whether it runs so."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    view = workspace.observer.look()
    desired = workspace.observer.desired
    settings, access = desired.gateway, desired.access
    certificate = _certificate(settings, workspace.clock.now())
    port = desired.bound_port or settings.port
    rows = {
        "address": f"{settings.url(port)}, on {settings.host}" if port else f"any free port of {settings.host}",
        "state": view.gateway + (f": {view.gateway_error}" if view.gateway_error else ""),
        "gRPC": view.grpc or ("off" if settings.grpc_port < 0 else "any free port"),
        "TLS": certificate.get("summary", "off"),
        "fronts": f"{settings.fronts} processes" if settings.fronts else "none, the gateway speaks HTTP itself",
        "names": ", ".join(dict.fromkeys((*settings.names, "localhost"))),
        "keys": f"needed; {len(access.by_name)} granted" if access.is_on else "not needed",
    }
    for name, text in rows.items():
        output.line(f"{name:<8} {text}")
    output.result(
        {
            "settings": settings.plain(),
            "url": view.url,
            "grpc": view.grpc,
            "state": view.gateway,
            "error": view.gateway_error,
            "certificate": certificate or None,
            "access": {"is_on": access.is_on, "keys": len(access.by_name)},
        }
    )


def change(
    *,
    host: str | None,
    port: int | None,
    grpc_port: int | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls: str,
    allow_host: list[str] | None,
    fronts: int | None,
    as_json: bool,
) -> None:
    """Write the new settings down, and follow the gateway until it runs with them."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    view = workspace.observer.look()
    desired = workspace.observer.desired
    former = desired.gateway
    hosts = None if allow_host is None else _hosts(allow_host)
    if port is not None and port > 0 and port != _own_port(view.url):
        _refuse_taken(host or former.host, port)
    files = _tls(tls, tls_cert, tls_key)
    if tls == "self-signed":
        files = _make_certificate(output, workspace, host or former.host, former.hosts if hosts is None else hosts)
    accepted = commands.set_gateway(
        workspace.registry,
        host=host,
        port=port,
        grpc_port=grpc_port,
        tls=files,
        hosts=hosts,
        fronts=fronts,
        is_wanted=False,
        clock=workspace.clock,
    )
    output.line(f"[bold]plan[/] {accepted.summary}")
    workspace.observer.look()
    if desired.is_running:
        start_controller(workspace.settings, workspace.launcher)
        _follow(workspace, desired)
    url = workspace.observer.look().url
    undo = _undo(former, desired.gateway)
    if url:
        output.line(f"[green]✓[/] the gateway listens on {url}")
    else:
        output.line("nothing is served now; it holds from the start on")
    if undo:
        output.line(f"  undo  {undo}")
    output.result(
        {"changed": accepted.is_changed, "settings": desired.gateway.plain(), "url": url, "undo": undo or None}
    )


def _hosts(given: list[str]) -> tuple[str, ...]:
    hosts = tuple(dict.fromkeys(name.strip().lower() for name in given))
    if hosts == ("none",):
        return ()
    for name in hosts:
        check_host(name)
    return hosts


def _tls(mode: str, certificate: Path | None, key: Path | None) -> tuple[str, str] | None:
    """Return the paths of certificate and key: two empty ones for none, None to leave all as it is."""
    if mode and (certificate or key):
        raise InvalidInput(f"--tls {mode} and a certificate contradict each other", hint="give one of them")
    if mode not in ("", "off", "self-signed"):
        raise InvalidInput(f"--tls {mode!r} is not known; use 'off' or 'self-signed', or give --tls-cert and --tls-key")
    if mode:
        return "", ""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise InvalidInput("a certificate needs its private key", hint="give both: --tls-cert <file> --tls-key <file>")
    return str(certificate.expanduser().absolute()), str(key.expanduser().absolute())


def _make_certificate(output: Output, workspace: Workspace, host: str, hosts: tuple[str, ...]) -> tuple[str, str]:
    """Make a certificate for trying things, in the home; a running gateway that uses the files reads them again."""
    settings = GatewaySettings(host=host, hosts=hosts)
    names = dict.fromkeys((*settings.names, "localhost", "127.0.0.1", "::1"))
    folder = private_folder(private_folder(workspace.settings.home) / "tls")
    made, key = self_signed(names, workspace.clock.now(), SELF_SIGNED_DAYS)
    write_atomic(folder / "key.pem", key, mode=0o600)
    write_atomic(folder / "cert.pem", made)
    output.line(f"a certificate for {', '.join(names)} was made, valid for {SELF_SIGNED_DAYS} days")
    output.line(f"  clients that are to trust it: export SSL_CERT_FILE={folder / 'cert.pem'}")
    return str(folder / "cert.pem"), str(folder / "key.pem")


def _refuse_taken(host: str, port: int) -> None:
    """Raise Conflict when the port is another program's: the gateway would be stopped, and could not start again."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise Conflict(
                f"the gateway can't listen on {host}:{port}: {error.strerror}",
                hint="choose another address or port",
                code="port_in_use",
            ) from error


def _own_port(url: str) -> int:
    return int(url.rpartition(":")[2]) if url else 0


def _follow(workspace: Workspace, desired: Desired) -> None:
    clock, began = workspace.clock, workspace.clock.monotonic()
    with GatewayClient(gateway_socket(workspace.settings), timeout_s=2.0) as client:
        while True:
            status = _status(client)
            if status is not None and fits(status, desired):
                return
            view = workspace.observer.look()
            waited = clock.monotonic() - began
            if waited > _PATIENCE_S or (waited > 3.0 and view.gateway_error):
                raise Unavailable(
                    f"the gateway does not run with these settings: {view.gateway_error or 'it does not answer'}",
                    hint="see them with: argosy gateway show; and what runs with: argosy watch",
                    code="gateway_down",
                )
            clock.sleep(0.05)


def _status(client: GatewayClient) -> GatewayStatus | None:
    try:
        return client.status()
    except Unavailable:
        return None


def _undo(former: GatewaySettings, now: GatewaySettings) -> str:
    """Return the command that brings the former settings back, empty when they are the same."""
    changed = [name for name in ("host", "port", "grpc_port", "fronts") if getattr(former, name) != getattr(now, name)]
    if former.port == 0:
        changed = [name for name in changed if name != "port"]  # it had taken a free one, and keeps that
    flags = [f"--{name.replace('_', '-')} {getattr(former, name)}" for name in changed]
    if (former.tls_cert, former.tls_key) != (now.tls_cert, now.tls_key):
        flags.append(f"--tls-cert {former.tls_cert} --tls-key {former.tls_key}" if former.has_tls else "--tls off")
    if former.hosts != now.hosts:
        flags += [f"--allow-host {name}" for name in former.hosts or ("none",)]
    return f"argosy gateway set {' '.join(flags)}" if flags else ""


def _certificate(settings: GatewaySettings, now: float) -> dict[str, Any]:
    if not settings.has_tls:
        return {}
    try:
        found = read_certificate(Path(settings.tls_cert))
    except ArgosyError as error:
        return {"path": settings.tls_cert, "error": error.message, "summary": error.message}
    days = (found.not_after - now) / _DAY_S
    left = f"{days:.0f} days left" if days >= 0 else "EXPIRED"
    signed = ", self-signed" if found.is_self_signed else ""
    summary = f"1.3, '{settings.tls_cert}' for {', '.join(found.names)}, until {when(found.not_after)} ({left}){signed}"
    return {
        "path": settings.tls_cert,
        "names": found.names,
        "not_after": found.not_after,
        "is_self_signed": found.is_self_signed,
        "summary": summary,
    }
