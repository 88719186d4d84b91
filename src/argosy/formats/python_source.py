"""Imports a model's verified sources from memory: exactly the bytes that were hashed, and no other file by their names.

Nothing is written, so nothing can be changed between being verified and being run, and no compiled leftovers are used.
"""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import linecache
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import ModuleType
from typing import NamedTuple

from argosy.core.errors import ArgosyError, InvalidInput, PluginError
from argosy.formats.python_model import Model, RowModel
from argosy.formats.python_spec import Entry, check_module_name

_MAX_SHOWN = 300


class Sources(importlib.abc.MetaPathFinder):
    """Finds modules among a version's files. One version per process: installing another forgets the former."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.names = [name for name in files if name.endswith(".py")]
        self._modules: dict[str, _Module] = {}
        for name in self.names:
            check_module_name(name)
            parts = PurePosixPath(name).with_suffix("").parts
            is_package = parts[-1] == "__init__" and len(parts) > 1
            self._modules[".".join(parts[:-1] if is_package else parts)] = _Module(name, files[name], is_package)
        for module in list(self._modules):
            # A folder without __init__.py is a package too.
            for depth in range(1, module.count(".") + 1):
                package = ".".join(module.split(".")[:depth])
                self._modules.setdefault(package, _Module(f"{package.replace('.', '/')}/", b"", is_package=True))

    def install(self) -> None:
        """Let these modules be imported, before any others of the same names.

        Raises InvalidInput for one that this process has imported from elsewhere, because it needs that one itself.
        """
        for former in [finder for finder in sys.meta_path if isinstance(finder, Sources)]:
            former.remove()
        for module in self._modules:
            self._check_free(module)
        for name in self.names:
            linecache.cache.pop(name, None)  # lines of another version's file of this name
        sys.meta_path.insert(0, self)

    def remove(self) -> None:
        """Forget what was imported from here."""
        if self in sys.meta_path:
            sys.meta_path.remove(self)
        for name, module in list(sys.modules.items()):
            loader = getattr(module, "__loader__", None)
            if isinstance(loader, _Loader) and loader.source is self._modules.get(name):
                del sys.modules[name]

    def _check_free(self, module: str) -> None:
        if module in sys.modules:
            raise InvalidInput(
                f"'{self._modules[module].file}' would take the place of the module '{module}', which Argosy uses",
                hint="give it another name",
                code="model_file_name",
            )

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return how to load a module of this version; None for all others."""
        del path, target
        found = self._modules.get(fullname)
        if found is None:
            return None
        spec = importlib.util.spec_from_loader(fullname, _Loader(found), origin=found.file, is_package=found.is_package)
        if spec is not None and spec.submodule_search_locations is not None:
            spec.submodule_search_locations = []  # what is not among these files is not there
        return spec

    def place_of(self, error: BaseException) -> str:
        """Return where in these files an error came up, innermost last, such as `helpers.py:7 in score`; or empty."""
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if frame.filename in self.names]
        if isinstance(error, SyntaxError) and error.filename in self.names:
            return f"{error.filename}:{error.lineno}"
        return f"{own[-1].filename}:{own[-1].lineno} in {own[-1].name}" if own else ""

    def said(self, error: BaseException) -> str:
        """Return an error of these files in one line: what it is, and where it came up."""
        message = str(error.msg if isinstance(error, SyntaxError) else error).strip().partition("\n")[0][:_MAX_SHOWN]
        place = self.place_of(error)
        return type(error).__name__ + (f": {message}" if message else "") + (f" ({place})" if place else "")


class _Module(NamedTuple):
    file: str
    source: bytes
    is_package: bool


class _Loader(importlib.abc.ExecutionLoader):
    def __init__(self, source: _Module) -> None:
        self.source = source

    def get_filename(self, fullname: str) -> str:  # noqa: ARG002 - one loader per module
        # Relative, so that stacks show it as people know it; the text comes from `get_source`, never from a disk.
        return self.source.file

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        return importlib.util.decode_source(self.source.source)

    def is_package(self, fullname: str) -> bool:  # noqa: ARG002
        return self.source.is_package


def import_model(sources: Sources, entry: Entry) -> type[Model]:
    """Import the entry's file and return its model class.

    Raises PluginError (`missing_package`) that names a package which is not installed, InvalidInput for sources that
    fail (`model_code_failed`) or hold no such class (`model_class_wrong`).
    """
    if entry.file not in sources.names:
        raise InvalidInput(f"there is no file '{entry.file}' among the version's files", code="model_class_wrong")
    sources.install()
    try:
        module = importlib.import_module(entry.file.removesuffix(".py"))
    except ArgosyError:
        raise
    except ModuleNotFoundError as error:
        raise _missing(sources, error) from error
    except BaseException as error:
        raise InvalidInput(
            f"'{entry.file}' can't be imported: {sources.said(error)}",
            hint="python -c 'import ...' in its folder shows the same, unless a file beside it is missing here: --with",
            code="model_code_failed",
        ) from error
    return _find(module, entry)


def _missing(sources: Sources, error: ModuleNotFoundError) -> ArgosyError:
    name = str(error.name or "")
    top = name.partition(".")[0]
    place = sources.place_of(error).partition(" in ")[0]
    if not name or top in sys.stdlib_module_names:
        return InvalidInput(f"a module can't be imported: {sources.said(error)}", code="model_code_failed")
    return PluginError(
        f"{f'{place} imports' if place else 'the model needs'} '{name}', which is not installed",
        hint=f"install it here, and name its package with --requires so that other machines are checked; "
        f"a module of your own is deployed beside the model by: --with {top}.py",
        code="missing_package",
        module=name,
    )


def _find(module: ModuleType, entry: Entry) -> type[Model]:
    if entry.kind:
        found = getattr(module, entry.kind, None)
        if not (isinstance(found, type) and issubclass(found, Model)):
            raise InvalidInput(
                f"'{entry.file}' has no class '{entry.kind}' that derives from argosy.Model",
                hint=f"it has: {', '.join(kind.__name__ for kind in _models(module)) or 'none'}",
                code="model_class_wrong",
            )
        return found
    models = _models(module)
    # A base of another one is there to share code.
    models = [kind for kind in models if not any(kind in other.__bases__ for other in models)]
    if len(models) == 1:
        return models[0]
    names = ", ".join(kind.__name__ for kind in models)
    raise InvalidInput(
        f"'{entry.file}' has {f'several models: {names}' if models else 'no class that derives from argosy.Model'}",
        hint=f"name one: {entry.file}:{models[0].__name__}" if models else "write: class Scorer(argosy.Model): ...",
        code="model_class_wrong",
    )


def _models(module: ModuleType) -> list[type[Model]]:
    return [
        kind
        for kind in vars(module).values()
        if isinstance(kind, type)
        and issubclass(kind, Model)
        and kind not in (Model, RowModel)
        and kind.__module__ == module.__name__
    ]
