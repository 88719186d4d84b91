"""The signature of a model of one's own, read from the annotations of its `predict`, strictly."""

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.formats.python_model import Columns, Datatype, Model, RowModel, Shape

_PLAIN = {
    str: Datatype("BYTES", "text"),
    bytes: Datatype("BYTES"),
    bool: Datatype("BOOL"),
    int: Datatype("INT64"),
    float: Datatype("FP64"),
}
_SINGLE = "output"
_MAX_RANK = 15  # and one dimension for the batch


class Field(NamedTuple):
    """One input or output. `plain`: in a row model, the Python type of a single value; None for an array."""

    spec: TensorSpec
    dtype: np.dtype[Any]
    plain: type | None = None


class Form(NamedTuple):
    """What `predict` takes and gives."""

    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]
    by_row: bool
    fields_of: Callable[[object], Mapping[str, object]]
    """Take a result apart; TypeError when it isn't what was promised."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs as callers see them."""
        return Signature(
            inputs=tuple(field.spec for field in self.inputs), outputs=tuple(field.spec for field in self.outputs)
        )


def read_form(model: type[Model]) -> Form:
    """Read what a class takes and gives; InvalidInput (`model_class_wrong`) says what is wrong with it and where."""
    predict = inspect.getattr_static(model, "predict", None)
    if not inspect.isfunction(predict):
        raise _wrong(f"{_called(model)} has no method 'predict'", "write: def predict(self, text: argosy.Text) -> ...")
    _check_kind(model, predict, "predict")
    _check_load(model)
    by_row = issubclass(model, RowModel)
    hints = _hints(model, predict)
    parameters = list(inspect.signature(predict).parameters.values())[1:]
    if not parameters:
        raise _wrong(f"predict of {_called(model)} takes no input", "give it a parameter besides self")
    inputs = tuple(_input(model, parameter, hints, by_row=by_row) for parameter in parameters)
    if "return" not in hints:
        raise _wrong(
            f"predict of {_called(model)} doesn't say what it returns",
            "annotate it with a NamedTuple of types, or with a single type: -> argosy.FP32",
        )
    outputs, fields_of = _result(model, hints["return"], by_row=by_row)
    return Form(inputs, outputs, by_row, fields_of)


def _check_kind(model: type[Model], function: Any, name: str) -> None:
    inner = inspect.unwrap(function)
    if inspect.iscoroutinefunction(inner):
        raise _wrong(
            f"{name} of {_called(model)} is async, but a replica answers one batch at a time",
            f"write: def {name}",
        )
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise _wrong(f"{name} of {_called(model)} yields, but answers can't be streamed yet", "return the whole answer")


def _check_load(model: type[Model]) -> None:
    load = inspect.getattr_static(model, "load")
    if not inspect.isfunction(load):
        raise _wrong(f"load of {_called(model)} is not a method", "write: def load(self, files: argosy.Files) -> None")
    _check_kind(model, load, "load")
    try:
        inspect.signature(load).bind(object(), object())
    except TypeError as error:
        raise _wrong(
            f"load of {_called(model)} can't be called with the deployed files: {error}",
            "write: def load(self, files: argosy.Files) -> None",
        ) from error


def _hints(model: type[Model], function: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:  # annotations given as text may hold anything
        raise _wrong(
            f"an annotation of predict of {_called(model)} can't be understood: {error}",
            "import the names it uses at the top of the file, not only for type checkers",
        ) from error


def _input(model: type[Model], parameter: inspect.Parameter, hints: Mapping[str, Any], *, by_row: bool) -> Field:
    where = f"input '{parameter.name}' of {_called(model)}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise _wrong(f"predict of {_called(model)} takes '{parameter}'", "name every input")
    if parameter.kind is parameter.POSITIONAL_ONLY:
        raise _wrong(f"{where} can't be given by name", "remove the '/' from its parameters")
    if parameter.name not in hints:
        raise _wrong(f"{where} has no annotation", f"write its type: {parameter.name}: argosy.FP32")
    if parameter.default is not parameter.empty:
        raise _wrong(
            f"{where} has a default, but callers must send every input", "remove the default; callers send the value"
        )
    return _field(where, parameter.name, hints[parameter.name], by_row=by_row)


def _result(
    model: type[Model], hint: Any, *, by_row: bool
) -> tuple[tuple[Field, ...], Callable[[object], Mapping[str, object]]]:
    where = f"the result of {_called(model)}"
    if hint is None or hint is types.NoneType:
        raise _wrong(f"{where} is None", "return the answer")
    kind = _is_compound(hint)
    if not kind:
        return (_field(where, _SINGLE, hint, by_row=by_row),), lambda result: {_SINGLE: result}
    hints = _field_hints(model, hint)
    names = [name for name in hints if kind != "dataclass" or name in {f.name for f in dataclasses.fields(hint)}]
    if not names:
        raise _wrong(f"{where}, '{hint.__name__}', has no fields", "give it a field for every output")
    outputs = tuple(_field(f"output '{name}' of {_called(model)}", name, hints[name], by_row=by_row) for name in names)
    return outputs, _taking_apart(kind, hint, tuple(names))


def _is_compound(hint: Any) -> Literal["", "tuple", "dict", "dataclass"]:
    if typing.is_typeddict(hint):
        return "dict"
    if isinstance(hint, type) and issubclass(hint, tuple) and hasattr(hint, "_fields"):
        return "tuple"
    return "dataclass" if isinstance(hint, type) and dataclasses.is_dataclass(hint) else ""


def _field_hints(model: type[Model], hint: Any) -> dict[str, Any]:
    hints = _hints(model, hint)
    # A namedtuple without annotations has fields, but no types.
    for name in getattr(hint, "_fields", ()):
        if name not in hints:
            raise _wrong(f"output '{name}' of {_called(model)} has no annotation", "use typing.NamedTuple with types")
    return hints


def _taking_apart(kind: str, hint: Any, names: tuple[str, ...]) -> Callable[[object], Mapping[str, object]]:
    def fields_of(result: object) -> Mapping[str, object]:
        if kind == "dict":
            if not isinstance(result, Mapping) or set(result) != set(names):
                found = f"the keys {', '.join(map(str, result))}" if isinstance(result, Mapping) else _kind(result)
                raise TypeError(f"it returned {found}, but promised a dict with {', '.join(names)}")
            return result
        if not isinstance(result, hint):
            raise TypeError(f"it returned {_kind(result)}, but promised '{hint.__name__}'")
        return {name: getattr(result, name) for name in names}

    return fields_of


def _field(where: str, name: str, hint: Any, *, by_row: bool) -> Field:
    parts = typing.get_args(hint) if typing.get_origin(hint) is Annotated else (hint,)
    base, marks = parts[0], parts[1:]
    plain = base if isinstance(base, type) and base in _PLAIN else None
    datatypes = [mark for mark in marks if isinstance(mark, Datatype)] or ([_PLAIN[plain]] if plain else [])
    if len(datatypes) != 1 or datatypes[0].name not in DATATYPES:
        raise _wrong(
            f"{where} is annotated with {_shown(hint)}, which is no type of a tensor",
            "use argosy.FP32, argosy.INT64, argosy.Text, ..., with argosy.Shape(...) where a row is not a single value",
        )
    shape, columns = _row_shape(where, marks)
    if plain is not None and not by_row:
        raise _wrong(
            f"{where} is annotated with {_shown(hint)}, but predict gets a whole batch",
            f"write argosy.{_batch_type(plain)}, or derive the class from argosy.RowModel to get row by row",
        )
    if plain is not None and (shape or columns):
        raise _wrong(f"{where} is a single '{plain.__name__}', so it has no shape", "use an array type: argosy.FP32")
    if plain is None and by_row and not shape:
        raise _wrong(
            f"{where} is annotated with an array, but in a row model a row of it is a single value",
            "use str, bytes, bool, int or float, or give the shape of a row: Annotated[argosy.FP32, argosy.Shape(3)]",
        )
    datatype = datatypes[0]
    spec = TensorSpec(name=name, datatype=datatype.name, shape=(-1, *shape), columns=columns, content=datatype.content)
    return Field(spec, np.dtype(DATATYPES[datatype.name][0]), plain)


def _row_shape(where: str, marks: tuple[Any, ...]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    shapes = [mark for mark in marks if isinstance(mark, Shape | Columns)]
    if len(shapes) > 1:
        raise _wrong(f"{where} has {len(shapes)} shapes", "give one argosy.Shape or one argosy.Columns")
    if not shapes:
        return (), ()
    (mark,) = shapes
    if isinstance(mark, Columns):
        if not mark or len(set(mark)) < len(mark) or not all(isinstance(name, str) and name for name in mark):
            raise _wrong(f"{where} has the columns {list(mark)}", "give every column a name of its own")
        return (len(mark),), tuple(mark)
    if not mark or len(mark) > _MAX_RANK or not all(type(size) is int and (size > 0 or size == -1) for size in mark):
        raise _wrong(
            f"{where} has the shape {list(mark)}",
            f"give 1 to {_MAX_RANK} sizes above 0, or -1 for any; leave the batch out",
        )
    return tuple(mark), ()


def _batch_type(plain: type) -> str:
    return {str: "Text", bytes: "Bytes", bool: "BOOL", int: "INT64", float: "FP64"}[plain]


def _shown(hint: Any) -> str:
    return f"'{getattr(hint, '__name__', hint)}'"[:200]


def _kind(value: object) -> str:
    return f"a '{type(value).__name__}'"


def _called(model: type[Model]) -> str:
    return f"'{model.__name__}'"


def _wrong(message: str, hint: str) -> InvalidInput:
    return InvalidInput(message, hint=hint, code="model_class_wrong")
