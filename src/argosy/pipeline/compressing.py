"""Compressing a version that exists: search, one last look at data nobody has seen, and a signed sibling."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np

from argosy.compress.config import CompressConfig
from argosy.compress.report import CompressResult
from argosy.core.digest import canonical, digest_of
from argosy.core.errors import InvalidInput, NotFound
from argosy.core.progress import Progress, Reporter
from argosy.data.dataset import Dataset
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.evaluate.config import EvaluateConfig
from argosy.evaluate.intervals import mean_interval
from argosy.evaluate.report import evaluate_predictions
from argosy.formats.runner import load_runner
from argosy.pipeline.context import link_or_copy
from argosy.pipeline.engine import find_record
from argosy.pipeline.material import Material, generated, of_dataset, of_file
from argosy.registry.registry import Registry
from argosy.registry.versions import MODEL_FILE, Evaluation, FileRef, GateResult, Manifest, Version
from argosy.train.config import TrainConfig

_BATCH, _TEXTS = 256, 32
# Reports belong to the version they were made for; the rest, such as a tokenizer, to every sibling.
_REPORTS = (
    "compression.json",
    "compression.png",
    "parity.json",
    "training.html",
    "history.json",
    "training.svg",
    "weights.safetensors",
)


def material_of(
    registry: Registry,
    version: Version,
    data: str,
    *,
    label: str,
    base: Path,
    work: Path,
    seed: int,
    may_generate: bool,
) -> Material:
    """Return what a version is compressed with: the file `data`, else its own run's data, else made-up inputs.

    Raises InvalidInput when there is none, and made-up inputs won't do.
    """
    manifest = version.manifest
    if data:
        return of_file(manifest, registry.versions.files(version), data, base, label=label, seed=seed)
    key = manifest.lineage.stages.get("data", "")
    record = find_record(registry.log, key) if key else None
    if record is not None:
        for name, digest in record.outputs.items():
            if name.startswith("dataset/"):
                path = work / name
                path.parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(registry.blobs.fetch(digest), path)
        return of_dataset(Dataset.load(work / "dataset"))
    if may_generate:
        return generated(manifest, seed=seed)
    raise InvalidInput(
        f"{version} comes with no data to judge a smaller model by",
        hint="give some, in the form callers send it: argosy compress MODEL --data FILE",
        code="no_data",
    )


def compress_version(  # noqa: PLR0917 - one call with all of them, by the command
    registry: Registry,
    version: Version,
    material: Material,
    config: CompressConfig,
    work: Path,
    report: Reporter,
    recipe: Sequence[tuple[str, dict[str, Any]]] = (),
) -> CompressResult:
    """Search for the model within the budget, or with a `recipe` apply just these passes. `work` outlives a crash."""
    from argosy.compress.search import apply_passes, compress

    config.check()
    if version.manifest.format != "onnx":
        raise InvalidInput(f"{version} is a Python model, and no pass knows what its code does")
    path = registry.versions.file_path(version)
    train = TrainConfig()
    if recipe:
        return apply_passes(path, None, material, config, train, work, recipe, report)
    return compress(path, None, material, config, train, work, report)


def search_folder(version: Version, material: Material, config: CompressConfig) -> str:
    """Return a name for the folder of tries, the same for the same question."""
    asked = msgspec.structs.replace(config, size="", latency_p95="", max_drop="1pt", time_limit="", passes=["quantize"])
    return digest_of([version.digest, material.digest, asked]).removeprefix("sha256:")[:16]


def published(
    registry: Registry,
    version: Version,
    material: Material,
    result: CompressResult,
    report: Reporter,
    *,
    max_drop: float,
    now: float,
) -> Version:
    """Judge the chosen model on the test part and publish it as a sibling of `version`."""
    chosen = result.chosen
    if chosen is None:
        raise NotFound("nothing was chosen, so there is nothing to publish")
    report(Progress(stage="compress", message="judging on the test part, which nothing has seen"))
    original = load_runner("onnx", registry.versions.file_path(version))
    smaller = load_runner("onnx", chosen.path, engine=chosen.engine)
    evaluation = judged(material, original, smaller, max_drop=max_drop)
    parent = version.manifest
    blobs = registry.blobs
    files = {name: ref for name, ref in parent.files.items() if name not in _REPORTS}
    made = {MODEL_FILE: chosen.path.read_bytes(), "compression.json": canonical(result.report())}
    picture = chosen.path.parent / "report.png"
    result.draw(picture)
    made["compression.png"] = picture.read_bytes()
    files |= {name: FileRef(digest=blobs.put(content), size_bytes=len(content)) for name, content in made.items()}
    manifest: Manifest = msgspec.structs.replace(
        parent,
        created=now,
        role="compressed",
        files=files,
        engine=cast("Any", chosen.engine),
        evaluation=evaluation,
        lineage=msgspec.structs.replace(parent.lineage, parent=version.digest, recipe=result.values()),
    )
    return registry.versions.publish(manifest)


def judged(material: Material, original: Any, smaller: Any, *, max_drop: float) -> Evaluation:
    """Return the evaluation on the test part: the task's metrics, and the drop as a gate."""
    found, reference = (_answers(runner, material) for runner in (smaller, original))
    truth = material.truth("test")
    if material.task == "embedding" or truth is None:
        a, b = (np.concatenate([_rows(part) for part in side], axis=0) for side in (found, reference))
        lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
        cosine = (a * b).sum(axis=1) / np.maximum(lengths, 1e-12)
        low, high = mean_interval(cosine)
        gate = _gate("cosine", float(cosine.mean()), 1 - max_drop, at_least=True)
        metrics = {"cosine": float(cosine.mean()), "cosine_low": low, "cosine_high": min(1.0, high)}
        metrics["cosine_least"] = float(cosine.min())
        return Evaluation(kind="test-set", passed=gate.passed, metrics=metrics, gates=[gate], samples=len(cosine))
    outputs, wanted = (
        _named({name: np.concatenate([part[name] for part in side]) for name in side[0]}, material.task)
        for side in (found, reference)
    )
    config = EvaluateConfig()
    evaluation = evaluate_predictions(material.task, outputs, truth, config, reference_outputs=wanted)
    before = evaluate_predictions(material.task, wanted, truth, config)
    main = {"classification": "accuracy", "regression": "r2", "language-model": "perplexity"}[material.task]
    drop = before.metrics[main] - evaluation.metrics[main]
    if main == "perplexity":
        drop = float(np.log(evaluation.metrics[main] / before.metrics[main]))
    gate = _gate("drop", drop, max_drop, at_least=False)
    metrics = {**evaluation.metrics, "drop": drop, f"original_{main}": before.metrics[main]}
    return msgspec.structs.replace(evaluation, metrics=metrics, gates=[gate], passed=gate.passed)


def _gate(name: str, value: float, bound: float, *, at_least: bool) -> GateResult:
    missed = max(0.0, bound - value if at_least else value - bound)
    # A millionth: shares of items are not exact.
    passed = missed <= 1e-6
    return GateResult(
        name=name,
        bound=f"{'>=' if at_least else '<='} {bound:g}",
        value=value,
        passed=passed,
        missed_by=0.0 if passed else missed,
    )


def _answers(runner: Any, material: Material) -> list[dict[str, np.ndarray[Any, Any]]]:
    inputs, _ = material.prepared("test")
    names = [spec.name for spec in runner.signature.inputs]
    size = _TEXTS if ATTENTION_MASK in inputs else _BATCH
    found = []
    for start in range(0, len(next(iter(inputs.values()))), size):
        prepared = without_padding({name: array[start : start + size] for name, array in inputs.items()})
        given = prepared if set(names) == set(prepared) else dict(zip(names, prepared.values(), strict=False))
        outputs = runner.run(given)
        if material.task == "language-model":
            outputs = {"nats": outputs["nats"]}
        found.append(outputs if material.task == "embedding" else material.finished(outputs, prepared))
        if material.task == "embedding":
            found[-1] = {"vector": material.vectors(outputs, prepared)}
    return found


def _rows(part: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
    return part["vector"].astype(np.float64)


def _named(outputs: dict[str, Any], task: str) -> dict[str, Any]:
    """Give the answers of a bare model, which has no finishing steps, the names its task goes by."""
    if task == "classification" and "probabilities" not in outputs:
        scores = np.asarray(next(iter(outputs.values())), dtype=np.float64)
        if scores.shape[-1] == 1 or scores.ndim == 1:
            second = 1 / (1 + np.exp(-scores.reshape(-1)))
            return {"probabilities": np.stack([1 - second, second], axis=1)}
        is_probability = (scores >= 0).all() and np.allclose(scores.sum(axis=-1), 1, atol=1e-3)
        if not is_probability:
            scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
            scores /= scores.sum(axis=-1, keepdims=True)
        return {"probabilities": scores, "label": scores.argmax(axis=-1)}
    if task == "regression" and "value" not in outputs:
        return {"value": np.asarray(next(iter(outputs.values()))).reshape(-1)}
    return outputs
