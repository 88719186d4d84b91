"""onnxruntime's own quantizer: static with all operand types worth trying, dynamic, and its transformer fusions."""

import logging
from pathlib import Path

import onnx
from given import CALIBRATION, Peer
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_dynamic, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

logging.disable(logging.WARNING)


class Reader:
    """Calibration samples as the quantizer reads them."""

    def __init__(self, batches):
        self._batches = iter(batches)

    def get_next(self):
        """Return the next batch."""
        return next(self._batches, None)


def prepared(path: Path, folder: Path) -> Path:
    """Fold and infer shapes as the manual says; with less of it where the graph resists."""
    for number, options in enumerate(({"auto_merge": True}, {"skip_symbolic_shape": True})):
        target = folder / f"prepared-{number}.onnx"
        try:
            quant_pre_process(str(path), str(target), **options)
        except Exception as error:  # noqa: BLE001 - shape inference raises bare Exception
            print(f"quant_pre_process with {options}: {error}", flush=True)
        else:
            return target
    return path


STATIC = [
    ("static U8S8", {}),
    ("static U8S8 per channel", {"per_channel": True}),
    ("static U8S8 per channel reduced range", {"per_channel": True, "reduce_range": True}),
    ("static U8S8 per channel entropy", {"per_channel": True, "calibrate_method": CalibrationMethod.Entropy}),
    ("static S8S8", {"activation_type": QuantType.QInt8}),
    ("static S8S8 per channel", {"activation_type": QuantType.QInt8, "per_channel": True}),
    (
        "static S8S8 per channel reduced range",
        {"activation_type": QuantType.QInt8, "per_channel": True, "reduce_range": True},
    ),
]
DYNAMIC = [
    ("dynamic", {}),
    ("dynamic per channel", {"per_channel": True}),
    ("dynamic per channel reduced range", {"per_channel": True, "reduce_range": True}),
]


def main() -> None:
    """Make all variants."""
    peer = Peer()
    job = peer.job
    ready = prepared(job.onnx, job.out)
    for name, options in STATIC:
        if not peer.wants(name) or (job.is_text and "entropy" in name):
            continue
        with peer.variant(name) as made:
            made.settings = {"samples": CALIBRATION, **{key: str(value) for key, value in options.items()}}
            made.file = made.folder / "model.onnx"
            settings = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, **options}
            quantize_static(
                str(ready), str(made.file), Reader(job.calibration()), quant_format=QuantFormat.QDQ, **settings
            )
    sources = [("", ready)]
    if job.is_text:
        with peer.variant("float32 with fused attention") as made:
            from onnxruntime.transformers import optimizer

            made.file = made.folder / "model.onnx"
            heads, hidden = job.module.get("heads", 12), job.module.get("hidden", 384)
            fused = optimizer.optimize_model(str(job.onnx), model_type="bert", num_heads=heads, hidden_size=hidden)
            made.notes = str(fused.get_fused_operator_statistics())
            fused.save_model_to_file(str(made.file))
            sources.append(("fused ", made.file))
    for prefix, source in sources:
        for name, options in DYNAMIC:
            if not peer.wants(prefix + name):
                continue
            with peer.variant(prefix + name) as made:
                made.settings = {key: str(value) for key, value in options.items()}
                made.file = made.folder / "model.onnx"
                # Shapes are not inferred through fused operators, so their type must be said.
                extra = {"DefaultTensorType": onnx.TensorProto.FLOAT} if prefix else {}
                quantize_dynamic(
                    str(source), str(made.file), weight_type=QuantType.QInt8, extra_options=extra, **options
                )


if __name__ == "__main__":
    main()
