"""What a request for an inference is once its transport is forgotten, and whether it fits a version's signature."""

import functools
import math
from collections.abc import Mapping
from typing import NamedTuple

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve.contents import check_content
from argosy.serve.values import item_size, split_texts
from argosy.serve.wire import Tensor


class Inputs(msgspec.Struct, frozen=True, gc=False):
    """Checked inputs, in the order of the signature."""

    tensors: tuple[Tensor, ...]
    rows: int
    """Size of the batch dimension; 1 for a version that can't be batched."""
    key: tuple[tuple[int, ...], ...] | None
    """Requests with equal keys can share a batch: the shapes without the batch dimension, where the signature leaves
    them free. None for a version that can't be batched."""
    size_bytes: int
    length: int = 0
    """Bytes of its longest text, for a version that takes texts: what padding in a batch follows."""


class _Form(NamedTuple):
    """What checking needs of a signature, worked out once and not per request."""

    is_batched: bool
    inputs: tuple[tuple[str, str, tuple[int, ...] | None, TensorSpec], ...]
    """Name, datatype, and the shape behind a free first dimension where all of it is fixed, else None."""
    free: tuple[int, ...]
    """Positions of inputs with free dimensions beside the batch."""
    texts: tuple[int, ...]
    """Positions of inputs whose length decides what a run costs."""
    single: tuple[str, str, tuple[int, ...]] | None
    """The only input, where there is one, everything behind its rows is fixed, and so is the form of the outputs."""
    images: tuple[int, ...]


@functools.lru_cache(maxsize=256)
def _form(signature: Signature) -> _Form:
    inputs = []
    for spec in signature.inputs:
        tail = spec.shape[1:] if spec.is_batched and all(size > 0 for size in spec.shape[1:]) else None
        inputs.append((spec.name, spec.datatype, tail, spec))
    free = tuple(i for i, spec in enumerate(signature.inputs) if -1 in spec.shape[1:])
    texts = tuple(i for i, spec in enumerate(signature.inputs) if spec.content == "text")
    images = tuple(i for i, spec in enumerate(signature.inputs) if spec.content == "image")
    single = None
    if len(inputs) == 1 and signature.is_batched and not signature.inputs[0].content:
        name, datatype, fixed, _ = inputs[0]
        single = None if fixed is None else (name, datatype, fixed)
    return _Form(signature.is_batched, tuple(inputs), free, texts, single, images)


def check_inputs(signature: Signature, given: Mapping[str, Tensor]) -> Inputs:
    """Return the inputs in order; InvalidInput names the input, what the version takes and what was found."""
    form = _form(signature)
    if form.single is not None and len(given) == 1:
        # The usual case: one input, all of its shape fixed but the rows.
        name, datatype, tail = form.single
        tensor = given.get(name)
        if tensor is not None and tensor.datatype == datatype and tensor.shape[1:] == tail and tensor.shape[0]:
            return Inputs((tensor,), tensor.shape[0], (), len(tensor.data))
    tensors = []
    size = 0
    for name, datatype, fixed, spec in form.inputs:
        tensor = given.get(name)
        if tensor is None:
            raise _missing(spec, given)
        shape = tensor.shape
        # The usual case, a free first dimension and everything else as it must be, without a function per dimension.
        if fixed is None or tensor.datatype != datatype or shape[1:] != fixed or not shape or not shape[0]:
            _check_tensor(tensor, datatype, spec.shape)
        size += len(tensor.data)
        tensors.append(tensor)
    if len(given) != len(tensors):
        known = [spec.name for spec in signature.inputs]
        extra = next(name for name in given if name not in known)
        raise InvalidInput(
            f"there is no input '{extra[:100]}'; the inputs are: {', '.join(known)}", code="unknown_input", known=known
        )
    for i in form.images:
        check_content(form.inputs[i][3], tensors[i].data)
    length = max([check_content(form.inputs[i][3], tensors[i].data) for i in form.texts]) if form.texts else 0
    if not form.is_batched:
        return Inputs(tuple(tensors), 1, None, size)
    rows = tensors[0].shape[0] if tensors else 1
    for tensor in tensors:
        if tensor.shape[0] != rows:
            raise InvalidInput(
                f"input '{tensor.name}' has {tensor.shape[0]} rows, but '{tensors[0].name}' has {rows}",
                code="wrong_shape",
                input=tensor.name,
            )
    key = tuple([tensors[i].shape[1:] for i in form.free]) if form.free else ()
    return Inputs(tuple(tensors), rows, key, size, length)


def _missing(spec: TensorSpec, given: Mapping[str, Tensor]) -> InvalidInput:
    found = ", ".join(repr(name[:100]) for name in list(given)[:20]) or "none"
    return InvalidInput(
        f"input '{spec.name}' ({spec.datatype} {list(spec.shape)}) is missing; found: {found}"
        f"{f' and {len(given) - 20} more' if len(given) > 20 else ''}",
        code="missing_input",
        input=spec.name,
    )


def _check_tensor(tensor: Tensor, datatype: str, shape: tuple[int, ...]) -> None:
    name = tensor.name
    if tensor.datatype != datatype:
        raise InvalidInput(
            f"input '{name}' is {datatype}, but {tensor.datatype[:20]} was sent", code="wrong_datatype", input=name
        )
    if len(tensor.shape) != len(shape) or any(
        want not in (-1, have) for want, have in zip(shape, tensor.shape, strict=True)
    ):
        raise InvalidInput(
            f"input '{name}' has the shape {list(shape)} (-1: any size), but {list(tensor.shape)[:16]} was sent",
            code="wrong_shape",
            input=name,
        )
    if 0 in tensor.shape:
        raise InvalidInput(
            f"input '{name}' is empty: its shape is {list(tensor.shape)}; send at least one row",
            code="empty_input",
            input=name,
        )


def check_size(tensor: Tensor, where: str) -> None:
    """Raise InvalidInput unless the raw bytes are exactly what datatype and shape say."""
    count = math.prod(tensor.shape)
    size = item_size(tensor.datatype)
    found = len(tensor.data) // size if size else len(split_texts(tensor.data))
    if found != count or (size and len(tensor.data) != count * size):
        raise InvalidInput(
            f"the shape {list(tensor.shape)[:16]} of {tensor.datatype} needs {count} elements"
            + (f" ({count * size} bytes)" if size else "")
            + f", but {found} ({len(tensor.data)} bytes) were sent - at `{where}`",
            code="wrong_size",
            path=where,
        )
