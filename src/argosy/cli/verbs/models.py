"""`models list|show|history`."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.errors import NotFound
from argosy.core.files import write_atomic
from argosy.core.units import format_size
from argosy.formats.python_spec import read_spec
from argosy.operate.view import describe
from argosy.registry.log import Entry
from argosy.registry.versions import Evaluation, Version


def when(seconds: float) -> str:
    """Return a moment as people read it, in local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def main_metrics(evaluation: Evaluation) -> str:
    """Return the metrics that decide, with their intervals: those of gates, and the first of the task."""
    metrics = evaluation.metrics
    names = [gate.name for gate in evaluation.gates]
    names += [name for name in ("accuracy", "r2", "perplexity") if name in metrics and name not in names]
    parts = []
    for name in names:
        if name in metrics:
            low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
            interval = f" ({low:.3g} to {high:.3g})" if low is not None and high is not None else ""
            parts.append(f"{name} {metrics[name]:.4g}{interval}")
    return "  ".join(parts)


def list_versions(name: str, *, as_json: bool) -> None:
    """List versions, oldest first."""
    output = Output(as_json=as_json)
    found = Workspace().registry.versions.list(name or None)
    if name and not found:
        raise NotFound(f"there is no model {name!r} in this registry", hint="list all with: argosy models list")
    rows = []
    for version in found:
        manifest = version.manifest
        rows.append(
            (
                str(version),
                manifest.role,
                format_size(manifest.size_bytes),
                "passed" if manifest.evaluation.passed else "FAILED",
                main_metrics(manifest.evaluation),
                when(manifest.created),
                version.digest[7:19],
            )
        )
    output.table(("version", "role", "size", "gates", "measured", "published", "digest"), rows)
    if not found:
        output.line("no versions yet; make one with: argosy run, or argosy deploy model.onnx")
    output.result([_plain(version) for version in found])


def show(reference: str, *, as_json: bool) -> None:
    """Show one version after checking its signature and every file."""
    output = Output(as_json=as_json)
    versions = Workspace().registry.versions
    version = versions.load(versions.get(reference).digest)
    manifest = version.manifest
    output.line(f"[bold]{version}[/]  {version.digest}")
    output.line(f"  role        {manifest.role}, task {manifest.task}, published {when(manifest.created)}")
    for spec in manifest.signature.inputs:
        columns = (
            f"  columns: {', '.join(spec.columns[:6])}{' ...' if len(spec.columns) > 6 else ''}" if spec.columns else ""
        )
        output.line(f"  input       {spec.name} {spec.datatype} {list(spec.shape)}{columns}")
    for spec in manifest.signature.outputs:
        output.line(f"  output      {spec.name} {spec.datatype} {list(spec.shape)}")
    if manifest.format == "python":
        code = read_spec(versions.files(version))
        needs = f", needs {', '.join(code.requires)}" if code.requires else ""
        output.line(f"  code        {code.entry}{needs}; tried with Python {code.python}")
    for gate in manifest.evaluation.gates:
        mark = "passed" if gate.passed else f"MISSED by {gate.missed_by:.3g}"
        output.line(f"  gate        {gate.name} {gate.value:.4g} {gate.bound}  {mark}")
    for name, reference_ in manifest.files.items():
        output.line(f"  file        {name} {format_size(reference_.size_bytes)} {reference_.digest[:19]}")
    output.line("  [green]signature and every digest verified[/]")
    output.result(_plain(version))


def report(reference: str, save: Path | None, *, as_json: bool) -> None:
    """Show the compression report of a version; with `save`, write all its reports and pictures there."""
    output = Output(as_json=as_json)
    versions = Workspace().registry.versions
    version = versions.get(reference)
    # Files of a model of one's own are no reports, whatever they are called.
    files = version.manifest.files if version.manifest.format != "python" else ()
    found = [name for name in files if name.endswith((".json", ".png", ".html", ".svg"))]
    if save is not None:
        for name in found:
            write_atomic(save / name, versions.open_file(version, name))
            output.line(f"wrote {save / name}")
    if "compression.json" not in found:
        if save is not None and "training.html" in found:
            output.result({"version": str(version), "files": [str(save / name) for name in found]})
            return
        raise NotFound(
            f"{version} was not compressed, so it has no compression report; it has: {', '.join(found) or 'none'}",
            hint=f"see how it was trained: argosy models report {version} --save report"
            if "training.html" in found
            else "its compressed sibling has one: argosy models list",
        )
    plain = msgspec.json.decode(versions.open_file(version, "compression.json"))
    compression_table(output, plain["rows"])
    output.line(plain["says"])
    output.result(plain)


def compression_table(output: Output, rows: list[dict[str, str]], *, brief: bool = False) -> None:
    """Write the candidates of a search as a table, the chosen one marked; `brief` for a terminal's width."""
    # Canonical JSON has sorted the columns by name; this is how one reads them.
    order = ("", "model", "size", "p50 / p95", "faster", "accuracy", "r2", "drop", "agreement", "CPU", "result")
    names = dict.fromkeys(name for row in rows for name in row)
    columns = sorted(names, key=lambda name: (_place(name, order), name))
    if brief:
        columns = [name for name in columns if not name.startswith(("p50", "CPU"))]
        # What stands in parentheses is for the full report.
        kept = ("size", "model")
        rows = [{n: text if n in kept else text.partition(" (")[0] for n, text in row.items()} for row in rows]
    output.table(columns, [[row.get(name, "") for name in columns] for row in rows])


def _place(name: str, order: tuple[str, ...]) -> int:
    found = [n for n, start in enumerate(order) if (name.startswith(start) if start else not name)]
    return found[0] if found else len(order)


def history(name: str, *, as_json: bool) -> None:
    """Show what served when, and who moved it."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    rows, plain = [], []
    for entry in workspace.registry.log.entries(subject=name):
        told = _happened(entry)
        if told:
            rows.append((str(entry.seq), when(entry.time), entry.actor, told))
        plain.append(msgspec.to_builtins(entry))
    if not rows:
        raise NotFound(f"nothing has happened to {name!r} in this registry")
    output.table(("entry", "time", "who", "what happened"), rows)
    output.result(plain)


def _happened(entry: Entry) -> str:
    data = entry.data
    if entry.kind == "version.published":
        gates = "passed its gates" if data.get("passed") else "failed its gates"
        return f"published {entry.subject}:{data['number']}, {gates} ({data['digest'][:19]})"
    if entry.kind == "alias.moved":
        return f"alias '{data['alias']}' means {entry.subject}:{data['number']}"
    return describe(entry)


def _plain(version: Version) -> dict[str, Any]:
    return {"version": str(version), "digest": version.digest, "manifest": msgspec.to_builtins(version.manifest)}
