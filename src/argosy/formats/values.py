"""What every runner of a graph checks before it runs, and how it says what the runtime has said."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from argosy.core.errors import InvalidInput, Refused
from argosy.core.tensors import TensorSpec
from argosy.formats.onnx_check import check_onnx, read_model_file


def checked_content(data: bytes | Path, threads: int) -> bytes:
    """Return the bytes of an ONNX model, looked through before any engine parses them.

    Raises InvalidInput for what is not one self-contained ONNX model, and for a number of threads below 0; NotFound for
    a missing file.
    """
    if threads < 0:
        raise InvalidInput(f"{threads} threads were asked for; give 0 for the runtime's choice, or more")
    content = read_model_file(data) if isinstance(data, Path) else data
    check_onnx(content)
    return content


def checked_input(inputs: Mapping[str, tuple[np.dtype[Any], TensorSpec]], name: str, array: np.ndarray) -> np.ndarray:
    """Return an input as the model takes it; raise InvalidInput unless name, datatype and shape are known."""
    if name not in inputs:
        known = ", ".join(repr(known) for known in inputs)
        raise InvalidInput(f"the model has no input {name!r}; its inputs are: {known}")
    dtype, spec = inputs[name]
    if spec.datatype == "BYTES" and array.dtype.kind in "OSU":
        array = _as_text(name, array)
    if array.dtype != dtype:
        raise InvalidInput(f"input {name!r} must be {spec.datatype} ({dtype.name}), but is {array.dtype.name}")
    if array.ndim != len(spec.shape) or any(
        want not in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
    ):
        raise InvalidInput(
            f"input {name!r} must have the shape {list(spec.shape)}, where -1 is free, but has {list(array.shape)}"
        )
    if spec.is_batched and array.shape[0] == 0:
        raise InvalidInput(f"input {name!r} has no rows; give at least one")
    return array


def _as_text(name: str, array: np.ndarray) -> np.ndarray:
    """ONNX strings are UTF-8; the runtime takes them as an object array of str."""
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise Refused(f"input '{name}' holds bytes that are not UTF-8: {error}", code="not_utf8") from error
    found = np.empty(len(texts), dtype=object)
    found[:] = texts
    return found.reshape(array.shape)


def first_line(error: Exception) -> str:
    """Return the first line of what a runtime has said."""
    text = str(error).strip()
    return (text.splitlines()[0] if text else type(error).__name__)[:500]
