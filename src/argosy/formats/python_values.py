"""What a model of one's own gets and gives, checked at every call: arrays of a batch against what it promised."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from argosy.core.errors import InvalidInput, Refused
from argosy.core.tensors import TensorSpec
from argosy.formats.python_signature import Field, Form

Arrays = dict[str, np.ndarray]

# Kinds of NumPy types, found and promised, between which values are kept or only rounded.
_CONVERSIONS = {"ff", "if", "uf", "ii", "iu", "ui", "uu"}


def check_inputs(form: Form, inputs: Mapping[str, np.ndarray]) -> Arrays:
    """Return the inputs as the code gets them: copies of its own, texts as `str`."""
    known = [field.spec.name for field in form.inputs]
    if set(inputs) != set(known):
        raise InvalidInput(f"the model's inputs are {', '.join(known)}; given were {', '.join(inputs) or 'none'}")
    given = {field.spec.name: _input(field, np.asarray(inputs[field.spec.name])) for field in form.inputs}
    rows = {name: len(array) for name, array in given.items()}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        raise InvalidInput(f"the inputs must all have the same number of rows, at least one, but have {rows}")
    return given


def _input(field: Field, array: np.ndarray) -> np.ndarray:
    spec = field.spec
    if spec.datatype == "BYTES" and array.dtype.kind in "OSU":
        array = _texts(spec, array)
    elif array.dtype != field.dtype:
        raise InvalidInput(
            f"input '{spec.name}' must be {spec.datatype} ({field.dtype.name}), but is {array.dtype.name}"
        )
    else:
        array = array.copy()
    _check_shape(f"input '{spec.name}'", spec, array.shape)
    return array


def _texts(spec: TensorSpec, array: np.ndarray) -> np.ndarray:
    found = np.empty(array.size, dtype=object)
    for index, item in enumerate(array.ravel().tolist()):
        if spec.content != "text":
            found[index] = item if isinstance(item, bytes) else str(item).encode()
            continue
        try:
            found[index] = item.decode() if isinstance(item, bytes) else str(item)
        except UnicodeDecodeError as error:
            raise Refused(f"input '{spec.name}' holds bytes that are not UTF-8 text: {error}") from None
    return found.reshape(array.shape)


def output_array(field: Field, value: object, rows: int) -> np.ndarray:
    """Return one output as the array it was promised to be; what can be kept exactly, or rounded, is converted."""
    spec = field.spec
    if spec.datatype == "BYTES":
        array = _output_texts(field, value)
    else:
        try:
            array = np.asarray(value)
        except Exception as error:  # noqa: BLE001 - objects of other libraries turn themselves into arrays
            raise wrong_result(f"output '{spec.name}' can't be made an array: {error}") from None
        array = _as_type(field, array)
    _check_rows(spec, array.shape, rows)
    return array


def _output_texts(field: Field, value: object) -> np.ndarray:
    name = field.spec.name
    if isinstance(value, str | bytes):
        raise wrong_result(f"output '{name}' is a single text; give one for each row")
    if len(field.spec.shape) == 1:
        # Item by item, because NumPy looks into whatever has a length.
        items = list(value) if isinstance(value, list | tuple | np.ndarray) else None
        array = np.empty(len(items) if items is not None else 0, dtype=object)
        array[:] = items if items is not None else []
        if items is None:
            raise wrong_result(f"output '{name}' is a '{type(value).__name__}'; give a list or an array of texts")
    else:
        array = np.array(value, dtype=object)
    for item in array.ravel().tolist():
        if not isinstance(item, str | bytes):
            raise wrong_result(f"output '{name}' must hold texts, but holds a '{type(item).__name__}'")
    return array


def _as_type(field: Field, array: np.ndarray) -> np.ndarray:
    name, wanted, found = field.spec.name, field.dtype, array.dtype
    if found == wanted:
        return array
    fits = found.kind + wanted.kind in _CONVERSIONS
    if fits and wanted.kind in "iu":
        limits = np.iinfo(wanted)
        fits = bool(array.size == 0 or (int(array.min()) >= limits.min and int(array.max()) <= limits.max))
    if not fits:
        raise wrong_result(
            f"output '{name}' must be {field.spec.datatype} ({wanted.name}), but is {found.name}"
            + (" with values that don't fit" if found.kind in "iu" and wanted.kind in "iu" else "")
        )
    with np.errstate(over="ignore"):  # becomes infinite, which is found later
        return array.astype(wanted)


def _check_rows(spec: TensorSpec, shape: tuple[int, ...], rows: int) -> None:
    wanted = [rows, *spec.shape[1:]]
    if len(shape) != len(wanted) or any(w not in (-1, h) for w, h in zip(wanted, shape, strict=True)):
        raise wrong_result(
            f"output '{spec.name}' has the shape {list(shape)}, but for {rows} rows {wanted} was promised"
        )


def _check_shape(what: str, spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if len(shape) != len(spec.shape) or any(w not in (-1, h) for w, h in zip(spec.shape, shape, strict=True)):
        raise InvalidInput(f"{what} must have the shape {list(spec.shape)}, where -1 is free, but has {list(shape)}")


def example_inputs(form: Form, rows: Sequence[Mapping[str, Any]]) -> Arrays | None:
    """Return the examples of a class as a batch, None when there are none; InvalidInput when they don't fit."""
    names = [field.spec.name for field in form.inputs]
    for row in rows:
        if set(row) != set(names):
            raise InvalidInput(
                f"an example has values for {', '.join(map(str, row)) or 'nothing'}, but predict takes "
                f"{', '.join(names)}",
                hint="every example is a dict with one value for each input",
                code="model_class_wrong",
            )
    try:
        made = {field.spec.name: _example(field, [row[field.spec.name] for row in rows]) for field in form.inputs}
        return check_inputs(form, made) if rows else None
    except (ValueError, TypeError, OverflowError, InvalidInput) as error:
        raise InvalidInput(
            f"the examples don't fit predict: {error}",
            hint="every example is a dict with one value for each input, without the batch dimension",
            code="model_class_wrong",
        ) from error


def _example(field: Field, values: list[Any]) -> np.ndarray:
    if field.spec.datatype == "BYTES" and len(field.spec.shape) == 1:
        found = np.empty(len(values), dtype=object)
        found[:] = values
        return found
    return np.array(values, dtype=field.dtype)


def wrong_result(message: str) -> InvalidInput:
    """Return the error for a result that is not what was promised: the version's fault, not the caller's."""
    return InvalidInput(message, code="model_result_wrong")
