"""Argosy's side: one search per ask, in a process of its own, writing the same record as a peer.

`python benchmarks/compression/ours.py JOB.json` is what `compression.py` starts. This file alone knows how Argosy's
search is called; it is given what peers are given, and the test part isn't in it.
"""

import hashlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import msgspec
import numpy as np

from compression.peers import given, modules


@dataclass(frozen=True)
class Ask:
    """A budget for a model, as a user would state it."""

    name: str
    max_drop: str
    smaller: float = 0.0
    """Asked size: the original's divided by this; 0: none."""
    faster: float = 0.0
    """Asked p95 of one sample: the original's, measured here, divided by this; 0: none."""
    size: str = ""
    """Asked size, in words; empty: as `smaller` has it."""
    latency_p95: str = ""
    """Asked p95 of one sample, in words; empty: as `faster` has it."""
    time_limit: str = ""
    passes: tuple[str, ...] = ()
    """What may be tried; empty: everything."""

    def options(self, size_bytes: int, p95_s: float) -> dict[str, Any]:
        """Return the budget in the words of `[compress]`."""
        found: dict[str, Any] = {"max_drop": self.max_drop}
        found |= {"size": self.size} if self.size else {}
        found |= {"latency_p95": self.latency_p95} if self.latency_p95 else {}
        if self.smaller:
            found["size"] = f"{int(size_bytes / self.smaller / 1000)}KB"
        if self.faster:
            found["latency_p95"] = f"{p95_s / self.faster * 1e6:.0f}us"
        if self.time_limit:
            found["time_limit"] = self.time_limit
        if self.passes:
            found["passes"] = list(self.passes)
        return found


_SMALLEST = Ask("1 point, as small and fast as it gets", "1pt")
# What NNCF's accuracy control does, by the same means.
_INT8 = Ask("1 point, int8 alone", "1pt", passes=("quantize",))
_STATED = Ask("1 point, 1 MB, 2 ms", "1pt", size="1MB", latency_p95="2ms")
ASKS: dict[str, tuple[Ask, ...]] = {
    "cnn": (_SMALLEST, Ask("1 point, 10x smaller", "1pt", smaller=10), _STATED, _INT8),
    "cnn-hard": (_SMALLEST, Ask("1 point, 10x smaller", "1pt", smaller=10), _INT8),
    "minilm": (
        Ask("cosine 0.99", "1pt"),
        Ask("cosine 0.998", "0.2pt"),
        Ask("cosine 0.99, int8 alone", "1pt", passes=("quantize",)),
        Ask("cosine 0.998, int8 alone", "0.2pt", passes=("quantize",)),
    ),
    "r52": (_SMALLEST, _STATED, _INT8),
    "search20m": (Ask("1 point within 15 minutes", "1pt", time_limit="15min"),),
}


class Prepared:
    """What the search takes as a data set: the training and the validation part that peers are given too."""

    def __init__(self, job: given.Job) -> None:
        self._parts = {"train": job.train(), "validation": job.validation()}
        self.task = "classification" if job.measure == "accuracy" else "embedding"
        hashed = hashlib.sha256()
        for inputs, y in self._parts.values():
            for array in (*inputs.values(), y):
                hashed.update(np.ascontiguousarray(array).tobytes())
        self.digest = f"sha256:{hashed.hexdigest()}"

    def prepared(self, split: str) -> tuple[dict[str, np.ndarray], Any]:
        """Return a part; there is no test part."""
        inputs, y = self._parts[split]
        return inputs, (y if self.task == "classification" else None)

    def vectors(self, outputs: dict[str, np.ndarray], prepared: dict[str, np.ndarray]) -> np.ndarray:
        """Return the vectors of texts: the module makes them itself."""
        del prepared
        return next(iter(outputs.values()))


def original_p95_s(job: given.Job) -> float:
    """Return the original's p95 for one sample, measured as the search measures it."""
    from argosy.compress.measure import compare
    from argosy.formats.onnx_runtime import OnnxRunner

    runner = OnnxRunner.load(job.onnx)
    inputs, _ = job.validation()
    return compare(runner, runner, inputs, seconds=1.0, batches=(1,))[0][0].p95_s


def search(job: given.Job, ask: Ask, folder: Path, p95_s: float, say: Any) -> Any:
    """Run Argosy's search and return its result."""
    from argosy.compress.config import CompressConfig
    from argosy.compress.search import compress
    from argosy.train.config import TrainConfig

    options = ask.options(job.onnx.stat().st_size, p95_s)
    rate, batch = (3e-4, 16) if job.is_text else (2e-3, 64)
    train = TrainConfig(strategy="single", epochs=3, batch_size=batch, learning_rate=rate)
    work = folder / "search"
    work.mkdir(parents=True, exist_ok=True)
    config = msgspec.convert({**options, "seed": job.seed}, CompressConfig)
    return compress(job.onnx, modules.build(job.module), Prepared(job), config, train, work, say)


def main() -> None:
    """Make one model per ask."""
    peer = given.Peer()
    job = peer.job
    p95_s = original_p95_s(job)
    for ask in ASKS[job.model]:
        if not peer.wants(ask.name):
            continue
        with peer.variant(ask.name) as made:
            news: list[dict[str, Any]] = []
            begun = time.monotonic()

            def say(progress: Any, begun: float = begun, news: list[dict[str, Any]] = news) -> None:
                told = {"at_s": round(time.monotonic() - begun, 2), "message": progress.message}
                if "best" in progress.values:
                    told["best"] = str(progress.values["best"])
                news.append(told)
                print(f"  {told['at_s']:8.1f} s  {told['message']}  {told.get('best', '')}", flush=True)

            made.settings = ask.options(job.onnx.stat().st_size, p95_s)
            result = search(job, ask, made.folder, p95_s, say)
            _record(made, result, news)


def _record(made: given.Variant, result: Any, news: list[dict[str, Any]]) -> None:
    """Fill in what was chosen, or the nearest point when nothing keeps the budget, and what it took."""
    judged = [candidate for candidate in result.candidates if candidate.quality is not None]
    # Each candidate that was measured, and the original, went once through the validation part.
    made.evaluations = len(judged) + 1
    gaps = np.diff([0.0, *(told["at_s"] for told in news)])
    made.settings |= {
        "candidates": len(result.candidates),
        "measured": len(judged),
        "says": result.says,
        "longest silence s": round(float(gaps.max()), 1) if len(gaps) else 0.0,
        "best so far told": sum("best" in told for told in news),
        "front": [
            {"name": c.name, "quality": c.quality.value, "size": c.size_bytes, "faster": 1 / c.timings[-1].ratio}
            for c in judged
            if c.timings
        ],
    }
    found = result.chosen or result.nearest
    if found is None:
        raise RuntimeError(result.says)
    made.notes = found.name if result.chosen is not None else f"OUT OF REACH, the nearest point: {found.name}"
    made.settings["recipe"] = found.recipe
    # `openvino-bf16` is OpenVINO, allowed to compute in bfloat16; without that it is held to float32.
    made.runtime, _, precision = found.engine.partition("-")
    made.loader = (precision or "f32") if made.runtime == "openvino" else ""
    made.file = found.path
    (made.folder / "news.json").write_text(json.dumps(news) + "\n")


if __name__ == "__main__":
    main()
