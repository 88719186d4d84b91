"""From single measurements to tables: medians over the turns, their spread, and ratios between neighbours in time."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from serving.report import Spread, number, spread

from argosy.pipeline.report.chart import Chart, Line, picture
from training.contenders import DATA_PARALLEL, LIMIT, WHOLE
from training.network import FAST_NETWORK, SLOW_NETWORK
from training.network import TITLES as WAYS_OVER_NETWORKS
from training.tasks import TASKS, task_named

Run = Mapping[str, Any]


class Results:
    """All turns of a run."""

    def __init__(self, cells: Sequence[Mapping[str, Any]]) -> None:
        self.cells = list(cells)

    def tasks(self) -> list[str]:
        """Return the tasks that were measured, in their usual order."""
        found = {cell["task"] for cell in self.cells}
        return [task.name for task in TASKS if task.name in found] + sorted(found - {task.name for task in TASKS})

    def contenders(self, task: str) -> list[str]:
        """Return who was measured."""
        return list(dict.fromkeys(cell["contender"] for cell in self.cells if cell["task"] == task))

    def of(self, task: str, contender: str) -> dict[str, Mapping[str, Any]]:
        """Return the turns of a contender by the unit of neighbours that each belongs to."""
        return {c["unit"]: c for c in self.cells if (c["task"], c["contender"]) == (task, contender)}

    def spread(self, task: str, contender: str, field: str, *, scale: float = 1.0) -> Spread | None:
        """Return a field's spread."""
        return spread([turn[field] * scale for turn in self.of(task, contender).values()])

    def ratio(self, task: str, ours: str, theirs: str, field: str = "steps_per_s") -> Spread | None:
        """Return the spread of the ratio of a field, each taken inside one unit."""
        left, right = self.of(task, ours), self.of(task, theirs)
        return spread([left[unit][field] / right[unit][field] for unit in left if unit in right])

    def losses(self, task: str, contender: str) -> list[float]:
        """Return a contender's losses by epoch; they are the same in every turn."""
        return next((list(turn["losses"]) for turn in self.of(task, contender).values()), [])

    def reference(self, task: str) -> str:
        """Return whose losses all others' are compared with: one process on the whole batch, where it took part."""
        return WHOLE if self.of(task, WHOLE) else DATA_PARALLEL

    def differs(self, task: str, contender: str, reference: str = "") -> float | None:
        """Return the greatest difference of losses from the reference's over all epochs, as a share of the largest.

        Not of each: where a loss has become nearly 0, rounding is a large share of it.
        """
        expected = self.losses(task, reference or self.reference(task))
        pairs = list(zip(self.losses(task, contender), expected, strict=False))
        return max(abs(found - right) for found, right in pairs) / max(expected) if pairs else None


HEAD = """\
# Training, side by side

`{command}`, {date}, commit {commit}, on {machine}.
{rounds} rounds; load average {before} at the start and {after} at the end; beside what was measured the machine was
busy with {others} cores (median).

Each turn is a training by new processes, with one thread per rank; its first and its last epoch don't count. A figure
is the median of the turns, with the least and the greatest in brackets; ratios are taken between neighbours in time.
*CPU* is the processor time (user and system) of all processes of a contender per step. *How to read this* is in
`benchmarks/README.md`.
"""


def markdown(run: Run, titles: Mapping[str, str]) -> str:
    """Return the whole report."""
    results = Results(run["cells"])
    parts = [_head(run), _targets(run["targets"]), _exchange(run.get("exchange", []))]
    parts += [_task(results, name, titles) for name in results.tasks()]
    parts += [_straggler(run.get("straggler", [])), _faults(run.get("faults", [])), _network(run.get("network", []))]
    parts.append(_conditions(run, titles))
    return "\n".join(part for part in parts if part) + "\n"


def others(run: Run) -> float:
    """Return how many cores anybody else used, as a median over everything that was measured."""
    rows = [*run["cells"], *(row for name in ("exchange", "straggler", "faults") for row in run.get(name, []))]
    return statistics.median(row["others_cpu"] for row in rows) if rows else 0.0


def _head(run: Run) -> str:
    return HEAD.format(
        **{name: run[name] for name in ("command", "date", "commit", "rounds")},
        machine=", ".join(f"{name} {value}" for name, value in run["machine"].items()),
        before=run["load_average"][0],
        after=run["load_average"][1],
        others=number(others(run), 2),
    )


def _targets(targets: Sequence[Mapping[str, str]]) -> str:
    lines = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
    lines += [f"| {line['target']} | {line['measured']} | {line['verdict']} |" for line in targets]
    return "\n".join([*lines, ""])


WAYS = {
    "memcpy": "limit: both ranks copy as much at once",
    "shared": "**Argosy**: gradients lie in shared memory, each rank sums its part where all read it",
    "step": "**Argosy**, the whole step: the same, and SGD on 20 million parameters; a lost rank loses nothing",
    "transport": "**Argosy**, arrays of the ranks' own, through the shared-memory transport",
    "gloo": "torch.distributed, gloo over the loopback address",
}


def _exchange(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    times = {row["way"]: row["ms"] for row in rows}
    lines = [f"## All-reduce of {rows[0]['megabytes']} MB between two ranks of one machine", ""]
    lines += ["| | ms | of the limit's time | gloo takes |", "|---|---|---|---|"]
    for way, ms in times.items():
        slower, gloo = paired(ms, times["memcpy"]), paired(times["gloo"], ms)
        lines.append(f"| {WAYS[way]} | {_cell(spread(ms))} | {_cell(slower, suffix='x')} | {_cell(gloo, suffix='x')} |")
    return "\n".join([*lines, ""])


def paired(left: Sequence[float], right: Sequence[float]) -> Spread | None:
    """Return the spread of ratios of neighbours."""
    return spread([one / other for one, other in zip(left, right, strict=True)])


def _task(results: Results, name: str, titles: Mapping[str, str]) -> str:
    task, reference = task_named(name), results.reference(name)
    lines = [f"## {name}: {task.title}", ""]
    lines += [
        "| | steps/s | of the limit | data-parallel is | CPU ms | PSS MB | RSS MB | warm after s | losses differ by |"
    ]
    lines += ["|---|---|---|---|---|---|---|---|---|"]
    for contender in results.contenders(name):
        fields = {"steps_per_s": 1.0, "cpu_s": 1000.0, "pss_mb": 1.0, "rss_mb": 1.0, "start_s": 1.0}
        speed, *more = (results.spread(name, contender, field, scale=scale) for field, scale in fields.items())
        share = results.ratio(name, contender, LIMIT) if contender != LIMIT else None
        ratio = results.ratio(name, DATA_PARALLEL, contender) if contender != DATA_PARALLEL else None
        differs = results.differs(name, contender) if contender != reference else None
        cells = [_cell(speed), _cell(share), _cell(ratio, suffix="x"), *map(_cell, more), _difference(differs)]
        lines.append(f"| {titles[contender]} | {' | '.join(cells)} |")
    lines += ["", f"Losses are compared with those of: {titles[reference]}."]
    if task.batch_norm:
        lines.append("It has batch norm: Argosy's ranks normalize by the whole batch, its peers' each by its own part.")
    return "\n".join([*lines, ""])


def _straggler(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["## One worker of four at half speed", ""]
    lines += ["| | samples/s, all alike | with the slow one | of what three and a half could do |", "|---|---|---|---|"]
    for row in rows:
        kept = kept_with_straggler(row)
        cells = [number(row["even"]), number(row["straggling"]), number(kept)]
        lines.append(f"| {row['way']} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def kept_with_straggler(row: Mapping[str, Any]) -> float:
    """Return the share of the speed of three and a half workers that is left."""
    return float(row["straggling"] / (row["even"] * 3.5 / 4))


def _faults(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    lines = ["## A rank of two is lost", ""]
    lines += ["| | noticed after s | steps again after s | steps made twice | losses as undisturbed | started again |"]
    lines += ["|---|---|---|---|---|---|"]
    for row in rows:
        what = {"SIGKILL": "killed", "SIGSTOP": "frozen"}[row["signal"]]
        again = f"{row['replaced']} rank, {row['restarts']} times all"
        cells = [number(row["noticed_s"]), number(row["again_s"]), number(row["repeated"])]
        lines.append(
            f"| rank {row['rank']} {what} | {' | '.join(cells)} | {'yes' if row['same'] else 'no'} | {again} |"
        )
    return "\n".join([*lines, ""])


def _network(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    races = [row for row in rows if row["kind"] == "loss"]
    lines = [f"## Several hosts: {SLOW_NETWORK.name}", "", f"{task_named(SLOW_NETWORK.task).title}."]
    lines += ["Loss on held-out text of the models kept every 10 s; seconds count from the start of the processes.", ""]
    if races:
        lines += ["![loss over time](training_network.svg)", ""]
        lines += ["| seed | | steps/s | last loss | after s | DDP's last loss after s |", "|---|---|---|---|---|---|"]
    for row in races:
        at, _, loss = row["curve"][-1]
        reached = "not reached" if row["reached_s"] is None else number(row["reached_s"])
        cells = [number(row["steps_per_s"]), f"{loss:.4f}", number(at), reached]
        lines.append(f"| {row['seed']} | {WAYS_OVER_NETWORKS[row['way']]} | {' | '.join(cells)} |")
    speeds = [row for row in rows if row["kind"] == "speed"]
    if speeds:
        lines += ["", f"## Several hosts: {FAST_NETWORK.name}", "", f"{task_named(FAST_NETWORK.task).title}.", ""]
        lines += ["| | steps/s |", "|---|---|"]
        for way, title in WAYS_OVER_NETWORKS.items():
            found = spread([row["steps_per_s"] for row in speeds if row["way"] == way])
            lines.append(f"| {title} | {_cell(found)} |")
    said = {row["network"]: row["reasons"] for row in rows if row.get("reasons")}
    for name, reasons in said.items():
        lines += ["", f"What `auto` said over {name}:", "", *(f"- {reason}" for reason in reasons)]
    for row in rows:
        if row["kind"] == "cut":
            when = "not noticed" if row["noticed_s"] is None else f"noticed after {number(row['noticed_s'])} s"
            lines += ["", f"A host that was cut off was {when}: {row['says'] or '-'}"]
    control = next((row["congestion_control"] for row in rows if "congestion_control" in row), "")
    return "\n".join([*lines, "", f"TCP's congestion control: {control}.", ""])


def network_picture(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the losses over time of the first seed as SVG, or nothing."""
    races = [row for row in rows if row["kind"] == "loss"]
    if not races:
        return ""
    charts = [
        Chart(
            title=f"seed {seed}: {SLOW_NETWORK.name}",
            x_name="seconds",
            lines=[
                Line({"argosy": "Argosy", "ddp": "DDP"}[row["way"]], [(at, loss) for at, _, loss in row["curve"]])
                for row in races
                if row["seed"] == seed
            ],
        )
        for seed in sorted({row["seed"] for row in races})
    ]
    return picture(charts)


def _conditions(run: Run, titles: Mapping[str, str]) -> str:
    lines = ["## Contenders", "", "| | version | settings | |", "|---|---|---|---|"]
    for name, told in run["contenders"].items():
        lines.append(f"| {titles[name]} | {told['version']} | {told['settings']} | {told['note']} |")
    if run["failed"]:
        lines += ["", "Not measured:", ""]
        lines += [f"- {who}: {why}" for who, why in run["failed"].items()]
    return "\n".join([*lines, ""])


def _cell(value: Spread | None, *, suffix: str = "") -> str:
    return "-" if value is None else value.shown() + suffix


def _difference(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"
