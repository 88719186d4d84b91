"""The benchmark of training: its judgements are right, and a quick run gives every table."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from training import report
from training.targets import judge

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
MACHINE = {"cores": "2"}


def cell(contender, unit, steps_per_s, *, task="mlp", losses=(8.0, 7.5)):
    measured = {"steps_per_s": steps_per_s, "cpu_s": 0.2, "pss_mb": 500.0, "rss_mb": 700.0, "others_cpu": 0.0}
    return {"task": task, "contender": contender, "unit": unit, "start_s": 3.0, "losses": list(losses), **measured}


def a_run(cells, **sections):
    return {
        "command": "python benchmarks/training.py",
        "date": "now",
        "commit": "abc",
        "machine": MACHINE,
        "rounds": 1,
        "load_average": [0.1, 0.2],
        "contenders": {},
        "failed": {},
        "cells": cells,
        "targets": [],
        **sections,
    }


def verdicts(run):
    return {line["target"]: line["verdict"] for line in judge(run)}


def test_ratios_are_taken_between_neighbours_in_time():
    # The machine is half as fast in the second unit; each pair says 0.9 all the same.
    cells = [
        cell("limit", "0.0", 10.0),
        cell("argosy", "0.0", 9.0),
        cell("limit", "1.0", 5.0),
        cell("argosy", "1.0", 4.5),
    ]
    ratio = report.Results(cells).ratio("mlp", "argosy", "limit")
    assert (ratio.least, ratio.most) == (pytest.approx(0.9), pytest.approx(0.9))


@pytest.mark.parametrize(("speed", "verdict"), [(8.6, "holds"), (8.4, "**misses**")])
def test_a_share_of_the_limit_is_judged_by_its_median(speed, verdict):
    found = verdicts(a_run([cell("limit", "0.0", 10.0), cell("argosy", "0.0", speed)]))
    assert found["mlp: data-parallel at least 0.85 of the limit"] == verdict


@pytest.mark.parametrize(("last", "verdict"), [(7.5 + 1e-5, "holds"), (7.51, "**misses**")])
def test_losses_that_differ_from_those_of_ddp_are_a_miss(last, verdict):
    cells = [cell("ddp", "0.0", 5.0), cell("argosy", "0.0", 9.0, losses=(8.0, last))]
    found = verdicts(a_run(cells))
    assert found["mlp: losses of data-parallel and parameter server are DDP's to 0.0001"] == verdict


def test_nothing_is_claimed_of_what_was_not_measured():
    assert judge(a_run([])) == []
    assert judge(a_run([cell("limit", "0.0", 10.0)])) == []


def test_lost_ranks_are_judged_by_the_worst_case():
    killed = {"signal": "SIGKILL", "rank": 1, "repeated": 0.0, "same": True, "replaced": 1, "restarts": 0}
    rows = [{**killed, "noticed_s": 0.1, "again_s": 3.0, "others_cpu": 0.0}]
    rows.append({**rows[0], "again_s": 11.0})
    found = verdicts(a_run([], faults=rows))
    assert found["rank killed: noticed within 2 s"] == "holds"
    assert found["rank killed: training again within 10 s"] == "**misses**"


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_quick_run_gives_every_table(tmp_path):
    programs = str(Path(sys.executable).parent)
    command = [
        sys.executable,
        str(BENCHMARKS / "training.py"),
        "--quick",
        "--only",
        "argosy,argosy-server,limit,ddp,tiny",
    ]
    command += ["--argosy", programs, "--torch", programs, "--cache", str(tmp_path / "cache")]
    command += ["--results", str(tmp_path), "--keep"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1400, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    run = json.loads((tmp_path / "training.json").read_text())
    assert run["failed"] == {}
    assert {cell["contender"] for cell in run["cells"]} == {"argosy", "argosy-server", "limit", "ddp"}
    assert all(cell["steps_per_s"] > 0 and cell["cpu_s"] > 0 and cell["pss_mb"] > 0 for cell in run["cells"])
    assert {row["way"] for row in run["exchange"]} == {"memcpy", "shared", "step", "transport", "gloo"}
    assert {row["way"] for row in run["straggler"]} == {"synchronous", "at most 4 rounds apart", "nobody waits"}
    # What doesn't depend on how busy the machine is.
    assert verdicts(run)["tiny: losses of data-parallel and parameter server are DDP's to 0.0001"] == "holds"
    assert verdicts(run)["a lost rank changes no loss"] == "holds"
    text = (tmp_path / "training.md").read_text()
    for heading in ("## Targets", "## All-reduce", "## tiny", "## One worker of four", "## A rank of two is lost"):
        assert heading in text
    assert str(tmp_path) not in text.replace(run["command"], "").replace(run["commit"], "")
