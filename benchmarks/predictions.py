"""Do predictions of trainings hold? Each is measured for seconds, predicted, then run, by one process and by two.

    python benchmarks/predictions.py [--only NAME] [--rounds N]      writes results/predictions.{json,md}

Predicted and found: seconds of a step (without the first epoch, in which memory is asked for, and the last, at whose
end weights are written), of the whole training from the start of its processes, and the memory of all its processes at
its height. The share of the cores that others used is told beside it: a prediction is of a machine that stays as busy
as it was when it was measured.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

import argosy
from argosy.cluster.local import LocalLauncher
from argosy.core.clock import SystemClock
from argosy.core.machine import worked_s
from argosy.data.config import DataConfig
from argosy.data.dataset import build_dataset
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training
from argosy.train.measure import measure
from argosy.train.predict import Prediction, Terms, predictions

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
ALLOWED = 0.20


@dataclass(frozen=True)
class Task:
    """One training."""

    name: str
    title: str
    model: ModelConfig
    train: dict[str, Any]
    data: dict[str, Any] = field(default_factory=dict)


TASKS = (
    Task(
        "mlp",
        "perceptron 1000-2000-3000-4000, 20 million parameters, SGD, random inputs",
        ModelConfig(family="mlp", options={"hidden": [2000, 3000]}),
        {"optimizer": "sgd", "learning_rate": 1e-2, "epochs": 3},
        {"label": "label"},
    ),
    Task(
        "resnet",
        "ResNet on scikit-learn's digits (8x8), AdamW",
        ModelConfig(family="resnet"),
        {"epochs": 5},
        {"label": "label"},
    ),
    Task(
        "gpt",
        "GPT of 0.9 million parameters (width 128, 4 blocks) on the bytes of this project's manual, AdamW",
        ModelConfig(family="gpt", options={"width": 128, "layers": 4, "heads": 4}),
        {"epochs": 4, "batch_size": 16},
        {"task": "language-model", "tokenizer": "bytes", "context": 128},
    ),
)
WAYS = (("single", 1), ("data-parallel", 2))


@dataclass(frozen=True)
class Row:
    """One training, predicted and run."""

    task: str
    way: str
    predicted: dict[str, float]
    found: dict[str, float]
    others_cores: tuple[float, float]
    """Cores that others used while it was measured, and while it ran."""

    def off(self, name: str) -> float:
        """Return by what share the prediction is above (or below) what was found."""
        return self.predicted[name] / self.found[name] - 1


def write_data(task: Task, folder: Path) -> DataConfig:
    """Write the data of a task into `folder`."""
    draw = np.random.default_rng(0)
    if task.name == "gpt":
        pages = sorted((ROOT / "docs" / "how-to").glob("*.md"))
        (folder / "text.txt").write_text("\n\n".join(page.read_text() for page in pages))
        return DataConfig(train="text.txt", **task.data)
    if task.name == "mlp":
        # Each of 4,000 classes, so that there are as many outputs; a part of them is kept for validation and test.
        labels = np.tile(np.arange(4000), 3)[:12000]
        np.savez(folder / "data.npz", x=draw.normal(size=(12000, 1000)).astype(np.float32), label=labels)
        return DataConfig(train="data.npz", validation=0.33, test_share=0.33, **task.data)
    with np.load(ROOT / "examples" / "mlp" / "digits.npz") as digits:
        images = np.round(digits["pixels"].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
        np.savez(folder / "data.npz", image=images, label=digits["label"])
    return DataConfig(train="data.npz", **task.data)


class Watch:
    """Looks at all processes below this one, and at what the machine does."""

    def __init__(self) -> None:
        self.most_bytes = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Self:
        self._begun, self._worked, self._own = time.monotonic(), worked_s(), os.times()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        now = os.times()
        own = sum(now[:4]) - sum(self._own[:4])
        self.seconds = time.monotonic() - self._begun
        self.others_cores = max(0.0, (worked_s() - self._worked - own) / self.seconds)

    def _look(self) -> None:
        while not self._is_over.wait(0.2):
            # What one process shares with strangers' is its own all the same; several share with each other.
            pids = _children()
            counted = "Rss:" if len(pids) == 1 else "Pss:"
            self.most_bytes = max(self.most_bytes, sum(_memory_of(pid, counted) for pid in pids))


def _children() -> list[int]:
    found = Path(f"/proc/{os.getpid()}/task").glob("*/children")
    return [int(pid) for path in found for pid in path.read_text().split()]


def _memory_of(pid: int, counted: str) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(counted)), 0)


def run_task(task: Task, folder: Path) -> list[Row]:
    """Measure a task once, then run it each way."""
    dataset = build_dataset(write_data(task, folder), folder)
    dataset.save(folder / "dataset")
    clock = SystemClock()
    train = TrainConfig(workers=2, **task.train)
    launcher = LocalLauncher(folder / "processes", clock)
    with Watch() as measuring:
        found = measure(folder / "dataset", task.model, train, folder, "benchmark", launcher=launcher, clock=clock)
    ways = predictions(found, Terms.of(train, found))
    print(f"{task.name}: measured in {found.seconds:.0f} s; others used {measuring.others_cores:.1f} cores", flush=True)
    rows = []
    for strategy, workers in WAYS:
        asked = msgspec.structs.replace(train, strategy=strategy, workers=workers)
        way = max((w for w in ways if (w.strategy, w.workers) == (strategy, workers)), key=lambda w: w.threads)
        with Watch() as running:
            result = run_training(folder / "dataset", task.model, asked, folder, folder / strategy)
        row = Row(
            task=task.name,
            way=way.named,
            predicted={"step_s": way.step_s, "total_s": way.total_s, "memory": float(way.host_bytes)},
            found={
                "step_s": _step_s(result.history, found.steps_per_epoch, way),
                "total_s": running.seconds,
                "memory": running.most_bytes,
            },
            others_cores=(measuring.others_cores, running.others_cores),
        )
        rows.append(row)
        print(f"  {_line(row)}", flush=True)
    return rows


def _step_s(history: list[dict[str, Any]], steps: int, way: Prediction) -> float:
    """Return the seconds of a step in the epochs between the first and the last, without what validation takes."""
    ends = [entry["seconds"] for entry in history]
    epoch_s = (ends[-2] - ends[0]) / (len(ends) - 2)
    validation_s = way.epoch_s - steps * way.step_s
    return max(1e-9, epoch_s - validation_s) / steps


def _line(row: Row) -> str:
    return f"{row.way}: " + ", ".join(
        f"{name} {row.predicted[name]:.4g} predicted, {row.found[name]:.4g} found ({row.off(name):+.0%})"
        for name in row.found
    )


def _table(rows: list[Row]) -> str:
    lines = [
        "| training | way | step: predicted, found | in all | memory | others' cores |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        p, f = row.predicted, row.found
        lines.append(
            f"| {row.task} | {row.way} "
            f"| {p['step_s'] * 1e3:.1f} ms, {f['step_s'] * 1e3:.1f} ms ({row.off('step_s'):+.0%}) "
            f"| {p['total_s']:.1f} s, {f['total_s']:.1f} s ({row.off('total_s'):+.0%}) "
            f"| {p['memory'] / 1e6:.0f} MB, {f['memory'] / 1e6:.0f} MB ({row.off('memory'):+.0%}) "
            f"| {row.others_cores[0]:.1f}, {row.others_cores[1]:.1f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[task.name for task in TASKS])
    parser.add_argument("--rounds", type=int, default=1)
    given = parser.parse_args()
    rows: list[Row] = []
    for task in TASKS:
        if given.only not in (None, task.name):
            continue
        for _ in range(given.rounds):
            with tempfile.TemporaryDirectory(prefix="argosy-predictions-") as folder:
                rows += run_task(task, Path(folder))
    print(_table(rows))
    if given.only is None:
        _write(rows)
    worst = max(abs(row.off(name)) for row in rows for name in ("total_s", "memory"))
    print(f"worst: {worst:.0%} off; allowed are {ALLOWED:.0%}")
    return int(worst > ALLOWED)


def _write(rows: list[Row]) -> None:
    machine = {"machine": platform.platform(), "cores": len(os.sched_getaffinity(0)), "argosy": argosy.__version__}
    (RESULTS / "predictions.json").write_text(
        json.dumps({**machine, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
    )
    titles = "\n".join(f"- **{task.name}**: {task.title}" for task in TASKS)
    off = [abs(row.off(name)) for row in rows for name in ("step_s", "total_s", "memory")]
    (RESULTS / "predictions.md").write_text(
        f"# Predictions of trainings\n\n`python benchmarks/predictions.py`, {machine['cores']} cores, "
        f"{machine['machine']}. Median error {statistics.median(off):.0%}, largest {max(off):.0%}.\n\n{titles}\n\n"
        f"{_table(rows)}\n\nOthers' cores: what everything else on the machine used while it was measured, and while "
        "it ran.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
