"""Neural Compressor for ONNX: static, dynamic, SmoothQuant, and its autotune under the bound."""

import pathlib

import onnx
import onnxruntime as ort
from given import Peer, answers
from onnx_neural_compressor import data_reader
from onnx_neural_compressor.quantization import QuantFormat, config, quantize, tuning


class Reader(data_reader.CalibrationDataReader):
    """Calibration samples as the tool reads them."""

    def __init__(self, batches):
        self._batches = batches
        self.rewind()

    def get_next(self):
        """Return the next batch."""
        return next(self._left, None)

    def rewind(self):
        """Begin again."""
        self._left = iter(self._batches)


def main() -> None:
    """Make all variants."""
    peer = Peer()
    job = peer.job
    # The samples of all batches must have one shape for this tool's statistics.
    reader = Reader(job.calibration(1))
    configs = (
        ("static", lambda: config.StaticQuantConfig(reader, quant_format=QuantFormat.QDQ)),
        (
            "static per channel",
            lambda: config.StaticQuantConfig(reader, quant_format=QuantFormat.QDQ, per_channel=True),
        ),
        ("dynamic", config.DynamicQuantConfig),
        ("SmoothQuant", lambda: config.SmoothQuantConfig(alpha=0.5, calibration_data_reader=reader)),
    )
    for name, make in configs:
        if not peer.wants(name):
            continue
        with peer.variant(name) as made:
            made.file = made.folder / "model.onnx"
            reader.rewind()
            quantize(str(job.onnx), str(made.file), make())
    if not peer.wants("autotune"):
        return
    with peer.variant(f"autotune at {job.max_drop:g}") as made:
        made.file = made.folder / "model.onnx"
        inputs, truth = job.validation()
        seen = [0]

        def judge(path) -> float:
            seen[0] += 1
            source = path if isinstance(path, (str, pathlib.Path)) else path.SerializeToString()
            session = ort.InferenceSession(source, providers=["CPUExecutionProvider"])
            value = job.quality(answers(lambda batch: session.run(None, batch)[0], inputs), truth)
            print(f"  validation {seen[0]}: {value:.4f}", flush=True)
            return value

        tried = tuning.TuningConfig(
            config_set=[
                *config.StaticQuantConfig.get_config_set_for_tuning(quant_format=QuantFormat.QDQ),
                config.DynamicQuantConfig(),
            ],
            tolerable_loss=job.max_drop,
        )
        found = tuning.autotune(str(job.onnx), tried, judge, calibration_data_reader=reader)
        made.evaluations = seen[0]
        if found is None:
            raise RuntimeError(f"nothing within the bound after {seen[0]} evaluations")
        onnx.save(found, str(made.file))


if __name__ == "__main__":
    main()
