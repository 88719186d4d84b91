"""Why a version answers one row as it does: the served form, against rows of the part it was trained on."""

import tempfile
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.clock import Clock
from argosy.core.errors import InvalidInput, NotFound
from argosy.core.files import resolve_inside
from argosy.core.tensors import TensorSpec
from argosy.data.dataset import Dataset
from argosy.explain.config import ExplainConfig
from argosy.explain.explainer import Explanation, explain
from argosy.pipeline.context import link_or_copy
from argosy.pipeline.engine import find_record
from argosy.registry.registry import Registry
from argosy.registry.versions import Version
from argosy.serve import wire
from argosy.serve.engine import Engine, engine_of, read_inputs
from argosy.serve.plain import decode_request

Array = npt.NDArray[Any]


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """One explained answer: `output` of the version, shared out among the elements of input `input`."""

    version: str
    input: str
    columns: tuple[str, ...]
    output: str
    label: str
    explanation: Explanation


def explain_row(registry: Registry, version: Version, body: bytes, config: ExplainConfig, clock: Clock) -> Explained:
    """Explain the answer to one row, given as `POST /predict` takes it.

    The version's first input of numbers is explained, its other inputs stay as given. Raises InvalidInput for more
    than one row, NotFound when the rows the version was trained on are not in this registry.
    """
    loaded = registry.versions.load(version.digest)
    if loaded.manifest.format == "python":
        raise InvalidInput(
            f"{version} is code of your own, which is not run outside of replicas, so it can't be explained",
            hint="explain a version that `argosy run` made, or any function from Python: argosy.explain.explainer",
        )
    engine = engine_of(loaded.manifest, registry.versions.files(loaded))
    inputs = _inputs(body, engine)
    spec = next((spec for spec in engine.signature.inputs if spec.datatype != "BYTES"), None)
    if spec is None:
        raise InvalidInput(f"{version} has no input of numbers, and only such can be explained now")
    answer = engine.compute(inputs)
    output, column, label = _explained_output(answer, loaded.manifest.task)

    def predict(rows: Array) -> Array:
        given = {name: np.repeat(array, len(rows), axis=0) for name, array in inputs.items() if name != spec.name}
        found = engine.compute({**given, spec.name: rows.astype(inputs[spec.name].dtype)})[output]
        return (found[:, column] if found.ndim > 1 else found).astype(np.float64)

    explanation = explain(predict, inputs[spec.name][0], _background(registry, loaded, spec), config, clock)
    return Explained(
        version=str(version),
        input=spec.name,
        columns=spec.columns,
        output=output,
        label=label,
        explanation=explanation,
    )


def _inputs(body: bytes, engine: Engine) -> dict[str, Array]:
    tensors = decode_request(body, engine.signature).inputs
    order = wire.Run(0, tuple((t.name, t.datatype, t.shape) for t in tensors.values()), (1,))
    inputs = read_inputs(order, memoryview(b"".join(bytes(t.data) for t in tensors.values())))
    rows = {len(array) for array in inputs.values()}
    if rows != {1}:
        raise InvalidInput(f"one row is explained at a time; {max(rows)} were given")
    return inputs


def _explained_output(answer: dict[str, Array], task: str) -> tuple[str, int, str]:
    """Return which number of the answer is explained: the probability of the likeliest class, or the value."""
    if task == "classification":
        column = int(answer["probabilities"][0].argmax())
        return "probabilities", column, str(answer["label"][0])
    name = next(name for name, array in answer.items() if array.dtype.kind == "f")
    return name, int(answer[name][0].argmax()) if answer[name].ndim > 1 else 0, ""


def _background(registry: Registry, version: Version, spec: TensorSpec) -> Array:
    key = version.manifest.lineage.stages.get("data", "")
    record = find_record(registry.log, key) if key else None
    if record is None:
        raise NotFound(
            f"the rows that {version} was trained on are not in this registry, and without them there is nothing "
            "to compare a row with",
            hint="explain a version that `argosy run` made",
        )
    with tempfile.TemporaryDirectory(prefix="argosy-explain-") as folder:
        for name, digest in record.outputs.items():
            path = resolve_inside(Path(folder), name)
            path.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(registry.blobs.fetch(digest), path)
        dataset = Dataset.load(Path(folder) / "dataset")
    return dataset.splits["train"].inputs[spec.name]
