"""NNCF's quantization with accuracy control: quantizes, and puts layers back into float until the bound is kept."""

import nncf
import numpy as np
import openvino as ov
from given import CALIBRATION, Peer, answers


def main() -> None:
    """Quantize under each bound and count how often the validation part was gone through."""
    peer = Peer()
    for bound in peer.job.bounds:
        quantize(peer, bound)


def quantize(peer: Peer, bound: float) -> None:
    """Quantize under one bound."""
    job = peer.job
    with peer.variant(f"int8 with accuracy control at {bound:g}") as made:
        made.runtime, made.file = "openvino", made.folder / "model.xml"
        inputs, truth = job.validation()
        seen = {"calls": 0, "items": 0}
        # NNCF takes samples one by one and picks some of them to rank layers; each carries its number.
        rows = [{name: array[at : at + 1] for name, array in inputs.items()} | {"row": at} for at in range(len(truth))]

        def validate(compiled, samples):
            chosen = [sample["row"] for sample in samples]
            seen["calls"] += 1
            seen["items"] += len(chosen)
            request = compiled.create_infer_request()
            names = [given.get_any_name() for given in compiled.inputs]
            found = answers(
                lambda batch: request.infer({name: batch[name] for name in names})[0].copy(),
                {name: array[chosen] for name, array in inputs.items()},
            )
            value = job.quality(found, truth[chosen])
            print(f"  validation {seen['calls']}: {len(chosen)} samples, {value:.4f}", flush=True)
            return value, None

        def model_inputs(sample):
            return {name: array for name, array in sample.items() if name != "row"}

        options = {"model_type": nncf.ModelType.TRANSFORMER} if job.is_text else {}
        found = nncf.quantize_with_accuracy_control(
            ov.convert_model(str(job.onnx)),
            nncf.Dataset(job.calibration(1)),
            nncf.Dataset(rows, model_inputs),
            validate,
            max_drop=bound,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=CALIBRATION,
            **options,
        )
        made.evaluations = seen["items"] / len(np.atleast_1d(truth))
        made.settings = {"bound": bound, "validation calls": seen["calls"], "samples validated": seen["items"]}
        ov.save_model(found, str(made.file))


if __name__ == "__main__":
    main()
