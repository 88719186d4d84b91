"""`models list|show|history`."""

from datetime import UTC, datetime
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.errors import NotFound
from argosy.core.units import format_size
from argosy.registry.versions import Version


def when(seconds: float) -> str:
    """Return a moment as people read it, in local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def list_versions(name: str, *, as_json: bool) -> None:
    """List versions, oldest first."""
    output = Output(as_json=as_json)
    found = Workspace().registry.versions.list(name or None)
    if name and not found:
        raise NotFound(f"there is no model {name!r} in this registry", hint="list all with: argosy models list")
    rows = []
    for version in found:
        manifest = version.manifest
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in list(manifest.evaluation.metrics.items())[:3])
        rows.append(
            (
                str(version),
                manifest.role,
                format_size(manifest.files["model.onnx"].size_bytes),
                "passed" if manifest.evaluation.passed else "FAILED",
                numbers,
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
    for gate in manifest.evaluation.gates:
        mark = "passed" if gate.passed else f"MISSED by {gate.missed_by:.3g}"
        output.line(f"  gate        {gate.name} {gate.value:.4g} {gate.bound}  {mark}")
    for name, reference_ in manifest.files.items():
        output.line(f"  file        {name} {format_size(reference_.size_bytes)} {reference_.digest[:19]}")
    output.line("  [green]signature and every digest verified[/]")
    output.result(_plain(version))


def history(name: str, *, as_json: bool) -> None:
    """Show what served when, and who moved it."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    rows, plain = [], []
    for entry in workspace.registry.log.entries(subject=name):
        facts = "  ".join(
            f"{k}={v}" for k, v in entry.data.items() if isinstance(v, (str, int, float, bool)) and v != ""
        )
        rows.append((str(entry.seq), when(entry.time), entry.actor, entry.kind, facts))
        plain.append(msgspec.to_builtins(entry))
    if not rows:
        raise NotFound(f"nothing has happened to {name!r} in this registry")
    output.table(("entry", "time", "who", "what", "how"), rows)
    output.result(plain)


def _plain(version: Version) -> dict[str, Any]:
    return {"version": str(version), "digest": version.digest, "manifest": msgspec.to_builtins(version.manifest)}
