"""torch-pruning: half of the channels, one epoch of distillation; then alone, and with onnxruntime's int8."""

import copy

import numpy as np
import onnx
import torch
import torch_pruning
from given import CALIBRATION, Job, Peer, order_of, trimmed
from modules import build
from torch import nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects
from torch_shapes import example_of

RATIO = 0.5
_BATCH = 32


def pruned(teacher: nn.Module, job: Job) -> nn.Module:
    """Return a copy with half of the channels; of transformers half of the heads and of the inner layers."""
    module = copy.deepcopy(teacher)
    example = example_of(job)
    heads, kept = {}, [layer for name, layer in module.named_modules() if name == "head"]
    for layer in module.modules():
        if layer.__class__.__name__.endswith("SelfAttention"):
            heads |= dict.fromkeys((layer.query, layer.key, layer.value), layer.num_attention_heads)
        elif isinstance(layer, (nn.Embedding, nn.LayerNorm)):
            # The width of the tokens' vectors stays: it is the width of the answer.
            kept.append(layer)
    if job.is_text:
        kept += [layer.dense for layer in module.modules() if layer.__class__.__name__.endswith("Output")]
        kept = [layer for layer in kept if not (isinstance(layer, nn.LayerNorm))]
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    pruner = torch_pruning.pruner.BasePruner(
        module,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=kept,
        round_to=None if job.is_text else 8,
        num_heads=heads,
        prune_num_heads=bool(heads),
        prune_head_dims=not heads,
        head_pruning_ratio=RATIO,
        output_transform=lambda answer: answer.sum(),
    )
    pruner.step()
    for layer in module.modules():
        if layer.__class__.__name__.endswith("SelfAttention"):
            layer.num_attention_heads = pruner.num_heads[layer.query]
            layer.all_head_size = layer.query.out_features
            layer.attention_head_size = layer.query.out_features // layer.num_attention_heads
    return module


def distil(student: nn.Module, teacher: nn.Module, job: Job) -> None:
    """Train for one epoch to answer as the teacher does; for classes the labels count too."""
    inputs, truth = job.train()
    labels = torch.from_numpy(truth)
    torch.manual_seed(job.seed)
    order = order_of(inputs)
    rows = [order[at : at + _BATCH] for at in range(0, len(order), _BATCH)]
    rate = 3e-4 if job.is_text else 1e-3
    optimizer = torch.optim.AdamW(student.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(rows))
    student.train()
    for number in torch.randperm(len(rows)).tolist():
        chosen = rows[number]
        batch = trimmed({name: array[chosen] for name, array in inputs.items()})
        given = tuple(torch.from_numpy(array) for array in batch.values())
        with torch.no_grad():
            wanted = teacher(*given)
        found = student(*given)
        if job.measure == "accuracy":
            soft = F.kl_div(F.log_softmax(found / 2, 1), F.softmax(wanted / 2, 1), reduction="batchmean") * 4
            loss = 0.7 * soft + 0.3 * F.cross_entropy(found, labels[chosen])
        else:
            loss = (1 - F.cosine_similarity(found, wanted)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    student.eval()


def export(module: nn.Module, job: Job, path) -> None:
    """Write one ONNX file with free batches, and for texts free lengths."""
    inputs, _ = job.train()
    free = {0: "batch", 1: "tokens"} if job.is_text else {0: "batch"}
    torch.onnx.export(
        module,
        example_of(job),
        str(path),
        dynamo=False,
        opset_version=18,
        input_names=list(inputs),
        output_names=["answer"],
        dynamic_axes=dict.fromkeys(inputs, free) | {"answer": {0: "batch"}},
    )


def main() -> None:
    """Make both."""
    peer = Peer()
    job = peer.job
    teacher = build(job.module)
    with peer.variant("half of the channels, one epoch distilled") as made:
        made.file = made.folder / "model.onnx"
        student = pruned(teacher, job)
        counts = [sum(p.numel() for p in module.parameters()) for module in (teacher, student)]
        made.settings = {"ratio": RATIO, "parameters before": counts[0], "parameters after": counts[1]}
        distil(student, teacher, job)
        export(student, job, made.file)
    if peer.made[-1]["failed"]:
        return
    float_file = made.file
    name = "dynamic" if job.is_text else "U8S8 per channel"
    with peer.variant(f"half of the channels, one epoch distilled, onnxruntime int8 {name}") as made:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static
        from ort import Reader, prepared

        made.file = made.folder / "model.onnx"
        made.settings = {"samples": CALIBRATION}
        ready = prepared(float_file, made.folder)
        if job.is_text:
            quantize_dynamic(str(ready), str(made.file), weight_type=QuantType.QInt8, per_channel=True)
        else:
            quantize_static(
                str(ready),
                str(made.file),
                Reader(job.calibration()),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
        onnx.checker.check_model(onnx.load(str(made.file)))


if __name__ == "__main__":
    np.random.seed(0)  # noqa: NPY002 - torch-pruning draws from the global generator
    main()
