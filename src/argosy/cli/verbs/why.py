"""`why`: from a prediction, a version or a rollout back to the evidence."""

import json
from collections.abc import Callable
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.models import main_metrics, when
from argosy.cli.workspace import Workspace
from argosy.core.errors import NotFound
from argosy.core.units import format_time
from argosy.operate.view import describe
from argosy.pipeline.why import Link, trace_version
from argosy.registry.log import Entry
from argosy.registry.registry import Registry
from argosy.registry.versions import Evaluation
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
    """Write one step back in a few lines; `--json` has every fact."""
    checked = f"  [green]verified[/] [dim]{link.verified}[/]" if link.verified else ""
    output.line(f"  ↳ [bold]{link.what:<11}[/] {_short(link.name)}{checked}")
    for text in _TELLS.get(link.what, _tell_all)(link.facts):
        output.line(f"                [dim]{text}[/]")


def _tell_version(facts: dict[str, Any]) -> list[str]:
    return [
        f"{facts['role']}, published {when(facts['created'])}",
        facts["digest"],
        *map(_pair, facts["files"].items()),
    ]


def _tell_evaluation(facts: dict[str, Any]) -> list[str]:
    evaluation = msgspec.convert(facts, Evaluation)
    gates = [f"{g.name} {g.value:.4g}, asked {g.bound}: {'passed' if g.passed else 'missed'}" for g in evaluation.gates]
    return [f"{evaluation.samples} samples; {main_metrics(evaluation)}", *gates]


def _tell_stage(facts: dict[str, Any]) -> list[str]:
    lines = [f"by {facts['actor']}, {when(facts['time'])}, {format_time(facts['seconds'])}, {facts['run']}"]
    lines += [f"{name} {_short(_said(value))}" for name, value in facts["config"].items()]
    return lines


def _tell_recipe(facts: dict[str, Any]) -> list[str]:
    names = ("name", "size_bytes", "times_smaller", "times_faster", "drop_points", "agreement")
    return ["  ".join(f"{name} {facts[name]}" for name in names if name in facts)]


def _tell_all(facts: dict[str, Any]) -> list[str]:
    return [f"{name} {_short(value)}" for name, value in facts.items()]


_TELLS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "version": _tell_version,
    "evaluation": _tell_evaluation,
    "stage": _tell_stage,
    "compression": _tell_recipe,
}


def _said(value: Any) -> Any:
    """Return a section without what was left at nothing, so that the line shows what was asked for."""
    if isinstance(value, dict):
        return {k: v for k, v in value.items() if v not in ("", 0, 0.0, None, [], {})}
    return value


def _pair(item: tuple[str, Any]) -> str:
    return f"{item[0]:<20} {item[1]}"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _rollout(output: Output, registry: Registry, rollout: str) -> None:
    entries = [e for e in registry.log.entries(after=int(rollout[1:]) - 1) if _about(e, rollout)]
    if not entries:
        raise NotFound(f"there is no rollout {rollout!r}", hint="rollouts stand in: argosy models history ENDPOINT")
    for entry in entries:
        told = describe(entry) or f"{len(entry.data.get('windows', ()))} windows of evidence"
        output.line(f"entry {entry.seq:<5} {when(entry.time)}  {entry.actor:<10}  {told}")
        verdict = entry.data.get("verdict")
        if verdict:
            output.line(f"      [dim]judge: {verdict['verdict']}, {_numbers(verdict)}[/]")
    output.result([msgspec.to_builtins(e) for e in entries])


def _numbers(verdict: dict[str, Any]) -> str:
    metrics = ", ".join(
        f"{name} {m['bad_canary']:.3g} of {m['bad_all']:.3g} bad (for it {min(m['assurance'], 999):.3g} of 20)"
        for name, m in verdict["metrics"].items()
    )
    return f"against it {verdict['total']:.3g} of {verdict['threshold']:.0f}; {metrics}"


def _about(entry: Entry, rollout: str) -> bool:
    asked = entry.kind == "endpoint.desired" and entry.seq == int(rollout[1:])
    return asked or entry.data.get("rollout") == rollout
