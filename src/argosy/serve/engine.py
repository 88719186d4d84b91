"""What a replica computes: a batch of raw bytes in, the answers of its requests out. No sockets, no clock."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from argosy.core.errors import ArgosyError, IntegrityError, InvalidInput, PluginError, Refused
from argosy.core.logs import get_logger
from argosy.core.tensors import DATATYPES, Signature
from argosy.formats.runner import Runner
from argosy.registry.versions import MODEL_FILE, Manifest
from argosy.serve import wire
from argosy.serve.values import pack_texts

log = get_logger()

Arrays = dict[str, np.ndarray[Any, np.dtype[Any]]]
Function = Callable[[Arrays], Mapping[str, np.ndarray[Any, np.dtype[Any]]]]
# The model's outputs, and what the preparation made: pooling needs to know which tokens are padding.
Finish = Callable[[Arrays, Arrays], Mapping[str, np.ndarray[Any, np.dtype[Any]]]]

# Looked up for every tensor: NumPy takes microseconds to name a dtype.
_DTYPES = {name: np.dtype(numpy_name) for name, (numpy_name, size) in DATATYPES.items() if size}
_DATATYPES = {dtype.str: name for name, dtype in _DTYPES.items()}
_COPIED_BYTES = 4096
"""Copying so few bytes is cheaper than making views of them."""

NON_FINITE = "non_finite_output"
RUN_FAILED = "model_run_failed"


class Engine:
    """A version ready to run: preparation, model and finishing steps as one function over named arrays."""

    def __init__(
        self,
        signature: Signature,
        prepare: Function | None,
        model: Function,
        finish: Finish | None,
        *,
        examples: Arrays | None = None,
    ) -> None:
        self.signature = signature
        self.examples = examples
        """Rows that the version takes, given by its author; None when there are none."""
        self._prepare = prepare
        self._model = model
        self._finish = finish
        self._is_batched = signature.is_batched and bool(signature.inputs)
        self._outputs = tuple(spec.name for spec in signature.outputs)

    def compute(self, inputs: Arrays) -> Arrays:
        """Return the outputs of the signature. Refused blames the caller; anything else blames the version."""
        prepared: Mapping[str, Any] = inputs
        if self._prepare is not None:
            try:
                prepared = self._prepare(inputs)
            except InvalidInput as error:
                raise Refused(error.message, **error.context) from error
        arrays = self._model(dict(prepared))
        if self._finish is not None:
            arrays = self._finish(dict(arrays), dict(prepared))
        found = {}
        rows = next(iter(inputs.values())).shape[0] if self._is_batched else 0
        for name in self._outputs:
            if name not in arrays:
                raise InvalidInput(f"the version has no output '{name}'; it gave: {', '.join(arrays)}")
            array = np.asarray(arrays[name])
            if rows and (array.ndim == 0 or array.shape[0] != rows):
                raise InvalidInput(f"output '{name}' has shape {list(array.shape)} for {rows} rows")
            found[name] = array
        return found

    def run(self, order: wire.Run, body: memoryview) -> tuple[wire.Done, list[bytes | memoryview], bool]:
        """Answer a batch; the last value says whether the whole run had failed and was repeated request by request.

        One request that makes the run fail, or gets a number that isn't finite, fails alone.
        """
        try:
            inputs = read_inputs(order, body)
        except (ValueError, InvalidInput) as error:
            return _whole_failure(order.batch, "bad_frame", error), [], False
        try:
            outputs = self.compute(inputs)
        except Exception as error:  # noqa: BLE001 - the outermost point of a run: the model may raise anything
            if len(order.rows) == 1:
                return self._single_failure(order.batch, error), [], False
            return (*self._one_by_one(order, inputs), True)
        failures = _non_finite(outputs, order.rows)
        answered: Sequence[int] = order.rows
        if failures:
            left_out = {failure.index for failure in failures}
            outputs = _without(outputs, order.rows, left_out)
            answered = [n for i, n in enumerate(order.rows) if i not in left_out]
        described, pieces = write_outputs(outputs, answered) if answered else ((), [])
        return wire.Done(order.batch, 0.0, described, tuple(failures)), pieces, False

    def _one_by_one(self, order: wire.Run, inputs: Arrays) -> tuple[wire.Done, list[bytes | memoryview]]:
        failures: list[wire.Failure] = []
        parts: list[Arrays] = []
        answered: list[int] = []
        at = 0
        for index, rows in enumerate(order.rows):
            part = {name: array[at : at + rows] for name, array in inputs.items()}
            at += rows
            try:
                outputs = self.compute(part)
            except Exception as error:  # noqa: BLE001 - as above
                failures.append(_failure(index, error))
                continue
            if _non_finite(outputs, (rows,)):
                failures.append(_not_finite(index))
                continue
            parts.append(outputs)
            answered.append(rows)
        if not parts:
            return wire.Done(order.batch, 0.0, (), tuple(failures)), []
        merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        described, pieces = write_outputs(merged, answered)
        return wire.Done(order.batch, 0.0, described, tuple(failures)), pieces

    def _single_failure(self, batch: int, error: Exception) -> wire.Done:
        return wire.Done(batch, 0.0, (), (_failure(0, error),))


def engine_of(manifest: Manifest, files: Mapping[str, bytes], *, threads: int = 1, spinning: bool = False) -> Engine:
    """Return a version as one function, from its verified manifest and the verified bytes of its files.

    What the manifest says picks steps and tensors, never code or paths; a model of one's own is code that stands among
    the version's signed files.
    """
    from argosy.data.prepare import finish_from_plain, finishing, preparation, steps_from_plain

    steps = steps_from_plain(manifest.prepare)
    finish = finish_from_plain(manifest.finish)
    runner = _runner_of(manifest, files, threads, spinning=spinning)
    return Engine(
        manifest.signature,
        preparation(steps, files) if steps else None,
        runner.run,
        finishing(finish) if finish else None,
        examples=getattr(runner, "examples", None),
    )


def _runner_of(manifest: Manifest, files: Mapping[str, bytes], threads: int, *, spinning: bool) -> Runner:
    from argosy.formats.runner import load_runner

    if manifest.format != "python":
        content = files[MODEL_FILE]
        try:
            return load_runner(manifest.format, content, threads=threads, spinning=spinning, engine=manifest.engine)
        except (PluginError, InvalidInput) as error:
            if manifest.engine == "onnxruntime":
                raise
            # The file is one for every engine; what differs is the speed.
            log.warning("engine_not_usable", engine=manifest.engine, model=manifest.name, why=error.message)
            return load_runner(manifest.format, content, threads=threads, spinning=spinning)
    from argosy.formats.python_runner import PythonRunner

    runner = PythonRunner.open(files, threads=threads)
    if runner.signature != manifest.signature:
        raise IntegrityError(
            f"the code of '{manifest.name}' has other inputs or outputs than its signed manifest says",
            hint="they depend on something outside of its files; deploy it again",
            code="signature_changed",
        )
    return runner


def read_inputs(order: wire.Run, body: memoryview) -> Arrays:
    """Return a batch's inputs as arrays over `body`; no element is copied but texts."""
    found: Arrays = {}
    at = 0
    for name, datatype, shape in order.inputs:
        count = math.prod(shape)
        if datatype == "BYTES":
            texts, at = _texts(body, at, count)
            found[name] = texts.reshape(shape)
            continue
        dtype = _DTYPES[datatype]
        array = np.frombuffer(body, dtype=dtype, count=count, offset=at).reshape(shape)
        # Behind an odd number of bytes an array may start anywhere; compiled kernels rely on alignment.
        found[name] = array if array.flags.aligned else array.copy()
        at += count * dtype.itemsize
    if at != len(body):
        raise InvalidInput(f"the batch has {len(body)} bytes, but its inputs need {at}")
    return found


def _texts(body: memoryview, at: int, count: int) -> tuple[np.ndarray[Any, np.dtype[Any]], int]:
    texts = np.empty(count, dtype=object)
    for index in range(count):
        size = int.from_bytes(body[at : at + 4], "little")
        if at + 4 + size > len(body):
            raise InvalidInput("a text ends behind the batch")
        texts[index] = bytes(body[at + 4 : at + 4 + size])
        at += 4 + size
    return texts, at


def write_outputs(outputs: Arrays, rows: Sequence[int]) -> tuple[tuple[wire.Output, ...], list[bytes | memoryview]]:
    """Return outputs as they travel: descriptions, and the raw bytes of each; `rows` are those of each request."""
    described = []
    pieces: list[bytes | memoryview] = []
    for name, array in outputs.items():
        if array.dtype.kind in "OSU":
            data, cuts = _packed_texts(array, rows)
            described.append(wire.Output(name, "BYTES", array.shape, cuts))
            pieces.append(data)
            continue
        datatype = _DATATYPES.get(array.dtype.str)
        if datatype is None and array.dtype.byteorder == ">":
            array = array.astype(array.dtype.newbyteorder("<"))  # noqa: PLW2901
            datatype = _DATATYPES.get(array.dtype.str)
        if datatype is None:
            raise InvalidInput(f"output '{name}' is of the type {array.dtype}, which can't be sent")
        described.append(wire.Output(name, datatype, array.shape))
        if array.nbytes <= _COPIED_BYTES:
            pieces.append(array.tobytes())
            continue
        # A view as bytes: `memoryview.cast` knows neither half precision nor empty arrays.
        pieces.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return tuple(described), pieces


def _packed_texts(array: np.ndarray[Any, np.dtype[Any]], rows: Sequence[int]) -> tuple[bytes, tuple[int, ...]]:
    if len(rows) == 1:
        data = pack_texts(_as_texts(array))
        return data, (len(data),)
    parts = []
    at = 0
    for count in rows:
        parts.append(pack_texts(_as_texts(array[at : at + count])))
        at += count
    return b"".join(parts), tuple(len(part) for part in parts)


def _as_texts(array: np.ndarray[Any, np.dtype[Any]]) -> list[str | bytes]:
    return [item if isinstance(item, str | bytes) else str(item) for item in array.ravel().tolist()]


def _non_finite(outputs: Arrays, rows: Sequence[int]) -> list[wire.Failure]:
    """Return a failure for each request that got a number that isn't finite."""
    spoiled = [a for a in outputs.values() if a.dtype.kind == "f" and not np.isfinite(a).all()]
    if not spoiled:
        return []
    if len(rows) == 1:
        return [_not_finite(0)]
    failures = []
    at = 0
    for index, count in enumerate(rows):
        if any(not np.isfinite(array[at : at + count]).all() for array in spoiled):
            failures.append(_not_finite(index))
        at += count
    return failures


def _without(outputs: Arrays, rows: Sequence[int], left_out: set[int]) -> Arrays:
    if len(rows) == len(left_out):
        return {}
    keep = np.repeat([index not in left_out for index in range(len(rows))], rows)
    return {name: array[keep] for name, array in outputs.items()}


def _not_finite(index: int) -> wire.Failure:
    return wire.Failure(index, NON_FINITE, "the version answered with a number that is not finite (NaN or infinite)")


def _failure(index: int, error: Exception) -> wire.Failure:
    if isinstance(error, Refused):
        return wire.Failure(index, error.code, error.message, is_callers=True)
    return wire.Failure(index, RUN_FAILED, _message(error))


def _whole_failure(batch: int, code: str, error: Exception) -> wire.Done:
    return wire.Done(batch, 0.0, error=(code, _message(error)))


def _message(error: Exception) -> str:
    # The first line only, and no paths of libraries: it travels to callers.
    text = error.message if isinstance(error, ArgosyError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0][:300]
