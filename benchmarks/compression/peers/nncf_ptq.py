"""OpenVINO as it is, and NNCF's post-training quantization run by OpenVINO and, as an ONNX file, by onnxruntime."""

import nncf
import openvino as ov
from given import CALIBRATION, Peer

PRECISIONS = [("float32", "f32"), ("bfloat16", "bf16"), ("default precision", "")]


def main() -> None:
    """Make all variants."""
    peer = Peer()
    job = peer.job
    for name, hint in PRECISIONS:
        with peer.variant(f"OpenVINO {name}") as made:
            made.runtime, made.loader, made.file = "openvino", hint, made.folder / "model.xml"
            ov.save_model(ov.convert_model(str(job.onnx)), str(made.file), compress_to_fp16=False)
    model_type = {"model_type": nncf.ModelType.TRANSFORMER} if job.is_text else {}
    tried = [
        ("int8", {}),
        ("int8 mixed preset", {"preset": nncf.QuantizationPreset.MIXED}),
        (
            "int8 mixed preset, exact bias correction",
            {"preset": nncf.QuantizationPreset.MIXED, "fast_bias_correction": False},
        ),
    ]
    for name, options in tried:
        if not peer.wants(name) or (job.is_text and "exact" in name):
            continue
        with peer.variant(f"{name}, run by OpenVINO") as made:
            made.runtime, made.file = "openvino", made.folder / "model.xml"
            made.settings = {key: str(value) for key, value in {**options, **model_type}.items()}
            samples = nncf.Dataset(job.calibration(1))
            found = nncf.quantize(
                ov.convert_model(str(job.onnx)), samples, subset_size=CALIBRATION, **options, **model_type
            )
            ov.save_model(found, str(made.file))
    with peer.variant("int8, run by onnxruntime") as made:
        import onnx

        made.file = made.folder / "model.onnx"
        found = nncf.quantize(
            onnx.load(str(job.onnx)), nncf.Dataset(job.calibration(1)), subset_size=CALIBRATION, **model_type
        )
        onnx.save(found, str(made.file))


if __name__ == "__main__":
    main()
