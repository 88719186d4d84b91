"""Neural Compressor for PyTorch: static and dynamic quantization by export, and SmoothQuant."""

import torch
from given import Peer
from modules import build
from neural_compressor.torch.export import export
from neural_compressor.torch.quantization import (
    DynamicQuantConfig,
    SmoothQuantConfig,
    StaticQuantConfig,
    convert,
    prepare,
)
from torch_shapes import example_of, shapes_of


def main() -> None:
    """Make all variants."""
    peer = Peer()
    job = peer.job
    example, shapes = example_of(job), shapes_of(job)
    configs = (
        ("static", StaticQuantConfig),
        ("dynamic", DynamicQuantConfig),
        ("SmoothQuant", lambda: SmoothQuantConfig(alpha=0.5)),
    )
    for name, config in configs:
        if not peer.wants(name):
            continue
        with peer.variant(f"int8 {name}") as made:
            made.runtime, made.loader, made.file = "torch", "torch_loading:exported", made.folder / "model.pt2"
            module = build(job.module)
            if name != "SmoothQuant":
                module = export(module, example_inputs=example, dynamic_shapes=shapes)
            prepared = prepare(module, quant_config=config(), example_inputs=example)
            with torch.no_grad():
                for batch in job.calibration():
                    prepared(*(torch.from_numpy(array) for array in batch.values()))
            converted = convert(prepared)
            torch.export.save(torch.export.export(converted, example, dynamic_shapes=shapes), made.file)


if __name__ == "__main__":
    main()
