"""The sections beside the tasks: an all-reduce, a straggler, a rank that is killed or frozen.

Each is a function of what was prepared and a folder for its files, and returns rows of plain values.
"""

import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

from serving.environments import Failed, discard
from serving.processes import Tree, busy_s

from training.prepare import Prepared
from training.tasks import SLOW, WORKERS

HERE = Path(__file__).parent
MEGABYTES = 80
_LIMIT_S = 240.0
_PAUSE_S = 0.02
"""What a forward pass of the emulated accelerator takes."""
STALENESS = 4
"""How many rounds of batches a worker may be ahead of the slowest, in the section with a straggler."""

Row = dict[str, Any]


def exchange(ready: Prepared, scratch: Path, *, is_quick: bool) -> list[Row]:
    """Time an all-reduce in several ways; a time is that of the slower rank."""
    out = scratch / "exchange"
    megabytes, rounds = (8, 2) if is_quick else (MEGABYTES, 7)
    others = _run(ready, [str(HERE / "exchange.py"), str(out), str(megabytes), str(rounds)], out)
    first, second = (json.loads((out / f"rank-{rank}.json").read_text()) for rank in range(2))
    return [
        {
            "way": way,
            "megabytes": megabytes,
            "others_cpu": others,
            "ms": [1000 * max(pair) for pair in zip(times, second[way], strict=True)],
        }
        for way, times in first.items()
    ]


def straggler(ready: Prepared, scratch: Path, *, is_quick: bool) -> list[Row]:
    """Train with four workers, with and without one at half speed, by every strategy that bears it differently."""
    ways: list[tuple[str, dict[str, Any]]] = [("synchronous", {"strategy": "data-parallel"})]
    if "max_staleness" in ready.settings and "parameter-server" in ready.strategies:
        server = {"strategy": "parameter-server"}
        ways.append((f"at most {STALENESS} rounds apart", server | {"max_staleness": STALENESS}))
        ways.append(("nobody waits", server | {"max_staleness": "none"}))
    rows = []
    for way, settings in ways:
        row: Row = {"way": way, "settings": settings}
        for case in ("even", "straggling"):
            out = scratch / f"straggler-{way.replace(' ', '-')}-{case}"
            lock = str(out / "slow") if case == "straggling" else ""
            told = settings | {"workers": WORKERS, "lock": lock, "seconds": _PAUSE_S, "checkpoint_s": 3600.0}
            found = _faults(ready, out, "straggle", told | ({"epochs": 3} if is_quick else {}))
            row[case] = found["samples_per_s"]
            row["others_cpu"] = max(row.get("others_cpu", 0.0), found["others_cpu"])
        rows.append(row)
    return rows


def faults(ready: Prepared, scratch: Path, *, is_quick: bool) -> list[Row]:
    """Kill and freeze a rank of two, each one in turn."""
    cases = [("SIGKILL", 1)] if is_quick else [("SIGKILL", 0), ("SIGKILL", 1), ("SIGSTOP", 1)]
    rows = []
    for name, rank in cases:
        told = {
            "signal": name,
            "rank": rank,
            "strategy": "data-parallel",
            "workers": 2,
            "seconds": _PAUSE_S,
            "lock": "",
        }
        found = _faults(ready, scratch / f"faults-{name}-{rank}", "strike", told)
        rows.append({"signal": name, "rank": rank, **found})
    return rows


def _faults(ready: Prepared, out: Path, what: str, settings: dict[str, Any]) -> Row:
    task = str(ready.tasks[SLOW.name])
    others = _run(ready, [str(HERE / "faults.py"), str(out), task, what, json.dumps(settings)], out)
    return {**json.loads((out / "found.json").read_text()), "others_cpu": others}


def _run(ready: Prepared, arguments: list[str], out: Path) -> float:
    """Run a script in Argosy's environment to its end; return the cores that anybody else used meanwhile."""
    discard(out)
    out.mkdir(parents=True)
    tree = Tree()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    begun, busy, own = time.monotonic(), busy_s(), os.times().children_user + os.times().children_system
    python = ready.programs["argosy"] / "python"
    process = tree.start([str(python), *arguments], environment, folder=out, log=out / "log")
    try:
        code = process.wait(timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"not done within {_LIMIT_S:.0f} s") from error
    finally:
        tree.stop()
    seconds = time.monotonic() - begun
    spent = os.times().children_user + os.times().children_system - own
    if code:
        lines = [line.strip() for line in (out / "log").read_text(errors="replace").splitlines() if line.strip()]
        raise Failed(" | ".join(lines[-3:])[-600:] or f"it ended with code {code}")
    return max(0.0, busy_s() - busy - spent) / seconds


SECTIONS = {"exchange": exchange, "straggler": straggler, "faults": faults}
