"""`convert`: export the trained module to ONNX and prove that it gives the same answers."""

import numpy as np
import numpy.typing as npt

from argosy.core.errors import IntegrityError
from argosy.core.progress import Progress
from argosy.pipeline.context import StageContext, StageRecord
from argosy.pipeline.stages.model import open_dataset, trained_module

_SAMPLES = 256


def run(context: StageContext) -> StageRecord:
    """Leave `model.onnx` and the parity report; refuse a conversion that answers differently."""
    import torch

    from argosy.formats.onnx_export import export_onnx
    from argosy.formats.onnx_runtime import OnnxRunner
    from argosy.formats.parity import check_parity

    dataset = open_dataset(context)
    module = trained_module(context, dataset).eval().float()
    inputs, _ = dataset.prepared("validation")
    name, samples = next((name, array[:_SAMPLES]) for name, array in inputs.items())
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

    report = check_parity(original, converted, samples)
    if not report.passed:
        raise IntegrityError(
            f"the ONNX model differs from the trained one by up to {report.max_abs:.3g} "
            f"on {report.samples} samples (input '{name}')",
            hint="look for an operation that behaves differently in training and inference mode",
            code="parity_failed",
        )
    return StageRecord(
        outputs={**context.keep("model.onnx"), **context.keep_json("parity.json", report)},
        values={
            "size_bytes": path.stat().st_size,
            "max_abs_difference": float(report.max_abs),
            "agreement": float(report.agreement),
        },
    )
