"""A data set: its three parts as callers would send them, the fitted steps, and what the model has to learn."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, InvalidInput, NotFound
from argosy.core.files import write_atomic
from argosy.core.tensors import Signature, TensorSpec
from argosy.data.arrange import arranged, spread, take_rows
from argosy.data.config import DataConfig
from argosy.data.fit import Fitted, choose_layout, fit_preparation
from argosy.data.labels import Target, read_target, target_like
from argosy.data.language import Language, read_language
from argosy.data.parts import Split, digest_of_parts, repeated
from argosy.data.prepare import (
    FinishStep,
    Prepare,
    Step,
    finish_from_plain,
    finish_signature,
    finish_steps,
    preparation,
    steps_from_plain,
    steps_to_plain,
)
from argosy.data.scratch import IN_MEMORY, Scratch
from argosy.data.shuffle import Indices, permutation
from argosy.data.sources import Table, headerless_hint, read
from argosy.data.split import split_rows, strata_of_numbers
from argosy.data.steps import Array, Arrays
from argosy.data.storage import StoredArray, mapped, store, verified
from argosy.data.text import Tokenize
from argosy.data.text_columns import clean_texts, fit_texts, sole_texts
from argosy.data.tokenizer import TextTokenizer, vocabulary_size

PARTS = ("train", "validation", "test")
MOST_HELD_BYTES = 1 << 30
"""Of a part that is used as a whole, as compression does."""
FILES = "files"
"""The folder of a saved data set with what becomes a file of the version."""


class Dataset(msgspec.Struct, frozen=True, kw_only=True):
    """Train, validation and test parts with the preparation that was fitted on the first of them.

    `notes` are sentences for the user: what was left out, and why.
    """

    splits: dict[str, Split]
    steps: list[Step]
    finish: list[FinishStep]
    signature_inputs: tuple[TensorSpec, ...]
    task: str
    labels: list[str]
    digest: str
    notes: list[str] = []
    files: dict[str, bytes] = {}
    """Files of the version that steps name, such as a tokenizer."""
    about: str = ""
    """What callers should know of their inputs' way."""

    @property
    def outputs(self) -> int:
        """How many numbers a model gives per row: one per class, or one; for a language model one per known token."""
        if self.task == "language-model":
            return self.vocabulary
        return len(self.labels) if self.task == "classification" else 1

    @property
    def signature(self) -> Signature:
        """What callers send and get."""
        outputs = finish_signature(self.task, self.labels, self.outputs)
        return Signature(inputs=self.signature_inputs, outputs=outputs, about=self.about)

    @property
    def tokenize(self) -> Tokenize | None:
        """The step that makes tokens of texts, None if the samples are not texts."""
        return next((step for step in self.steps if isinstance(step, Tokenize)), None)

    @property
    def vocabulary(self) -> int:
        """How many different tokens texts are made of; 0 if the samples are not texts."""
        return vocabulary_size(self.files[self.tokenize.file]) if self.tokenize is not None else 0

    def preparation(self) -> Prepare:
        """Return the fitted steps as one function of raw inputs, for those who prepare batch by batch.

        The parts of a language model's data are blocks of tokens already; for these it adds the mask.
        """
        return _with_mask if self.task == "language-model" else preparation(self.steps, self.files)

    def prepared(self, split: str) -> tuple[Arrays, npt.NDArray[Any]]:
        """Return a part's model-ready tensors and what the model shall learn from them.

        That is the class number (int64), or for a regression the value less its mean over its deviation (float32), of
        which `finish` makes the value again. Compare finished answers with `splits[split].y`, not with this.
        """
        return self.preparation()(self._part(split).inputs), self.answers(split)

    def answers(self, split: str) -> npt.NDArray[Any]:
        """Return what the model shall learn from a part, in the form that `prepared` says."""
        y = self._part(split).y
        if self.task in ("classification", "language-model"):
            return y
        value: Any = self.finish[0]
        learned: npt.NDArray[Any] = ((y.astype(np.float64) - value.offset) / value.scale).astype(np.float32)
        return learned

    def _part(self, split: str) -> Split:
        if split not in self.splits:
            raise NotFound(f"the data set has no part '{split}'; it has: {', '.join(self.splits)}")
        return self.splits[split]

    def reduced(self, most_bytes: int = MOST_HELD_BYTES) -> "Dataset":
        """Return a data set whose parts can be held: of a part that takes more, as many rows, evenly spread."""
        splits = {}
        for name, part in self.splits.items():
            rows = spread(part.inputs, np.arange(len(part)), most_bytes)
            splits[name] = part
            if len(rows) < len(part):
                inputs = {key: array[rows] for key, array in part.inputs.items()}
                splits[name] = Split(inputs=inputs, y=part.y[rows])
        return msgspec.structs.replace(self, splits=splits)

    def save(self, folder: Path) -> None:
        """Write a file per array and `dataset.json`, the last; a folder without it is not a data set."""
        parts = {}
        for name, part in self.splits.items():
            inputs = {
                key: store(array, folder, f"{name}/input{place}")
                for place, (key, array) in enumerate(part.inputs.items())
            }
            parts[name] = _StoredPart(inputs=inputs, y=store(part.y, folder, f"{name}/y"))
        for name, content in self.files.items():
            write_atomic(folder / FILES / name, content)
        write_atomic(folder / "dataset.json", msgspec.json.encode(self._description(parts)))

    def _description(self, parts: dict[str, "_StoredPart"]) -> "_Description":
        return _Description(
            parts=parts,
            steps=steps_to_plain(self.steps),
            finish=steps_to_plain(self.finish),
            inputs=self.signature_inputs,
            task=self.task,
            labels=self.labels,
            digest=self.digest,
            notes=self.notes,
            kept={name: sha256(content) for name, content in self.files.items()},
            about=self.about,
        )

    @classmethod
    def load(cls, folder: Path, *, is_checked: bool = True) -> "Dataset":
        """Open what `save` wrote: its arrays stay in their files, and are read where they are used.

        Raises NotFound, or IntegrityError when a part isn't what was written; without `is_checked` that is taken for
        granted, as by all ranks of a training but the first.
        """
        found = _read_description(folder)
        return cls(
            splits={name: _split_of(folder, part, is_checked=is_checked) for name, part in found.parts.items()},
            steps=steps_from_plain(found.steps),
            finish=finish_from_plain(found.finish),
            signature_inputs=found.inputs,
            task=found.task,
            labels=found.labels,
            digest=found.digest,
            notes=found.notes,
            files={name: verified(folder / FILES / name, digest) for name, digest in found.kept.items()},
            about=found.about,
        )


class _StoredPart(msgspec.Struct, frozen=True, kw_only=True):
    inputs: dict[str, StoredArray]
    y: StoredArray


class _Description(msgspec.Struct, frozen=True, kw_only=True):
    parts: dict[str, _StoredPart]
    steps: list[dict[str, Any]]
    finish: list[dict[str, Any]]
    inputs: tuple[TensorSpec, ...]
    task: str
    labels: list[str]
    digest: str
    notes: list[str]
    kept: dict[str, str] = {}
    about: str = ""


def build_dataset(
    config: DataConfig, base: Path, tokenizer: TextTokenizer | None = None, scratch: Scratch = IN_MEMORY
) -> Dataset:
    """Read, split and fit what `[data]` says. Equal files and config give an equal data set, digest included.

    `tokenizer` is the one texts are prepared with unless `config` names another. What doesn't fit into memory is read
    in pieces and lies in `scratch` until it is saved; preparation is then fitted on as many training rows as
    `MOST_FITTED_BYTES` hold, evenly spread.

    Raises NotFound and InvalidInput that say which file, column or row, and what to do.
    """
    config.check()
    if config.task == "language-model":
        return _language_dataset(read_language(config, base, scratch, tokenizer))
    table = read(config.train, base, image_size=config.image_size, scratch=scratch)
    label = _label_name(table, config)
    target = read_target(np.asarray(table.columns[label]), label, config.task)
    columns = _chosen(table, config, label)
    text = config.text or sole_texts(take_rows(columns, spread(columns, np.arange(table.rows))), config.columns)
    if text:
        columns = {text: clean_texts(np.asarray(columns[text]), text)}
        target = _with_texts(target, columns[text], text)
    rows = _split(target, config)
    if text:
        fitted = fit_texts(config, base, text, columns[text][rows["train"]], tokenizer)
    else:
        fitted = _fitted(config, columns, rows["train"])
    splits = {name: _part_of(fitted.specs, columns, target, part, scratch) for name, part in rows.items() if len(part)}
    if config.test:
        splits["test"] = _test_file(
            config, base, table, label=label, target=target, specs=fitted.specs, scratch=scratch
        )
    finish = finish_steps(target.task, target.labels, **_unit(target, rows["train"]))
    return Dataset(
        splits={name: splits[name] for name in PARTS},
        steps=fitted.steps,
        finish=finish,
        signature_inputs=fitted.specs,
        task=target.task,
        labels=list(target.labels),
        digest=digest_of_parts(splits, fitted, finish, target.task, target.labels),
        notes=[*target.notes, *fitted.notes, *repeated(splits)],
        files=fitted.files,
        about=fitted.about,
    )


def _fitted(config: DataConfig, columns: Mapping[str, Array], rows: Indices) -> Fitted:
    """Fit the preparation on the training rows, or on so many of them as can be held."""
    chosen = spread(columns, rows)
    seen = take_rows(columns, chosen)
    layout = choose_layout(seen, config.columns)
    steps, specs = fit_preparation(config, seen, layout)
    notes = list(layout.notes)
    if len(chosen) < len(rows):
        notes.append(
            f"statistics and categories are those of {len(chosen):,} of the {len(rows):,} training rows, evenly spread"
        )
    return Fitted(steps=steps, specs=specs, notes=tuple(notes))


def _language_dataset(found: Language) -> Dataset:
    splits = {name: Split(inputs={"input_ids": part.ids_nc}, y=part.next_nc) for name, part in found.parts.items()}
    return Dataset(
        splits={name: splits[name] for name in PARTS},
        steps=found.fitted.steps,
        finish=[],
        signature_inputs=found.fitted.specs,
        task="language-model",
        labels=[],
        digest=digest_of_parts(splits, found.fitted, [], "language-model", ()),
        notes=list(found.fitted.notes),
        files=found.fitted.files,
        about=found.fitted.about,
    )


def _with_mask(inputs: Mapping[str, Any]) -> Arrays:
    ids = np.asarray(inputs["input_ids"]).astype(np.int64)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids)}


def _with_texts(target: Target, texts: Array, name: str) -> Target:
    """Leave out rows without a text: there is nothing to learn from."""
    known = target.known & np.array([bool(text) for text in texts.tolist()], dtype=bool)
    lost = int(target.known.sum() - known.sum())
    if not known.any():
        raise InvalidInput(f"the column of texts '{name}' is empty in every row that has a label")
    notes = (*target.notes, *([f"{lost} rows are left out: their text '{name}' is empty"] if lost else []))
    return msgspec.structs.replace(target, known=known, notes=notes)


def _label_name(table: Table, config: DataConfig) -> str:
    if table.kind in ("images", "texts"):
        return "label"
    if config.label in table.columns:
        return config.label
    why = table.unusable.get(config.label)
    if why is not None:
        raise InvalidInput(f"the label '{config.label}' of '{table.where}' can't be used: {why}")
    what = "array" if table.kind == "arrays" else "column"
    raise InvalidInput(
        f"'{table.where}' has no {what} '{config.label}' for the label; its {what}s are: {table.names()}",
        hint=headerless_hint(list(table.columns)) or "name the one to predict: [data] label",
        columns=list(table.columns),
    )


def _chosen(table: Table, config: DataConfig, label: str) -> dict[str, Array]:
    """Return the columns to learn from."""
    texts = [config.text] if config.text else []
    for field, names in (("columns", config.columns), ("drop", config.drop), ("text", texts)):
        for name in names:
            if name not in table.columns and name not in table.unusable:
                raise InvalidInput(
                    f"[data] {field} names '{name}', which '{table.where}' doesn't have; it has: {table.names()}"
                )
    dropped = {*config.drop, label}
    wanted = texts or config.columns or [name for name in (*table.columns, *table.unusable) if name not in dropped]
    for name in wanted:
        if name in table.unusable and name not in dropped:
            raise InvalidInput(
                f"the column '{name}' of '{table.where}' can't be used: {table.unusable[name]}",
                hint=f"leave it out: [data] drop = [{name!r}]",
                column=name,
            )
    found = {name: table.columns[name] for name in wanted if name not in dropped}
    if not found:
        raise InvalidInput(f"'{table.where}' has nothing to learn from beside the label '{label}'")
    return found


def _split(target: Target, config: DataConfig) -> dict[str, Indices]:
    rows = np.flatnonzero(target.known)
    y = target.y[rows]
    is_classes = target.task == "classification"
    parts = split_rows(
        y if is_classes else strata_of_numbers(y),
        validation=config.validation,
        test=0.0 if config.test else config.test_share,
        seed=config.seed,
        rare_in_train=is_classes,
    )
    return {name: rows[part] for name, part in parts.items()}


def _part_of(
    specs: tuple[TensorSpec, ...], columns: Mapping[str, Array], target: Target, rows: Indices, scratch: Scratch
) -> Split:
    return Split(inputs=arranged(specs, columns, rows, scratch), y=target.y[rows])


def _test_file(
    config: DataConfig,
    base: Path,
    train: Table,
    *,
    label: str,
    target: Target,
    specs: tuple[TensorSpec, ...],
    scratch: Scratch,
) -> Split:
    table = read(config.test, base, image_size=config.image_size or _side(train), scratch=scratch)
    needed = [label, *(name for spec in specs for name in (spec.columns or (spec.name,)))]
    lacking = [name for name in needed if name not in table.columns]
    if lacking:
        raise InvalidInput(
            f"the test file '{config.test}' lacks {', '.join(map(repr, lacking[:10]))}, which '{config.train}' has; "
            f"its columns are: {table.names()}",
            columns=lacking,
        )
    answers = target_like(target, np.asarray(table.columns[label]), label, config.test)
    columns = table.columns
    if specs[0].content == "text":
        name = specs[0].name
        columns = {name: clean_texts(np.asarray(columns[name]), name)}
        answers = _with_texts(answers, columns[name], name)
    return _part_of(specs, columns, answers, np.flatnonzero(answers.known), scratch)


def _side(table: Table) -> int:
    """Return the side of square images, so that those of the test folder are brought to the same size."""
    shape = table.columns["image"].shape if table.kind == "images" else (0, 0, 0, 1)
    return int(shape[2]) if shape[2] == shape[3] else 0


def _unit(target: Target, rows: Indices) -> dict[str, float]:
    if target.task == "classification":
        return {}
    y = target.y[rows].astype(np.float64)
    return {"offset": float(y.mean()), "scale": float(y.std()) or 1.0}


def _split_of(folder: Path, part: _StoredPart, *, is_checked: bool) -> Split:
    inputs = {name: mapped(folder, stored, is_checked=is_checked) for name, stored in part.inputs.items()}
    return Split(inputs=inputs, y=mapped(folder, part.y, is_checked=is_checked))


def _read_description(folder: Path) -> _Description:
    path = folder / "dataset.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Description)
    except FileNotFoundError as error:
        raise NotFound(f"'{folder}' holds no data set", hint="make one with: argosy run", path=str(path)) from error
    except msgspec.DecodeError as error:
        raise IntegrityError(f"'{path}' is not what was written: {error}") from error


def batches(n: int, batch_size: int, *, seed: int, epoch: int, rank: int = 0, world_size: int = 1) -> Iterator[Indices]:
    """Yield this rank's row numbers for each global batch of an epoch.

    All ranks walk through one order that `seed` and `epoch` decide, in the same number of steps. Of each global batch
    of `batch_size` rows (the last one may be smaller) every rank gets a slice; sizes differ by one at most, and a rank
    gets an empty slice when a batch has fewer rows than there are ranks.
    """
    if batch_size < 1 or world_size < 1 or not 0 <= rank < world_size:
        raise InvalidInput(f"batch_size {batch_size}, rank {rank} and world_size {world_size} don't go together")
    order = permutation(n, seed, epoch)
    for number in range(-(-n // batch_size)):
        yield order[share_of_batch(n, batch_size, number, rank, world_size)]


def share_of_batch(n: int, batch_size: int, number: int, rank: int, world_size: int) -> slice:
    """Return where, in the order of an epoch, the rows of one rank's share of batch `number` (from 0) are."""
    start = number * batch_size
    size = min(batch_size, n - start)
    return slice(start + size * rank // world_size, start + size * (rank + 1) // world_size)
