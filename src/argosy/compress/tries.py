"""Tries: what a pass makes of a model, judged and timed beside the original, and written down at once."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.compress.candidate import Candidate, Timing
from argosy.compress.passes import Bench, Hopeless, Made, Model, Settings
from argosy.compress.table import PASSES
from argosy.core.clock import Clock
from argosy.core.digest import canonical, digest_of, sha256, sha256_file
from argosy.core.errors import ArgosyError
from argosy.core.files import write_atomic
from argosy.core.progress import Progress
from argosy.formats.runner import Runner, load_runner

if TYPE_CHECKING:
    from torch import nn

# Changes when a record of an earlier Argosy must not be taken for a result of this one.
_RECORDS = 4
_LONG_S = 3.0

Recipe = tuple[tuple[str, Settings], ...]


class Tries:
    """All that was tried on one original with one set of data, by a search or by one that was killed."""

    def __init__(
        self,
        work: Path,
        depends_on: dict[str, Any],
        max_drop: float,
        measure: Callable[[Runner], tuple[list[Timing], list[Timing]]],
        clock: Clock,
    ) -> None:
        """`depends_on` is all that a try depends on beside its recipe; `measure` times the original and a runner."""
        self._work, self._depends_on, self._max_drop = work, {"records": _RECORDS, **depends_on}, max_drop
        self._measure, self._clock = measure, clock

    def make(
        self, model: Model, name: str, settings: Settings, bench: Bench, number: int
    ) -> tuple[Model | None, Candidate]:
        """Apply a pass by its name, or find what came of it before; the model is None where nothing did.

        `number` is how many tries of the search came before. Raises nothing: what was stopped or has failed says why.
        """
        recipe = (*model.recipe, (name, settings))
        key = digest_of({**self._depends_on, "recipe": recipe}).removeprefix("sha256:")[:24]
        # What was given up with this bound might do with another.
        stopped = f"{key}-{self._max_drop:g}"
        known = self._recall(key) or self._recall(stopped)
        if known is not None:
            module = _of_file(known.path) if known.changed.get("module") else None
            found = Model(path=known.path, module=module, recipe=recipe, engine=known.engine)
            return (found if known.status == "measured" else None), known
        bench.report(Progress(stage="compress", message=f"trying {label(recipe)}", done=number))
        begun = self._clock.monotonic()
        try:
            made = PASSES.load(name)().apply(model, settings, bench)
            candidate = self._judge(recipe, made, f"{key}.onnx", bench)
        except Hopeless as news:
            candidate = _unfinished(recipe, "stopped", str(news))
            if news.drop:
                candidate = msgspec.structs.replace(
                    candidate, given_up=news.drop, seconds=self._clock.monotonic() - begun
                )
                write_atomic(self._work / f"{stopped}.json", canonical(candidate))
            # Else not written down: with another budget there may be hope, and finding out was cheap.
            return None, candidate
        except ArgosyError as error:
            candidate = _unfinished(recipe, "failed", error.message)
        except Exception as error:  # noqa: BLE001 - libraries fail in many ways on users' models; the others may do
            failed = _unfinished(recipe, "failed", f"{type(error).__name__}: {str(error)[:300]}")
            # Not written down: it may have been the machine, not the model.
            return None, failed
        candidate = msgspec.structs.replace(candidate, seconds=self._clock.monotonic() - begun)
        write_atomic(self._work / f"{key}.json", canonical(candidate))
        if candidate.status != "measured":
            return None, candidate
        module = _keeping(made.module)
        return Model(path=candidate.path, module=module, recipe=recipe, engine=made.engine), candidate

    def _judge(self, recipe: Recipe, made: Made, file: str, bench: Bench) -> Candidate:
        runner = load_runner("onnx", made.onnx, engine=made.engine)
        if [spec.name for spec in runner.signature.inputs] != [spec.name for spec in bench.runner.signature.inputs]:
            return _unfinished(recipe, "failed", "the compressed model has other inputs than the original")
        # Answers are the same on all cores; times are taken on one.
        is_long = bench.samples.seconds > _LONG_S
        quality = bench.samples.judge(
            load_runner("onnx", made.onnx, threads=0, engine=made.engine) if is_long else runner
        )
        _, timings = self._measure(runner)
        write_atomic(self._work / file, made.onnx)
        return Candidate(
            name=label(recipe),
            recipe=list(recipe),
            status="measured",
            file=file,
            folder=str(self._work),
            digest=sha256(made.onnx),
            engine=made.engine,
            size_bytes=len(made.onnx),
            size_ratio=len(made.onnx) / bench.original.path.stat().st_size,
            timings=timings,
            quality=quality,
            changed={**made.changed, "module": made.module is not None},
            skipped=made.skipped,
        )

    def _recall(self, key: str) -> Candidate | None:
        try:
            found = msgspec.json.decode((self._work / f"{key}.json").read_bytes(), type=Candidate)
            found = msgspec.structs.replace(found, folder=str(self._work))
            if found.status == "measured" and sha256_file(found.path) != found.digest:
                return None
        except (OSError, msgspec.DecodeError):
            return None
        return found


def _unfinished(recipe: Recipe, status: Any, reason: str) -> Candidate:
    return Candidate(name=label(recipe), recipe=list(recipe), status=status, reason=reason)


def label(recipe: Sequence[tuple[str, Settings]]) -> str:
    """Return a recipe in words."""
    return " + ".join(PASSES.load(name)().label(settings) for name, settings in recipe)


def _keeping(module: "nn.Module | None") -> "Callable[[], nn.Module] | None":
    return None if module is None else lambda: module


def _of_file(path: Path) -> "Callable[[], nn.Module]":
    """The module of a finished try whose process has died: its file is turned into one."""

    def make() -> "nn.Module":
        from argosy.formats.onnx_module import to_module

        return to_module(path)

    return make
