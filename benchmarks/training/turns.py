"""One turn: a contender trains a task once, in processes of its own, and is watched from outside."""

import json
import os
import re
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import fmean
from typing import Any

from serving.environments import Failed, discard
from serving.processes import Tree, busy_s

from training.contenders import Contender

TURN_S = 300.0
_LOOK_S = 0.02


@dataclass(frozen=True)
class Turn:
    """What one turn came to."""

    steps_per_s: float
    """Of the steps that count: without the first and the last epoch."""
    cpu_s: float
    """Per step: user and system, of all processes."""
    pss_mb: float
    rss_mb: float
    others_cpu: float
    """Cores that anybody else used meanwhile."""
    start_s: float
    """From the command to the end of the warm-up."""
    losses: list[float] = field(default_factory=list)
    """Mean per epoch, over all ranks."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class _Look:
    at: float
    cpu_s: float
    busy_s: float


def take(contender: Contender, python: Path, task: Path, out: Path, steps: int) -> Turn:
    """Let a contender train `task`, `steps` of them an epoch; raise Failed with its last words if it doesn't."""
    discard(out)
    out.mkdir(parents=True)
    tree = Tree()
    begun = time.monotonic()
    arguments = (json.dumps(dict(contender.train)),) if contender.is_argosy else ()
    process = tree.start(
        contender.command(python, out, task, arguments),
        _environment(contender, python) | {"BENCH_OUT": str(out), "BENCH_TASK": str(task)},
        folder=out,
        log=out / "log",
    )
    try:
        first = _await(out / "begun", process, tree, out, begun)
        last = _await(out / "ended", process, tree, out, begun)
        pss_mb, rss_mb = tree.memory_mb()
        while process.poll() is None and time.monotonic() - begun < TURN_S:
            time.sleep(_LOOK_S)
        if process.returncode:
            raise Failed(_last_words(out))
    finally:
        tree.stop()
    ranks = [json.loads(path.read_text()) for path in sorted(out.glob("rank-*.json"))]
    if not ranks:
        raise Failed(_last_words(out))
    steps_per_s = fmean(_steps_per_s(rank["ends"], steps) for rank in ranks)
    wall = last.at - first.at
    cpu = (last.cpu_s - first.cpu_s) / wall
    return Turn(
        steps_per_s=steps_per_s,
        cpu_s=cpu / steps_per_s,
        pss_mb=pss_mb,
        rss_mb=rss_mb,
        others_cpu=max(0.0, (last.busy_s - first.busy_s) / wall - cpu),
        start_s=first.at - begun,
        losses=_losses(ranks, steps),
    )


def _environment(contender: Contender, python: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "TP_SOCKET_IFNAME": "lo",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(Path(__file__).parent / "peers"),
        **contender.variables,
    }


def _await(sign: Path, process: Any, tree: Tree, out: Path, begun: float) -> _Look:
    """Wait for a sign and look at once what has been used so far."""
    while not sign.exists():
        if process.poll():
            raise Failed(_last_words(out))
        if time.monotonic() - begun > TURN_S:
            raise Failed(f"not done within {TURN_S:.0f} s; {_last_words(out)}")
        time.sleep(_LOOK_S)
    return _Look(time.monotonic(), tree.cpu_s(), busy_s())


def _steps_per_s(ends: list[float], steps: int) -> float:
    """Return the speed between the end of the first epoch and that of the last but one."""
    return steps * (len(ends) - 2) / (ends[-2] - ends[0])


def _losses(ranks: list[dict[str, Any]], steps: int) -> list[float]:
    if "epoch_losses" in ranks[0]:
        return list(ranks[0]["epoch_losses"])
    each = [fmean(losses) for losses in zip(*(rank["losses"] for rank in ranks), strict=True)]
    cuts = range(0, len(each) + 1, steps)
    return [fmean(each[start:stop]) for start, stop in pairwise(cuts)]


def _last_words(out: Path) -> str:
    """Return what a log says about an end: its errors by name, else its last lines."""
    log = out / "log"
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    named = [line for line in lines if re.match(r"(\[rank\d\]: )?[\w.]*(Error|Exception)\b", line.strip())]
    told = [line.strip() for line in named[:2] or lines[-4:] if line.strip()]
    return " | ".join(told)[:600] or "it ended without a word"
