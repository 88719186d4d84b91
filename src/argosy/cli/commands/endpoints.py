"""`argosy endpoints`, `gateway`, `access` and `monitor`: what callers and operators see of a service."""

from pathlib import Path
from typing import Annotated

import typer

from argosy.cli.commands.options import AsJson, group

endpoints = group("Served names.")
gateway = group("Where callers reach it, TLS, and names.")
access = group("Keys for callers: grant, list, revoke.")
monitor = group("Prometheus and Alertmanager beside Argosy: run them, see them, their files.")


@endpoints.command("list")
def endpoints_list(as_json: AsJson = False) -> None:
    """List endpoints, what they serve, and where."""
    from argosy.cli.verbs import endpoints as verb

    verb.list_endpoints(as_json=as_json)


@endpoints.command("show")
def endpoints_show(name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False) -> None:
    """Show one endpoint: route, replicas, calibration with its reasons, limits, URLs, and how to ask it."""
    from argosy.cli.verbs import endpoints as verb

    verb.show(name, as_json=as_json)


@endpoints.command("calibrate")
def endpoints_calibrate(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False
) -> None:
    """Measure again how its versions run best on this machine; replicas and batches follow."""
    from argosy.cli.verbs import endpoints as verb

    verb.calibrate(name, as_json=as_json)


@endpoints.command("remove")
def endpoints_remove(
    name: Annotated[str, typer.Argument(help="Name of the endpoint.")], as_json: AsJson = False
) -> None:
    """Stop serving a name. Its versions stay."""
    from argosy.cli.verbs import deploy as verb

    verb.remove(name, as_json=as_json)


@gateway.command("show")
def gateway_show(as_json: AsJson = False) -> None:
    """Show where the gateway listens, its certificate, its names, and whether keys are needed."""
    from argosy.cli.verbs import gateway as verb

    verb.show(as_json=as_json)


@gateway.command("set")
def gateway_set(
    host: Annotated[str | None, typer.Option(help="Address to listen on; off loopback it needs TLS and keys.")] = None,
    port: Annotated[int | None, typer.Option(help="Port of HTTP, 0: any free one.")] = None,
    grpc_port: Annotated[
        int | None, typer.Option("--grpc-port", help="Port of gRPC, 0: any free one, -1: off.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option("--tls-cert", help="Certificate with its chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option("--tls-key", help="Its private key, PEM.")] = None,
    tls: Annotated[str, typer.Option(help="'off', or 'self-signed' for a certificate to try things with.")] = "",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="A name callers use; repeatable, replaces those before; 'none': no name."),
    ] = None,
    fronts: Annotated[
        int | None, typer.Option(help="Processes that speak HTTP on the gateway's port, 0: the gateway alone.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Change how callers reach the gateway; what is not given stays as it is."""
    from argosy.cli.verbs import gateway as verb

    verb.change(
        host=host,
        port=port,
        grpc_port=grpc_port,
        tls_cert=tls_cert,
        tls_key=tls_key,
        tls=tls,
        allow_host=allow_host,
        fronts=fronts,
        as_json=as_json,
    )


@monitor.command("up")
def monitor_up(
    port: Annotated[
        int, typer.Option(help="Port of Prometheus; Alertmanager and the receiver get the next two. 0: any free ones.")
    ] = -1,
    every: Annotated[str, typer.Option(help="Time between two looks of Prometheus, such as 5s.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write all files, and start Prometheus and Alertmanager where they are installed; they stay until `down`."""
    from argosy.cli.verbs import monitor as verb

    verb.up(port=port, every=every, as_json=as_json)


@monitor.command("down")
def monitor_down(as_json: AsJson = False) -> None:
    """Stop Prometheus, Alertmanager and the receiver. Files and data stay."""
    from argosy.cli.verbs import monitor as verb

    verb.down(as_json=as_json)


@monitor.command("status")
def monitor_status(as_json: AsJson = False) -> None:
    """Show what runs, what is missing, what is scraped, and which alerts fire."""
    from argosy.cli.verbs import monitor as verb

    verb.status(as_json=as_json)


@monitor.command("config")
def monitor_config(as_json: AsJson = False) -> None:
    """Write the files for Prometheus, Alertmanager and Grafana without starting anything, and say where they are."""
    from argosy.cli.verbs import monitor as verb

    verb.config(as_json=as_json)


@access.command("grant")
def access_grant(
    name: Annotated[str, typer.Argument(help="Who gets the key.")],
    endpoints: Annotated[
        list[str] | None, typer.Option("--endpoint", help="What it is for; repeatable; default: every endpoint.")
    ] = None,
    weight: Annotated[float, typer.Option(help="Share of a busy endpoint, against others' 1.")] = 1.0,
    expires: Annotated[str, typer.Option(help="For how long, such as 30d; default: until it is revoked.")] = "",
    as_json: AsJson = False,
) -> None:
    """Grant a key and show it, this once. From the first one on nobody uses the gateway without a key."""
    from argosy.cli.verbs import access as verb

    verb.grant(name, endpoints=endpoints, weight=weight, expires=expires, as_json=as_json)


@access.command("list")
def access_list(as_json: AsJson = False) -> None:
    """List who holds a key, and for what."""
    from argosy.cli.verbs import access as verb

    verb.list_keys(as_json=as_json)


@access.command("revoke")
def access_revoke(
    name: Annotated[str, typer.Argument(help="Whose key.")],
    as_json: AsJson = False,
) -> None:
    """Take a key back, within a second. Who holds another keeps it."""
    from argosy.cli.verbs import access as verb

    verb.revoke(name, as_json=as_json)


@access.command("off")
def access_off(as_json: AsJson = False) -> None:
    """Revoke all keys and need none any more; only where nobody else can reach the gateway."""
    from argosy.cli.verbs import access as verb

    verb.off(as_json=as_json)
