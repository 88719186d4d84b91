"""torchao: int8 weights, int8 weights with dynamic activations, and its export-based static quantization for x86."""

import torch
from given import Peer
from modules import build
from torch_shapes import example_of, shapes_of


def main() -> None:
    """Make all variants."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_

    peer = Peer()
    job = peer.job
    linear = "torchao's configurations change linear layers only"
    with peer.variant("float32, torch.compile") as made:
        made.runtime, made.loader, made.file = "torch", "torch_loading:plain", made.folder / "weights.pt"
        torch.save(build(job.module).state_dict(), made.file)
    for name, config in (
        ("int8 weights only", Int8WeightOnlyConfig()),
        ("int8 dynamic", Int8DynamicActivationInt8WeightConfig()),
    ):
        if not peer.wants(name):
            continue
        with peer.variant(name) as made:
            made.runtime, made.loader, made.file = "torch", "torch_loading:quantized", made.folder / "weights.pt"
            made.notes = linear
            module = build(job.module)
            quantize_(module, config)
            torch.save(module.state_dict(), made.file)
    if peer.wants("int8 static"):
        with peer.variant("int8 static (PT2E, x86)") as made:
            from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
            from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

            made.runtime, made.loader, made.file = "torch", "torch_loading:exported", made.folder / "model.pt2"
            module = build(job.module)
            example, shapes = example_of(job), shapes_of(job)
            program = torch.export.export(module, example, dynamic_shapes=shapes).module()
            quantizer = x86.X86InductorQuantizer()
            quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
            prepared = prepare_pt2e(program, quantizer)
            with torch.no_grad():
                for batch in job.calibration():
                    prepared(*(torch.from_numpy(array) for array in batch.values()))
            converted = convert_pt2e(prepared)
            torch.export.save(torch.export.export(converted, example, dynamic_shapes=shapes), made.file)


if __name__ == "__main__":
    main()
