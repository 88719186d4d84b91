"""A model file into another format: the plan, steps in child processes, the proof, the output at once or not at all."""

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.progress import Progress, Reporter, silent
from argosy.formats.conversion import sandbox
from argosy.formats.conversion.archives import check_safetensors, read_start
from argosy.formats.conversion.arrays import Arrays, read_answers, read_samples
from argosy.formats.conversion.graph import FORMATS, Converter, Format, find_path
from argosy.formats.conversion.halving import first_wrong
from argosy.formats.conversion.jobs import shared
from argosy.formats.conversion.locate import Difference, Step, first_difference, read_trace
from argosy.formats.conversion.placing import artifact_name, check_out, place
from argosy.formats.conversion.recognize import Source, recognize, target_of
from argosy.formats.conversion.report import ConversionReport, StepReport
from argosy.formats.conversion.sandbox import Call, Confined, Limits
from argosy.formats.conversion.tools import python_for
from argosy.formats.onnx_check import check_onnx, read_model_file
from argosy.formats.parity import ParityReport, compare_answers, cuts, tolerance_for

_ROWS = 8
# How often long work says that it goes on.
_NEWS_S = 10.0
_INPUT = re.compile(r"(?P<name>[^:]+):(?P<shape>[^:]*)(?::(?P<dtype>[a-z0-9]+))?")
_DTYPES = ("float32", "float64", "float16", "bfloat16", "int8", "uint8", "int16", "int32", "int64", "bool", "str")


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked for."""

    source: str
    """A path, or `file.py:function` for a PyTorch module."""
    out: Path
    source_format: str = ""
    """Empty: told by contents and name."""
    target_format: str = ""
    """Empty: told by the name of `out`."""
    samples: Path | None = None
    """Arrays by the names of the inputs (.npz); None: generated."""
    weights: Path | None = None
    """For a PyTorch module (.safetensors)."""
    inputs: tuple[str, ...] = ()
    """`name:shape:dtype`, for models that don't say what they take."""
    tolerance: float | None = None
    """Largest difference, as a share of an output's scale; None: by datatype."""
    limits: Limits = Limits()
    home: Path | None = None
    """Where tools are installed; None: this machine's."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What would be done."""

    request: Request
    source: Source
    target: str
    path: list[Converter]

    def lines(self) -> list[str]:
        """Return one line per step, in words."""
        return [
            f"{FORMATS.load(edge.source).title} to {FORMATS.load(edge.target).title}: {edge.does}" for edge in self.path
        ]


def plan(request: Request) -> Plan:
    """Look at the model and find the way; nothing is written and no library is loaded.

    Raises NotFound or InvalidInput for a model or request that can't be, PluginError (`missing_tool`) with the command
    that installs what is needed.
    """
    source = recognize(request.source, request.source_format)
    target = target_of(request.out, request.target_format)
    path = find_path(source.format, target)
    check_out(request.out, FORMATS.load(target), source.path)
    if request.weights is not None:
        if source.format != "pytorch":
            raise InvalidInput("--weights belongs to a PyTorch module given as file.py:function")
        read_start(request.weights)
        check_safetensors(request.weights)
    if request.tolerance is not None and not 0 <= request.tolerance < 1:
        raise InvalidInput(
            f"a tolerance is a share of the outputs' scale, from 0 to below 1; {request.tolerance} was given"
        )
    for text in request.inputs:
        parse_input(text)
    for name in (source.format, *(edge.target for edge in path)):
        python_for(FORMATS.load(name).tool, request.home)
    for edge in path:
        python_for(edge.tool, request.home)
    return Plan(request=request, source=source, target=target, path=path)


def parse_input(text: str) -> dict[str, Any]:
    """Read `name:shape:dtype`, such as `ids:batch,tokens:int64`: words are free dimensions, float32 is the default."""
    found = _INPUT.fullmatch(text)
    dtype = (found["dtype"] or "float32") if found else ""
    if found is None or dtype not in _DTYPES:
        raise InvalidInput(
            f"'{text}' is no description of an input",
            hint=f"give name:shape:datatype, such as x:batch,3,224,224:float32; datatypes are {', '.join(_DTYPES)}",
        )
    shape = [int(size) if size.strip().isdecimal() else -1 for size in found["shape"].split(",") if size.strip()]
    return {"name": found["name"], "shape": shape, "dtype": dtype}


def convert(asked: Plan, reporter: Reporter = silent) -> ConversionReport:
    """Carry out a plan: every step in a child process, proved against the original, and the output placed at the end.

    Raises InvalidInput with the code `parity` when the answers differ, naming the worst sample and the first layer that
    differs; and what the converters say. Nothing is written then, and the original is never touched.
    """
    with sandbox.work_folder() as work:
        return _Conversion(asked, work, reporter).run()


class _Conversion:
    def __init__(self, asked: Plan, work: Path, reporter: Reporter) -> None:
        self.asked = asked
        self.request = asked.request
        self.work = work
        self.tell = reporter
        self.notes: list[str] = []
        self.signature: dict[str, Any] = {}
        self.wanted: Arrays = {}
        self.samples: Arrays = {}
        self.cuts: list[slice] = []
        self.pieces = itertools.count()

    def run(self) -> ConversionReport:
        """Do it."""
        source = self.asked.source
        here, path = FORMATS.load(source.format), source.path
        config = self._source_config()
        steps = []
        for number, edge in enumerate(self.asked.path):
            self._say(f"{edge.source} to {edge.target}: {edge.does}", number)
            target = FORMATS.load(edge.target)
            if number == 0:
                made, confined = self._from_source(edge, config)
            else:
                config = {"path": str(path), "signature": self.signature}
                made, confined = self._one(edge, config, f"convert-{number}")
            if edge.target == "onnx":
                check_onnx(read_model_file(made))
            self._say(f"comparing the answers of {target.title} with the original's", number)
            limits, parity = self._parity(edge, target, made, number)
            if not parity.passed:
                self._check_original(limits)
                raise self._refusal(edge, parity, (here, config), (target, made))
            steps.append(
                StepReport(
                    source=edge.source,
                    target=edge.target,
                    does=edge.does,
                    parity=parity,
                    tolerances=limits,
                    confined=confined,
                )
            )
            here, path = target, made
        if not all(step.confined.offline for step in steps):
            self.notes.append("this kernel doesn't let an ordinary user cut a process's network; Python's was blocked")
        return place(path, self.request.out, here, lambda digests: self._report(steps, digests))

    def _report(self, steps: list[StepReport], digests: dict[str, str]) -> ConversionReport:
        return ConversionReport(
            source=self.request.source,
            source_format=self.asked.source.format,
            out=str(self.request.out),
            target_format=self.asked.target,
            digests=digests,
            inputs=self.signature["inputs"],
            samples=len(next(iter(self.samples.values()))),
            samples_from=str(self.request.samples) if self.request.samples else "generated",
            steps=steps,
            passed=True,
            notes=self.notes,
        )

    def _say(self, message: str, number: int) -> None:
        self.tell(Progress(stage="convert", message=message, done=number, total=len(self.asked.path), unit="steps"))

    def _source_config(self) -> dict[str, Any]:
        source, request = self.asked.source, self.request
        config: dict[str, Any] = {"path": str(source.path), "entry": source.entry, "rows": _ROWS}
        if request.weights is not None:
            config["weights"] = str(request.weights.absolute())
        if request.inputs:
            config["inputs"] = [parse_input(text) for text in request.inputs]
        if request.samples is not None:
            given = self.work / "given.npz"
            if not given.exists():
                shared.save(given, read_samples(request.samples))
            config["samples"] = str(given)
        return config

    def _from_source(self, edge: Converter, config: dict[str, Any]) -> tuple[Path, Confined]:
        """Ask the original what it answers, and convert it: in one process if the same tool does both."""
        here = FORMATS.load(edge.source)
        folder = self._folder("source")
        made = folder / artifact_name(edge.target)
        config |= {"folder": str(folder), "answers": str(folder / "answers")}
        calls = [Call(job=f"{here.job}:answer", config=dict(config))]
        if here.name == "onnx":
            # Converters of others don't all follow references to other files as they should.
            config["path"] = str(folder / "single.onnx")
            calls.append(Call(job="onnx_job:single", config={**calls[0].config, "single": config["path"]}))
        job = Call(job=edge.job, config={**config, "target": str(made)})
        is_one = python_for(here.tool, self.request.home) == python_for(edge.tool, self.request.home)
        ended = self._child([*calls, job] if is_one else calls, here.tool, folder)
        self.signature = ended.done[0]
        self._remember(folder)
        if is_one:
            return made, ended.confined
        return self._one(edge, {**config, "signature": self.signature}, "convert-0")

    def _remember(self, folder: Path) -> None:
        """Read what the original was asked, and answered."""
        self.samples = read_answers(folder / "samples.npz")
        self.wanted = read_answers(folder / "answers" / "answers-0.npz")
        numbers = [array for array in self.wanted.values() if array.dtype.kind == "f"]
        if any(not np.isfinite(array).all() for array in numbers):
            self.notes.append("some answers of the original are NaN or infinite; give real samples with --samples")
        elif numbers and all(len(array) > 1 and np.ptp(array, axis=0).max(initial=0) == 0 for array in numbers):
            self.notes.append(
                "the original answers all samples alike, which proves little; give real ones with --samples"
            )
        count = len(next(iter(self.samples.values())))
        is_batched = all(one["shape"][:1] == [-1] for one in self.signature["inputs"])
        self.cuts = cuts(count) if is_batched else [slice(0, count)]
        if not is_batched:
            self.notes.append(f"the batch size is frozen at {count} in the original")

    def _one(self, edge: Converter, config: dict[str, Any], name: str) -> tuple[Path, Confined]:
        folder = self._folder(name)
        made = folder / artifact_name(edge.target)
        # Converters look at samples for sizes.
        shared.save(folder / "samples.npz", self.samples)
        job = Call(job=edge.job, config={**config, "folder": str(folder), "target": str(made)})
        return made, self._child([job], edge.tool, folder).confined

    def _parity(
        self, edge: Converter, target: Format, made: Path, number: int
    ) -> tuple[dict[str, float], ParityReport]:
        try:
            answers = self._answers(target, _config_of(target, made, self.signature), f"check-{number}")
            limits = self._limits(answers[0])
            return limits, self._compared(answers, limits)
        except ArgosyError as error:
            error.message = f"the {target.title} that {edge.does} made can't be proved: {error.message}"
            raise

    def _answers(
        self, kind: Format, config: Mapping[str, Any], name: str, samples: Arrays | None = None
    ) -> list[Arrays]:
        """Return what a model answers for each batch of the check; or for some samples in one."""
        folder = self._folder(name)
        cuts = self.cuts if samples is None else [slice(0, len(next(iter(samples.values()))))]
        shared.save(folder / "given.npz", self.samples if samples is None else samples)
        asked = {
            **config,
            "folder": str(folder),
            "samples": str(folder / "given.npz"),
            "answers": str(folder / "answers"),
            "cuts": [(rows.start, rows.stop) for rows in cuts],
        }
        self._child([Call(job=f"{kind.job}:answer", config=asked)], kind.tool, folder)
        return [self._aligned(read_answers(folder / "answers" / f"answers-{at}.npz")) for at, _ in enumerate(cuts)]

    def _compared(self, answers: list[Arrays], limits: Mapping[str, float]) -> ParityReport:
        count = len(next(iter(self.samples.values())))
        return compare_answers(self.wanted, zip(self.cuts, answers, strict=True), count, tolerance=limits)

    def _aligned(self, got: Arrays) -> Arrays:
        """Return a candidate's answers under the original's names: formats rename outputs, but keep their order."""
        if set(got) == set(self.wanted) or len(got) != len(self.wanted):
            return got
        return dict(zip(self.wanted, got.values(), strict=True))

    def _limits(self, got: Arrays) -> dict[str, float]:
        if self.request.tolerance is not None:
            return dict.fromkeys(self.wanted, self.request.tolerance)
        precision = self.signature.get("precision") or "float32"
        found = {}
        for name, wanted in self.wanted.items():
            kinds = [wanted.dtype.name, got[name].dtype.name] if name in got else [wanted.dtype.name]
            # Where the model computes in less than it answers in, its own datatype decides.
            found[name] = tolerance_for(
                *kinds, *([precision] if wanted.dtype.kind == "f" and precision != "float32" else [])
            )
        return found

    def _check_original(self, limits: Mapping[str, float]) -> None:
        """Raise InvalidInput when the original itself answers a row by its batch: then nothing can be proved."""
        source = FORMATS.load(self.asked.source.format)
        answers = self._answers(source, self._source_config(), "original")
        if not self._compared(answers, limits).passed:
            raise InvalidInput(
                "the original itself answers a row differently in another batch, so nothing can be compared with it",
                hint="nothing was written; keep the rows of a batch apart in the model, and training mode out of it",
                code="rows_depend",
            )

    def _refusal(
        self,
        edge: Converter,
        parity: ParityReport,
        original: tuple[Format, Mapping[str, Any]],
        candidate: tuple[Format, Path],
    ) -> InvalidInput:
        self._say("the answers differ; looking for the first layer that does", 0)
        found = self._first_difference(edge, parity, original, candidate)
        where = (
            f"the first layer that differs is '{found.layer}' ({found.kind})"
            if isinstance(found, Difference)
            else found
        )
        return InvalidInput(
            f"the {candidate[0].title} that {edge.does} made answers differently from the original: output "
            f"'{parity.worst_output}' of sample {parity.worst_sample} is off by {parity.max_rel:.3g} of its scale, "
            f"{parity.tolerance:g} is allowed; {where}",
            hint="nothing was written; give real samples with --samples if the generated ones are unlike any input",
            code="parity",
            parity=msgspec.to_builtins(parity),
            layer=msgspec.to_builtins(found) if isinstance(found, Difference) else None,
        )

    def _first_difference(
        self,
        edge: Converter,
        parity: ParityReport,
        original: tuple[Format, Mapping[str, Any]],
        candidate: tuple[Format, Path],
    ) -> Difference | str:
        here, kind = original[0], candidate[0]
        shown = "which layer differs first can't be known: a {} doesn't show the values inside"
        if not here.is_traced:
            return shown.format(here.title)
        if not kind.is_traced and here.name != "onnx":
            return shown.format(kind.title)
        rows = self.cuts[0] if len(self.cuts) == 1 else slice(parity.worst_sample, parity.worst_sample + 1)
        samples = {name: array[rows] for name, array in self.samples.items()}
        tolerance = max(parity.tolerance, 1e-6)
        try:
            steps, values = self._traced("trace-0", here, original[1], samples)
            if kind.is_traced:
                config = _config_of(*candidate, self.signature)
                _, others = self._traced("trace-1", kind, config, samples)
                found = first_difference(steps, values, others, tolerance=tolerance)
            else:

                def piece(number: int) -> Arrays:
                    return self._piece(edge, kind, original[1], steps[number].gives, samples)

                found = first_wrong(steps, values, piece, tolerance=tolerance)
        except (ArgosyError, OSError, msgspec.MsgspecError) as error:
            return f"which layer differs first can't be known: following the models failed: {error}"
        return found or "every value inside is found on the other side, so only the outputs are mixed up"

    def _traced(self, name: str, kind: Format, config: Mapping[str, Any], samples: Arrays) -> tuple[list[Step], Arrays]:
        folder = self._folder(name)
        given = folder / "given.npz"
        shared.save(given, samples)
        asked = {**config, "folder": str(folder), "samples": str(given), "trace": str(folder / "trace")}
        self._child([Call(job=f"{kind.job}:trace", config=asked)], kind.tool, folder)
        return read_trace(folder / "trace")

    def _piece(self, edge: Converter, kind: Format, config: Mapping[str, Any], value: str, samples: Arrays) -> Arrays:
        """Convert an ONNX file up to one of its values, and return what that answers."""
        number = next(self.pieces)
        self._say(f"looking for the first layer that differs: up to '{value}'", 0)
        folder = self._folder(f"piece-{number}")
        cut = folder / "piece.onnx"
        asked = {**config, "folder": str(folder), "value": value, "piece": str(cut)}
        self._child([Call(job="onnx_job:cut", config=asked)], "", folder)
        made, _ = self._one(edge, {"path": str(cut), "signature": self.signature}, f"piece-{number}-made")
        answers = self._answers(kind, _config_of(kind, made, self.signature), f"piece-{number}-check", samples)
        return answers[0]

    def _folder(self, name: str) -> Path:
        folder = self.work / name
        folder.mkdir(mode=0o700)
        return folder

    def _child(self, calls: list[Call], tool: str, folder: Path) -> sandbox.Ended:
        python = python_for(tool, self.request.home)
        ticks = itertools.count(1)

        def tick() -> None:
            passed_s = next(ticks) * sandbox.TICK_S
            if passed_s % _NEWS_S == 0:
                self.tell(Progress(stage="convert", message=f"at it for {passed_s:.0f} s", total=len(self.asked.path)))

        return sandbox.run(calls, python=python, work=folder, limits=self.request.limits, tick=tick)


def _config_of(kind: Format, path: Path, signature: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a job needs to open an artifact of ours."""
    found: dict[str, Any] = {"path": str(path), "signature": signature}
    if kind.name == "pytorch":
        found |= {"path": str(path / "model.py"), "entry": "build"}
    if kind.name == "torchscript":
        found["inputs"] = signature["inputs"]
    return found
