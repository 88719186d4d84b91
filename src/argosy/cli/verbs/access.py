"""`access grant|list|revoke|off`: keys for callers. A wish goes to the log, then it is seen to that it holds."""

from typing import Any

from argosy.cli.output import Output
from argosy.cli.verbs.models import when
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError
from argosy.core.units import format_time, parse_time
from argosy.operate import access as commands
from argosy.operate.desired import Desired
from argosy.operate.grants import Grant
from argosy.operate.processes import gateway_socket, start_controller
from argosy.serve.access import EVERY
from argosy.serve.control import GatewayClient

_CONTROLLER_S = 0.6
"""The controller looks at the log four times a second. One that does not act in this time is busy or gone."""
_PATIENCE_S = 5.0


def grant(name: str, *, endpoints: list[str] | None, weight: float, expires: str, as_json: bool) -> None:
    """Grant a key and show it, this once."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    granted = commands.grant(
        workspace.registry,
        name,
        endpoints=endpoints or (),
        weight=weight,
        lasts_s=parse_time(expires) if expires else 0.0,
        clock=workspace.clock,
    )
    desired = _desired(workspace)
    output.line(f"[green]✓[/] {granted.summary}")
    output.line(f"  key      {granted.key}")
    output.line("           shown this once; clients take it from the environment variable ARGOSY_API_KEY")
    if granted.expires:
        output.line(f"  expires  {when(granted.expires)}")
    for endpoint in granted.endpoints:
        if endpoint != EVERY and endpoint not in desired.endpoints:
            output.line(f"  note     there is no endpoint '{endpoint}' yet")
    output.line(f"  undo     {granted.undo}")
    is_enforced = _enforce(output, workspace)
    output.result(
        {
            "name": granted.name,
            "id": granted.id,
            "key": granted.key,
            "endpoints": granted.endpoints,
            "weight": granted.weight,
            "expires": granted.expires or None,
            "undo": granted.undo,
            "enforced": is_enforced,
            "entry": granted.entry,
        }
    )


def list_keys(*, as_json: bool) -> None:
    """List who holds a key, and for what. The keys themselves nobody can list."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    grants = _desired(workspace).access
    now = workspace.clock.now()
    shown = [_shown(found, now) for _, found in sorted(grants.by_name.items())]
    if not grants.is_on:
        output.line("no key is needed; grant the first one with: argosy access grant <name>")
    elif not shown:
        output.line("a key is needed, and nobody has one; grant one with: argosy access grant <name>")
    else:
        columns = ("name", "id", "may use", "weight", "granted", "by", "expires")
        output.table(columns, [_row(found, now) for _, found in sorted(grants.by_name.items())])
    output.result({"is_on": grants.is_on, "keys": shown})


def revoke(name: str, *, as_json: bool) -> None:
    """Take a key back, and say when that was true."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.revoke(workspace.registry, name)
    output.line(f"[green]✓[/] {accepted.summary}")
    is_enforced = _enforce(output, workspace)
    output.result({"summary": accepted.summary, "changed": accepted.is_changed, "enforced": is_enforced})


def off(*, as_json: bool) -> None:
    """Let everybody on this machine in without a key; every key is gone."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.lift(workspace.registry)
    output.line(f"[green]✓[/] {accepted.summary}")
    is_enforced = _enforce(output, workspace)
    output.result({"summary": accepted.summary, "changed": accepted.is_changed, "enforced": is_enforced})


def _desired(workspace: Workspace) -> Desired:
    state = workspace.observer.desired
    workspace.registry.log.refresh()
    state.catch_up(workspace.registry.log)
    return state


def _enforce(output: Output, workspace: Workspace) -> bool:
    """Wait until the gateway has the rules of now; return whether it has. Without one there is nothing to wait for.

    The controller tells it. One that is busy or hangs must not keep a revoked key alive, so then it is told from here.
    """
    if not _desired(workspace).is_running:
        output.line("  nothing is served now; it holds from the start on")
        return False
    clock, began = workspace.clock, workspace.clock.monotonic()
    start_controller(workspace.settings, workspace.launcher)
    trouble = "the gateway does not answer"
    with GatewayClient(gateway_socket(workspace.settings), timeout_s=2.0) as client:
        while clock.monotonic() - began < _PATIENCE_S:
            try:
                rules = _desired(workspace).access.rules()
                if client.status().access == rules.digest:
                    output.line(f"  in force after {format_time(clock.monotonic() - began)}")
                    return True
                if clock.monotonic() - began > _CONTROLLER_S:
                    client.set_access(rules)
            except ArgosyError as error:
                # Not raised: a key that was granted has to be shown, whatever else goes wrong.
                trouble = error.message
            clock.sleep(0.02)
    output.line(f"  [yellow]not in force yet[/]: {trouble}; a gateway that starts anew has these rules")
    return False


def _shown(found: Grant, now: float) -> dict[str, Any]:
    return {
        "name": found.name,
        "id": found.id,
        "endpoints": found.endpoints,
        "weight": found.weight,
        "granted": found.granted,
        "by": found.actor,
        "expires": found.expires or None,
        "is_expired": found.is_expired(now),
    }


def _row(found: Grant, now: float) -> tuple[str, ...]:
    may = "every endpoint" if EVERY in found.endpoints else ", ".join(found.endpoints)
    expires = when(found.expires) if found.expires else "never"
    if found.is_expired(now):
        expires += " (expired)"
    return (found.name, found.id, may, f"{found.weight:g}", when(found.granted), found.actor, expires)
