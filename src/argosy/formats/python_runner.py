"""A model of one's own as a runner: its class is asked with arrays of a batch, and what it returns is checked.

Loading one runs its code, with the rights of this process. So it is loaded only from a version that a trusted key has
signed, or at a user's own wish to deploy it.
"""

import shutil
import sys
import tempfile
import traceback
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import IntegrityError, InvalidInput, Refused, Unavailable
from argosy.core.logs import get_logger
from argosy.core.tensors import Signature
from argosy.formats.python_model import Files, Model
from argosy.formats.python_signature import Form, read_form
from argosy.formats.python_source import Sources, import_model
from argosy.formats.python_spec import SPEC_FILE, Entry, PythonSpec, check_requires, read_spec
from argosy.formats.python_values import Arrays, check_inputs, example_inputs, output_array, wrong_result

log = get_logger()

_LOG_EVERY_S = 1.0
_MAX_REFUSAL = 500


class PythonRunner:
    """A model of one's own, loaded. One per process: its modules stand under their own names."""

    def __init__(self, model: Model, form: Form, sources: Sources, clock: Clock) -> None:
        self._model = model
        self.kind = type(model).__name__
        """The name of its class."""
        self._predict: Any = model.predict  # type: ignore[attr-defined] # `read_form` has found it
        self._form = form
        self._sources = sources
        self._clock = clock
        self._quiet_until = 0.0
        self.examples = example_inputs(form, model.examples)
        """The rows the class gives as examples, as a batch; None when it gives none."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of `predict`."""
        return self._form.signature

    @classmethod
    def load(cls, data: bytes | Path, *, threads: int = 1, spinning: bool = False) -> Self:
        """Load a model that is a single source file with a single model class; raise InvalidInput or PluginError."""
        del spinning
        content = data.read_bytes() if isinstance(data, Path) else data
        spec = PythonSpec(entry="model.py")
        return cls.open({"model.py": content, SPEC_FILE: spec.encode()}, threads=threads)

    @classmethod
    def open(cls, files: Mapping[str, bytes], *, threads: int = 1, clock: Clock | None = None) -> Self:
        """Load a model from the verified files of a version, `python-model.json` among them.

        `threads` is not looked at: numeric libraries take theirs from the environment when they are imported. Raises
        InvalidInput for code that is wrong or can't be imported, PluginError for packages that are missing, Unavailable
        when its `load` fails.
        """
        del threads
        spec = read_spec(files)
        check_requires(spec.requires)
        entry = Entry.parse(spec.entry)
        sources = Sources(files)
        kind = import_model(sources, entry)
        form = read_form(kind)
        try:
            model = kind()
            names = [name for name in files if name != SPEC_FILE]
            model.load(Files(files, names, lambda: _folder_of(model)))
        except IntegrityError:
            raise  # a file of the version is damaged, which is not its code's fault
        except BaseException as error:
            _tell(error)
            # Not InvalidInput: what failed may be a server or a disk, and work at the next start.
            raise Unavailable(
                f"'{kind.__name__}' can't be loaded: {sources.said(error)}",
                hint=hint_for(error, files),
                code="model_code_failed",
            ) from error
        return cls(model, form, sources, clock or SystemClock())

    def run(self, inputs: Arrays) -> Arrays:
        """Answer for `inputs`, by name, with the batch as first dimension; they are left unchanged.

        Raises Refused for what the code refuses, InvalidInput for inputs that don't fit the signature
        (`invalid_input`), code that fails (`model_code_failed`) and results that are not what it promised
        (`model_result_wrong`).
        """
        given = check_inputs(self._form, inputs)
        rows = len(next(iter(given.values())))
        if not self._form.by_row:
            return self._results(self._call(given), rows)
        found = [self._fields(self._call(self._row(given, index), index, rows)) for index in range(rows)]
        return {
            field.spec.name: output_array(field, [row[field.spec.name] for row in found], rows)
            for field in self._form.outputs
        }

    def _row(self, given: Arrays, index: int) -> dict[str, Any]:
        return {
            field.spec.name: given[field.spec.name][index]
            if field.plain is None or field.spec.datatype == "BYTES"
            else given[field.spec.name][index].item()
            for field in self._form.inputs
        }

    def _call(self, given: Mapping[str, Any], row: int = 0, rows: int = 1) -> object:
        try:
            return self._predict(**given)
        except Refused as error:
            # Only its text: what else the code put into it is not for callers.
            where = f"row {row}: " if self._form.by_row and rows > 1 else ""
            raise Refused(f"{where}{error.message}"[:_MAX_REFUSAL], hint=str(error.hint)[:_MAX_REFUSAL]) from None
        except MemoryError as error:
            raise self._failed(error, "predict asks for more memory than this process may take") from error
        except BaseException as error:
            # sys.exit too: one request must not end the process that answers the others.
            raise self._failed(error, f"predict of '{self.kind}' failed") from error

    def _failed(self, error: BaseException, message: str) -> "ModelFailed":
        now = self._clock.monotonic()
        if now >= self._quiet_until:
            # A model that always fails must not fill the disk with stacks.
            self._quiet_until = now + _LOG_EVERY_S
            log.warning("model_code_failed", error=self._sources.said(error), traceback=_stack(error))
        return ModelFailed(
            f"{message} with {type(error).__name__}; the replica's log says where", said=self._sources.said(error)
        )

    def _fields(self, result: object) -> Mapping[str, object]:
        try:
            return self._form.fields_of(result)
        except TypeError as error:
            raise wrong_result(f"predict of '{self.kind}': {error}") from None

    def _results(self, result: object, rows: int) -> Arrays:
        found = self._fields(result)
        return {field.spec.name: output_array(field, found[field.spec.name], rows) for field in self._form.outputs}


class ModelFailed(InvalidInput):
    """The code of a custom model raised something other than `argosy.Refused`."""

    code = "model_code_failed"


def _folder_of(model: Model) -> Path:
    """Return a new folder that ends when the model does, or with the process."""
    folder = Path(tempfile.mkdtemp(prefix="argosy-files-"))
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    return folder


def hint_for(error: BaseException, files: Mapping[str, bytes]) -> str:
    """Return what to do about an error of a model's code where that can be told: files are not in a folder."""
    name = str(getattr(error, "filename", "") or "")
    known = Path(name).name
    if isinstance(error, FileNotFoundError) and known:
        if known in files:
            return f"deployed files are not in a folder: read files['{known}'] in load, or files.path('{known}')"
        return f"deploy it with the model: --with {known}, and read files['{known}'] in load"
    return ""


def _stack(error: BaseException) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def _tell(error: BaseException) -> None:
    """Write the stack to the log of this process."""
    sys.stderr.write("".join(traceback.format_exception(error)))
