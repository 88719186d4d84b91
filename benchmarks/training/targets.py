"""The targets, each with what was measured and whether it holds."""

from collections.abc import Mapping, Sequence
from typing import Any

from serving.report import Spread, number, spread

from training.contenders import DATA_PARALLEL, DDP, LIMIT, WHOLE
from training.network import FAST_NETWORK, SLOW_NETWORK, ratios
from training.report import Results, kept_with_straggler, paired
from training.tasks import task_named

Line = dict[str, str]
SERVER = "argosy-server"


def judge(run: Mapping[str, Any]) -> list[Line]:
    """Return every target that was measured, with its figure."""
    results = Results(run["cells"])
    mlp = [name for name in results.tasks() if name.startswith("mlp")]
    lines = [
        *_exchange(run.get("exchange", [])),
        _least(results, "mlp: data-parallel at least 0.85 of the limit", mlp, (DATA_PARALLEL, LIMIT), 0.85),
        _least(results, "mlp: parameter server, synchronous, at least 0.90 of the limit", mlp, (SERVER, LIMIT), 0.90),
        _least(results, "mlp: data-parallel at least 1.6x DDP", mlp[:1], (DATA_PARALLEL, DDP), 1.6),
        _least(results, "mlp with more to compute: faster than DDP", mlp[1:], (DATA_PARALLEL, DDP), 1.0),
        _least(results, "gpt: data-parallel at least 0.97 of the limit", ["gpt"], (DATA_PARALLEL, LIMIT), 0.97),
        *(_same(results, name) for name in results.tasks()),
        *_straggler(run.get("straggler", [])),
        *_faults(run.get("faults", [])),
        *_network(run.get("network", [])),
    ]
    return [line for line in lines if line is not None]


def _line(target: str, measured: str, *, holds: bool) -> Line:
    return {"target": target, "measured": measured, "verdict": "holds" if holds else "**misses**"}


def _exchange(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    times = {row["way"]: row["ms"] for row in rows}
    if not times:
        return []
    slower, faster = paired(times["shared"], times["memcpy"]), paired(times["gloo"], times["shared"])
    assert slower is not None
    assert faster is not None
    size = f"all-reduce of {rows[0]['megabytes']} MB, two local ranks"
    return [
        _line(f"{size}: at most 1.2x memcpy by both", f"{slower.shown()}x", holds=slower.median <= 1.2),
        _line(f"{size}: at least 6x gloo", f"{faster.shown()}x", holds=faster.median >= 6),
    ]


def _least(results: Results, target: str, tasks: Sequence[str], pair: tuple[str, str], bound: float) -> Line | None:
    """Judge the least of the ratios of several tasks, and show all of them."""
    each = {name: results.ratio(name, *pair) for name in tasks}
    found: dict[str, Spread] = {name: ratio for name, ratio in each.items() if ratio is not None}
    if not found:
        return None
    shown = "; ".join(f"{ratio.shown()}" + (f" ({name})" if len(tasks) > 1 else "") for name, ratio in found.items())
    return _line(target, shown, holds=min(ratio.median for ratio in found.values()) >= bound)


def _same(results: Results, name: str) -> Line | None:
    """Judge whether synchronous strategies learn what the same batches teach one process, or DDP."""
    task = task_named(name)
    reference = WHOLE if task.batch_norm else DDP
    ours = {who: results.differs(name, who, reference) for who in (DATA_PARALLEL, SERVER)}
    found = {who: difference for who, difference in ours.items() if difference is not None}
    if not found:
        return None
    who = "one process's on the whole batch" if task.batch_norm else "DDP's"
    return _line(
        f"{name}: losses of data-parallel and parameter server are {who} to {task.tolerance:g}",
        "; ".join(f"{difference:.0e} ({contender})" for contender, difference in found.items()),
        holds=max(found.values()) <= task.tolerance,
    )


def _straggler(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    bounded = [row for row in rows if isinstance(row["settings"].get("max_staleness"), int)]
    return [
        _line(
            f"one worker of four at half speed, {row['way']}: at least 0.85 of three and a half workers' speed",
            number(kept_with_straggler(row)),
            holds=kept_with_straggler(row) >= 0.85,
        )
        for row in bounded
    ]


def _faults(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    killed = [row for row in rows if row["signal"] == "SIGKILL"]
    frozen = [row for row in rows if row["signal"] == "SIGSTOP"]
    lines = []
    for name, rows_of, field, bound, what in (
        ("rank killed", killed, "noticed_s", 2.0, "noticed within 2 s"),
        ("rank killed", killed, "again_s", 10.0, "training again within 10 s"),
        ("rank killed", killed, "repeated", 1.0, "at most one step lost"),
        ("rank frozen", frozen, "noticed_s", 15.0, "noticed within 15 s"),
    ):
        found = spread([row[field] for row in rows_of])
        if found is not None:
            unit = " steps" if field == "repeated" else " s"
            lines.append(_line(f"{name}: {what}", found.shown() + unit, holds=found.most <= bound))
    if rows:
        same = [row["same"] for row in rows]
        lines.append(_line("a lost rank changes no loss", f"{sum(same)} of {len(same)}", holds=all(same)))
    return lines


def _network(rows: Sequence[Mapping[str, Any]]) -> list[Line]:
    found = ratios(rows)
    lines = []
    for name, bound, target in (
        ("steps", 3.5, f"{SLOW_NETWORK.name}: at least 3.5x DDP's steps per second"),
        ("time", 2.0, f"{SLOW_NETWORK.name}: DDP's last loss in at most half the time"),
        ("fast", 1.0, f"{FAST_NETWORK.name}: at least DDP's speed, with nothing chosen"),
    ):
        each = spread(found[name])
        if each is not None:
            holds = each.least >= bound and not (name == "time" and found["missed"])
            lines.append(_line(target, f"{each.shown()}x", holds=holds))
    if found["missed"]:
        seeds = ", ".join(map(str, found["missed"]))
        lines.append(_line(f"{SLOW_NETWORK.name}: reached with every seed", f"not with {seeds}", holds=False))
    if found["cut"]:
        lines.append(
            _line("host cut off: noticed within 15 s", f"{number(max(found['cut']))} s", holds=max(found["cut"]) <= 15)
        )
    return lines
