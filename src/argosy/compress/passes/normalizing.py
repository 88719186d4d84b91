"""Batch norms for networks whose own were folded away when they were exported.

A small network learns far better with them, and they cost nothing in the end: exporters and runtimes fold them into
the convolutions again. Each is begun so that it changes nothing: its scale and shift undo what its statistics do.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch import nn

_EPSILON = 1e-5


def with_batch_norms(student: "nn.Module", example: "list[torch.Tensor]") -> None:
    """Put a batch norm behind every convolution, in place, unless the network has some; `example` gives statistics."""
    import torch
    from torch import nn

    kinds = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    if any(isinstance(layer, kinds) for layer in student.modules()):
        return
    convolutions: dict[str, Any] = {
        name: layer
        for name, layer in student.named_modules()
        if name and isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in convolutions}
    hooks = [
        layer.register_forward_hook(lambda _module, _given, out, name=name: seen[name].append(out.detach()))
        for name, layer in convolutions.items()
    ]
    try:
        with torch.no_grad():
            student(*example)
    finally:
        for hook in hooks:
            hook.remove()
    for name, layer in convolutions.items():
        # One that is used twice has two distributions behind it.
        if len(seen[name]) != 1:
            continue
        out = seen[name][0].transpose(0, 1).flatten(1)
        norm: Any = kinds[layer.weight.ndim - 3](layer.out_channels, eps=_EPSILON)
        with torch.no_grad():
            norm.running_mean.copy_(out.mean(dim=1))
            norm.running_var.copy_(out.var(dim=1, unbiased=False))
            norm.weight.copy_((norm.running_var + _EPSILON).sqrt())
            norm.bias.copy_(norm.running_mean)
        parent, _, leaf = name.rpartition(".")
        setattr(student.get_submodule(parent), leaf, nn.Sequential(layer, norm.train(layer.training)))
