"""How models of PyTorch are made ready to run: what torch.compile makes of them. Used by the judge's server."""

from pathlib import Path
from typing import Any

import torch
from modules import build


def _compiled(module: Any, spec: dict[str, Any]) -> Any:
    """Compile with frozen weights, as the manuals of the quantizers for x86 have it."""
    import torch._inductor.config as inductor
    from torch import _dynamo as dynamo

    inductor.freezing = True
    dynamo.config.cache_size_limit = 64
    # A program for each batch size is the fastest; for texts one for all, since each length would have its own.
    return torch.compile(module, dynamic=None if "folder" in spec else False)


def plain(path: Path, spec: dict[str, Any]) -> Any:
    """Return the float32 module of a state dictionary, compiled."""
    module = build({**spec, "weights": ""})
    module.load_state_dict(torch.load(path, weights_only=True))
    return _compiled(module.eval(), spec)


def quantized(path: Path, spec: dict[str, Any]) -> Any:
    """Return the module of a state dictionary with tensors of torchao, compiled."""
    import torchao  # noqa: F401 - registers its tensors

    module = build({**spec, "weights": ""})
    module.load_state_dict(torch.load(path, weights_only=False), assign=True)
    return _compiled(module.eval(), spec)


def exported(path: Path, spec: dict[str, Any]) -> Any:
    """Return the module of an exported program with quantized operations, lowered to x86 and compiled."""
    # Registers the operations that quantized programs consist of, and the patterns that inductor replaces by kernels.
    import torch.ao.quantization.fx._decomposed
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401

    return _compiled(torch.export.load(path).module(), spec)
