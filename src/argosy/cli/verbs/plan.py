"""`plan`: what a run would do and how long it takes; `advise training`: which way of training is fastest here."""

from pathlib import Path
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.project import Project, load_project
from argosy.cli.verbs.run import carried_out
from argosy.cli.workspace import Workspace
from argosy.core.errors import InvalidInput, Unavailable
from argosy.core.units import format_size, format_time
from argosy.operate.outlook import Outlook, outlook
from argosy.operate.processes import gateway_socket
from argosy.pipeline.engine import Plan, find_record
from argosy.pipeline.estimates import Estimate, Estimates, estimate, parse_link
from argosy.serve.control import GatewayClient
from argosy.train.measurement import Measurement
from argosy.train.predict import Prediction


def plan(file: Path, changes: list[str] | None, *, measure: bool, as_json: bool) -> None:
    """Show what a run would do, and what is known of the training's length."""
    output = Output(as_json=as_json)
    project, base = load_project(file, changes)
    workspace = Workspace()
    seen = _outlook(workspace, project)
    if project.data is None and seen is not None:
        # A file that only says how something is served has nothing to run.
        _show_outlook(output, seen)
        output.result({"project": project.project.name, "rollout": seen})
        return
    trains = any(step.stage == "train" and not step.is_done for step in workspace.engine.plan(project, base).steps)
    measurement = _known(output, workspace, project, base, measure=measure) if trains else None
    found = workspace.engine.plan(project, base)  # measuring may have prepared the data
    expected = estimate(project, measurement) if measurement is not None else None
    _show_plan(output, found, expected)
    if trains:
        _show_training(output, expected)
    if seen is not None:
        _show_outlook(output, seen)
    output.result(
        {
            "project": found.project,
            "where": found.where,
            "left_s": found.left_s,
            "steps": found.steps,
            "training": None if expected is None else _plain(expected),
            "rollout": seen,
        }
    )


def _show_outlook(output: Output, seen: Outlook) -> None:
    output.line(f"  rollout: {seen.lines[0]}")
    for line in seen.lines[1:]:
        output.line(f"    {line}")


def _outlook(workspace: Workspace, project: Project) -> Outlook | None:
    """Return what the project's rollout would see at the traffic its endpoint has; None when nothing is served."""
    if project.rollout is None:
        return None
    try:
        status = GatewayClient(str(gateway_socket(workspace.settings)), timeout_s=2.0).status()
    except Unavailable:
        return None
    served = next((endpoint for endpoint in status.endpoints if endpoint.name == project.project.name), None)
    if served is None:
        return None
    minutes = max(workspace.clock.now() - status.started, 1.0) / 60
    failed = served.failed / served.requests if served.requests else 0.0
    return outlook(project.rollout, requests_per_min=served.requests / minutes, failed_share=failed)


def advise_training(
    file: Path, changes: list[str] | None, *, measure: bool, hosts: int, link: str, as_json: bool
) -> None:
    """Show every way of training with its time and memory, and which one to take."""
    from rich.markup import escape

    output = Output(as_json=as_json)
    if hosts < 1:
        raise InvalidInput(f"--hosts {hosts} is impossible; it must be 1 or more")
    joined = parse_link(link)
    project, base = load_project(file, changes)
    workspace = Workspace()
    measurement = None if measure else _known(output, workspace, project, base, measure=False)
    if measurement is None:
        measurement = _known(output, workspace, project, base, measure=True)
    assert measurement is not None
    # Whatever the file says: advice is on what it should say.
    asked = msgspec.structs.replace(
        project.train, strategy="auto", workers=max(way.workers for way in measurement.trials)
    )
    expected = estimate(
        msgspec.structs.replace(project, train=asked), measurement, hosts=hosts, link=joined if hosts > 1 else None
    )
    rows = [_row(way, expected) for way in expected.ways]
    rows += [("", strategy, "-", "-", "-", "-", f"impossible: {why}") for strategy, why in expected.impossible.items()]
    output.table(("", "strategy", "processes", "a step", "in all", "memory", "why"), rows)
    output.line(f"[bold]{project.project.name}[/]: {expected.line}")
    _show_why(output, expected)
    output.line(f"take it with: {escape(_settings(expected, asked.workers))}")
    output.result(_plain(expected))


def _known(output: Output, workspace: Workspace, project: Project, base: Path, *, measure: bool) -> Measurement | None:
    """Return what was measured of the project's training, or with `measure` do that first."""
    estimates = Estimates(workspace.settings.home, workspace.registry)
    if measure:
        data = carried_out(output, workspace, project, base, "data").records["data"]
        output.line("  measuring some steps of every way of training")
        return estimates.measure(project, base, data, launcher=workspace.launcher, clock=workspace.clock)
    first = workspace.engine.plan(project, base, "data").steps[0]
    record = find_record(workspace.registry.log, first.key)
    return estimates.find(project, base, record) if record is not None else None


def _show_plan(output: Output, found: Plan, expected: Estimate | None) -> None:
    rows = [
        (
            step.stage,
            "done" if step.is_done else "run",
            step.why,
            format_time(step.last_s) if step.last_s >= 0 else "-",
            step.key[7:19],
        )
        for step in found.steps
    ]
    output.table(("stage", "", "why", "last took", "key"), rows)
    open_steps = [step for step in found.steps if not step.is_done]
    if not open_steps:
        output.line(f"[bold]{found.project}[/]: everything is done; a run would execute nothing")
        return
    # What was measured of this very training counts more than how long another one took.
    times = [
        expected.chosen.total_s if step.stage == "train" and expected is not None else step.last_s
        for step in open_steps
    ]
    time = f", about {format_time(sum(times))}" if all(t >= 0 for t in times) else ""
    output.line(
        f"[bold]{found.project}[/]: {len(open_steps)} of {len(found.steps)} stages to run on {found.where}{time}"
    )


def _show_training(output: Output, expected: Estimate | None) -> None:
    if expected is None:
        output.line("  train: how long is not known; `argosy plan --measure` trains some steps to find out")
        return
    output.line(f"  train: {expected.line}")
    _show_why(output, expected)


def _show_why(output: Output, expected: Estimate) -> None:
    for line in expected.why:
        output.line(f"    {line}")


def _row(way: Prediction, expected: Estimate) -> tuple[str, ...]:
    where = f"{way.hosts} x " if way.hosts > 1 else ""
    processes = f"{way.threads} threads" if way.strategy == "single" and way.threads > 1 else str(way.workers)
    return (
        "*" if way == expected.chosen else "",
        way.strategy,
        where + processes,
        format_time(way.step_s),
        format_time(way.total_s),
        format_size(way.host_bytes) + ("" if way.fits else ", too much"),
        way.why,
    )


def _settings(expected: Estimate, workers: int) -> str:
    way = expected.chosen
    most = max(other.threads for other in expected.ways if other.strategy == "single")
    # One process takes all cores by itself; that fewer are faster is what `auto` finds.
    if way.strategy == "single" and way.threads < most:
        return f'[train] strategy = "auto", workers = {workers}'
    return f'[train] strategy = "{way.strategy}", workers = {way.workers}'


def _plain(expected: Estimate) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins(expected)
    return {"steps": expected.steps, **found}
