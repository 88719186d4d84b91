"""Structures measured before they are trained: neither size nor time depends on the weights."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from argosy.compress.candidate import Candidate, Timing
from argosy.compress.passes import Bench, Model, Pass, Sketch
from argosy.compress.table import PASSES
from argosy.core.digest import digest_of
from argosy.core.files import write_atomic
from argosy.core.progress import Progress
from argosy.formats.runner import Runner, load_runner

_SKETCH_S = 0.2


class Sketches:
    """What structures will cost, each measured once, in the datatype and on the engine that were best so far."""

    def __init__(
        self,
        bench: Bench,
        measure: Callable[[Runner, float], tuple[list[Timing], list[Timing]]],
        is_promising: Callable[[Candidate], bool],
        path: Path,
        size: int,
    ) -> None:
        """`measure` times the original and a runner for some seconds; `path` is written to; `size` is the original's
        in bytes.
        """
        self._bench, self._measure, self._is_promising = bench, measure, is_promising
        self._path, self._size = path, size
        self._known: dict[str, Sketch | None] = {}

    def sketch(
        self, model: Model, name: str, settings: dict[str, Any], candidates: Sequence[Candidate]
    ) -> Sketch | None:
        """Measure what the pass `name` would make of `model`, beside the candidates so far; None where it can't."""
        step: Pass = PASSES.load(name)()
        key = digest_of([model.recipe, name, settings])
        if key not in self._known:
            self._tell(f"sketching {step.label(settings)}")
            try:
                self._known[key] = self._measured(step.draft(model, settings, self._bench), candidates)
            except Exception as error:  # noqa: BLE001 - what can't be sketched says why when it is tried
                self._tell(f"{step.label(settings)}: no sketch, {error}")
                self._known[key] = None
        found = self._known[key]
        return None if found is None else msgspec.structs.replace(found, gain=self._gain(found, candidates))

    def _tell(self, message: str) -> None:
        self._bench.report(Progress(stage="compress", message=message))

    def _gain(self, sketch: Sketch, candidates: Sequence[Candidate]) -> float:
        """How much better a sketch is than all that keeps the drop so far."""
        kept = [c.cost for c in candidates if c.status == "measured" and self._is_promising(c)]
        return min(kept, default=1.0) / (sketch.ratio * sketch.size_bytes / self._size)

    def _measured(self, draft: bytes | None, candidates: Sequence[Candidate]) -> Sketch | None:
        if draft is None:
            return None
        engine = "onnxruntime"
        write_atomic(self._path, draft)
        best = min((c for c in candidates if self._is_light(c)), key=lambda c: c.cost, default=None)
        for name, settings in best.recipe if best is not None else ():
            made = PASSES.load(name)().apply(Model(path=self._path, engine=engine), settings, self._bench)
            engine = made.engine
            write_atomic(self._path, made.onnx)
        runner = load_runner("onnx", self._path, engine=engine)
        _, timings = self._measure(runner, _SKETCH_S)
        ratio = math.prod(timing.ratio for timing in timings) ** (1 / len(timings))
        return Sketch(size_bytes=self._path.stat().st_size, p95_s=timings[0].p95_s, ratio=ratio)

    def _is_light(self, candidate: Candidate) -> bool:
        """Whether only datatypes and the engine were changed, and nothing was lost by it."""
        names = {name for name, _ in candidate.recipe}
        return candidate.status == "measured" and names <= {"quantize", "optimize"} and self._is_promising(candidate)
