"""What a request for an inference is once its transport is forgotten, and whether it fits a version's signature."""

import math
from collections.abc import Mapping

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature
from argosy.serve.values import item_size, split_texts
from argosy.serve.wire import Tensor


class Inputs(msgspec.Struct, frozen=True):
    """Checked inputs, in the order of the signature. Requests with equal `key` can share a batch."""

    tensors: tuple[Tensor, ...]
    rows: int
    """Size of the batch dimension; 1 for a version that can't be batched."""
    key: tuple[tuple[int, ...], ...]
    """Shapes without the batch dimension, where the signature leaves them free."""
    size_bytes: int


def check_inputs(signature: Signature, given: Mapping[str, Tensor]) -> Inputs:
    """Return the inputs in order; InvalidInput names the input, what the version takes and what was found."""
    tensors = []
    size = 0
    for spec in signature.inputs:
        tensor = given.get(spec.name)
        if tensor is None:
            raise InvalidInput(
                f"input '{spec.name}' ({spec.datatype} {list(spec.shape)}) is missing; found: "
                f"{', '.join(repr(name) for name in given) or 'none'}",
                code="missing_input",
                input=spec.name,
            )
        _check_tensor(tensor, spec.datatype, spec.shape)
        size += len(tensor.data)
        tensors.append(tensor)
    if len(given) != len(tensors):
        known = [spec.name for spec in signature.inputs]
        extra = next(name for name in given if name not in known)
        raise InvalidInput(
            f"there is no input '{extra[:100]}'; the inputs are: {', '.join(known)}", code="unknown_input", known=known
        )
    if not signature.is_batched:
        return Inputs(tuple(tensors), 1, (), size)
    rows = tensors[0].shape[0] if tensors else 1
    for tensor in tensors:
        if tensor.shape[0] != rows:
            raise InvalidInput(
                f"input '{tensor.name}' has {tensor.shape[0]} rows, but '{tensors[0].name}' has {rows}",
                code="wrong_shape",
                input=tensor.name,
            )
    key = tuple(t.shape[1:] for t, spec in zip(tensors, signature.inputs, strict=True) if -1 in spec.shape[1:])
    return Inputs(tuple(tensors), rows, key, size)


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
