"""`publish`: signed, numbered, immutable versions that know where they come from."""

from pathlib import Path
from typing import Any, cast

import msgspec

from argosy.data.dataset import FILES, Dataset
from argosy.data.prepare import steps_to_plain
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.sources import code_commit
from argosy.pipeline.stages.language import is_language
from argosy.pipeline.stages.model import open_dataset
from argosy.pipeline.stages.train import HISTORY, PAGE, PICTURE, WEIGHTS
from argosy.registry.versions import Evaluation, FileRef, Lineage, Manifest, Version

KEPT = f"dataset/{FILES}/"
"""Where stage `data` leaves what the preparation needs beside its steps, such as a tokenizer."""
_OF_TRAINING = (WEIGHTS, HISTORY, PAGE, PICTURE)


def run(context: StageContext) -> StageRecord:
    """Publish the original and, if there is one, its compressed sibling. Doing it twice publishes once."""
    dataset = open_dataset(context)
    evaluations = msgspec.json.decode(
        context.input_file("evaluate", "evaluation.json").read_bytes(), type=dict[str, Evaluation]
    )
    original = _publish(context, dataset, "original", evaluations["original"], parent="")
    versions = [original]
    if "compressed" in evaluations:
        versions.append(_publish(context, dataset, "compressed", evaluations["compressed"], parent=original.digest))
    released = versions[-1]
    return StageRecord(
        values={
            "versions": [str(version) for version in versions],
            "digests": [version.digest for version in versions],
            "passed": released.manifest.evaluation.passed,
        }
    )


def _publish(context: StageContext, dataset: Dataset, role: Any, evaluation: Evaluation, parent: str) -> Version:
    versions = context.registry.versions
    lineage = Lineage(
        run=context.run,
        parent=parent,
        code_commit=code_commit(context.base),
        code_digest=context.sources.code,
        data_digest=dataset.digest,
        stages=context.keys,
        recipe=context.inputs["compress"].values if role == "compressed" else {},
    )
    for version in versions.list(context.recipe.project.name):
        # A run that was killed between publishing and writing down that it did finds its own version here.
        same = version.manifest.lineage.stages.get("publish") == context.keys["publish"]
        if same and version.manifest.role == role:
            return version
    manifest = Manifest(
        name=context.recipe.project.name,
        created=context.clock.now(),
        role=role,
        task=cast("Any", "tensor" if is_language(dataset) else dataset.task),
        format="onnx",
        signature=dataset.signature,
        prepare=steps_to_plain(dataset.steps),
        finish=steps_to_plain(dataset.finish),
        engine=context.inputs["compress"].values.get("engine", "onnxruntime")
        if role == "compressed"
        else "onnxruntime",
        files=_files(context, role),
        evaluation=evaluation,
        lineage=lineage,
    )
    return versions.publish(manifest)


def _engine(context: StageContext, role: str) -> str:
    values = context.inputs["compress"].values if role == "compressed" else {}
    return str(values.get("engine", "onnxruntime"))


def _files(context: StageContext, role: str) -> dict[str, FileRef]:
    if role == "compressed":
        outputs = context.inputs["compress"].outputs
        names = {"model.onnx": outputs["model.onnx"], "compression.json": outputs["report.json"]}
        names["compression.png"] = outputs["report.png"]
    else:
        trained = context.inputs["train"].outputs
        names = {
            "model.onnx": context.inputs["convert"].outputs["model.onnx"],
            "parity.json": context.inputs["convert"].outputs["parity.json"],
            **{name: digest for name, digest in trained.items() if name in _OF_TRAINING},
        }
    kept = {n.removeprefix(KEPT): digest for n, digest in context.inputs["data"].outputs.items() if n.startswith(KEPT)}
    return {name: _reference(context, digest) for name, digest in (names | kept).items()}


def _reference(context: StageContext, digest: str) -> FileRef:
    path: Path = context.registry.blobs.fetch(digest)
    return FileRef(digest=digest, size_bytes=path.stat().st_size)
