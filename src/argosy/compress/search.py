"""The search: from a budget to the passes and settings that keep it, measured on this machine.

Cheap passes come first: datatypes and engines of the original say what this machine is good at. Then structures are
sketched, measured untrained in seconds, and only those within size and latency are trained; what turned out well is
quantized in its turn. Every finished try is written down at once, so a killed search goes on where it was.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.compress.candidate import Candidate, Timing
from argosy.compress.config import CompressConfig
from argosy.compress.lessons import Lesson
from argosy.compress.measure import BATCHES, batches_for, compare
from argosy.compress.passes import LONGER, Bench, Hopeless, Model, Pass, Sketch, SoFar, named_settings
from argosy.compress.quality import PreparedData, Samples
from argosy.compress.report import CompressResult
from argosy.compress.select import preference, select
from argosy.compress.sketching import Sketches
from argosy.compress.table import PASSES
from argosy.compress.teaching import TRIALS
from argosy.compress.tries import Tries, label
from argosy.core.clock import Clock, SystemClock
from argosy.core.digest import sha256_file
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress, Reporter, silent
from argosy.data.text import ATTENTION_MASK
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.runner import Answering, Runner, load_runner
from argosy.train.config import TrainConfig

if TYPE_CHECKING:
    from torch import nn

# int8 weights are a quarter of float32; what is above four times the size can't come within it any more.
_BEST_SHRINK = 4.0
# The same for time: int8 has run at most 4x faster on the networks we measured. One more doubling for safety.
_BEST_SPEEDUP = 8.0
_QUICK_S = 0.3
_FINAL_S = 1.0
_FINALISTS = 6
# What a fine-tuning may take, of texts and of others; one for long takes four times as much. With a limit for all, a
# share of that.
_TEXT_TRAINING_S, _TRAINING_S = 180.0, 60.0
_SHARE = 0.1
# Making and judging a model adds to what its training takes.
_LATENESS = 1.25
# A training that loses more than so many times the bound after a share of it is given up; of bounds below half a point
# half a point counts. While it learns in large steps it errs so many times as often as it will: where the original
# errs often, that is more than any bound (a student that ended with fewer errors than the original's 14 % had 37 % at
# a quarter of its training).
_PATIENCE = dict(zip(TRIALS, (10.0, 6.0, 4.0), strict=True))
_STILL_ERRS = dict(zip(TRIALS, (2.0, 1.0, 0.5), strict=True))
_NOISE = 0.005
# So many standard errors of what a glance at it tells are to its favour.
_DOUBT = 2.0
_BATCH_SIZE = 32
# Settings that say how much goes: who gives one of them does not also want what the others usually are.
_AMOUNTS = {"ratio", "blocks", "heads", "embeddings", "sparsity", "threshold"}
# Encoders and decoders forget at rates that small networks need.
_RATE, _TEXT_RATE = 2e-3, 2e-4


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
    search = Search(original_onnx, module, dataset, config, train, work, report, clock or SystemClock())
    search.explore(search.root)
    return search.finish()


def apply_passes(  # noqa: PLR0917 - one call with all of them, by the command
    original_onnx: Path,
    module: "nn.Module | None",
    dataset: PreparedData,
    config: CompressConfig,
    train: TrainConfig,
    work: Path,
    recipe: Sequence[tuple[str, dict[str, Any]]],
    report: Reporter = silent,
    *,
    clock: Clock | None = None,
) -> CompressResult:
    """Apply passes one after the other, each with its own defaults where a setting is not given, and measure each.

    `chosen` is the last, whatever the budget says; it is None where a pass fails, and `says` tells why. Otherwise as
    `compress`.
    """
    for name, settings in recipe:
        # Before the original is measured, which takes a while.
        named_settings(settings, PASSES.load(name)().usual)
    search = Search(original_onnx, module, dataset, config, train, work, report, clock or SystemClock())
    return search.follow(recipe)


class Search:
    """One search: what is asked, what was tried, what may come next."""

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
        batches = batches_for(self.runner, samples.validation)
        self.timing: dict[str, Any] = {} if batches == BATCHES else {"batches": batches}
        self.report, self.clock = report, clock
        self.root = Model(path=path, module=None if module is None else lambda: module)
        self.size, self.digest = path.stat().st_size, sha256_file(path)
        self.candidates: list[Candidate] = []
        self.deadline = clock.monotonic() + self.budget.time_limit_s
        self.out_of_time = False
        named = [(PASSES.load(name)(), name) for name in config.passes]
        self.passes: list[tuple[Pass, str]] = sorted(named, key=lambda pair: _turn(pair[0]))
        lesson = _lesson(config, train, samples, self.budget.time_limit_s)
        self.bench = Bench(
            original=self.root,
            runner=self.runner,
            samples=samples,
            lesson=lesson,
            seed=config.seed,
            check_draft=self._check_draft,
            check_student=self._check_student,
            report=report,
        )
        inputs = {"original": self.digest, "data": dataset.digest, "lesson": lesson, "seed": config.seed}
        self.tries = Tries(work, inputs, self.budget.max_drop, lambda runner: self._measured(runner, _QUICK_S), clock)
        self.sketches = Sketches(self.bench, self._measured, self._is_promising, work / "sketch.onnx", self.size)

    def explore(self, model: Model) -> None:
        """Try every pass that can follow, as long as it has something worth trying; build upon what went well."""
        for step, name in self.passes:
            if name in model.passes or step.rank < self._rank_of(model) or not step.accepts(model):
                continue
            tried: list[Candidate] = []
            while True:
                if self._is_late(step):
                    self.out_of_time = True
                    return
                so_far = SoFar(
                    tried=tried,
                    elsewhere=[c for c in self.candidates if c not in tried],
                    budget=self.budget,
                    sketch=functools.partial(self.sketch, model, name),
                )
                settings = step.propose(model, so_far)
                if settings is None:
                    break
                if not self._fits(step):
                    self.out_of_time = True
                    break
                child, candidate = self.tries.make(model, name, settings, self.bench, len(self.candidates))
                tried.append(candidate)
                self.candidates.append(candidate)
                self._tell(candidate)
                if child is not None and self._is_promising(candidate):
                    self.explore(child)

    def follow(self, recipe: Sequence[tuple[str, dict[str, Any]]]) -> CompressResult:
        """Do what is asked for, without a search."""
        model, says, hint = self.root, "", ""
        # Who asks for a pass gets it, hopeless or not.
        self.bench = msgspec.structs.replace(self.bench, check_draft=lambda _: None, check_student=lambda *_: None)
        for name, settings in recipe:
            step: Pass = PASSES.load(name)()
            if not step.accepts(model):
                raise InvalidInput(
                    f"{name} can't be applied to {label(model.recipe) or 'this model'}",
                    hint="int8 graphs can't be cut, and every pass is applied once: put quantize and optimize last",
                )
            default = step.default(model)
            if _AMOUNTS & set(settings):
                default = {key: value for key, value in default.items() if key not in _AMOUNTS}
            asked = {**default, **settings}
            child, candidate = self.tries.make(model, name, asked, self.bench, len(self.candidates))
            self.candidates.append(candidate)
            self._tell(candidate)
            if child is None:
                says, hint = f"{candidate.name}: {candidate.reason}", "try other settings, or another pass"
                break
            model = child
        last = self.candidates[-1] if self.candidates and not says else None
        found = self.finish()
        if last is not None:
            last = next(c for c in found.candidates if c.name == last.name)
            says = last.says()
        return msgspec.structs.replace(found, chosen=last, nearest=None, says=says, hint=hint)

    def _rank_of(self, model: Model) -> int:
        """The highest rank of the passes so far, plus one where a pass of that rank may not come twice."""
        ranks = {name: step.rank for step, name in self.passes}
        return max((ranks[name] + 1 for name, _ in model.recipe), default=0)

    def sketch(self, model: Model, name: str, settings: dict[str, Any]) -> Sketch | None:
        """Measure a structure untrained; None where it can't be made."""
        return self.sketches.sketch(model, name, settings, self.candidates)

    def _is_late(self, step: Pass) -> bool:
        """Whether the time is over; then still a pass of seconds may follow while nothing is within the budget."""
        if self.clock.monotonic() < self.deadline:
            return False
        return step.cost > 0 or any(c.status == "measured" and not c.misses(self.budget) for c in self.candidates)

    def _fits(self, step: Pass) -> bool:
        """Whether a training would end in time, and leave some for the last measurements."""
        if step.cost == 0:
            return True
        planned_s = self.bench.lesson.seconds * (1 if step.cost == 1 else LONGER)
        spare_s = min(_SHARE * self.budget.time_limit_s, 2 * _FINALISTS * _FINAL_S)
        return self.clock.monotonic() + _LATENESS * planned_s + spare_s <= self.deadline

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
            mine, its = self._measured(_runner_of(candidate), _FINAL_S)
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
            sessions = [self._measured(self.runner, _QUICK_S)[0]]
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
            quality=self.samples.own(),
        )

    def _measured(self, runner: Runner, seconds: float) -> tuple[list[Timing], list[Timing]]:
        """Time the original and another, in turns."""
        return compare(self.runner, runner, self.samples.validation, seconds=seconds, clock=self.clock, **self.timing)

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

    def _check_student(self, student: Answering, share: float) -> None:
        """Most of what is lost comes back early in a training."""
        drop, error = self.samples.glimpse(student)
        patience = _PATIENCE[share] * max(self.budget.max_drop, _NOISE) + _STILL_ERRS[share] * self.samples.own_error
        if drop - _DOUBT * error > patience:
            raise Hopeless(f"after {share:.0%} of its training it still lost {drop * 100:.1f} points", drop)

    def _is_promising(self, candidate: Candidate) -> bool:
        """Whether a further pass could end within the drop: no pass gives quality back."""
        quality = candidate.quality
        return quality is not None and quality.drop <= self.budget.max_drop + 2.0 / quality.items

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


def _turn(step: Pass) -> tuple[int, int]:
    """When a pass is tried: cheap ones first; engines before datatypes, since they are tried again where they gain."""
    return step.cost, -step.rank if step.cost == 0 else step.rank


def _runner_of(candidate: Candidate) -> Runner:
    return load_runner("onnx", candidate.path, engine=candidate.engine)


def _lesson(config: CompressConfig, train: TrainConfig, samples: Samples, limit_s: float) -> Lesson:
    is_text = ATTENTION_MASK in samples.train
    own = train.optimizer in ("adam", "adamw") and train != TrainConfig()
    return Lesson(
        epochs=config.epochs,
        seconds=min(_TEXT_TRAINING_S if is_text else _TRAINING_S, _SHARE * limit_s),
        batch_size=train.batch_size if train != TrainConfig() else _BATCH_SIZE,
        learning_rate=train.learning_rate if own else _TEXT_RATE if is_text else _RATE,
        seed=config.seed,
    )
