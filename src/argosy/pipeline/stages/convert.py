"""`convert`: export the trained module to ONNX and prove that it gives the same answers."""

from typing import Any

import numpy as np
import numpy.typing as npt

from argosy.core.progress import Progress
from argosy.data.dataset import Dataset
from argosy.data.text import without_padding
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.stages.language import is_language, texts_of_all_lengths
from argosy.pipeline.stages.model import open_dataset, served_module

_SAMPLES = 256
_TEXTS = 32
"""Of texts so many: each answer costs a thousand times as much as that of a row of numbers."""
Arrays = dict[str, npt.NDArray[Any]]


def run(context: StageContext) -> StageRecord:
    """Leave `model.onnx` and the parity report; refuse a conversion that answers differently."""
    import torch

    from argosy.formats.onnx_export import export_onnx
    from argosy.formats.onnx_runtime import OnnxRunner
    from argosy.formats.parity import check_parity
    from argosy.train.next_token import OUTPUTS as LANGUAGE_OUTPUTS

    dataset = open_dataset(context)
    module = served_module(context, dataset)
    samples = _samples(dataset)
    context.report(Progress(stage="convert", message="exporting to ONNX"))
    path = context.work / "model.onnx"
    is_text = dataset.tokenize is not None
    named = {("x" if len(samples) == 1 else name): torch.from_numpy(array[:4]) for name, array in samples.items()}
    outputs = LANGUAGE_OUTPUTS if is_language(dataset) else ("logits",)
    export_onnx(module, named, path, output=outputs, free_lengths=is_text)
    runner = OnnxRunner.load(path)

    def original(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            answer = module(*(torch.from_numpy(array) for array in inputs.values()))
        answers = answer if isinstance(answer, tuple) else (answer,)
        return {name: one.numpy() for name, one in zip(outputs, answers, strict=True)}

    def converted(inputs: Arrays) -> Arrays:
        given = without_padding(inputs)  # as an endpoint would have prepared it
        names = [spec.name for spec in runner.signature.inputs]
        return runner.run(dict(zip(names, given.values(), strict=True)))

    report = check_parity(original, converted, samples)
    report.require("the ONNX model")
    return StageRecord(
        outputs={**context.keep("model.onnx"), **context.keep_json("parity.json", report)},
        values={
            "size_bytes": path.stat().st_size,
            "max_abs_difference": float(report.max_abs),
            "agreement": float(report.agreement),
        },
    )


def _samples(dataset: Dataset) -> Arrays:
    """Return prepared samples of the validation part; of texts also short and long ones, whatever comes first."""
    if is_language(dataset):
        return texts_of_all_lengths(dataset)
    part = dataset.splits["validation"]
    rows = np.arange(min(len(part), _SAMPLES))
    if dataset.tokenize is not None:
        lengths = [len(text) for text in part.inputs[dataset.tokenize.input].tolist()]
        order = np.argsort(lengths, kind="stable")
        rows = order[np.linspace(0, len(order) - 1, min(len(order), _TEXTS)).astype(int)]
    return dataset.preparation()({name: array[rows] for name, array in part.inputs.items()})
