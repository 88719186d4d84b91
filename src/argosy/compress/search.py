"""The search: from a budget to the passes and settings that keep it, measured on this machine.

Cheap passes come first, a try that can't end within the budget is stopped before its training, and what turned out
well is built upon. Every finished try is written down at once, so a killed search goes on where it was.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.compress.candidate import Candidate
from argosy.compress.config import CompressConfig
from argosy.compress.measure import compare
from argosy.compress.passes import Bench, Hopeless, Made, Model, Pass
from argosy.compress.quality import PreparedData, Samples
from argosy.compress.report import CompressResult
from argosy.compress.select import preference, select
from argosy.compress.table import PASSES
from argosy.core.clock import Clock, SystemClock
from argosy.core.digest import canonical, digest_of, sha256, sha256_file
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.progress import Progress, Reporter, silent
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

# Changes when a record of an earlier Argosy must not be taken for a result of this one.
_RECORDS = 1
# int8 weights are a quarter of float32; what is above four times the size can't come within it any more.
_BEST_SHRINK = 4.0
# The same for time: int8 has run at most 4x faster on the networks we measured. One more doubling for safety.
_BEST_SPEEDUP = 8.0
_QUICK_S = 0.3
_FINAL_S = 1.0
_FINALISTS = 4
# So many steps bring a network with half its channels back; more than a few hundred gain little per second.
_STEPS = 250
_MAX_EPOCHS = 30


def compress(  # noqa: PLR0917 - one call with all of them, by the stage
    original_onnx: Path,
    module: "nn.Module | None",
    dataset: PreparedData,
    config: CompressConfig,
    train: TrainConfig,
    work: Path,
    report: Reporter = silent,
    *,
    clock: Clock | None = None,
) -> CompressResult:
    """Search for the model that keeps the budget of `config` and is best by the rule of `compress.select`.

    `module` is the trained module `original_onnx` was exported from; without it only passes on the graph are tried.
    It is left unchanged. Calibration and fine-tuning use the training part of `dataset`, the choice its validation
    part; the test part is never looked at. Tries are kept in `work`, and found there again after a crash. When
    nothing keeps the budget, `chosen` is None and the result says what would have to give.
    Raises InvalidInput for an impossible budget or for data with an empty part, before anything is run.
    """
    search = _Search(original_onnx, module, dataset, config, train, work, report, clock or SystemClock())
    search.explore(search.root)
    return search.finish()


class _Search:
    def __init__(  # noqa: PLR0917 - called once, from `compress`
        self,
        path: Path,
        module: "nn.Module | None",
        dataset: PreparedData,
        config: CompressConfig,
        train: TrainConfig,
        work: Path,
        report: Reporter,
        clock: Clock,
    ) -> None:
        config.check()
        self.runner = OnnxRunner.load(path)
        samples = Samples(dataset, self.runner)
        self.config, self.budget, self.samples = config, config.budget(), samples
        self.work, self.report, self.clock = work, report, clock
        self.root = Model(path=path, module=None if module is None else lambda: module)
        self.size, self.digest = path.stat().st_size, sha256_file(path)
        self.candidates: list[Candidate] = []
        self.deadline = clock.monotonic() + self.budget.time_limit_s
        self.out_of_time = False
        named = [(PASSES.load(name)(), name) for name in config.passes]
        self.passes: list[tuple[Pass, str]] = sorted(named, key=lambda pair: pair[0].cost)
        self.bench = Bench(
            original=self.root,
            samples=samples,
            dataset=dataset,
            train=train,
            epochs=config.epochs or _epochs(samples, train),
            seed=config.seed,
            check_draft=self._check_draft,
            report=report,
        )
        self.inputs = {
            "records": _RECORDS,
            "original": self.digest,
            "data": dataset.digest,
            "train": train,
            "epochs": self.bench.epochs,
            "seed": config.seed,
        }

    def explore(self, model: Model) -> None:
        """Try every pass that can follow, as long as it has something worth trying; build upon what went well."""
        for step, name in self.passes:
            if name in model.passes or not step.accepts(model):
                continue
            tried: list[Candidate] = []
            while True:
                elsewhere = [c for c in self.candidates if c not in tried]
                settings = step.propose(model, tried, elsewhere, self.budget.max_drop)
                if settings is None:
                    break
                if self._is_late(step):
                    self.out_of_time = True
                    return
                child, candidate = self._try(model, step, name, settings)
                tried.append(candidate)
                self.candidates.append(candidate)
                self._tell(candidate)
                if child is not None and self._is_promising(candidate):
                    self.explore(child)

    def _is_late(self, step: Pass) -> bool:
        """Whether the time is over; then still a pass of seconds may follow while nothing is within the budget."""
        if self.clock.monotonic() < self.deadline:
            return False
        return step.cost > 0 or any(c.status == "measured" and not c.misses(self.budget) for c in self.candidates)

    def finish(self) -> CompressResult:
        """Measure again, longer, what could be chosen, and choose."""
        measured = [c for c in self.candidates if c.status == "measured"]
        # What is far from being chosen keeps the short measurement it has.
        again = sorted(measured, key=self._rank)[:_FINALISTS]
        final: dict[str, Candidate] = {}
        own: list[list[Any]] = []
        for number, candidate in enumerate(again):
            self.report(
                Progress(
                    stage="compress",
                    message=f"measuring {candidate.name}",
                    done=number,
                    total=len(again),
                    unit="models",
                )
            )
            mine, its = compare(
                self.runner,
                OnnxRunner.load(candidate.path),
                self.samples.validation,
                seconds=_FINAL_S,
                clock=self.clock,
            )
            own.append(mine)
            final[candidate.name] = msgspec.structs.replace(candidate, timings=its)
        candidates = [final.get(c.name, c) for c in self.candidates]
        original = self._original(own)
        selection = select(original, list(final.values()), self.budget)
        if selection.chosen is None:
            selection = select(original, candidates, self.budget)
        return CompressResult(
            budget=str(self.budget),
            max_drop=self.budget.max_drop,
            original=original,
            candidates=candidates,
            chosen=selection.chosen,
            nearest=selection.nearest,
            is_sure=selection.is_sure,
            says=selection.says,
            hint=selection.hint,
            out_of_time=self.out_of_time,
        )

    def _rank(self, candidate: Candidate) -> tuple[Any, ...]:
        # A p95 from a short measurement may be off by half; what misses by more is out.
        near = msgspec.structs.replace(self.budget, latency_p95_s=1.5 * self.budget.latency_p95_s)
        return bool(set(candidate.misses(near)) - {"not slower"}), preference(candidate, self.budget)

    def _original(self, sessions: list[list[Any]]) -> Candidate:
        if not sessions:
            sessions = [
                compare(self.runner, self.runner, self.samples.validation, seconds=_QUICK_S, clock=self.clock)[0]
            ]
        # The session in the middle: one that was disturbed by something else shall not stand for all.
        middle = sorted(sessions, key=lambda timings: timings[0].p50_s)[len(sessions) // 2]
        return Candidate(
            name="original",
            recipe=[],
            status="measured",
            file=self.root.path.name,
            folder=str(self.root.path.parent),
            digest=self.digest,
            size_bytes=self.size,
            timings=middle,
            quality=self.samples.judge(self.runner),
        )

    def _try(self, model: Model, step: Pass, name: str, settings: dict[str, Any]) -> tuple[Model | None, Candidate]:
        recipe = (*model.recipe, (name, settings))
        key = digest_of({**self.inputs, "recipe": recipe}).removeprefix("sha256:")[:24]
        known = self._recall(key)
        if known is not None:
            remake = _remake(step, model, settings, self.bench) if known.changed.get("module") else None
            found = Model(path=known.path, module=remake, recipe=recipe)
            return (found if known.status == "measured" else None), known
        self.report(Progress(stage="compress", message=f"trying {self._label(recipe)}", done=len(self.candidates)))
        begun = self.clock.monotonic()
        try:
            made = step.apply(model, settings, self.bench)
            candidate = self._judge(recipe, made, f"{key}.onnx")
        except Hopeless as news:
            # Not written down: with another budget there may be hope, and finding out was cheap.
            return None, self._unfinished(recipe, "stopped", str(news))
        except ArgosyError as error:
            candidate = self._unfinished(recipe, "failed", error.message)
        except Exception as error:  # noqa: BLE001 - libraries fail in many ways on users' models; the others may do
            failed = self._unfinished(recipe, "failed", f"{type(error).__name__}: {str(error)[:300]}")
            # Not written down: it may have been the machine, not the model.
            return None, failed
        candidate = msgspec.structs.replace(candidate, seconds=self.clock.monotonic() - begun)
        write_atomic(self.work / f"{key}.json", canonical(candidate))
        if candidate.status != "measured":
            return None, candidate
        return Model(path=candidate.path, module=_keeping(made.module), recipe=recipe), candidate

    def _judge(self, recipe: tuple[tuple[str, dict[str, Any]], ...], made: Made, file: str) -> Candidate:
        runner = OnnxRunner.load(made.onnx)
        if runner.signature.inputs != self.runner.signature.inputs:
            return self._unfinished(recipe, "failed", "the compressed model has other inputs than the original")
        quality = self.samples.judge(runner)
        _, timings = compare(self.runner, runner, self.samples.validation, seconds=_QUICK_S, clock=self.clock)
        write_atomic(self.work / file, made.onnx)
        return Candidate(
            name=self._label(recipe),
            recipe=list(recipe),
            status="measured",
            file=file,
            folder=str(self.work),
            digest=sha256(made.onnx),
            size_bytes=len(made.onnx),
            size_ratio=len(made.onnx) / self.size,
            timings=timings,
            quality=quality,
            changed={**made.changed, "module": made.module is not None},
            skipped=made.skipped,
        )

    def _unfinished(self, recipe: tuple[tuple[str, dict[str, Any]], ...], status: Any, reason: str) -> Candidate:
        return Candidate(name=self._label(recipe), recipe=list(recipe), status=status, reason=reason)

    def _recall(self, key: str) -> Candidate | None:
        try:
            found = msgspec.json.decode((self.work / f"{key}.json").read_bytes(), type=Candidate)
            found = msgspec.structs.replace(found, folder=str(self.work))
            if found.status == "measured" and sha256_file(found.path) != found.digest:
                return None
        except (OSError, msgspec.DecodeError):
            return None
        return found

    def _check_draft(self, onnx: bytes) -> None:
        """Size and time don't depend on the weights, so a draft shows both before its training."""
        later = 1.0 if "quantize" not in self.config.passes else _BEST_SHRINK
        if len(onnx) > self.budget.size_bytes * later:
            raise Hopeless(
                f"{len(onnx)} bytes before quantization are too many for a size of {self.budget.size_bytes:g}"
            )
        _, timings = compare(
            self.runner, OnnxRunner.load(onnx), self.samples.validation, seconds=_QUICK_S, clock=self.clock
        )
        later = 1.0 if "quantize" not in self.config.passes else _BEST_SPEEDUP
        if timings[0].p50_s > self.budget.latency_p95_s * later:
            raise Hopeless(f"{timings[0].p50_s * 1e3:.3g} ms for one sample are too many to come within the latency")
        # Noise among a few runs is no reason to stop; a real loss of speed is.
        if all(timing.ratio > 1.1 for timing in timings):
            raise Hopeless(f"it runs {timings[0].ratio:.1f}x as long as the original")

    def _is_promising(self, candidate: Candidate) -> bool:
        """Whether a further pass could end within the drop: no pass gives quality back."""
        quality = candidate.quality
        return quality is not None and quality.drop <= self.budget.max_drop + 2.0 / quality.items

    def _label(self, recipe: tuple[tuple[str, dict[str, Any]], ...]) -> str:
        steps = {name: step for step, name in self.passes}
        return " + ".join(steps[name].label(settings) for name, settings in recipe)

    def _tell(self, candidate: Candidate) -> None:
        fitting = [c for c in self.candidates if c.status == "measured" and not c.misses(self.budget)]
        best = min(fitting, key=lambda c: preference(c, self.budget), default=None)
        self.report(
            Progress(
                stage="compress",
                message=candidate.says(),
                done=len(self.candidates),
                unit="models",
                values={"best": best.says() if best is not None else "none within the budget yet"},
            )
        )


def _keeping(module: "nn.Module | None") -> "Callable[[], nn.Module] | None":
    return None if module is None else lambda: module


def _remake(step: Pass, model: Model, settings: dict[str, Any], bench: Bench) -> "Callable[[], nn.Module]":
    """A pass gives the same module for the same seed, so a module that died with its process can be made again."""

    def make() -> "nn.Module":
        module = step.apply(model, settings, bench).module
        assert module is not None
        return module

    return make


def _epochs(samples: Samples, train: TrainConfig) -> int:
    count = len(next(iter(samples.train.values())))
    return max(1, min(_MAX_EPOCHS, math.ceil(_STEPS * train.batch_size / count)))
