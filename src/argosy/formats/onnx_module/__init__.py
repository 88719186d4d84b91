"""ONNX files as PyTorch modules that train further, prune and export again. Needs torch and onnx (`argosy[train]`).

`reading` checks the file and orders its nodes, `patterns` finds layers that exporters took apart, `builder` makes a
`torch.fx` graph with real `torch.nn` layers of them, by the tables of operators in the other modules.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from argosy.core.plugins import missing

if TYPE_CHECKING:
    import torch


def to_module(source: Path | bytes, *, trainable: bool = True) -> "torch.nn.Module":
    """Return an ONNX file or its bytes as a `torch.fx.GraphModule` that answers as ONNX Runtime does.

    The module takes the graph's inputs by position and returns one tensor, or a tuple of several; `input_names` and
    `output_names` say which. It comes in inference mode (`eval()`); `train()` lets batch norm follow the batches as in
    any module. Layers with weights are `torch.nn` layers under the names of the file's weights; a weight that the file
    uses twice is one Parameter. Other constants of floats with more than one number are parameters too, unless they
    look like masks. With `trainable=False` no parameter asks for a gradient.
    Sizes that the file leaves free stay free; those it fixes are taken as fixed, and not checked again.
    Raises InvalidInput for a file that is no sound ONNX model, and with the code "unsupported_operator" for operators
    that have no equal here, each named with its node; NotFound for a missing file.
    """
    try:
        from argosy.formats.onnx_module.conversion import convert
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error
    return convert(source, trainable=trainable)
