"""`train`: from the prepared data to weights, with a report to look at."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.digest import canonical
from argosy.core.files import write_atomic
from argosy.core.progress import Progress
from argosy.data.dataset import Dataset
from argosy.pipeline.config import plain
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.report.chart import Point
from argosy.pipeline.report.losses import LossCurve
from argosy.pipeline.report.training import Sample, TrainingReport
from argosy.pipeline.stages.language import is_language, written
from argosy.pipeline.stages.model import filled_module, measured
from argosy.pipeline.tracking.contract import Tracker, Tracking
from argosy.pipeline.tracking.mlflow import Mlflow
from argosy.pipeline.tracking.tensorboard import TensorBoard
from argosy.train.config import LogConfig
from argosy.train.job import TrainResult, run_training
from argosy.train.measurement import MeasurementStore

WEIGHTS, HISTORY, PAGE, PICTURE = "weights.safetensors", "history.json", "training.html", "training.svg"

_BUFFERS = (".running_mean", ".running_var", ".num_batches_tracked")


def run(context: StageContext) -> StageRecord:
    """Leave the weights, the history of the training and its report; checkpoints in `work` let a killed run go on."""
    folder = context.input_folder("data", "dataset")
    curve = LossCurve(context.work / "curve.json", context.report)
    tracking = Tracking(_trackers(context), curve)
    tracking.settings(_settings(context))
    try:
        # Where it is logged doesn't decide what comes out, so it must not stand in the training's digest.
        asked = msgspec.structs.replace(context.recipe.train, log=LogConfig())
        result = run_training(
            folder,
            context.recipe.model,
            asked,
            context.base,
            context.work / "training",
            tracking,
            measurements=MeasurementStore(context.home),
            hosts=context.hosts,
        )
    except BaseException:
        tracking.close(failed=True)
        raise
    weights = context.work / WEIGHTS
    write_atomic(weights, result.weights.read_bytes())
    write_atomic(context.work / HISTORY, canonical(result.history))
    dataset = Dataset.load(folder)
    context.report(Progress(stage="train", message="measuring it on the test part"))
    module = filled_module(context, dataset, weights).eval().float()
    tested = {f"test_{name}": round(value, 6) for name, value in measured(module, dataset, "test").items()}
    tracking.log_rest(result.history, result.steps)
    tracking.log(result.steps, tested)
    tracking.close()
    texts = written(module, dataset) if is_language(dataset) else []
    report = _report(context, dataset, result, curve.points, tested=tested, texts=texts)
    write_atomic(context.work / PAGE, report.page().encode())
    write_atomic(context.work / PICTURE, report.picture().encode())
    return StageRecord(
        outputs=context.keep(WEIGHTS, HISTORY, PAGE, PICTURE),
        values={
            "epochs": result.epochs,
            result.metric: round(result.best_metric, 6),
            **tested,
            "seconds": round(result.seconds, 3),
        },
    )


def _trackers(context: StageContext) -> list[Tracker]:
    log, project = context.recipe.train.log, context.recipe.project.name
    # A training that goes on after a break goes on in the same place.
    name = f"{project}-{context.keys['train'].removeprefix('sha256:')[:8]}"

    def say(message: str) -> None:
        context.report(Progress(stage="train", message=message, is_note=True))

    found: list[Tracker] = []
    if log.tensorboard:
        folder = context.base / Path(log.tensorboard).expanduser() / name
        found.append(TensorBoard(folder, context.run, context.clock, say))
    if log.mlflow:
        found.append(Mlflow(log.mlflow, log.experiment or project, name, context.clock, say))
    return found


def _report(
    context: StageContext,
    dataset: Dataset,
    result: TrainResult,
    points: Callable[[float], list[Point]],
    *,
    tested: dict[str, float],
    texts: list[Sample],
) -> TrainingReport:
    return TrainingReport(
        project=context.recipe.project.name,
        task=dataset.task,
        history=result.history,
        metric=result.metric,
        best=result.best_metric,
        steps=result.steps,
        seconds=result.seconds,
        curve=points(max(1.0, result.steps / max(1, len(result.history)))),
        tested=tested,
        samples={name: len(part) for name, part in dataset.splits.items()},
        parameters=_count(context.work / WEIGHTS),
        restarts=result.restarts,
        choice=result.choice,
        settings=_settings(context),
        notes=dataset.notes,
        texts=texts,
    )


def _settings(context: StageContext) -> dict[str, Any]:
    """Return what the file says of model and training, and what else decides most."""
    found: dict[str, Any] = {}
    always = ("strategy", "workers", "optimizer", "learning_rate", "batch_size", "schedule")
    for section, struct in (("model", context.recipe.model), ("train", context.recipe.train)):
        usual = plain(type(struct)())
        for name, value in plain(struct).items():
            if name == "log":
                continue
            if value != usual[name] or (section == "train" and name in always):
                found[f"{section}.{name}"] = value
    return found


def _count(weights: Path) -> int:
    """Return how many parameters a safetensors file holds, by its header: torch is not needed for it."""
    with weights.open("rb") as stream:
        header = msgspec.json.decode(stream.read(int.from_bytes(stream.read(8), "little")))
    tensors = {name: entry["shape"] for name, entry in header.items() if name != "__metadata__"}
    return sum(math.prod(shape) for name, shape in tensors.items() if not f".{name}".endswith(_BUFFERS))
