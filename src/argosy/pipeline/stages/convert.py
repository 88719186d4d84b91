"""`convert`: export the trained module to ONNX and prove that it gives the same answers."""

import numpy as np
import numpy.typing as npt

from argosy.core.progress import Progress
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.stages.model import open_dataset, trained_module

_SAMPLES = 256


def run(context: StageContext) -> StageRecord:
    """Leave `model.onnx` and the parity report; refuse a conversion that answers differently."""
    import torch

    from argosy.formats.onnx_export import export_onnx
    from argosy.formats.onnx_runtime import OnnxRunner
    from argosy.formats.parity import check_arrays

    dataset = open_dataset(context)
    module = trained_module(context, dataset).eval().float()
    inputs, _ = dataset.prepared("validation")
    samples = next(iter(inputs.values()))[:_SAMPLES]
    context.report(Progress(stage="convert", message="exporting to ONNX"))
    path = context.work / "model.onnx"
    export_onnx(module, torch.from_numpy(samples[:2]), path)
    runner = OnnxRunner.load(path)

    def original(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            answer: npt.NDArray[np.float32] = module(torch.from_numpy(array)).numpy()
        return answer

    def converted(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return next(iter(runner.run({runner.signature.inputs[0].name: array}).values()))

    report = check_arrays(original, converted, samples)
    report.require("the ONNX model")
    return StageRecord(
        outputs={**context.keep("model.onnx"), **context.keep_json("parity.json", report)},
        values={
            "size_bytes": path.stat().st_size,
            "max_abs_difference": float(report.max_abs),
            "agreement": float(report.agreement),
        },
    )
