"""`monitor up|down|status|config`: Prometheus, Alertmanager and Grafana's files beside Argosy."""

import msgspec
from rich.markup import escape

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.units import parse_time
from argosy.monitoring import files, home
from argosy.monitoring.home import MonitorView
from argosy.monitoring.process import monitor_lock


def up(*, port: int, every: str, as_json: bool) -> None:
    """Write the files, start what is installed, and say what is missing."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    settings = workspace.settings
    workspace.observer.look()
    chosen = home.choose(settings, port=port, every_s=parse_time(every) if every else 0.0)
    place = home.write_files(settings, workspace.observer.desired, chosen)
    programs = [tool for tool in files.TOOLS if files.find_tool(tool)]
    output.line(f"[bold]plan[/] files in '{place.folder}'; to run: {', '.join((*programs, 'the receiver of alerts'))}")
    started = home.start(settings, workspace.launcher, workspace.clock, chosen)
    view = home.look(settings, workspace.launcher)
    if not started.is_changed:
        output.line("it runs so already")
    _show(output, view)
    output.line("  undo  argosy monitor down")
    output.result({"changed": started.is_changed, **msgspec.to_builtins(view)})


def down(*, as_json: bool) -> None:
    """Stop the monitor and its tools."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    stopped = home.stop(workspace.settings, workspace.launcher)
    output.line(f"stopped {', '.join(stopped)}" if stopped else "nothing of the monitor was running")
    output.result({"stopped": stopped})


def status(*, as_json: bool) -> None:
    """Show tools, targets and alerts."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    view = home.look(workspace.settings, workspace.launcher)
    if view.is_running:
        _show(output, view)
        _targets(output, view)
    else:
        output.line(f"the monitor does not run{': ' + escape(view.error) if view.error else ''}")
        _missing(output, view)
        output.line("start it with: argosy monitor up")
    output.result(view)


def config(*, as_json: bool) -> None:
    """Write the files and list them."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    workspace.observer.look()
    chosen = home.choose(workspace.settings)
    place = home.write_files(workspace.settings, workspace.observer.desired, chosen)
    grafana = place.grafana / "provisioning"
    rows = {
        "Prometheus": place.prometheus,
        "Alertmanager": place.alertmanager,
        "rules": place.rules,
        "your rules": place.own_rules,
        "Grafana": grafana,
        "dashboards": place.grafana / "dashboards",
    }
    for name, path in rows.items():
        kept = "  (your own, left alone)" if path.is_file() and files.is_kept(path) else ""
        output.line(f"{name:<13}{escape(str(path))}{kept}")
    output.line(f"start Grafana with them: grafana-server cfg:paths.provisioning={escape(str(grafana))}")
    if not monitor_lock(workspace.settings).is_taken():
        output.line("they are kept up to date while the monitor runs: argosy monitor up")
    output.result({name: str(path) for name, path in rows.items()})


def _show(output: Output, view: MonitorView) -> None:
    for name, url in view.urls.items():
        output.line(f"[green]✓[/] {name:<13}{url}")
    _missing(output, view)


def _missing(output: Output, view: MonitorView) -> None:
    for name, command in view.missing.items():
        output.line(
            f"[yellow]-[/] {name:<13}is not installed; install it and run `argosy monitor up` again: {escape(command)}"
        )


def _targets(output: Output, view: MonitorView) -> None:
    if view.targets:
        output.table(
            ("scraped", "from", "health", "last error"),
            [(target.job, target.address, target.health, target.error) for target in view.targets],
        )
    if view.alerts:
        output.table(
            ("alert", "state", "endpoint", "severity", "acts", "says"),
            [(a.name, a.state, a.endpoint, a.severity, a.action, a.summary) for a in view.alerts],
        )
    elif view.targets:
        output.line("no alert fires")
