"""What every peer's script is given, and how it says what it made. Needs numpy only.

A peer is started as `python PEER.py JOB.json`. The job names the ONNX file, the training part (for calibration and
training), the validation part (for tools that judge by themselves) and a folder to write to. The test part isn't in it.
"""

import contextlib
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
CALIBRATION = 256
"""Samples to calibrate on, the same for all tools (NNCF's own default is 300)."""


class Job:
    """The task of a peer."""

    def __init__(self, path: Path) -> None:
        told = json.loads(path.read_text())
        self.model: str = told["model"]
        self.measure: str = told["measure"]
        """accuracy, or cosine to the original's vectors."""
        self.is_text: bool = told["is_text"]
        self.onnx = Path(told["onnx"])
        self.module: dict[str, Any] = told["module"]
        self.max_drop: float = told["max_drop"]
        self.bounds = [bound for bound in (self.max_drop, told.get("tight_drop", 0.0)) if bound]
        self.wanted: list[str] = told.get("variants", [])
        """Only variants whose name has one of these in it; empty: all."""
        self.is_quick: bool = told["is_quick"]
        self.seed: int = told["seed"]
        self.out = Path(told["out"])
        self._train, self._validation = Path(told["train"]), Path(told["validation"])

    def train(self) -> tuple[Arrays, np.ndarray]:
        """Return the training part: inputs by name, and labels (or the original's vectors)."""
        return _load(self._train)

    def validation(self) -> tuple[Arrays, np.ndarray]:
        """Return the validation part."""
        return _load(self._validation)

    def calibration(self, batch: int = 32) -> list[Arrays]:
        """Return batches of the same random training samples for every tool; texts of like lengths together."""
        inputs, _ = self.train()
        count = len(next(iter(inputs.values())))
        chosen = np.random.default_rng(self.seed).permutation(count)[:CALIBRATION]
        return list(batches({name: array[chosen] for name, array in inputs.items()}, batch))

    def quality(self, answers: np.ndarray, truth: np.ndarray) -> float:
        """Return the accuracy, or the mean cosine to the original's vectors."""
        return quality(self.measure, answers, truth)


def quality(measure: str, answers: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of right classes, or the mean cosine."""
    if measure == "accuracy":
        return float((answers.argmax(axis=1) == truth).mean())
    return float(cosines(answers, truth).mean())


def cosines(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return each row's cosine; 0 for a row that is not of finite numbers."""
    left, right = left.astype(np.float64), right.astype(np.float64)
    found = (left * right).sum(axis=1) / (np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1) + 1e-30)
    return np.nan_to_num(found, nan=0.0)


def _load(path: Path) -> tuple[Arrays, np.ndarray]:
    with np.load(path, allow_pickle=False) as found:
        return {name: found[name] for name in found.files if name != "y"}, found["y"]


def trimmed(inputs: Arrays) -> Arrays:
    """Cut padding that all rows have behind their ends."""
    if "attention_mask" not in inputs:
        return inputs
    longest = max(1, int(inputs["attention_mask"].sum(axis=1).max()))
    return {name: np.ascontiguousarray(array[:, :longest]) for name, array in inputs.items()}


def order_of(inputs: Arrays) -> np.ndarray:
    """Return row numbers, texts by length."""
    if "attention_mask" in inputs:
        return np.argsort(inputs["attention_mask"].sum(axis=1), kind="stable")
    return np.arange(len(next(iter(inputs.values()))))


def batches(inputs: Arrays, size: int) -> Iterator[Arrays]:
    """Yield all rows, texts of like lengths together and without needless padding."""
    order = order_of(inputs)
    for start in range(0, len(order), size):
        yield trimmed({name: array[order[start : start + size]] for name, array in inputs.items()})


def answers(run: Callable[[Arrays], np.ndarray], inputs: Arrays, size: int = 32) -> np.ndarray:
    """Return a model's first output for all rows, in their order."""
    parts = np.concatenate([np.asarray(run(batch)) for batch in batches(inputs, size)])
    found = np.empty_like(parts)
    found[order_of(inputs)] = parts
    return found


class Variant:
    """One model that a peer makes; the script fills it in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: Path | None = None
        """A file, or a folder with everything that must be shipped."""
        self.runtime = "onnxruntime"
        """onnxruntime, openvino or torch."""
        self.loader = ""
        """For torch: `module:function` in this folder that makes a callable of the file and the job's module."""
        self.settings: dict[str, Any] = {}
        self.evaluations = 0.0
        """Passes over the validation part that the tool made."""
        self.notes = ""


class Peer:
    """Collects what a script makes, and writes record.json after each."""

    def __init__(self) -> None:
        self.job = Job(Path(sys.argv[1]))
        self.made: list[dict[str, Any]] = []

    @contextlib.contextmanager
    def variant(self, name: str) -> Iterator[Variant]:
        """Time the body; an error in it is this variant's alone. A body that is not wanted still runs: see `wants`."""
        folder = self.job.out / name.replace(" ", "-").replace("/", "-").replace("+", "and")
        folder.mkdir(parents=True, exist_ok=True)
        made = Variant(folder)
        wall, cpu = time.monotonic(), _cpu()
        failed = ""
        print(f"{self.job.model}: {name} ...", flush=True)
        try:
            yield made
            if made.file is None or not made.file.exists():
                failed = "no file was made"
        except Exception as error:  # noqa: BLE001 - whatever a tool raises is its reason
            traceback.print_exc()
            failed = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        self.made.append(
            {
                "name": name,
                "file": str(made.file) if made.file else "",
                "runtime": made.runtime,
                "loader": made.loader,
                "settings": made.settings,
                "evaluations": made.evaluations,
                "notes": made.notes,
                "failed": failed,
                "seconds": time.monotonic() - wall,
                "cpu_s": _cpu() - cpu,
            }
        )
        (self.job.out / "record.json").write_text(json.dumps(self.made, indent=1) + "\n")
        print(f"{self.job.model}: {name}: {failed or 'made'}", flush=True)

    def wants(self, name: str) -> bool:
        """Whether this variant was asked for."""
        return not self.job.wanted or any(word in name for word in self.job.wanted)


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
