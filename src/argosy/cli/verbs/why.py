"""`why`: from a prediction, a version or a rollout back to the evidence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.models import main_metrics, when
from argosy.cli.workspace import Workspace
from argosy.core.errors import InvalidInput
from argosy.core.files import write_atomic
from argosy.core.units import format_time
from argosy.evaluate.judge import PROMOTE_AT
from argosy.operate.desired import Desired
from argosy.operate.replay import Moment, Replay, entries_of, replay
from argosy.operate.view import describe
from argosy.pipeline.report.chart import Chart, Line, picture
from argosy.pipeline.why import Link, trace_version
from argosy.registry.registry import Registry
from argosy.registry.versions import Evaluation
from argosy.serve.prediction_id import PredictionId, decode


def why(what: str, *, save: Path | None = None, as_json: bool) -> None:
    """Trace `what` back and show every link with what was verified; `save` is a picture of a rollout's evidence."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    registry = workspace.registry
    rollout = _rollout_of(registry, what)
    if rollout:
        _rollout(output, registry, rollout, save)
        return
    if save is not None:
        raise InvalidInput(f"--save draws the evidence of a rollout, and '{what}' is none", hint="name it, such as r12")
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


def _rollout_of(registry: Registry, what: str) -> str:
    """Return the rollout that is meant: by its id, or by the name of an endpoint its present or last one."""
    if what.startswith("r") and what[1:].isdigit():
        return what
    if ":" in what or what.count("-") == 3:
        return ""
    desired = Desired()
    desired.catch_up(registry.log)
    endpoint = desired.endpoints.get(what)
    if endpoint is None:
        return ""
    return endpoint.rollout.id if endpoint.rollout else endpoint.last.rollout if endpoint.last else ""


def _rollout(output: Output, registry: Registry, rollout: str, save: Path | None) -> None:
    entries = entries_of(registry.log, rollout)
    for entry in entries:
        told = describe(entry) or f"{len(entry.data.get('windows', ()))} windows of evidence"
        output.line(f"entry {entry.seq:<5} {when(entry.time)}  {entry.actor:<10}  {told}")
        verdict = entry.data.get("verdict")
        if verdict:
            output.line(f"      [dim]judge: {verdict['verdict']}, {_numbers(verdict)}[/]")
    found = replay(entries)
    if found.verdict:
        output.table(
            ("metric", "bad: new / all", "tolerated", "against it", "for it", "excluded"),
            [_metric(name, metric) for name, metric in found.verdict["metrics"].items()],
        )
        output.line(f"judge: {found.verdict['reason']}")
    _say_replayed(output, found)
    if save is not None:
        write_atomic(save, _drawn(found).encode())
        output.line(f"drawn: {save}")
    output.result(
        {
            "rollout": rollout,
            "entries": [msgspec.to_builtins(e) for e in entries],
            "replayed": {
                "is_same": found.is_same,
                "threshold": found.threshold,
                "verdict": found.verdict,
                "moments": found.moments,
                "compared": found.compared,
            },
        }
    )


def _say_replayed(output: Output, found: Replay) -> None:
    if not found.compared:
        output.line("nothing was judged in it")
    elif found.is_same:
        output.line(
            f"[green]replayed: same verdict[/], {found.compared[-1].replayed}, from {len(found.moments)} windows "
            f"at {len(found.compared)} entries"
        )
    for other in (verdict for verdict in found.compared if not verdict.is_same):
        output.line(
            f"[red]replayed: entry {other.seq} says {other.logged} ({other.total_logged:.4g}), its windows give "
            f"{other.replayed} ({other.total_replayed:.4g})[/]: another Argosy's judge, or a changed entry"
        )


def _metric(name: str, found: dict[str, Any]) -> tuple[str, ...]:
    excluded = found["excluded"]
    return (
        name,
        f"{found['bad_canary']:.4g} / {found['bad_all']:.4g}",
        f"{found['bad_expected']:.3g}",
        f"{found['weight'] * found['evidence']:.3g}",
        f"{min(found['assurance'], 999):.3g} of 20",
        f"{excluded:g} times as bad" if excluded else "-",
    )


def _drawn(found: Replay) -> str:
    """Return the evidence over time as a picture, in powers of ten."""

    def line(name: str, values: Callable[[Moment], float]) -> Line:
        return Line(name, [(m.minutes, math.log10(max(values(m), 1e-6))) for m in found.moments])

    against = Chart(
        title=f"{found.rollout}: evidence against it, log10",
        lines=[
            line("evidence", lambda moment: moment.total),
            line(f"rollback at {found.threshold:g}", lambda _: found.threshold),
        ],
        x_name="minutes",
    )
    good = Chart(
        title=f"{found.rollout}: evidence for it, log10",
        lines=[
            line("least assurance", lambda moment: moment.assurance),
            line(f"promotion at {PROMOTE_AT:g}", lambda _: PROMOTE_AT),
        ],
        x_name="minutes",
    )
    return picture([against, good])


def _numbers(verdict: dict[str, Any]) -> str:
    metrics = ", ".join(
        f"{name} {m['bad_canary']:.3g} of {m['bad_all']:.3g} bad (for it {min(m['assurance'], 999):.3g} of 20)"
        for name, m in verdict["metrics"].items()
    )
    return f"against it {verdict['total']:.3g} of {verdict['threshold']:.0f}; {metrics}"
