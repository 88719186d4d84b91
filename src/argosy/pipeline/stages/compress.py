"""`compress`: search the passes for the version that meets the budget, measured on this machine."""

from argosy.core.errors import InvalidInput
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.stages.language import is_language
from argosy.pipeline.stages.model import open_dataset, trained_module


def run(context: StageContext) -> StageRecord:
    """Leave the chosen model with the report and its picture. Raises InvalidInput with the nearest point."""
    from argosy.compress.search import compress

    config = context.recipe.compress
    if config is None:
        raise InvalidInput("there is no [compress] section")
    dataset = open_dataset(context).reduced()
    # A language model's ONNX file answers otherwise than the module that is trained, so passes go by the file.
    module = None if is_language(dataset) else trained_module(context, dataset).eval()
    result = compress(
        context.input_file("convert", "model.onnx"),
        module,
        dataset,
        config,
        context.recipe.train,
        context.work / "search",
        context.report,
    )
    outputs = context.keep_json("report.json", result.report())
    picture = context.work / "report.png"
    result.draw(picture)
    outputs |= context.keep("report.png")
    if result.chosen is None:
        raise InvalidInput(result.says, hint=result.hint, code="budget_out_of_reach", nearest=result.nearest_values())
    return StageRecord(
        outputs={"model.onnx": context.registry.blobs.put(result.chosen.path), **outputs},
        values=result.values(),
    )
