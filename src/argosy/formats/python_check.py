"""What a model of one's own is and whether it answers sanely: the job that runs in a child process before a deployment.

The code is the user's, so it is run as a replica would run it: from the bytes that were hashed, in a confined process.
"""

import sys
from collections import ChainMap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from argosy.cluster.confinement import confine
from argosy.core.config import Config, from_plain
from argosy.core.digest import canonical, sha256
from argosy.core.errors import ArgosyError, IntegrityError, InvalidInput, Refused, Unavailable
from argosy.core.files import write_atomic
from argosy.core.logs import configure_logs
from argosy.formats.inspect import TOLERANCE, generate
from argosy.formats.inspection import Inspection
from argosy.formats.parity import check_parity
from argosy.formats.python_runner import ModelFailed, PythonRunner, hint_for
from argosy.formats.python_spec import SPEC_FILE, Entry, LocalFile, PythonCheck, PythonSpec, check_requires
from argosy.formats.python_values import Arrays

_SAMPLES = 4


class CheckConfig(Config, frozen=True):
    """What the child is told."""

    entry: str
    """The file and the class, as in `PythonSpec`."""
    files: dict[str, LocalFile]
    result: str
    """Path of the JSON file to write, a `PythonCheck`."""
    requires: tuple[str, ...] = ()
    seed: int = 0
    memory_bytes: int = 0
    """Most memory the process may take; 0: no limit."""


def main(config: dict[str, Any]) -> None:
    """Check the files named in `config` (see `CheckConfig`) and write the result.

    Raises what loading raises, and InvalidInput for code that fails or breaks its promises on samples.
    """
    asked = from_plain(config, CheckConfig, where="check")
    configure_logs(process="check")
    confine(memory_bytes=asked.memory_bytes)
    files = _Verified(asked.files)
    spec = PythonSpec(
        entry=asked.entry,
        requires=asked.requires,
        python=".".join(map(str, sys.version_info[:3])),
        packages=check_requires(asked.requires),
    )
    try:
        runner = PythonRunner.open(ChainMap({SPEC_FILE: spec.encode()}, cast("Any", files)))
    except Unavailable as error:
        raise InvalidInput(error.message, hint=error.hint, code=error.code) from error
    found = check(runner, seed=asked.seed, files=files)
    spec = msgspec.structs.replace(spec, entry=f"{Entry.parse(asked.entry).file}:{runner.kind}")
    write_atomic(Path(asked.result), canonical(PythonCheck(inspection=found, spec=spec)))


def check(runner: PythonRunner, *, seed: int = 0, files: Mapping[str, bytes] | None = None) -> Inspection:
    """Run a model on its examples, or on generated samples: floats in [0, 1), integers 0 or 1, texts.

    Raises InvalidInput when its code fails or returns what it didn't promise; samples it refuses are only noted.
    """
    checks: dict[str, bool] = {}
    notes: list[str] = []
    is_generated = runner.examples is None
    samples = 0
    try:
        inputs = generate(runner.signature, _SAMPLES, seed) if runner.examples is None else _several(runner.examples)
        _self_check(runner, inputs, checks, notes)
        samples = len(next(iter(inputs.values())))
    except Refused as error:
        which = "generated samples" if is_generated else "its own examples"
        notes.append(f"it refuses {which}, so its answers were not checked: {error.message}")
        if is_generated:
            notes.append("give rows it takes as the class attribute 'examples'")
    except ModelFailed as error:
        cause = error.__cause__ or error
        which = "a generated sample" if is_generated else "an example"
        raise InvalidInput(
            f"predict fails for {which}: {error.context.get('said', error.message)}",
            hint=hint_for(cause, files or {})
            or "raise argosy.Refused for inputs it can't take, and give rows it can take as the attribute 'examples'",
            code=error.code,
        ) from error
    return Inspection(
        digest="",
        size_bytes=0,
        signature=runner.signature,
        samples=samples,
        passed=bool(checks) and all(checks.values()),
        checks=checks,
        notes=notes,
    )


def _self_check(runner: PythonRunner, inputs: Arrays, checks: dict[str, bool], notes: list[str]) -> None:
    first, second = runner.run(inputs), runner.run(inputs)
    numbers = [array for array in first.values() if array.dtype.kind == "f"]
    checks["finite"] = all(bool(np.isfinite(array).all()) for array in numbers)
    if not checks["finite"]:
        notes.append("some answers are NaN or infinite, which callers get as errors")
    checks["deterministic"] = all(
        first[name].shape == second[name].shape
        and np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f")
        for name in first
    )
    if not checks["deterministic"]:
        notes.append("the same input gave two different answers, so whether rows influence each other is not known")
        return
    try:
        checks["rows_independent"] = check_parity(lambda _: first, runner.run, inputs, tolerance=TOLERANCE).passed
    except (Refused, ModelFailed):
        raise
    except ArgosyError as error:
        if error.code == "model_result_wrong":
            raise
        checks["rows_independent"] = False
        notes.append(error.message)


def _several(examples: Arrays) -> Arrays:
    """Return at least `_SAMPLES` rows, the examples repeated."""
    count = len(next(iter(examples.values())))
    rows = np.arange(max(_SAMPLES, count)) % count
    return {name: array[rows] for name, array in examples.items()}


class _Verified(Mapping[str, bytes]):
    """Files read when they are asked for; a file that has changed since it was hashed is refused."""

    def __init__(self, files: dict[str, LocalFile]) -> None:
        self._files = files

    def __getitem__(self, name: str) -> bytes:
        file = self._files[name]
        content = Path(file.path).read_bytes()
        if sha256(content) != file.digest:
            raise IntegrityError(f"'{file.path}' changed while it was read", hint="deploy it when nothing writes to it")
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)
