"""A changed module back to an ONNX file with the original's inputs and outputs, and rows for looking at either."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from argosy.compress.lessons import tensor_of
from argosy.compress.passes import Bench
from argosy.compress.passes.simplify import simplified
from argosy.data.text import ATTENTION_MASK, without_padding
from argosy.formats.onnx_export import onnx_bytes

if TYPE_CHECKING:
    import torch
    from torch import nn

# Rows and tokens, none of them like another: what is equal to one of them in all runs is that size.
_SHAPES = ((2, 7), (3, 11), (5, 13), (4, 9))


def rows_of(bench: Bench, count: int) -> "list[torch.Tensor]":
    """Return rows of the training part in the order of the graph's inputs; texts are the longest of the first ones."""
    rows = {name: array[:count] for name, array in _training(bench).items()}
    if len(next(iter(rows.values()))) < count:
        rows = {name: np.resize(array, (count, *array.shape[1:])) for name, array in rows.items()}
    return _tensors(rows)


def training_rows(bench: Bench, *, most: int, batch: int) -> "Iterator[list[torch.Tensor]]":
    """Yield batches of the training part in the order of the graph's inputs; of more than `most` rows some of them."""
    inputs = _training(bench)
    count = len(next(iter(inputs.values())))
    rows = np.arange(0, count, -(-count // most))
    for start in range(0, len(rows), batch):
        yield _tensors({name: array[rows[start : start + batch]] for name, array in inputs.items()})


def _training(bench: Bench) -> dict[str, np.ndarray]:
    names = [spec.name for spec in bench.runner.signature.inputs]
    inputs = bench.samples.train
    if not set(names) <= set(inputs):
        inputs = dict(zip(names, inputs.values(), strict=False))
    return {name: inputs[name] for name in names}


def _tensors(rows: dict[str, np.ndarray]) -> "list[torch.Tensor]":

    return [tensor_of(array) for array in without_padding(rows).values()]


def shaped_rows(bench: Bench) -> list[dict[str, np.ndarray]]:
    """Return inputs by the graph's names in several shapes: numbers of rows, and of tokens where that is free."""
    specs = bench.runner.signature.inputs
    if any(not spec.shape or spec.shape[0] >= 0 for spec in specs):
        return []
    whole = dict(zip([spec.name for spec in specs], rows_of(bench, max(count for count, _ in _SHAPES)), strict=True))
    is_text = ATTENTION_MASK in bench.samples.train
    free = {spec.name: is_text and len(spec.shape) > 1 and spec.shape[1] < 0 for spec in specs}
    found = []
    for count, tokens in _SHAPES:
        rows = {name: array[:count].numpy() for name, array in whole.items()}
        found.append(
            {name: np.ascontiguousarray(array[:, :tokens] if free[name] else array) for name, array in rows.items()}
        )
    return found


def exported(module: "nn.Module", bench: Bench, *, is_draft: bool = False) -> bytes:
    """Return the module as an ONNX file with the original's names of inputs and outputs."""
    signature = bench.runner.signature
    names = [spec.name for spec in signature.inputs]
    made = onnx_bytes(
        module,
        dict(zip(names, rows_of(bench, 4), strict=True)),
        output=[spec.name for spec in signature.outputs],
        is_draft=is_draft,
        free_lengths=ATTENTION_MASK in bench.samples.train,
    )
    return simplified(made, shaped_rows(bench))
