"""What a bare ONNX file is and whether it answers sanely: the job that runs in a child process before a deployment.

The file comes from outside, so the child has a memory limit, and only a JSON file leaves it.
"""

import resource
from pathlib import Path
from typing import Any

import numpy as np

from argosy.core.config import Config, from_plain
from argosy.core.digest import canonical, sha256
from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.files import write_atomic
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.formats.inspection import Inspection
from argosy.formats.onnx_check import read_model_file
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.parity import check_parity

# Batches may be summed in another order than single rows; int8 models may differ by one step of their scale.
TOLERANCE = 0.02
# A free dimension other than the batch (a text's length, an image's side) gets this size in generated samples.
_FREE_SIZE = 8
_MAX_ELEMENTS = 2**24


class InspectConfig(Config, frozen=True):
    """What the child is told."""

    model: str
    """Path of the ONNX file."""
    result: str
    """Path of the JSON file to write, an `Inspection`."""
    samples: int = 4
    """Rows to generate for the self-check."""
    seed: int = 0
    memory_bytes: int = 0
    """Most address space the process may take; 0 for 2 GiB and eight times the file."""


def main(config: dict[str, Any]) -> None:
    """Inspect the file named in `config` (see `InspectConfig`) and write the result.

    Raises InvalidInput for a file that is not a model this machine can run; the result file is not written then.
    """
    asked = from_plain(config, InspectConfig, where="inspect")
    data = read_model_file(Path(asked.model))
    _limit_memory(asked.memory_bytes or 2 * 2**30 + 8 * len(data))
    try:
        found = inspect_onnx(data, samples=asked.samples, seed=asked.seed)
    except MemoryError as error:
        raise InvalidInput(f"the model '{asked.model}' asks for more memory than a model of its size needs") from error
    write_atomic(Path(asked.result), canonical(found))


def inspect_onnx(data: bytes, *, samples: int = 4, seed: int = 0) -> Inspection:
    """Load a model and run it on generated samples: floats uniform in [0, 1), integers 0 or 1, empty-free text."""
    runner = OnnxRunner.load(data)
    checks: dict[str, bool] = {}
    notes: list[str] = []
    passed = False
    try:
        inputs = generate(runner.signature, samples, seed)
        passed = _self_check(runner, inputs, checks, notes)
    except ArgosyError as error:
        notes.append(f"no self-check on generated samples: {error.message}")
    return Inspection(
        digest=sha256(data),
        size_bytes=len(data),
        signature=runner.signature,
        samples=samples,
        passed=passed,
        checks=checks,
        notes=notes,
    )


def _self_check(runner: OnnxRunner, inputs: dict[str, np.ndarray], checks: dict[str, bool], notes: list[str]) -> bool:
    first, second = runner.run(inputs), runner.run(inputs)
    numbers = [array for array in first.values() if array.dtype.kind == "f"]
    checks["finite"] = all(bool(np.isfinite(array).all()) for array in numbers)
    if not checks["finite"]:
        notes.append("some answers are NaN or infinite for inputs between 0 and 1")
    checks["deterministic"] = all(
        np.array_equal(first[name], second[name], equal_nan=first[name].dtype.kind == "f") for name in first
    )
    if not checks["deterministic"]:
        notes.append("the same input gave two different answers")
    if runner.signature.is_batched and checks["deterministic"]:
        try:
            checks["rows_independent"] = check_parity(lambda _: first, runner.run, inputs, tolerance=TOLERANCE).passed
        except ArgosyError as error:
            checks["rows_independent"] = False
            notes.append(error.message)
        if not checks["rows_independent"]:
            notes.append("a batch answers differently from its rows alone, so requests can't share a run")
    return all(checks.values())


def generate(signature: Signature, samples: int, seed: int) -> dict[str, np.ndarray]:
    """Return samples as `inspect_onnx` says; InvalidInput where a shape asks for too many elements."""
    random = np.random.default_rng(seed)
    return {spec.name: _values(spec, random, samples) for spec in signature.inputs}


def _values(spec: TensorSpec, random: np.random.Generator, samples: int) -> np.ndarray:
    shape = tuple(
        size if size >= 0 else (samples if position == 0 else _FREE_SIZE) for position, size in enumerate(spec.shape)
    )
    # Python's integers, because a hostile shape overflows NumPy's.
    elements = 1
    for size in shape:
        elements *= size
    if elements > _MAX_ELEMENTS:
        raise InvalidInput(f"input {spec.name!r} has {elements} elements; at most {_MAX_ELEMENTS} are generated")
    dtype = DATATYPES[spec.datatype][0]
    if spec.datatype == "BYTES":
        return np.full(shape, "text", dtype=object)
    if dtype.startswith("float"):
        return random.random(shape).astype(dtype)
    return random.integers(0, 2, shape).astype(dtype)


def _limit_memory(size_bytes: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        size_bytes = min(size_bytes, hard)
    resource.setrlimit(resource.RLIMIT_AS, (size_bytes, hard))
