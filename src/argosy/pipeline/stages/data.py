"""`data`: read the user's files, split them, fit the preparation on the training part."""

from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress
from argosy.data.dataset import build_dataset
from argosy.data.scratch import Scratch
from argosy.pipeline.context import StageContext, StageRecord
from argosy.train.initial import init_tokenizer


def run(context: StageContext) -> StageRecord:
    """Leave `dataset/`: the three parts, the fitted steps, and what callers will have to send."""
    config = context.recipe.data
    if config is None:
        raise InvalidInput("there is no [data] section")
    context.report(Progress(stage="data", message=f"reading {config.train}"))
    tokenizer = None if config.tokenizer else init_tokenizer(context.recipe.model, context.base)
    dataset = build_dataset(config, context.base, tokenizer, Scratch(context.work))
    dataset.save(context.work / "dataset")
    for note in dataset.notes:
        context.report(Progress(stage="data", message=note, is_note=True))
    counts = {name: len(split.y) for name, split in dataset.splits.items()}
    return StageRecord(
        outputs=context.keep("dataset"),
        values={"task": dataset.task, "labels": len(dataset.labels), "samples": counts, "notes": dataset.notes},
    )
