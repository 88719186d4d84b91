"""The judge: the same for every contender. Size on disk, quality on the hidden test part, time beside the original's.

A contender is run in a process of its own (`peers/judge_server.py`), the original in float32 by onnxruntime in another,
and the two take turns: A B B A, the one that waits halted. A ratio is taken inside such a unit, so that whatever else
the machine does hits both.
"""

import contextlib
import json
import os
import signal
import statistics
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from serving.environments import Failed

from compression.models import Place
from compression.peers.given import cosines

PEERS = Path(__file__).parent / "peers"
BATCHES = (1, 32)
_TURN_S = 0.25
_MOST_CYCLES = 200


@dataclass
class Entry:
    """One model to judge: the original, a peer's, or ours."""

    who: str
    """The peer's name."""
    name: str
    file: str
    runtime: str
    programs: str
    """The folder of programs of its environment."""
    loader: str = ""
    seconds: float = 0.0
    cpu_s: float = 0.0
    evaluations: float = 0.0
    settings: dict[str, Any] = field(default_factory=dict)
    notes: str = ""
    failed: str = ""
    size_bytes: int = 0
    quality: float = 0.0
    agreement: float = 0.0
    units: list[dict[str, Any]] = field(default_factory=list)
    """For each unit of turns: threads, batch, ratio (original's time over this one's), and both sides' times."""


class Server:
    """A model in a process."""

    def __init__(self, entry: Entry, place: Place, threads: int) -> None:
        python = Path(entry.programs) / "python"
        command = [str(python), str(PEERS / "judge_server.py"), entry.runtime, entry.file, str(threads)]
        command += [entry.loader, str(place.given / "module.json")]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("OPENBLAS_")}
        variables["OMP_NUM_THREADS"] = str(threads)
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the process
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True, env=variables
        )
        self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Return the answer to a command; raise Failed with the process's own words."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(command) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError as error:
            raise Failed(self._last_words()) from error
        return self._answer()

    def halt(self) -> None:
        """Keep it from using any processor time."""
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Undo `halt`."""
        self.process.send_signal(signal.SIGCONT)

    def close(self) -> None:
        """End the process."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise Failed(self._last_words())
        told = json.loads(line)
        if "failed" in told:
            raise Failed(told["failed"])
        return told

    def _last_words(self) -> str:
        self.process.wait()
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
        return f"its process ended with {self.process.returncode}: {' | '.join(lines[-2:])}"[:300]


def size_of(path: Path) -> int:
    """Return the bytes of a model: with the weights beside it, as OpenVINO and ONNX with external data have them."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else []
    if path.suffix == ".onnx":
        beside = [*path.parent.glob(f"{path.name}_*"), *path.parent.glob(f"{path.name}.*")]
    return path.stat().st_size + sum(file.stat().st_size for file in beside if file.exists())


def judge_quality(entry: Entry, place: Place) -> None:
    """Fill in size, quality and agreement; a failure is noted in the entry."""
    try:
        with _opened(entry, place, 2) as server, tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "answers.npy"
            server.ask(do="answers", inputs=str(place.hidden / "test.npz"), to=str(target))
            found = np.load(target)
        entry.size_bytes = size_of(Path(entry.file))
        original = place.hidden / "original.npy"
        if entry.who == "original":
            np.save(original, found)
        with np.load(place.hidden / "test.npz") as test:
            truth = test["y"]
        entry.quality, entry.agreement = _quality(place.case.measure, found, truth, np.load(original))
    except (Failed, OSError, ValueError) as error:
        entry.failed = str(error)


def _quality(measure: str, found: np.ndarray, truth: np.ndarray, original: np.ndarray) -> tuple[float, float]:
    if found.shape != original.shape:
        raise Failed(f"its answers have the shape {found.shape} instead of {original.shape}")
    if measure == "accuracy":
        classes = found.argmax(axis=1)
        return float((classes == truth).mean()), float((classes == original.argmax(axis=1)).mean())
    return float(cosines(found, truth).mean()), float((_nearest(found) == _nearest(original)).mean())


def _nearest(vectors: np.ndarray) -> np.ndarray:
    """Which other text is nearest to each: what a search over these vectors would answer."""
    likeness = vectors @ vectors.T
    np.fill_diagonal(likeness, -np.inf)
    return likeness.argmax(axis=1)


def judge_speed(
    entry: Entry, original: Entry, place: Place, *, threads: Sequence[int], units: int, batches: Sequence[int] = BATCHES
) -> None:
    """Add units of turns beside the original to the entry; a failure is noted in it."""
    inputs = str(place.hidden / "test.npz")
    try:
        for count in threads:
            with _opened(original, place, count) as base, _opened(entry, place, count) as other:
                sides = (base, other)
                for batch in batches:
                    cycles = []
                    for side, waiting in (sides, sides[::-1]):
                        waiting.halt()
                        cycle_s = side.ask(do="warm", inputs=inputs, batch=batch)["cycle_s"]
                        waiting.go_on()
                        cycles.append(max(1, min(_MOST_CYCLES, round(_TURN_S / cycle_s))))
                    for _ in range(units):
                        entry.units.append(
                            {"threads": count, "batch": batch, **_unit(sides, batch, cycles)},
                        )
    except Failed as error:
        entry.failed = str(error)


def _unit(sides: tuple[Server, Server], batch: int, cycles: Sequence[int]) -> dict[str, Any]:
    """Take turns A B B A."""
    told: list[list[dict[str, Any]]] = [[], []]
    for at in (0, 1, 1, 0):
        waiting = sides[1 - at]
        waiting.halt()
        told[at].append(sides[at].ask(do="turn", batch=batch, cycles=cycles[at]))
        waiting.go_on()
    per_sample = [sum(t["wall_s"] for t in turns) / sum(t["samples"] for t in turns) for turns in told]
    cpu = [sum(t["cpu_s"] for t in turns) / sum(t["samples"] for t in turns) for turns in told]
    calls = [np.concatenate([t["times"] for t in turns]) for turns in told]
    return {
        "ratio": per_sample[0] / per_sample[1],
        "cpu_ratio": cpu[0] / cpu[1],
        "p50_ms": float(np.quantile(calls[1], 0.5)) * 1e3,
        "p95_ms": float(np.quantile(calls[1], 0.95)) * 1e3,
        "original_p50_ms": float(np.quantile(calls[0], 0.5)) * 1e3,
        "cpu_ms": cpu[1] * 1e3,
        "original_cpu_ms": cpu[0] * 1e3,
    }


@contextlib.contextmanager
def _opened(entry: Entry, place: Place, threads: int) -> Iterator[Server]:
    server = Server(entry, place, threads)
    try:
        yield server
    finally:
        server.close()


def median(entry: Entry, what: str, threads: int, batch: int) -> float | None:
    """Return the median of a figure over the units, None without any."""
    found = [unit[what] for unit in entry.units if (unit["threads"], unit["batch"]) == (threads, batch)]
    return statistics.median(found) if found else None
