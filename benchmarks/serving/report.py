"""From single measurements to tables: medians over the turns, their spread, and ratios inside the same turn."""

import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from serving.models import MODELS

Row = dict[str, Any]
"""One measurement: section, model, contender, connections, round, and the fields of a Cell."""

TABLE, BATCHING, SCALING = "table", "batching", "scaling"


@dataclass(frozen=True)
class Spread:
    """A median and the least and greatest of the rounds."""

    median: float
    least: float
    most: float
    rounds: int

    def shown(self, digits: int = 3) -> str:
        """Return it as people read it."""
        if self.rounds == 1 or number(self.least, digits) == number(self.most, digits):
            return number(self.median, digits)
        return f"{number(self.median, digits)} ({number(self.least, digits)} to {number(self.most, digits)})"


def number(value: float, digits: int = 3) -> str:
    """Return a number with so many significant digits and no exponent.

    >>> number(12345.6), number(0.012345), number(12.0)
    ('12,346', '0.0123', '12')
    """
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def spread(values: Sequence[float]) -> Spread | None:
    """Return the spread of some values; None of none."""
    return Spread(statistics.median(values), min(values), max(values), len(values)) if values else None


class Results:
    """All rows of a run."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = list(rows)

    def contenders(self, section: str, model: str) -> list[str]:
        """Return who was measured, in the order of the first round."""
        return list(dict.fromkeys(r["contender"] for r in self.rows if (r["section"], r["model"]) == (section, model)))

    def connections(self, section: str, model: str) -> list[int]:
        """Return the numbers of connections that were measured."""
        return sorted({r["connections"] for r in self.rows if (r["section"], r["model"]) == (section, model)})

    def of(self, section: str, model: str, contender: str, connections: int) -> dict[str, Row]:
        """Return the measurements of one cell by round."""
        wanted = (section, model, contender, connections)
        return {
            r["round"]: r for r in self.rows if (r["section"], r["model"], r["contender"], r["connections"]) == wanted
        }

    def spread(self, section: str, model: str, contender: str, connections: int, field: str) -> Spread | None:
        """Return a field's spread over the rounds."""
        return spread([row[field] for row in self.of(section, model, contender, connections).values()])

    def ratio(
        self, section: str, model: str, ours: str, theirs: str, connections: int, *, theirs_at: int = 0
    ) -> Spread | None:
        """Return the spread of the ratio of requests a second, each taken inside one round."""
        left = self.of(section, model, ours, connections)
        right = self.of(section, model, theirs, theirs_at or connections)
        return spread([left[at]["per_s"] / right[at]["per_s"] for at in left.keys() & right.keys()])


def machine() -> dict[str, str]:
    """Return what the figures depend on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": cpu[0].partition(":")[2].strip() if cpu else platform.processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory": f"{memory:.0f} GiB",
        "system": platform.platform(),
        "python": platform.python_version(),
    }


def commit(root: Path) -> str:
    """Return the commit that was measured, and whether the tree differs from it in what is measured."""
    try:
        told = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--", "src", "benchmarks", "pyproject.toml"],
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    edited = [line for line in changed.stdout.splitlines() if "benchmarks/results/" not in line]
    return told.stdout.strip() + (" with changes" if edited else "")


def now() -> str:
    """Return the date and time in UTC."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def markdown(run: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """Return the whole report."""
    results = Results(run["cells"])
    parts = [_head(run), _targets(run["targets"])]
    parts += [
        _main_table(run, results, model.name, model.what, titles)
        for model in MODELS
        if results.connections(TABLE, model.name)
    ]
    parts += [_batching(results), _scaling(results), _conditions(run, titles)]
    return "\n".join(part for part in parts if part) + "\n"


HEAD = """\
# Serving, side by side

`{command}`, {date}, commit {commit}, on {machine}.
Argosy and each other contender were measured in turns of {seconds:g} s, {rounds} of each, twice as many of those
that are close; load average {before} at the start and {after} at the end; beside server and client the machine was busy
with {others} cores (median).

Each figure is a median, with the least and the greatest in brackets; ratios are taken between neighbours in time.
*CPU ms* is the processor time (user and system) of all processes of a server for each request it answered: on a machine
that others use it is steadier than requests a second. The client runs on the same cores and takes its
part of them from every contender alike; it isn't counted. *How to read this* is in `benchmarks/README.md`.
"""

APART = """\
One replica: all of Argosy on one core and the client on the other. Two replicas: all of Argosy on both cores, where the
client takes its part too. So the case of one core is the favoured one. Beside it the same for the runtime alone: what
the machine gives.
"""


def _head(run: Mapping[str, Any]) -> str:
    return HEAD.format(
        **{name: run[name] for name in ("command", "date", "commit", "rounds", "seconds")},
        machine=", ".join(f"{name} {value}" for name, value in run["machine"].items()),
        before=run["load_average"][0],
        after=run["load_average"][1],
        others=number(statistics.median([row["others_cpu"] for row in run["cells"] or [{"others_cpu": 0.0}]]), 2),
    )


def _targets(targets: Sequence[Mapping[str, str]]) -> str:
    lines = ["## Targets", "", "| target | measured | |", "|---|---|---|"]
    lines += [f"| {line['target']} | {line['measured']} | {line['verdict']} |" for line in targets]
    return "\n".join([*lines, ""])


def _main_table(run: Mapping[str, Any], results: Results, model: str, what: str, titles: Mapping[str, str]) -> str:
    lines = [f"## {model}: {what}", ""]
    for connections in results.connections(TABLE, model):
        lines += [f"### {connections} connection{'s' * (connections != 1)}", ""]
        lines += ["| | req/s | Argosy is | p50 ms | p99 ms | CPU ms | PSS MB | RSS MB | refused, broken |"]
        lines += ["|---|---|---|---|---|---|---|---|---|"]
        for name in results.contenders(TABLE, model):
            rows = results.of(TABLE, model, name, connections)
            if not rows:
                continue
            shown = {
                field: results.spread(TABLE, model, name, connections, field)
                for field in ("per_s", "p50_ms", "p99_ms", "cpu_ms", "pss_mb", "rss_mb")
            }
            ratio = results.ratio(TABLE, model, "argosy", name, connections) if name != "argosy" else None
            wrong = sum(row["refused"] for row in rows.values()), sum(row["broken"] for row in rows.values())
            lines.append(
                f"| {titles[name]} | {_cell(shown['per_s'])} | {_cell(ratio, suffix='x')} | {_cell(shown['p50_ms'])} "
                f"| {_cell(shown['p99_ms'])} | {_cell(shown['cpu_ms'])} | {_cell(shown['pss_mb'])} "
                f"| {_cell(shown['rss_mb'])} | {'-' if wrong == (0, 0) else f'{wrong[0]}, {wrong[1]}'} |"
            )
        lines.append("")
    lines += ["| | seconds from start to first right answer |", "|---|---|"]
    for name in results.contenders(TABLE, model):
        started = spread([s["seconds"] for s in run["starts"] if (s["contender"], s["model"]) == (name, model)])
        if started is not None and name != "limit":
            lines.append(f"| {titles[name]} | {started.shown()} |")
    return "\n".join([*lines, ""])


def _cell(value: Spread | None, *, suffix: str = "") -> str:
    return "-" if value is None else value.shown() + suffix


def _batching(results: Results) -> str:
    found = results.connections(BATCHING, "minilm")
    if not found:
        return ""
    lines = ["## Batching never hurts: minilm, batches as calibrated against batches of one", ""]
    lines += ["| connections | calibrated req/s | unbatched req/s | ratio | calibrated p50 ms | unbatched p50 ms |"]
    lines += ["|---|---|---|---|---|---|"]
    for connections in found:
        per_s, p50 = (
            [results.spread(BATCHING, "minilm", name, connections, field) for name in ("argosy", "unbatched")]
            for field in ("per_s", "p50_ms")
        )
        ratio = results.ratio(BATCHING, "minilm", "argosy", "unbatched", connections)
        shown = [*per_s, ratio, *p50]
        lines.append(f"| {connections} | {' | '.join(map(_cell, shown))} |")
    return "\n".join([*lines, ""])


def _scaling(results: Results) -> str:
    models = [model.name for model in MODELS if results.connections(SCALING, model.name)]
    if not models:
        return ""
    lines = ["## From one core to two", ""]
    lines += [
        APART,
        "| model | one core req/s | two cores req/s | ratio | ratio of the runtime alone |",
        "|---|---|---|---|---|",
    ]
    for model in models:
        (connections,) = results.connections(SCALING, model)
        one, two = (results.spread(SCALING, model, name, connections, "per_s") for name in ("one-core", "two-cores"))
        ratio = results.ratio(SCALING, model, "two-cores", "one-core", connections)
        bare = results.ratio(SCALING, model, "limit-two", "limit-one", connections)
        lines.append(f"| {model} | {_cell(one)} | {_cell(two)} | {_cell(ratio)} | {_cell(bare)} |")
    return "\n".join([*lines, ""])


def _conditions(run: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    lines = ["## Contenders", "", "| | version | settings | |", "|---|---|---|---|"]
    for name, told in run["contenders"].items():
        settings = "; ".join(
            f"{model}: {', '.join(f'{k} {v}' for k, v in chosen.items())}" for model, chosen in told["settings"].items()
        )
        lines.append(f"| {titles[name]} | {told['version']} | {settings} | {told['note']} |")
    if run["failed"]:
        lines += ["", "Not measured:", ""]
        lines += [f"- {who}: {why}" for who, why in run["failed"].items()]
    return "\n".join([*lines, ""])
