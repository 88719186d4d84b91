"""`train`: from the prepared data to weights."""

from argosy.core.digest import canonical
from argosy.core.files import write_atomic
from argosy.pipeline.context import StageContext, StageRecord


def run(context: StageContext) -> StageRecord:
    """Leave the weights and the history of the training; checkpoints in `work` let a killed run go on."""
    from argosy.train.job import run_training

    result = run_training(
        context.input_folder("data", "dataset"),
        context.recipe.model,
        context.recipe.train,
        context.base,
        context.work / "training",
        context.report,
    )
    weights = context.work / "weights.safetensors"
    write_atomic(weights, result.weights.read_bytes())
    write_atomic(context.work / "history.json", canonical(result.history))
    return StageRecord(
        outputs=context.keep("weights.safetensors", "history.json"),
        values={"epochs": result.epochs, "metric": result.best_metric, "seconds": round(result.seconds, 3)},
    )
