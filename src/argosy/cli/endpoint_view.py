"""What endpoints and rollouts look like: a live picture on a terminal, lines in a pipe."""

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from argosy.cli.output import Output
from argosy.core.units import format_time
from argosy.operate.scaling_file import ScalingView
from argosy.operate.view import EndpointView, RolloutView, SystemView, VersionView

if TYPE_CHECKING:
    from rich.console import Group, RenderableType
    from rich.text import Text

_STATE_STYLE = {
    "ready": "green",
    "idle": "green",
    "degraded": "yellow",
    "starting": "yellow",
    "failed": "red",
    "stopped": "dim",
}
_BAR = 24
_EVIDENCE_BAR = 10
_EVENTS = 4
"""Events that are shown below an endpoint."""
_ENOUGH = 20  # evidence for a version that promotes it, see docs/decisions/0003-judge.md


def picture(view: SystemView, endpoint: str = "") -> "Group":
    """Return the state as something rich can draw."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for found in view.endpoints:
        if endpoint in ("", found.name):
            parts += _endpoint(found)
    if not parts:
        parts.append(Text("nothing is deployed; begin with: argosy deploy model.onnx", style="dim"))
    if view.controller == "down" and any(e.state != "stopped" for e in view.endpoints):
        parts.append(Text("the controller is down; start it with: argosy up", style="yellow"))
    if view.leader:
        parts.append(Text(f"{leader_line(view)}; what is shown of replicas is this home's", style="yellow"))
    return Group(*parts)


def leader_line(view: SystemView) -> str:
    """Return who acts instead of this home."""
    does = "takes over should it fall silent" if view.controller == "waiting" else "does not run"
    return f"the controller on '{view.leader}' acts for all homes on this store; this home's {does}"


def _endpoint(found: EndpointView) -> list["RenderableType"]:
    from rich.text import Text

    style = _STATE_STYLE.get(found.state, "")
    head = Text.assemble((found.name, "bold"), "  ", (found.state, style), "  ", (found.url, "dim"))
    parts: list[RenderableType] = [head]
    if found.note:
        parts.append(Text(f"  {found.note}", style="yellow"))
    numbers = f"  {found.requests} requests, {found.failed} failed, {found.waiting} waiting"
    if found.p50_ms:
        numbers += f"; {found.p50_ms:.2f} ms median, {found.p95_ms:.2f} ms at 95 %"
    parts.append(Text(numbers))
    if found.scaling:
        parts.append(Text(f"  {scaling_line(found.scaling, found.current_ready)}", style="dim"))
    parts.append(_versions(found.versions))
    if found.rollout:
        parts += _rollout(found.rollout)
    elif found.last:
        last = found.last
        parts.append(Text(f"  last: {last.to.ref} {last.outcome.replace('_', ' ')}: {last.reason}", "dim"))
    for event in found.events[-_EVENTS:]:
        at = datetime.fromtimestamp(event.time).astimezone().strftime("%H:%M:%S")
        parts.append(Text(f"  {at}  {event.actor:<10}  {event.text}", "dim"))
    return [*parts, Text("")]


def scaling_line(scaling: ScalingView, ready: int) -> str:
    """Return in one line how many replicas run, how many are wanted, why, and within what bounds."""
    hurried = ", in a hurry" if scaling.is_hurried else ""
    line = (
        f"scaling: {ready} of {scaling.low} to {scaling.high} replicas run, {scaling.wanted} wanted{hurried}: "
        f"{scaling.reason}; {scaling.at_once:g} requests at once over the last minute, a replica is for "
        f"{scaling.target:g}"
    )
    return f"{line}; {scaling.granted} granted: {scaling.limit}" if scaling.limit else line


def _bar(share: float, width: int, style: str) -> "Text":
    from rich.text import Text

    filled = round(min(1.0, max(0.0, share)) * width)
    return Text.assemble(("█" * filled, style), ("░" * (width - filled), "dim"))


def _versions(versions: Sequence[VersionView]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    for _ in range(6):
        table.add_column(no_wrap=True)
    table.columns[2].min_width = _BAR
    for version in versions:
        replicas = ", ".join(f"{r.pid} {r.state}" for r in version.replicas) or "none"
        said = Text.assemble((f"pids {replicas}", "dim"), (f"  {version.error}" if version.error else "", "red"))
        table.add_row(
            f"  {version.role}",
            Text(version.ref, "bold"),
            _bar(version.share, _BAR, "yellow" if version.role == "new" else "cyan"),
            f"{version.share:.0%}",
            _answers(version),
            f"{version.ready}/{version.wanted} ready",
            said,
        )
    return table


def _answers(version: VersionView) -> "Text":
    from rich.text import Text

    if not version.requests:
        return Text("no request yet", "dim")
    failed = (f", {version.failed} failed", "red") if version.failed else ""
    return Text.assemble(f"{version.requests} answered", failed, f", {version.p95_ms:.2f} ms at 95 %")


def _rollout(rollout: RolloutView) -> list["RenderableType"]:
    from rich.table import Table
    from rich.text import Text

    steps = " → ".join(
        f"[{step:g}%]" if n == rollout.step and rollout.phase in ("canary", "switched") else f"{step:g}%"
        for n, step in enumerate(rollout.steps)
    )
    phase = rollout.phase.replace("_", " ")
    head = Text.assemble("  rollout ", (rollout.id, "bold"), f"  {rollout.base} → {rollout.to}  {phase}  {steps}")
    table = Table.grid(padding=(0, 2))
    if rollout.metrics:
        table.add_row("    judged", "bad: new / all", "tolerated", "against it", "", "for it", "", style="dim")
    for metric in rollout.metrics:
        table.add_row(
            f"    {metric.name}",
            f"{metric.bad_new:.4g} / {metric.bad_all:.4g}",
            f"{metric.bad_tolerated:.3g}",
            _bar(metric.evidence / rollout.threshold, _EVIDENCE_BAR, "red"),
            f"{metric.evidence:.3g} of {rollout.threshold:.0f}",
            _bar(metric.assurance / _ENOUGH, _EVIDENCE_BAR, "green"),
            f"{min(metric.assurance, 999):.3g} of {_ENOUGH}",
        )
    verdict = f"  judge: {rollout.verdict or 'no evidence yet'}"
    if rollout.verdict_reason:
        verdict += f" ({rollout.verdict_reason})"
    if rollout.left_s >= 0:
        verdict += f"; {format_time(rollout.left_s)} until the time limit"
    lines: list[RenderableType] = [head, table, Text(verdict)]
    if rollout.paused_by:
        lines.append(Text(f"  paused by {rollout.paused_by}: argosy resume, promote, or abort", style="bold yellow"))
    if rollout.held:
        lines.append(Text(f"  not promoted before it can be read: {rollout.held}", style="yellow"))
    if rollout.asks:
        lines.append(Text("  it waits for you: argosy rollback, or argosy promote", style="bold yellow"))
    return lines


class LineView:
    """Tells what happens to an endpoint line by line, each event once, evidence now and then."""

    def __init__(self, output: Output, after: int, *, every_s: float = 5.0) -> None:
        self._output = output
        self._after = after
        self._every_s = every_s
        self._last = 0.0
        self._from: float | None = None

    def show(self, found: EndpointView, now: float) -> None:
        """Write what is new."""
        self._from = now if self._from is None else self._from
        for event in found.events:
            if event.seq > self._after:
                self._after = event.seq
                self._output.line(f"  {now - self._from:5.1f} s  {event.text}")
                self._last = now
        if found.rollout and found.rollout.windows and now - self._last >= self._every_s:
            self._last = now
            self._output.line(f"  {now - self._from:5.1f} s  {evidence_line(found.rollout)}")


def evidence_line(rollout: RolloutView) -> str:
    """Return the evidence of a rollout in one line."""
    to = f"{rollout.share:.0%} to {rollout.to}" if rollout.share else f"{rollout.pairs} copied to {rollout.to}"
    parts = [
        f"{to}{', paused' if rollout.paused_by else ''}; against it {rollout.total:.3g} of {rollout.threshold:.0f}",
        *([f"held: {rollout.held}"] if rollout.held else []),
        *(
            f"{m.name} {m.bad_new:.3g}/{m.bad_all:.3g} bad, for it {min(m.assurance, 999):.3g} of 20"
            for m in rollout.metrics
        ),
    ]
    return "; ".join(parts)
