"""What the label says: classes or a quantity."""

from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.errors import InvalidInput
from argosy.data.fit import as_texts
from argosy.data.steps import Array


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """The label of every row: int64 class numbers, or float32 values. `known` marks the rows that have one."""

    task: str
    y: npt.NDArray[Any]
    known: npt.NDArray[np.bool_]
    labels: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def read_target(column: Array, name: str, task: str) -> Target:
    """Decide the task where it is "auto" and number the classes. Raises InvalidInput that says what was found."""
    column = _flat(column, name)
    known = _known(column)
    if not known.any():
        raise InvalidInput(f"the label '{name}' is missing in every row", hint="name another: [data] label")
    notes: list[str] = []
    if not known.all():
        notes.append(f"{int((~known).sum())} of {len(known)} rows are left out: their label '{name}' is missing")
    if task == "auto":
        task, why = _task_of(column[known])
        notes += [f"label '{name}' {why}"] if why else []
    if task == "regression":
        y = np.zeros(len(column), dtype=np.float32)
        y[known] = _numbers(column[known], name)
        return Target(task=task, y=y, known=known, notes=tuple(notes))
    texts, of_row = _different(column)
    labels = _sorted_labels(set(texts[np.unique(of_row[known])].tolist()))
    if len(labels) < 2:
        raise InvalidInput(
            f"the label '{name}' has only the class {labels[0]!r} in all {int(known.sum())} rows",
            hint="a classification needs at least two classes; check [data] label",
        )
    if len(labels) * 2 > known.sum() and len(labels) > 20:
        raise InvalidInput(
            f"the label '{name}' has {len(labels)} different values in {int(known.sum())} rows, too many for classes",
            hint='check [data] label; for a quantity say task = "regression"',
        )
    classes = number_classes(texts, labels, np.ones(len(texts), dtype=bool))[of_row]
    return Target(task=task, y=np.where(known, classes, 0), known=known, labels=labels, notes=tuple(notes))


def target_like(first: Target, column: Array, name: str, where: str) -> Target:
    """Read the label of a test file as `first`, the training file's, says. Raises InvalidInput for unknown classes."""
    column = _flat(column, name)
    known = _known(column)
    if first.task == "regression":
        return read_target(column, name, "regression")
    texts, of_row = _different(column)
    new = sorted(set(texts[np.unique(of_row[known])].tolist()) - set(first.labels))
    if new:
        raise InvalidInput(
            f"'{where}' has labels that training never saw: {', '.join(map(repr, new[:10]))}",
            hint=f"known are: {', '.join(map(repr, first.labels[:20]))}",
        )
    if not known.any():
        raise InvalidInput(f"the label '{name}' is missing in every row of '{where}'")
    y = number_classes(texts, first.labels, np.ones(len(texts), dtype=bool))[of_row]
    return Target(task=first.task, y=np.where(known, y, 0), known=known, labels=first.labels)


def _different(column: Array) -> tuple[Array, npt.NDArray[np.int64]]:
    """Return the texts of a label, and which of them each row has: of numbers each is written only once."""
    if column.dtype.kind not in "biuf":
        return as_texts(column), np.arange(len(column))
    values, of_row = np.unique(column, return_inverse=True)
    return as_texts(values), of_row


def number_classes(texts: Array, labels: tuple[str, ...], known: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return each text's place in `labels`, 0 where it is not known."""
    places = {label: place for place, label in enumerate(labels)}
    found = [places.get(text, 0) for text in texts.tolist()]
    return np.where(known, np.array(found, dtype=np.int64), 0)


def _flat(column: Array, name: str) -> Array:
    if column.ndim > 1 and column.shape[1:] == (1,) * (column.ndim - 1):
        return column.reshape(len(column))
    if column.ndim > 1:
        raise InvalidInput(
            f"the label '{name}' has shape {list(column.shape)}, expected one value per row",
            hint="for one-hot labels save labels.argmax(axis=1)",
        )
    return column


def _known(column: Array) -> npt.NDArray[np.bool_]:
    if column.dtype.kind == "f":
        return np.isfinite(column)
    if column.dtype.kind == "M":
        return ~np.isnat(column)
    if column.dtype.kind == "O":
        return np.array([bool(value and value.strip()) for value in column.tolist()], dtype=bool)
    return np.ones(len(column), dtype=bool)


def _task_of(values: Array) -> tuple[str, str]:
    """Return the task that known label values suggest and, where it could be doubted, a note that says so."""
    if values.dtype.kind in "OMb":
        return "classification", ""
    if values.dtype.kind == "f" and not (values == np.round(values)).all():
        return "regression", ""
    different = np.unique(values)
    # Few whole numbers, or 0..K-1 as people number classes, each with several members.
    counted = different[0] == 0 and different[-1] == len(different) - 1 and len(values) >= 5 * len(different)
    if counted or (len(different) <= 20 and len(values) >= 2 * len(different)):
        return "classification", ""
    why = f"has {len(different)} different whole numbers, so it is taken as a quantity"
    return "regression", why + '; for classes say task = "classification"'


def _numbers(values: Array, name: str) -> npt.NDArray[np.float32]:
    if values.dtype.kind not in "biuf":
        raise InvalidInput(
            f"the label '{name}' holds texts such as {str(values[0])!r}, but a regression needs numbers",
            hint='say task = "classification", or name another label',
        )
    with np.errstate(over="ignore"):
        y = values.astype(np.float32)
    if not np.isfinite(y).all():
        raise InvalidInput(f"the label '{name}' holds numbers too large for float32", hint="scale the label")
    return y


def _sorted_labels(found: set[str]) -> tuple[str, ...]:
    """Sort as numbers where all are whole numbers (9 before 10), else as texts."""
    try:
        return tuple(sorted(found, key=lambda text: (int(text), text)))
    except ValueError:
        return tuple(sorted(found))
