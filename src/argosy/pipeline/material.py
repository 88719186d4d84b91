"""What a version is compressed with: samples it was never judged on, in the form its model takes them.

They are those of the run the version comes from, or those of a file in the callers' form: the version's own steps
prepare them. Three parts: one to calibrate and train on, one to choose by, and one that is looked at once, at the end.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from argosy.core.digest import digest_of, sha256
from argosy.core.errors import InvalidInput
from argosy.data.dataset import Dataset
from argosy.data.fit import as_texts, raw_inputs
from argosy.data.labels import number_classes
from argosy.data.prepare import Finish, Label, Value, finish_from_plain, finishing, preparation, steps_from_plain
from argosy.data.sources import Column, Table, read
from argosy.data.split import split_rows, strata_of_numbers
from argosy.data.steps import Arrays
from argosy.data.text_columns import clean_texts
from argosy.formats.inspect import generate
from argosy.registry.versions import Manifest

# Of a model nothing is known about: enough rows to calibrate on and to see the rest move.
_GENERATED = 256
_VALIDATION, _TEST = 0.2, 0.2


class Material:
    """Three parts of prepared inputs and of what is to be answered; `compress.quality.PreparedData`."""

    def __init__(
        self,
        task: str,
        digest: str,
        parts: dict[str, tuple[Arrays, Any]],
        finish: Finish | None,
        *,
        origin: str,
        outputs: tuple[str, ...] = (),
        scale: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        self.task, self.digest, self.origin = task, digest, origin
        self._parts, self._finish, self._scale, self._outputs = parts, finish, scale, outputs

    def prepared(self, split: str) -> tuple[Arrays, Any]:
        """Return a part's inputs as the model takes them, and its answers in the model's unit."""
        inputs, y = self._parts[split]
        if self.task != "regression" or y is None:
            return inputs, y
        offset, scale = self._scale
        return inputs, ((np.asarray(y, dtype=np.float64) - offset) / scale).astype(np.float32)

    def truth(self, split: str) -> Any:
        """Return a part's answers in the callers' unit; None for an embedding."""
        return self._parts[split][1]

    def finished(self, outputs: Mapping[str, Any], prepared: Mapping[str, Any]) -> Arrays:
        """Return what callers would get."""
        return dict(outputs) if self._finish is None else self._finish(outputs, prepared)

    def vectors(self, outputs: Mapping[str, Any], prepared: Mapping[str, Any]) -> np.ndarray[Any, Any]:
        """Return a vector per row, of everything that is a number in what callers get."""
        found = self.finished(outputs, prepared)
        wanted = [np.asarray(found[name]) for name in self._outputs or found]
        numbers = [array.astype(np.float32).reshape(len(array), -1) for array in wanted if array.dtype.kind == "f"]
        if not numbers:
            raise InvalidInput("the model gives no floating-point numbers that could be compared")
        return np.concatenate(numbers, axis=1)


def of_dataset(dataset: Dataset) -> Material:
    """Return the data of a run, or as many rows of it as can be held."""
    dataset = dataset.reduced()
    parts = {}
    for name in ("train", "validation", "test"):
        inputs, _ = dataset.prepared(name)
        parts[name] = (inputs, dataset.splits[name].y)
    unit = next((step for step in dataset.finish if isinstance(step, Value)), None)
    return Material(
        dataset.task,
        dataset.digest,
        parts,
        finishing(dataset.finish) if dataset.finish else None,
        origin="the data of the version's own run",
        scale=(unit.offset, unit.scale) if unit is not None else (0.0, 1.0),
    )


def of_file(
    manifest: Manifest, files: Mapping[str, bytes], where: str, base: Path, *, label: str, seed: int
) -> Material:
    """Return the data of a file, prepared as the version prepares requests; raise InvalidInput where it doesn't fit."""
    if manifest.format != "onnx":
        raise InvalidInput("a Python model can't be compressed: no pass knows what its code does")
    table = read(where, base)
    columns = _columns(table, manifest)
    finish = finish_from_plain(manifest.finish)
    named = next((step for step in finish if isinstance(step, Label)), None)
    unit = next((step for step in finish if isinstance(step, Value)), None)
    name = label or _usual_label(table, is_needed=named is not None or unit is not None)
    y, task = _truth(table, name, named, is_value=unit is not None)
    if y is not None and named is None and unit is None:
        y, task = _fitting(y, task, manifest, f"'{name}' of '{where}'")
    for spec in manifest.signature.inputs:
        if spec.content == "text":
            columns[spec.name] = clean_texts(columns[spec.name], spec.name)
    raw = raw_inputs(manifest.signature.inputs, columns)
    count = len(next(iter(raw.values())))
    if y is not None and len(y) != count:
        raise InvalidInput(f"'{where}' has {count} rows of input but {len(y)} labels")
    strata = np.zeros(count) if y is None else y if task == "classification" else strata_of_numbers(y)
    rows = split_rows(strata, validation=_VALIDATION, test=_TEST, seed=seed)
    prepare = preparation(steps_from_plain(manifest.prepare), files)
    parts = {}
    for part, chosen in rows.items():
        inputs = prepare({key: array[chosen] for key, array in raw.items()})
        parts[part] = (inputs, None if y is None else y[chosen])
    outputs = tuple(spec.name for spec in manifest.signature.outputs)
    contents = {key: _digestible(array) for key, array in raw.items()}
    return Material(
        task,
        digest_of([contents, None if y is None else y.tolist(), manifest.prepare, seed]),
        parts,
        finishing(finish) if finish else None,
        outputs=outputs,
        origin=f"'{Path(where).name}': {', '.join(f'{len(chosen)} {part}' for part, chosen in rows.items())}",
        scale=(unit.offset, unit.scale) if unit is not None else (0.0, 1.0),
    )


def generated(manifest: Manifest, *, seed: int) -> Material:
    """Return made-up inputs for a model nothing else is known of: all they can say is whether answers move."""
    if manifest.prepare:
        raise InvalidInput(
            "what this version is asked can't be made up: it prepares texts, images or columns",
            hint="give data: --data FILE",
            code="no_data",
        )
    finish = finish_from_plain(manifest.finish)
    parts: dict[str, tuple[Arrays, Any]] = {
        part: (generate(manifest.signature, _GENERATED, seed + number), None)
        for number, part in enumerate(("train", "validation", "test"))
    }
    return Material(
        "embedding",
        digest_of(["generated", seed, _GENERATED]),
        parts,
        finishing(finish) if finish else None,
        outputs=tuple(spec.name for spec in manifest.signature.outputs),
        origin="generated inputs: agreement on real ones may differ",
    )


def _columns(table: Table, manifest: Manifest) -> dict[str, Column]:
    """Return the inputs' columns. A model with one input may find it under any name, as `x` or `image`."""
    needed = [name for spec in manifest.signature.inputs for name in (spec.columns or (spec.name,))]
    lacking = [name for name in needed if name not in table.columns]
    if not lacking:
        return {name: table.columns[name] for name in needed}
    inputs = manifest.signature.inputs
    wide = [name for name, column in table.columns.items() if column.ndim > 1]
    sole = wide if table.kind == "arrays" else [name for name in ("image", "text") if name in table.columns]
    if len(inputs) == 1 and not inputs[0].columns and len(sole) == 1:
        return {inputs[0].name: table.columns[sole[0]]}
    raise InvalidInput(
        f"'{table.where}' lacks {', '.join(map(repr, lacking[:10]))}, which the version takes; it has: {table.names()}",
        hint="name the columns or arrays as the version's inputs: argosy models show",
        columns=lacking,
    )


def _usual_label(table: Table, *, is_needed: bool) -> str:
    if table.kind in ("images", "texts"):
        return "label"
    for name in ("label", "labels", "y", "target", "class"):
        if name in table.columns:
            return name
    if is_needed:
        raise InvalidInput(
            f"which column of '{table.where}' is the answer? It has: {table.names()}", hint="name it: --label COLUMN"
        )
    return ""


def _truth(table: Table, name: str, named: Label | None, *, is_value: bool) -> tuple[np.ndarray[Any, Any] | None, str]:
    if not name:
        return None, "embedding"
    if name not in table.columns:
        raise InvalidInput(f"'{table.where}' has no column '{name}'; it has: {table.names()}")
    column = table.columns[name]
    if is_value:
        return np.asarray(column, dtype=np.float64), "regression"
    if named is None:
        if column.dtype.kind not in "iubf":
            raise InvalidInput(
                f"'{name}' of '{table.where}' are no numbers, and the version doesn't say which class has which name",
                hint="number the classes as the model's outputs are, from 0",
            )
        is_whole = column.dtype.kind == "f" and bool((column == np.round(column)).all())
        is_classes = column.dtype.kind in "iub" or is_whole
        return (np.asarray(column, np.int64), "classification") if is_classes else (np.asarray(column), "regression")
    texts = as_texts(column)
    new = sorted(set(texts.tolist()) - set(named.labels))
    if new:
        raise InvalidInput(
            f"'{table.where}' has labels the version doesn't know: {', '.join(map(repr, new[:5]))}",
            hint=f"it knows: {', '.join(named.labels[:20])}",
        )
    return number_classes(texts, tuple(named.labels), np.ones(len(texts), dtype=bool)), "classification"


def _fitting(y: np.ndarray[Any, Any], task: str, manifest: Manifest, what: str) -> tuple[np.ndarray[Any, Any], str]:
    """Return truth and task as they fit a bare model's output; refuse classes and numbers it can't give."""
    shape = manifest.signature.outputs[0].shape
    width = shape[-1] if len(shape) > 1 else -1
    hint = "name the column of the answers: --label COLUMN"
    if task == "regression":
        if width > 1:
            raise InvalidInput(f"{what} holds one number for each row; the model gives {width}", hint=hint)
        return y, task
    if width == 1 and not np.isin(y, (0, 1)).all():
        return y.astype(np.float64), "regression"
    classes = max(2, width)
    if y.min() < 0 or (width > 0 and y.max() >= classes):
        wrong = int(y.min() if y.min() < 0 else y.max())
        known = f"; the model has {classes}, from 0 to {classes - 1}" if width > 0 else ""
        raise InvalidInput(f"{what} says class {wrong}{known}", hint=hint)
    return y, task


def _digestible(array: np.ndarray[Any, Any]) -> str:
    if array.dtype.kind == "O":
        return digest_of([str(item) for item in array.ravel().tolist()])
    return sha256(np.ascontiguousarray(array).tobytes())
