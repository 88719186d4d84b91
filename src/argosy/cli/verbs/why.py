"""`why`: from a prediction, a version or a rollout back to the evidence."""

import json
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.models import when
from argosy.cli.workspace import Workspace
from argosy.core.errors import NotFound
from argosy.pipeline.why import Link, trace_version
from argosy.registry.log import Entry
from argosy.registry.registry import Registry
from argosy.serve.prediction_id import PredictionId, decode


def why(what: str, *, as_json: bool) -> None:
    """Trace `what` back and show every link with what was verified."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    registry = workspace.registry
    if what.startswith("r") and what[1:].isdigit():
        _rollout(output, registry, what)
        return
    prediction = decode(what, workspace.prediction_key()) if what.count("-") == 3 and ":" not in what else None
    version = registry.versions.get(prediction.version if prediction else what)
    if prediction:
        _prediction(output, prediction)
    links = trace_version(registry, version)
    for link in links:
        _link(output, link)
    output.line("[green]every signature and digest on this path was checked, offline[/]")
    output.result(
        {
            "prediction": msgspec.to_builtins(prediction) if prediction else None,
            "version": str(version),
            "links": [msgspec.to_builtins(link) for link in links],
        }
    )


def _prediction(output: Output, prediction: PredictionId) -> None:
    output.line(f"[bold]prediction[/] made {when(prediction.time)} by version {prediction.version}")
    output.line("             its tag was made by this home's gateway")


def _link(output: Output, link: Link) -> None:
    name = link.name if len(link.name) <= 80 else link.name[:77] + "..."
    output.line(
        f"  ↳ [bold]{link.what}[/] {name}" + (f"  [green]verified[/]: {link.verified}" if link.verified else "")
    )
    for fact, value in link.facts.items():
        for part, text in _flat(fact, value):
            output.line(f"      [dim]{part:<22}[/] {text}")


def _flat(fact: str, value: Any) -> list[tuple[str, str]]:
    """Return the lines that show one fact, at most one level deep; the rest is in --json."""
    if fact in ("created", "time"):
        return [(fact, when(value))]
    if fact == "gates":
        return [
            (g["name"], f"{g['value']:.4g}, asked {g['bound']}: {'passed' if g['passed'] else 'missed'}") for g in value
        ]
    if isinstance(value, dict):
        return [(f"{fact}.{name}", _short(inner)) for name, inner in value.items()]
    return [(fact, _short(value))]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _rollout(output: Output, registry: Registry, rollout: str) -> None:
    entries = [e for e in registry.log.entries(after=int(rollout[1:]) - 1) if _about(e, rollout)]
    if not entries:
        raise NotFound(f"there is no rollout {rollout!r}", hint="rollouts stand in: argosy models history ENDPOINT")
    for entry in entries:
        data = {k: v for k, v in entry.data.items() if k not in ("windows", "rollout", "verdict")}
        output.line(f"entry {entry.seq}  {when(entry.time)}  {entry.actor}  [bold]{entry.kind}[/]  {_short(data)}")
        verdict = entry.data.get("verdict")
        if verdict:
            output.line(f"      [dim]the judge[/] {_short(verdict)}")
    output.result([msgspec.to_builtins(e) for e in entries])


def _about(entry: Entry, rollout: str) -> bool:
    return bool(entry.data.get("rollout") == rollout or entry.seq == int(rollout[1:]))
