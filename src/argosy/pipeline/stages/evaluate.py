"""`evaluate`: the served form, preparation and all, on a test part it has never seen; then the gates."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.progress import Progress
from argosy.data.dataset import Dataset
from argosy.data.prepare import apply_finish
from argosy.evaluate.report import evaluate_predictions
from argosy.formats.runner import load_runner
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.stages.language import is_language
from argosy.pipeline.stages.model import open_dataset, rows_at_once

Arrays = Mapping[str, npt.NDArray[Any]]


def run(context: StageContext) -> StageRecord:
    """Leave an evaluation of each version that will be published; the gates are checked, not enforced, here.

    Publishing keeps a version that failed, so that it can be looked at; deploying refuses it.
    """
    dataset = open_dataset(context)
    truth = dataset.splits["test"].y
    config = context.recipe.evaluate
    context.report(Progress(stage="evaluate", message=f"{len(truth)} samples of the test part"))
    original = answers(context.input_file("convert", "model.onnx"), dataset)
    found = {"original": evaluate_predictions(dataset.task, original, truth, config)}
    if "compress" in context.inputs:
        engine = context.inputs["compress"].values.get("engine", "onnxruntime")
        smaller = answers(context.input_file("compress", "model.onnx"), dataset, engine)
        found["compressed"] = evaluate_predictions(dataset.task, smaller, truth, config, reference_outputs=original)
    plain: dict[str, Any] = msgspec.to_builtins(found)
    values: dict[str, Any] = {}
    for role, evaluation in found.items():
        for name in ("accuracy", "r2", "perplexity"):
            if name in evaluation.metrics:
                values[f"{role}_{name}"] = round(evaluation.metrics[name], 6)
        values[f"{role}_passed"] = evaluation.passed
    return StageRecord(outputs=context.keep_json("evaluation.json", plain), values=values)


def answers(model: Path, dataset: Dataset, engine: str = "onnxruntime") -> dict[str, npt.NDArray[Any]]:
    """Return what callers would be answered for the test part, in its order."""
    runner = load_runner("onnx", model, engine=engine)
    prepare = dataset.preparation()
    part = dataset.splits["test"]
    names = [spec.name for spec in runner.signature.inputs]
    batch = rows_at_once(dataset)
    parts: list[Arrays] = []
    for start in range(0, len(part), batch):
        prepared = prepare({name: array[start : start + batch] for name, array in part.inputs.items()})
        outputs = runner.run(dict(zip(names, prepared.values(), strict=True)))
        if is_language(dataset):
            outputs = {"nats": outputs["nats"]}  # the logits of all blocks would take gigabytes
        parts.append(apply_finish(dataset.finish, outputs, prepared))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
