"""A changed module back to an ONNX file with the original's inputs and outputs."""

from typing import TYPE_CHECKING

import numpy as np

from argosy.compress.passes import Bench
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.formats.onnx_export import onnx_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn


def rows_of(bench: Bench, count: int) -> "list[torch.Tensor]":
    """Return rows of the training part in the order of the graph's inputs; texts are the longest of the first ones."""
    import torch

    names = [spec.name for spec in bench.runner.signature.inputs]
    inputs = bench.samples.train
    if not set(names) <= set(inputs):
        inputs = dict(zip(names, inputs.values(), strict=False))
    rows = {name: inputs[name][:count] for name in names}
    if len(next(iter(rows.values()))) < count:
        rows = {name: np.resize(array, (count, *array.shape[1:])) for name, array in rows.items()}
    return [torch.from_numpy(np.ascontiguousarray(array)) for array in without_padding(rows).values()]


def exported(module: "nn.Module", bench: Bench, *, is_draft: bool = False) -> bytes:
    """Return the module as an ONNX file with the original's names of inputs and outputs."""
    signature = bench.runner.signature
    names = [spec.name for spec in signature.inputs]
    return onnx_bytes(
        module,
        dict(zip(names, rows_of(bench, 4), strict=True)),
        output=[spec.name for spec in signature.outputs],
        is_draft=is_draft,
        free_lengths=ATTENTION_MASK in bench.samples.train,
    )
