"""Preparation as plain data: the same steps make the same tensor in training and inside the endpoint.

Steps are frozen structs. They are fitted once (`data.fit`), stored in the version's manifest as JSON, and applied here,
by training, evaluation and replicas alike. Everything is elementwise over rows, so a batch of N equals N batches of
one, bit for bit. NumPy only, and cheap to import: replicas do; what texts and images need more is imported when a
version has such steps (`data.text`, `data.images`).

Raw inputs are what callers send: numbers as FP32 (missing: NaN), texts as BYTES (missing: the empty text), image files
as BYTES. What is too large for a step, such as a tokenizer, is a file of the version that the step names.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, cast

import msgspec
import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES, TensorSpec
from argosy.data.images import IMAGE_KERNELS, DecodeImage, Normalize, ResizeImage, need_pillow
from argosy.data.steps import Array, Arrays, Kernel, PlainStep
from argosy.data.text import L2Normalize, Pool, Tokenize, check_tokenize, l2_normalize, pool, tokenize

_FLOAT32_MAX = float(np.finfo(np.float32).max)


class Take(PlainStep, frozen=True, tag="take"):
    """Check that a raw input is there with this datatype and shape, and round numbers to it.

    First on purpose: what is float64 in a training file is rounded as it is in a request, before anything is computed.
    """

    input: str
    datatype: str
    shape: tuple[int, ...]


class Impute(PlainStep, frozen=True, tag="impute"):
    """Put `fill` where a number is missing (NaN) or infinite; one value per position of the last dimension."""

    input: str
    fill: tuple[float, ...]


class Standardize(PlainStep, frozen=True, tag="standardize"):
    """(x - mean) / scale, in float64, rounded to float32 once; where scale is 0 (a constant) the result is 0.

    One value per position of the last dimension, or one for the whole array.
    """

    input: str
    mean: tuple[float, ...]
    scale: tuple[float, ...]


class Scale(PlainStep, frozen=True, tag="scale"):
    """X * factor + offset, in float64, rounded to float32 once. For images, factor 1/255 brings bytes to 0..1."""

    input: str
    factor: float
    offset: float = 0.0


class Dates(PlainStep, frozen=True, tag="dates"):
    """Read positions `columns` of a text input as ISO 8601 dates; `output` holds days since 1970 UTC, NaN for ''."""

    input: str
    columns: tuple[int, ...]
    names: tuple[str, ...]
    output: str


class OneHot(PlainStep, frozen=True, tag="one-hot"):
    """Turn texts into zeros and ones, a position per known category; a category never seen in training is all zeros.

    `columns` are positions in the text input, `categories` the known texts of each.
    """

    input: str
    columns: tuple[int, ...]
    categories: tuple[tuple[str, ...], ...]
    output: str


class Join(PlainStep, frozen=True, tag="join"):
    """Put arrays side by side as the model's float32 input; the last step."""

    inputs: tuple[str, ...]
    output: str = "x"


class Softmax(PlainStep, frozen=True, tag="softmax"):
    """Turn scores into probabilities; `temperature` above 1 makes them less sure (Guo et al. 2017, equation 9)."""

    input: str = "logits"
    output: str = "probabilities"
    temperature: float = 1.0


class Label(PlainStep, frozen=True, tag="label"):
    """Name the most probable class; the first one when two are equal."""

    labels: tuple[str, ...]
    input: str = "probabilities"
    output: str = "label"


class Value(PlainStep, frozen=True, tag="value"):
    """Bring a regression's output back to the unit of the label: x * scale + offset, one number per row."""

    input: str = "logits"
    output: str = "value"
    scale: float = 1.0
    offset: float = 0.0


Step = Take | Impute | Standardize | Scale | Dates | OneHot | Join | Tokenize | DecodeImage | ResizeImage | Normalize
FinishStep = Softmax | Label | Value | Pool | L2Normalize

Prepare = Callable[[Mapping[str, Any]], Arrays]
Finish = Callable[[Mapping[str, Array], Mapping[str, Array]], Arrays]


def preparation(steps: Iterable[Step], files: Mapping[str, bytes] | None = None) -> Prepare:
    """Return steps as one function, ready to run: raw inputs to the model's tensors, its argument left unchanged.

    `files` are the verified files of the version. Raises InvalidInput for a file that is missing or no good, and
    PluginError for a library that is; the function raises InvalidInput as `apply` does.
    """
    kernels = [_with_files(step, files or {}) for step in steps]

    def run(inputs: Mapping[str, Any]) -> Arrays:
        state = dict(inputs)
        for kernel in kernels:
            state = kernel(state)
        return state

    return run


def finishing(steps: Iterable[FinishStep]) -> Finish:
    """Return finish steps as one function of a model's outputs and of the preparation's result, which pooling needs.

    Texts come as an object array of `str`. A model with one output may call it by any name.
    """
    steps = list(steps)
    kernels = [_kernel(step) for step in steps]
    needed = {step.mask for step in steps if isinstance(step, Pool)}

    def run(outputs: Mapping[str, Array], prepared: Mapping[str, Array]) -> Arrays:
        state = dict(outputs)
        if steps and steps[0].input not in state:
            if len(state) != 1:
                raise InvalidInput(
                    f"the model has no output '{steps[0].input}'; its outputs are: {', '.join(sorted(state)) or 'none'}"
                )
            state = {steps[0].input: next(iter(state.values()))}
        state |= {name: prepared[name] for name in needed if name in prepared}
        for kernel in kernels:
            state = kernel(state)
        return state

    return run


def apply(steps: Iterable[Step], inputs: Mapping[str, Any]) -> Arrays:
    """Turn raw inputs into the model's tensors, usually `{"x": float32 [N, ...]}`. `inputs` is left unchanged.

    Raises InvalidInput that names the input, the column and the row for what can't be prepared.
    """
    return preparation(steps)(inputs)


def apply_finish(
    steps: Iterable[FinishStep], outputs: Mapping[str, Array], prepared: Mapping[str, Array] | None = None
) -> Arrays:
    """Turn a model's outputs into what callers get, once; see `finishing`."""
    return finishing(steps)(outputs, prepared or {})


def steps_to_plain(steps: Iterable[Step | FinishStep]) -> list[dict[str, Any]]:
    """Return steps as values that JSON can hold, the form of a version's manifest."""
    # Through JSON, so that these values equal those read back from a manifest: lists, not tuples.
    return cast("list[dict[str, Any]]", msgspec.json.decode(msgspec.json.encode(list(steps))))


def steps_from_plain(plain: Iterable[Any]) -> list[Step]:
    """Read preparation steps; InvalidInput says which one is not understood."""
    return cast("list[Step]", _from_plain(plain, list[Step], "prepare"))


def finish_from_plain(plain: Iterable[Any]) -> list[FinishStep]:
    """Read finish steps; InvalidInput says which one is not understood."""
    return cast("list[FinishStep]", _from_plain(plain, list[FinishStep], "finish"))


def _from_plain(plain: Iterable[Any], kind: Any, what: str) -> Any:
    try:
        steps = msgspec.convert(list(plain), kind)
        for step in steps:
            _check(step)
    except (msgspec.ValidationError, ValueError) as error:
        raise InvalidInput(
            f"the version's {what} steps are not understood: {error}",
            hint="it may come from a newer Argosy; update this one",
        ) from error
    return steps


def finish_steps(task: str, labels: Iterable[str], *, scale: float = 1.0, offset: float = 0.0) -> list[FinishStep]:
    """Return what follows a model of this task; `scale` and `offset` undo the standardized target of a regression."""
    if task == "classification":
        return [Softmax(), Label(labels=tuple(labels))]
    return [Value(scale=scale, offset=offset)] if task == "regression" else []


def finish_signature(task: str, labels: Iterable[str], vocabulary: int = 0) -> tuple[TensorSpec, ...]:
    """Return the outputs callers get from a model of this task; `vocabulary` is that of a language model."""
    if task == "language-model":
        logits = TensorSpec(name="logits", datatype="FP32", shape=(-1, vocabulary))
        return (logits, TensorSpec(name="nats", datatype="FP32", shape=(-1,)))
    if task == "classification":
        probabilities = TensorSpec(
            name="probabilities", datatype="FP32", shape=(-1, len(tuple(labels))), columns=tuple(labels)
        )
        return (probabilities, TensorSpec(name="label", datatype="BYTES", shape=(-1,)))
    return (TensorSpec(name="value", datatype="FP32", shape=(-1,)),)


@functools.lru_cache(maxsize=256)
def _kernel(step: Step | FinishStep) -> Kernel:
    """Return the function of a step, with its constants as arrays already: requests pay for arithmetic only."""
    return _KERNELS[type(step)](step)


def _with_files(step: Step, files: Mapping[str, bytes]) -> Kernel:
    if isinstance(step, DecodeImage):
        need_pillow()
    if not isinstance(step, Tokenize):
        return _kernel(step)
    content = files.get(step.file)
    if content is None:
        raise InvalidInput(
            f"the version's preparation needs the file '{step.file}', which it has not; "
            f"its files are: {', '.join(sorted(files)) or 'none'}"
        )
    return tokenize(step, content)


def _check(step: Step | FinishStep) -> None:
    """Raise ValueError for constants that make no sense."""
    if isinstance(step, Tokenize):
        check_tokenize(step)
    else:
        _kernel(step)


def _take(step: Take) -> Kernel:
    if step.datatype not in DATATYPES:
        raise ValueError(f"unknown datatype {step.datatype!r}")
    dtype = np.dtype(DATATYPES[step.datatype][0])
    shape, tail = list(step.shape), step.shape[1:]
    widen = dtype.kind == "f"

    def run(state: Arrays) -> Arrays:
        if step.input not in state:
            raise InvalidInput(
                f"the input '{step.input}' ({step.datatype} {shape}) is missing; found: {', '.join(state) or 'none'}",
                input=step.input,
            )
        found = np.asarray(state[step.input])
        if found.shape[1:] != tail or found.ndim != len(shape):
            raise InvalidInput(
                f"the input '{step.input}' has shape {list(found.shape)}, expected {shape} (-1: any number of rows)",
                input=step.input,
            )
        if found.dtype != dtype:
            found = _converted(found, dtype, step.input, step.datatype, widen=widen)
        return {**state, step.input: found}

    return run


def _converted(found: Array, dtype: np.dtype[Any], name: str, datatype: str, *, widen: bool) -> Array:
    kind = found.dtype.kind
    if dtype.kind == "O" and kind in "US":
        return found.astype(object)
    if widen and kind in "fiub":
        with np.errstate(over="ignore"):  # beyond float32 becomes infinite, which counts as missing
            return found.astype(dtype)
    if dtype.kind in "iu" and kind in "iub":
        narrowed = found.astype(dtype)
        if np.array_equal(narrowed, found):
            return narrowed
    raise InvalidInput(f"the input '{name}' holds {found.dtype} values that don't fit {datatype}", input=name)


def _impute(step: Impute) -> Kernel:
    fill = np.asarray(step.fill, dtype=np.float64)

    def run(state: Arrays) -> Arrays:
        x = state[step.input]
        known = np.isfinite(x)
        if known.all():
            return state
        return {**state, step.input: np.where(known, x, fill.astype(x.dtype))}

    return run


def _standardize(step: Standardize) -> Kernel:
    if len(step.mean) != len(step.scale):
        raise ValueError("mean and scale differ in length")
    mean = np.asarray(step.mean, dtype=np.float64)
    scale = np.asarray(step.scale, dtype=np.float64)
    constant = scale == 0.0
    factor = np.where(constant, 0.0, 1.0 / np.where(constant, 1.0, scale))

    def run(state: Arrays) -> Arrays:
        x = np.subtract(state[step.input], mean, dtype=np.float64)
        with np.errstate(invalid="ignore"):  # an infinity times 0 is NaN, which the endpoint refuses
            x *= factor
        return {**state, step.input: _float32(x)}

    return run


def _scale(step: Scale) -> Kernel:
    def run(state: Arrays) -> Arrays:
        x = np.multiply(state[step.input], step.factor, dtype=np.float64)
        x += step.offset
        return {**state, step.input: _float32(x)}

    return run


def _float32(x: Array) -> Array:
    # A number far outside of what training saw must stay finite: an infinity would become NaN in the first layer.
    # Two ufuncs: np.clip costs three times as much on a single row.
    np.minimum(x, _FLOAT32_MAX, out=x)
    np.maximum(x, -_FLOAT32_MAX, out=x)
    return x.astype(np.float32)


def _dates(step: Dates) -> Kernel:
    def run(state: Arrays) -> Arrays:
        texts = state[step.input]
        days = np.empty((len(texts), len(step.columns)), dtype=np.float64)
        for position, (column, name) in enumerate(zip(step.columns, step.names, strict=True)):
            days[:, position] = [_days(text, row, name) for row, text in enumerate(texts[:, column])]
        return {**state, step.output: days}

    return run


def _days(text: str | bytes, row: int, name: str) -> float:
    if not text:
        return np.nan
    try:
        found = datetime.fromisoformat((text.decode() if isinstance(text, bytes) else text).strip())
    except (ValueError, AttributeError) as error:
        raise InvalidInput(
            f"{text!r} in row {row} is not a date for the column '{name}'",
            hint="write dates as 2024-05-01 or 2024-05-01T12:00:00",
            column=name,
        ) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() / 86400.0


def _one_hot(step: OneHot) -> Kernel:
    if len(step.columns) != len(step.categories):
        raise ValueError("columns and categories differ in length")
    lookups: list[tuple[int, dict[Any, int]]] = []
    width = 0
    for column, known in zip(step.columns, step.categories, strict=True):
        places: dict[Any, int] = {text: width + place for place, text in enumerate(known)}
        places |= {text.encode(): place for text, place in places.items()}
        lookups.append((column, places))
        width += len(known)

    def run(state: Arrays) -> Arrays:
        texts = state[step.input]
        rows = np.arange(len(texts))
        # One column more than needed takes what is unknown, so that no mask is computed.
        ones = np.zeros((len(texts), width + 1), dtype=np.float32)
        for column, places in lookups:
            ones[rows, [_place(places, text, width) for text in texts[:, column].tolist()]] = 1.0
        return {**state, step.output: ones[:, :width]}

    return run


def _place(places: dict[Any, int], text: Any, unknown: int) -> int:
    if not isinstance(text, str | bytes):
        raise InvalidInput(f"{text!r} is not a text", hint="send categories as texts, such as '3' for 3")
    found = places.get(text)
    return places.get(text.strip(), unknown) if found is None else found


def _join(step: Join) -> Kernel:
    def run(state: Arrays) -> Arrays:
        parts = [state[name].astype(np.float32, copy=False) for name in step.inputs]
        joined = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        return {step.output: np.ascontiguousarray(joined)}

    return run


def _softmax(step: Softmax) -> Kernel:
    if step.temperature <= 0.0:
        raise ValueError("temperature must be above 0")

    def run(state: Arrays) -> Arrays:
        scores = np.ascontiguousarray(state.pop(step.input), dtype=np.float64)
        if scores.ndim != 2:
            raise InvalidInput(f"the model's output has shape {list(scores.shape)}, expected [-1, classes]")
        return {**state, step.output: softmax(scores / step.temperature).astype(np.float32)}

    return run


def softmax(scores: Array) -> Array:
    """Return probabilities of scores [N, K], float64. A row that holds NaN or an infinity comes out as NaN."""
    with np.errstate(invalid="ignore"):
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return cast("Array", powers / powers.sum(axis=-1, keepdims=True))


def _label(step: Label) -> Kernel:
    labels = np.array(step.labels, dtype=object)

    def run(state: Arrays) -> Arrays:
        scores = state[step.input]
        if scores.shape[-1] != len(labels):
            raise InvalidInput(f"the model has {scores.shape[-1]} outputs for {len(labels)} labels")
        return {**state, step.output: labels[scores.argmax(axis=-1)]}

    return run


def _value(step: Value) -> Kernel:
    def run(state: Arrays) -> Arrays:
        found = np.asarray(state.pop(step.input), dtype=np.float64)
        if found.size != len(found):
            raise InvalidInput(f"the model's output has shape {list(found.shape)}, expected one number per row")
        with np.errstate(over="ignore", invalid="ignore"):  # what isn't finite must stay so: the caller refuses it
            value = (found.reshape(len(found)) * step.scale + step.offset).astype(np.float32)
        return {**state, step.output: value}

    return run


_KERNELS: dict[type[Any], Callable[[Any], Kernel]] = {
    Take: _take,
    Impute: _impute,
    Standardize: _standardize,
    Scale: _scale,
    Dates: _dates,
    OneHot: _one_hot,
    Join: _join,
    Softmax: _softmax,
    Label: _label,
    Value: _value,
    Pool: pool,
    L2Normalize: l2_normalize,
    **IMAGE_KERNELS,
}
