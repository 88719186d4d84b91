"""Does the judge keep its promise? Simulated rollouts, many at once, and how fast bad versions are found.

    python benchmarks/rollouts.py [--repeats 2000] [--only WORD]     writes results/rollouts.{json,md}

The rules of Argo Rollouts, Flagger and Kayenta see the same requests (rollout_peers.py). Rollouts are simulated side by
side in NumPy. The arithmetic is `evaluate.judge`'s written for arrays; for every cell
the first rollouts go through the real judge as well, window by window, and must come to the same numbers. The draw is
the router's: every request is the canary's with probability `share`, whatever happens to it later.

Some kinds of rollouts go through the real controller too, one at a time, with nothing written anew: its log, its table
of moves, its routes and its judge (rollout_controller.py). That takes most of the time.
"""

import argparse
import json
import os
import platform
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import rollout_controller
from rollout_simulation import Cell, run

import argosy
from argosy.evaluate.evidence import odds
from argosy.evaluate.judge import AGREEMENT, ERRORS, LATENCY, MIRRORED_ERRORS

# --- cells ----------------------------------------------------------------------------------------------------------

ALL = (ERRORS, LATENCY, AGREEMENT, MIRRORED_ERRORS)


def good_cells() -> list[Cell]:
    """Versions that are no worse: they must not be rolled back."""
    cells = [
        Cell(f"{pattern}, {base:.1%}, {rate}/min, {minutes} min", rate, base, pattern=pattern, minutes=minutes)
        for pattern in ("independent", "bad minutes", "autocorrelated")
        for base in (0.001, 0.005, 0.05)
        for rate, minutes in ((6, 60), (60, 60), (600, 30), (6000, 30))
    ]
    cells += [
        Cell(f"{pattern}, {base:.1%}, 600/min, 60 min", 600, base, pattern=pattern, minutes=60)
        for pattern in ("batches of 8, counted once", "batches, each request counted", "drift", "hot caller, sticky")
        for base in (0.005, 0.02)
    ]
    cells.append(Cell("no errors at all, 600/min, 30 min", 600, 0.0))
    cells += [
        Cell("four metrics, tolerate 1.25, 60 min", 300, 0.01, metrics=ALL, minutes=60),
        Cell("four metrics, tolerate 1, 60 min", 300, 0.01, metrics=ALL, minutes=60, tolerate_latency=1.0),
        Cell("four metrics, cold start 3x over 2 min", 300, 0.01, metrics=ALL, cold=(2.0, 60.0)),
    ]
    return cells


def dense_cells() -> list[Cell]:
    """Windows of one second where traffic is as dense as in the demo: the promise again."""
    dense = Cell("", window_s=1, shares=(0.1, 0.25), minutes=5)
    cells = [
        replace(
            dense, name=f"1 s, {pattern}, {base:.1%}, {rate}/s", requests_per_min=rate * 60, base=base, pattern=pattern
        )
        for pattern in ("independent", "bursts", "bad minutes", "autocorrelated", "batches, each request counted")
        for base, rate in ((0.001, 100), (0.01, 300), (0.05, 100))
    ]
    cells += [
        replace(
            dense,
            name="1 s, hot caller, sticky, 1.0%, 200/s",
            requests_per_min=12000,
            base=0.01,
            pattern="hot caller, sticky",
        ),
        replace(dense, name="1 s, bursts, 60 min", requests_per_min=12000, base=0.01, pattern="bursts", minutes=60),
    ]
    four = replace(dense, requests_per_min=6000, metrics=ALL, base=0.005, warm_up_block_s=10)
    cells += [
        replace(four, name="1 s, four metrics, tolerate 1.25, block 10 s"),
        replace(four, name="1 s, four metrics, tolerate 1, block 10 s", tolerate_latency=1.0),
    ]
    # `examples/digits`: windows of half a second, 150 requests a second, its own steps, and as long as it may take.
    demo = replace(dense, window_s=0.5, shares=(0.1, 0.3, 0.5), minutes=3, requests_per_min=9000, base=0.005)
    cells += [
        replace(demo, name=f"0.5 s, {pattern}, 0.5%, 150/s", pattern=pattern)
        for pattern in ("independent", "bursts", "bad minutes", "autocorrelated", "batches, each request counted")
    ]
    cells.append(replace(demo, name="0.5 s, four metrics, tolerate 1.25, block 10 s", metrics=ALL, warm_up_block_s=10))
    return cells


def limit_cells() -> list[Cell]:
    """Where short windows stop being safe: what 10 s forgive and 1 s does not."""
    dense = Cell("", window_s=1, shares=(0.1, 0.25), minutes=5, requests_per_min=12000, base=0.005, pattern="bursts")
    cells = [
        replace(
            dense, name=f"1 s, bursts, canary's answers {delay * 1000:g} ms later, 60 min", delay_s=delay, minutes=60
        )
        for delay in (0.005, 0.02, 0.1, 0.5)
    ]
    cells += [
        replace(
            dense, name="10 s, bursts, canary's answers 500 ms later, 60 min", delay_s=0.5, window_s=10, minutes=60
        ),
    ]
    spell = replace(dense, pattern="spells", canary_replicas=(0.1, 0.3))
    cells += [
        replace(
            spell,
            name=f"{w} s windows, spells of {length:g} s, 12 an hour",
            window_s=w,
            spell=(length, 12.0),
            minutes=30,
        )
        for w, length in ((1, 0.5), (1, 1.0), (1, 2.0), (1, 5.0), (10, 0.5), (10, 5.0))
    ]
    agree = Cell("", metrics=(AGREEMENT,), requests_per_min=12000, minutes=5, window_s=1, shares=(0.1, 0.25))
    cells += [
        replace(agree, name=f"1 s, agreement, differing {d:.1%}, {pattern}", disagree=d, pattern=pattern)
        for d, pattern in ((0.02, "independent"), (0.02, "bursts"), (0.01, "bursts"), (0.01, "autocorrelated"))
    ]
    cells += [
        replace(
            agree,
            name="10 s, agreement, differing 1.0%, autocorrelated",
            disagree=0.01,
            pattern="autocorrelated",
            window_s=10,
            minutes=30,
        ),
    ]
    cold = replace(dense, pattern="independent", requests_per_min=6000, metrics=ALL, warm_up_block_s=10)
    cells += [
        replace(
            cold, name=f"1 s, block {block:g} s, cold start 3x, tau {tau:g} s", cold=(2.0, tau), warm_up_block_s=block
        )
        for block, tau in ((6, 5), (6, 20), (6, 60), (10, 20), (60, 60))
    ]
    return cells


def bad_cells() -> list[Cell]:
    """Versions that are worse: the specification's table at a share of 10 %."""
    table = {
        (0.005, 2): {60: (0.001,), 600: (0.03,), 6000: (0.68, 5.8, 38)},
        (0.005, 5): {60: (0.03,), 600: (0.74, 5.7, 10), 6000: (1.0, 1.3, 21)},
        (0.005, 20): {60: (0.72, 5.8, 4), 600: (1.0, 1.2, 8), 6000: (1.0, 0.8, 48)},
        (0.02, 2): {60: (0.014,), 600: (0.23, 6.8, 22), 6000: (1.0, 3.2, 76)},
        (0.02, 5): {60: (0.28, 6.2, 6), 600: (1.0, 2.2, 14), 6000: (1.0, 1.2, 74)},
    }
    at = Cell("", shares=(0.1,), minutes=10, only_errors_weight=0.5)
    keys = ("rolled_back_1pct", "median_min", "failed_canary_median")
    cells = [
        replace(
            at,
            name=f"{base:.1%}, {ratio}x, {rate // 10} canary requests/min",
            base=base,
            ratio=ratio,
            requests_per_min=rate,
            expect=dict(zip(keys, values, strict=False)),
        )
        for (base, ratio), row in table.items()
        for rate, values in row.items()
    ]
    alone = replace(at, only_errors_weight=0.0, base=0.005, ratio=5, requests_per_min=600)
    cells += [
        replace(alone, name="errors alone: 0.5%, 5x, 60/min", expect={"rolled_back_1pct": 0.80}),
        replace(alone, name="errors alone: 0.5%, 5x, 60/min, 15 min", minutes=15, expect={"rolled_back_1pct": 0.96}),
        replace(alone, name="errors alone: 1%, 5x, 60/min", base=0.01, expect={"rolled_back_1pct": 0.98}),
    ]
    slow = replace(at, requests_per_min=600, metrics=ALL, only_errors_weight=0.0)
    cells += [
        replace(alone, name="errors alone: 0.5%, 5x, 600/min", requests_per_min=6000),
        replace(slow, name="four metrics: 2x slower, 60/min", slower=2.0),
        replace(slow, name="four metrics: 1.5x slower, 60/min", slower=1.5),
    ]
    demo = Cell("", window_s=1, shares=(0.1, 0.25), minutes=2, requests_per_min=12000, metrics=ALL, warm_up_block_s=10)
    cells += [
        replace(demo, name="as the demo: errors on 3 % of inputs, 1 s windows", base=0.0002, ratio=150),
        replace(demo, name="as the demo: 2x slower, 1 s windows", base=0.0002, slower=2.0),
        replace(demo, name="as the demo: differs on 8 %, 1 s windows", base=0.0002, disagree=0.08),
        replace(demo, name="as the demo: good and new, differs on 0.5 %", base=0.0, disagree=0.005),
    ]
    return cells


def promotion_cells() -> list[Cell]:
    """Promotion: good versions in time, and twice as bad ones with probability at most 5 %."""
    half = Cell("", shares=(0.5,), minutes=60)
    return [
        replace(half, name="good, 2%, 600/min", base=0.02),
        replace(half, name="good, 0.01%, 600/min", base=0.0001),
        replace(half, name="twice as bad, 2%, 600/min", base=0.02, ratio=2),
        replace(half, name="twice as bad, 0.25% to 0.5%, 600/min", base=0.0025, ratio=2),
        replace(half, name="twice as bad, 2%, 600/min, bad minutes", base=0.02, ratio=2, pattern="bad minutes"),
        replace(half, name="agreement twice as bad as tolerated", metrics=(AGREEMENT,), disagree=odds(0.02, 2)),
        replace(half, name="agreement at half of what is tolerated", metrics=(AGREEMENT,), disagree=0.01),
    ]


MODES = {
    "judge told nothing, no ejection": {"is_told": False, "ejects": False},
    "ejection alone": {"is_told": False},
    "judge told alone": {"ejects": False},
    "both": {},
}


def sick_cells() -> list[Cell]:
    """Good versions of which one of the canary's replicas is sick for a minute."""
    cells = []
    for rate, fails in ((60, 1.0), (600, 1.0), (600, 0.3), (6000, 1.0), (6000, 0.3)):
        cell = Cell("", rate, 0.005, replicas=3, sick=(fails, 60.0))
        modes = MODES if rate == 600 else {name: MODES[name] for name in list(MODES)[::3]}
        cells += [
            replace(cell, name=f"one of 3 fails {fails:.0%} for 1 min, {rate}/min: {mode}", **changes)
            for mode, changes in modes.items()
        ]
    two = Cell("", 600, 0.005, replicas=2, sick=(1.0, 60.0))
    cells += [
        replace(two, name="one of 2 fails 100% for 1 min, 60/min: both", requests_per_min=60),
        replace(two, name="one of 2 fails 100% for 1 min, 600/min: both"),
        replace(two, name="nobody is sick, 3 replicas, 600/min: both", replicas=3, sick=(0.0, 0.0)),
        replace(
            two, name="nobody is sick, 3 replicas, 6000/min: both", replicas=3, sick=(0.0, 0.0), requests_per_min=6000
        ),
    ]
    return cells


def witnessed_cells() -> list[Cell]:
    """What it costs to ask the siblings: bad versions, all of whose replicas fail alike."""
    return [
        Cell(
            f"{base:.1%}, {ratio}x, {rate // 10} canary requests/min, {minutes} min, {replicas or 1} replicas",
            rate,
            base,
            ratio=ratio,
            shares=(0.1,),
            minutes=minutes,
            replicas=replicas,
        )
        for base, ratio, rate, minutes in (
            (0.005, 5, 600, 15),
            (0.01, 5, 600, 10),
            (0.02, 5, 600, 10),
            (0.005, 20, 600, 10),
            (0.005, 5, 6000, 10),
        )
        for replicas in (0, 2, 3, 4)
    ]


GROUPS: dict[str, tuple[str, Callable[[], list[Cell]]]] = {
    "good": ("False rollbacks of good versions, windows of 10 s, steps 5/25/50", good_cells),
    "dense": (
        "False rollbacks with windows of 1 s (steps 10/25, 5 minutes) and of 0.5 s (steps 10/30/50, 3 minutes)",
        dense_cells,
    ),
    "limits": ("Where short windows stop being safe (false rollbacks of good versions)", limit_cells),
    "bad": ("Bad versions found", bad_cells),
    "promotion": ("Promotion", promotion_cells),
    "sick": ("A sick replica of a good version (false rollbacks), steps 5/25/50, 30 minutes", sick_cells),
    "witnesses": ("Bad versions with several replicas: what asking the siblings costs", witnessed_cells),
}


# --- results --------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    processor = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    return {
        "processor": processor,
        "system": platform.platform(),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "argosy": argosy.__version__,
    }


def table(title: str, rows: list[dict[str, object]]) -> str:
    lines = [
        f"## {title}",
        "",
    ]
    heads = ("rollouts", "repeats", "rolled back at 1 %", "at 5 %", "median min", "failed", "promoted", "median min")
    lines.append("| " + " | ".join((*heads, "Argo Rollouts", "Flagger", "Kayenta")) + " |")
    lines.append("|---" * 11 + "|")
    for row in rows:
        shown = [row["name"], row["repeats"], *(f"{row[k]:.2%}" for k in ("rolled_back_1pct", "rolled_back_5pct"))]
        shown += ["-" if row[k] is None else f"{row[k]:.3g}" for k in ("median_min", "failed_canary_median")]
        shown += [f"{row['promoted']:.1%}"]
        shown += ["-" if row["promoted_median_min"] is None else f"{row['promoted_median_min']:.3g}"]
        shown += [_peer(row["peers"], name) for name in ("argo", "flagger", "kayenta")]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join([*lines, ""])


def _peer(peers: dict[str, dict[str, float]], name: str) -> str:
    if name not in peers:
        return "-"
    found = peers[name]
    if found["median_min"] is None:
        return "0%"
    return f"{found['rolled_back']:.1%}, {found['median_min']:g} min, {found['failed_canary_median']:g} failed"


def controller_table(rows: list[dict[str, object]]) -> str:
    """Return the rollouts that went through the real controller."""
    lines = [
        "## Through the real controller, one rollout at a time",
        "",
        "| rollouts | repeats | rolled back | median min | failed | promoted | median min |",
        "|---" * 7 + "|",
    ]
    for row in rows:
        shown = [row["name"], row["repeats"], f"{row['rolled_back']:.2%}"]
        shown += ["-" if row[k] is None else f"{row[k]:.3g}" for k in ("median_min", "failed_canary_median")]
        shown += [f"{row['promoted']:.1%}"]
        shown += ["-" if row["promoted_median_min"] is None else f"{row['promoted_median_min']:.3g}"]
        lines.append("| " + " | ".join(map(str, shown)) + " |")
    return "\n".join([*lines, ""])


def goals(results: dict[str, list[dict[str, object]]]) -> list[tuple[str, str, bool]]:
    """Return what was asked of the judge, what was found, and whether it holds."""
    rows = {row["name"]: row for group in results.values() for row in group}
    good = [row for group in ("good", "dense") for row in results[group]]
    found = []
    for alpha, key in ((0.01, "rolled_back_1pct"), (0.05, "rolled_back_5pct")):
        worst = max(good, key=lambda row: row[key])
        what = f"good versions rolled back in at most {alpha:.0%}, {len(good)} kinds of rollouts"
        found.append((what, f"{worst[key]:.2%} at most ({worst['name']})", worst[key] <= alpha))

    def share(name: str, least: float) -> None:
        row = rows[name]
        found.append(
            (f"{name}: found in {least:.0%}", f"{row['rolled_back_1pct']:.1%}", row["rolled_back_1pct"] >= least)
        )

    share("errors alone: 1%, 5x, 60/min", 0.95)
    share("2.0%, 5x, 60 canary requests/min", 0.95)
    share("errors alone: 0.5%, 5x, 60/min, 15 min", 0.95)
    share("four metrics: 2x slower, 60/min", 0.98)
    dense = rows["0.5%, 5x, 600 canary requests/min"]
    shown = f"{dense['median_min']:.2f} min, {dense['failed_canary_median']:g} failed"
    within = dense["median_min"] <= 1.5 and dense["failed_canary_median"] <= 25
    found.append(("0.5%, 5x, 600 canary requests/min: 1.5 min, 25 failed", shown, within))
    sick = [row for row in results["sick"] if "one of 3" in row["name"] and row["name"].endswith("both")]
    worst = max(sick, key=lambda row: row["rolled_back_1pct"])
    found.append(
        (
            "one sick replica of three: rolled back in at most 2%",
            f"{worst['rolled_back_1pct']:.2%} at most ({worst['name']})",
            worst["rolled_back_1pct"] <= 0.02,
        )
    )
    return found + controller_goals({row["name"]: row for row in results["controller"]})


def controller_goals(rows: dict[str, dict[str, object]]) -> list[tuple[str, str, bool]]:
    """Return the same of the rollouts that went through the real controller."""
    found = []
    for alpha in (0.01, 0.05):
        stated = f"false_alarm {alpha:.0%}"
        good = [row for name, row in rows.items() if name.startswith("good") and stated in name]
        worst = max(good, key=lambda row: row["rolled_back"])
        what = f"through the real controller: good versions rolled back in at most {alpha:.0%}, {len(good)} kinds"
        found.append((what, f"{worst['rolled_back']:.2%} at most ({worst['name']})", worst["rolled_back"] <= alpha))
    for name, row in rows.items():
        if name.startswith("5x"):
            shown = (
                f"{row['rolled_back']:.1%}, after {row['median_min']:.2f} min, {row['failed_canary_median']:g} failed"
            )
            found.append((f"through the real controller: {name}: found in 95%", shown, row["rolled_back"] >= 0.95))
    return found


def repeats_of(cell: Cell, repeats: int) -> int:
    """Return how often a cell is repeated: where every latency is drawn, or an hour has 3,600 windows, less often."""
    few = (len(cell.metrics) > 1 and cell.requests_per_min * cell.minutes > 9000) or cell.windows > 1000
    return max(200, repeats // 4) if few else repeats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=2000)
    parser.add_argument("--only", default="", help="cells whose group or name holds this; writes no results")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="cells simulated at a time")
    asked = parser.parse_args()
    work = [
        (group, cell, repeats_of(cell, asked.repeats))
        for group, (_, cells) in GROUPS.items()
        for cell in cells()
        if asked.only in group or asked.only in cell.name
    ]
    results: dict[str, list[dict[str, object]]] = {}
    # Each cell's seed is its name, so that the number of jobs changes nothing.
    with ProcessPoolExecutor(asked.jobs, mp_context=get_context("spawn")) as jobs:
        rows = jobs.map(run, [cell for _, cell, _ in work], [repeats for *_, repeats in work])
        for (group, cell, _), row in zip(work, rows, strict=True):
            results.setdefault(group, []).append(row)
            print(
                f"{row['seconds']:6.1f} s  {row['rolled_back_1pct']:7.2%} {row['rolled_back_5pct']:7.2%} "
                f"{row['median_min']} {row['failed_canary_median']} | promoted {row['promoted']:.1%} "
                f"{row['promoted_median_min']}  {row['name']}  {cell.expect or ''}",
                flush=True,
            )
        journeys = [
            one for one in rollout_controller.journeys() if asked.only in "controller" or asked.only in one.name
        ]
        for row in jobs.map(rollout_controller.run, journeys, [asked.repeats] * len(journeys)):
            results.setdefault("controller", []).append(row)
            print(
                f"{row['seconds']:6.1f} s  {row['rolled_back']:7.2%} {row['median_min']} {row['failed_canary_median']} "
                f"| promoted {row['promoted']:.1%} {row['promoted_median_min']}  {row['name']}",
                flush=True,
            )
    if asked.only:
        return
    folder = Path(__file__).parent / "results"
    folder.mkdir(exist_ok=True)
    found = {
        "machine": machine(),
        "command": f"python benchmarks/rollouts.py --repeats {asked.repeats}",
        "results": results,
    }
    (folder / "rollouts.json").write_text(json.dumps(found, indent=1) + "\n")
    text = [f"# Simulated rollouts\n\n`{found['command']}` on {', '.join(f'{k} {v}' for k, v in machine().items())}.\n"]
    text.append(
        "Beside each kind of rollout: what the rules of other tools do with the same requests (rollout_peers.py).\n"
    )
    text.append("| asked | found | holds |\n|---|---|---|")
    text[-1] += "".join(f"\n| {a} | {b} | {'yes' if c else 'NO'} |" for a, b, c in goals(results)) + "\n"
    text += [controller_table(results["controller"])]
    text += [table(title, results[group]) for group, (title, _) in GROUPS.items()]
    (folder / "rollouts.md").write_text("\n".join(text))


if __name__ == "__main__":
    main()
