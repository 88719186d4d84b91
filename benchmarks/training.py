"""Training, side by side: Argosy, its peers, and the limit, on the same models, first weights and batches.

    python benchmarks/training.py             about 80 minutes; writes results/training.{json,md}
    python benchmarks/training.py --quick     a minute or two on a tiny model; tries the benchmark, measures nothing
    python benchmarks/training.py --tune      tries every setting of every peer; writes results/training_tuning.json

Environments of the contenders are made on the first run, below `.bench/`. What is measured and how to read it:
benchmarks/README.md.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import IO, Any

from serving.environments import Failed
from serving.report import commit, machine, now
from training import report
from training.contenders import CONTENDERS, DATA_PARALLEL, DDP, LIMIT, Contender, turned
from training.network import FAST_NETWORK, Lengths, network
from training.prepare import Prepared, prepare
from training.sections import SECTIONS
from training.targets import judge
from training.tasks import FAR, QUICK, SLOW, TASKS, Task
from training.turns import take

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
TASKS_SECTION = "tasks"
NETWORK_SECTION = "network"
ALL_SECTIONS = ("exchange", TASKS_SECTION, "straggler", "faults", NETWORK_SECTION)
"""All but the tasks and the network are functions in `training.sections`."""
TITLES = {contender.name: contender.title for contender in CONTENDERS}
FIRST = (LIMIT, DATA_PARALLEL)
"""In every unit of neighbours."""
NEAR = ("argosy-server", DDP)
"""Measured in every round, in tasks of all twice; the others in every second."""
TWICE = 2
OF_ALL = ("mlp", "gpt", "resnet", QUICK.name)
"""Tasks that everybody trains; the others are for those near to the limit."""
QUICK_LENGTHS = Lengths(train_s=60.0, seeds=1, speed_s=6.0, turns=1)
LOCKED_S = 40.0
BUSY = 0.1


class Bench:
    """One run: turns of contenders, what they measured, and who failed why."""

    def __init__(self, ready: Prepared, asked: argparse.Namespace) -> None:
        self.ready, self.asked = ready, asked
        self.cells: list[dict[str, Any]] = []
        self.failed = dict(ready.failed)
        self.chosen = chosen_settings()
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.scratch = asked.cache / "scratch" / "training"
        self.lock: IO[bytes] | None = None
        self.locked = 0.0

    def run(self) -> None:
        """Measure everything that was asked for."""
        for name, section in SECTIONS.items():
            if name in self.asked.sections:
                self._do(name, lambda section=section: section(self.ready, self.scratch, is_quick=self.asked.quick))
        if TASKS_SECTION in self.asked.sections:
            for task in self.asked.tasks:
                for number in range(self.asked.rounds):
                    self._round(task, number)
        if NETWORK_SECTION in self.asked.sections:
            lengths = QUICK_LENGTHS if self.asked.quick else Lengths(60 * self.asked.minutes, self.asked.seeds)
            self._do(NETWORK_SECTION, lambda: network(self.ready, self.scratch, lengths))

    def _do(self, name: str, section: Callable[[], list[dict[str, Any]]]) -> None:
        print(f"{name} ...", flush=True)
        try:
            self._hold()
            self.found[name] = section()
        except Failed as error:
            self.failed[name] = str(error)
            print(f"{name} FAILED: {error}", flush=True)
        self._let_go()

    def tune(self) -> list[dict[str, Any]]:
        """Try every setting of every peer that has several, and return the speeds with the best of each."""
        found = []
        for task in self.asked.tasks:
            for contender in [each for each in self._wanted(task) if len(each.settings) > 1]:
                tried = {}
                for settings in contender.settings:
                    turn = self._take(turned(contender, settings), task, "tuning")
                    tried[" ".join(settings)] = turn["steps_per_s"] if turn is not None else 0.0
                best = max(tried, key=lambda words: tried[words])
                found.append({"task": task.name, "contender": contender.name, "best": best, "tried": tried})
        return found

    def _round(self, task: Task, number: int) -> None:
        """Let all take their turns, in units of neighbours that hold the limit and Argosy; A B, then B A."""
        for at, unit in enumerate(self._units(task, number)):
            for contender in unit[:: 1 if (at + number) % 2 == 0 else -1]:
                settings = self.chosen.get((task.name, contender.name), contender.settings[0])
                turn = self._take(turned(contender, settings), task, "")
                if turn is not None:
                    labels = {"task": task.name, "contender": contender.name, "unit": f"{number}.{at}"}
                    self.cells.append({**labels, **turn})

    def _units(self, task: Task, number: int) -> Iterator[list[Contender]]:
        wanted = self._wanted(task)
        first = [contender for contender in wanted if contender.name in FIRST]
        near = [contender for contender in wanted if contender.name in NEAR]
        far = [] if number % 2 else [each for each in wanted if each not in first and each not in near]
        times = TWICE if task.name in OF_ALL and not self.asked.quick else 1
        pairs = [far[start : start + 2] for start in range(0, len(far), 2)]
        return (first + others for others in [*[near] * times, *pairs])

    def _wanted(self, task: Task) -> list[Contender]:
        near = (*FIRST, *NEAR)
        return [
            contender
            for contender in CONTENDERS
            if contender.name in self.asked.contenders
            and contender.name not in self.failed
            and f"{contender.name}, {task.name}" not in self.failed
            and (task.name in OF_ALL or contender.name in near)
        ]

    def _take(self, contender: Contender, task: Task, why: str) -> dict[str, Any] | None:
        who = f"{contender.name}, {task.name}"
        folder, out = self.ready.tasks[task.name], self.scratch / contender.name
        try:
            self._hold()
            turn = take(contender, self.ready.python(contender), folder, out, task.steps).as_dict()
        except (Failed, OSError) as error:
            print(f"{who} {' '.join(contender.settings[0])} FAILED: {error}", flush=True)
            if not why:
                self.failed[who] = str(error)
            return None
        finally:
            if time.monotonic() - self.locked > LOCKED_S:
                self._let_go()
        print(
            f"{task.name:14}{contender.name:15}{turn['steps_per_s']:8.2f} steps/s  CPU {1000 * turn['cpu_s']:7.1f} ms"
            f"  PSS {turn['pss_mb']:5.0f} MB  others {turn['others_cpu']:.2f} cores"
            f"  loss {turn['losses'][-1]:.6f}  {why} {' '.join(contender.settings[0])}",
            flush=True,
        )
        return turn

    def _hold(self) -> None:
        """Take the lock, if there is one to take and it isn't held."""
        if self.asked.lock is not None and self.lock is None:
            self.lock = self.asked.lock.open("ab")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.locked = time.monotonic()

    def _let_go(self) -> None:
        if self.lock is not None:
            self.lock.close()
            self.lock = None


def chosen_settings() -> dict[tuple[str, str], tuple[str, ...]]:
    """Return the settings by task and peer: the best that `--tune` has found, or else the first that is usable."""
    path = RESULTS / "training_tuning.json"
    found = json.loads(path.read_text())["found"] if path.exists() else []
    return {(each["task"], each["contender"]): tuple(each["best"].split()) for each in found}


def needed_by_network(asked: argparse.Namespace) -> list[Task]:
    """Return the tasks that the network's section trains."""
    if NETWORK_SECTION not in asked.sections:
        return []
    return [FAR, *(task for task in TASKS if task.name == FAST_NETWORK.task and task not in asked.tasks)]


def told_of(bench: Bench) -> dict[str, Any]:
    """Return for each contender that was measured its version, settings and what a reader must know."""
    told = {}
    for contender in CONTENDERS:
        tasks = {cell["task"] for cell in bench.cells if cell["contender"] == contender.name}
        if not tasks:
            continue
        found = bench.ready.versions[contender.environment]
        names = ["argosy" if contender.is_argosy else "", *(each.partition("[")[0] for each in contender.packages)]
        version = ", ".join(f"{name} {found.get(name, '')}" for name in (*filter(None, names), "torch"))
        several = contender.settings if len(contender.settings) > 1 else ()
        chosen = {task: bench.chosen.get((task, contender.name), contender.settings[0]) for task in sorted(tasks)}
        settings = "; ".join(f"{task}: {' '.join(words)}" for task, words in chosen.items() if several)
        told[contender.name] = {"version": version, "settings": settings, "note": contender.note}
    return told


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="contenders and tasks to take, with commas: argosy,limit,ddp,mlp")
    parser.add_argument("--sections", default=",".join(ALL_SECTIONS), help="parts to run (default: all): %(default)s")
    parser.add_argument(
        "--rounds", type=int, default=2, help="turns of those near to Argosy, half as many of the others (%(default)s)"
    )
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="of DDP's training over a slow network (%(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="trainings over a slow network (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, one round: tries the benchmark itself")
    parser.add_argument("--tune", action="store_true", help="try every setting of every peer instead of comparing")
    parser.add_argument(
        "--argosy",
        default=str(ROOT),
        help="tree or requirement to install as Argosy, or the bin folder of an environment that has it "
        "(default: this tree)",
    )
    parser.add_argument("--torch", default="", help="bin folder of an environment for peers that need only PyTorch")
    parser.add_argument("--cache", type=Path, default=ROOT / ".bench", help="environments, tasks, logs (.bench)")
    parser.add_argument("--lock", type=Path, help="a file to hold an exclusive lock on (flock) while anything runs")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where a complete run is kept (%(default)s)")
    parser.add_argument("--keep", action="store_true", help="keep the results of an incomplete run too")
    asked = parser.parse_args()
    asked.cache = asked.cache.resolve()
    if asked.quick:
        asked.rounds = 1
    words = [word for word in asked.only.split(",") if word]
    known, tasks = [contender.name for contender in CONTENDERS], [QUICK] if asked.quick else list(TASKS)
    asked.sections = asked.sections.split(",")
    names = {*known, *(task.name for task in tasks)}
    if unknown := [w for w in words if w not in names] + [s for s in asked.sections if s not in ALL_SECTIONS]:
        parser.error(
            f"unknown: {', '.join(unknown)}; known are {', '.join(sorted(names))}, "
            f"and the parts {', '.join(ALL_SECTIONS)}"
        )
    asked.contenders = [word for word in words if word in known] or known
    asked.tasks = [task for task in tasks if task.name in words] or tasks
    return asked


def interrupted(number: int, _: FrameType | None) -> None:
    """End through the `finally` of the running turn, so that nothing is left running."""
    sys.exit(128 + number)


def main() -> None:
    """Prepare, measure in rounds, judge, print, and keep the results of a complete run."""
    asked = options()
    signal.signal(signal.SIGTERM, interrupted)
    load_before = os.getloadavg()[0]
    wanted: Sequence[Contender] = [contender for contender in CONTENDERS if contender.name in asked.contenders]
    try:
        tasks = [*asked.tasks, SLOW, *needed_by_network(asked)]
        ready = prepare(asked.cache, tasks, wanted, source=asked.argosy, plain=asked.torch, is_quick=asked.quick)
    except Failed as error:
        raise SystemExit(f"the benchmark can't be prepared: {error}") from error
    bench = Bench(ready, asked)
    shared: dict[str, Any] = {
        "command": "python " + shlex.join(["benchmarks/training.py", *sys.argv[1:]]),
        "date": now(),
        "commit": commit(ROOT) if asked.argosy == str(ROOT) else asked.argosy,
        "machine": machine(),
        "rounds": asked.rounds,
    }
    if asked.tune:
        (RESULTS / "training_tuning.json").write_text(json.dumps({**shared, "found": bench.tune()}, indent=1) + "\n")
        return
    bench.run()
    run: dict[str, Any] = {
        **shared,
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "contenders": told_of(bench),
        "versions": ready.versions,
        "failed": bench.failed,
        "cells": bench.cells,
        **bench.found,
    }
    run["targets"] = judge(run)
    text = report.markdown(run, TITLES)
    print("\n" + text)
    if not asked.keep and (asked.only or asked.quick or sorted(asked.sections) != sorted(ALL_SECTIONS)):
        print(f"not a complete run: {asked.results} is left as it is")
        return
    if not asked.keep and report.others(run) > BUSY:
        print(
            f"others took {report.others(run):.2f} cores of this machine (median; {BUSY} are allowed), which hurts "
            f"ranks that wait for each other most: {asked.results} is left as it is; measure again when it is quiet"
        )
        return
    asked.results.mkdir(exist_ok=True, parents=True)
    (asked.results / "training.json").write_text(json.dumps(run, indent=1) + "\n")
    (asked.results / "training.md").write_text(text)
    if drawing := report.network_picture(run.get(NETWORK_SECTION, [])):
        (asked.results / "training_network.svg").write_text(drawing)


if __name__ == "__main__":
    main()
