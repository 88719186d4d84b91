"""What a version says of a model of one's own beside its sources; readable without NumPy and without running it."""

import sys
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

import msgspec

from argosy.core.config import Config
from argosy.core.digest import canonical
from argosy.core.errors import InvalidInput, PluginError
from argosy.formats.inspection import Inspection
from argosy.registry.versions import MAIN_FILES

SPEC_FILE = MAIN_FILES["python"]
"""The file of a version that says which of its classes is the model."""


class PythonSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `python-model.json` says."""

    entry: str
    """The file and the class: `sentiment.py:Sentiment`."""
    requires: tuple[str, ...] = ()
    """Packages that must be installed, as in `pip install`."""
    python: str = ""
    """The Python it was checked with."""
    packages: dict[str, str] = {}
    """The version of each required package it was checked with."""

    def encode(self) -> bytes:
        """Return the bytes of the file."""
        return canonical(self)


class LocalFile(Config, frozen=True):
    """A file that may become part of a version."""

    path: str
    digest: str
    size_bytes: int


class PythonCheck(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out about a model of one's own."""

    inspection: Inspection
    spec: PythonSpec


class Entry(NamedTuple):
    """Which class of which file is the model; an empty `kind` is the only one there is."""

    file: str
    kind: str = ""

    @classmethod
    def parse(cls, text: str) -> "Entry":
        """Read `sentiment.py` or `sentiment.py:Sentiment`; InvalidInput."""
        file, _, kind = text.partition(":")
        module = PurePosixPath(file)
        if module.suffix != ".py" or not module.stem.isidentifier() or "/" in file:
            raise InvalidInput(
                f"{text[:100]!r} is no file of a model: it must be called like a Python module",
                hint="give it a name such as sentiment.py",
                code="model_class_wrong",
            )
        if kind and not kind.isidentifier():
            raise InvalidInput(f"{kind[:100]!r} is no name of a class", hint="write sentiment.py:Sentiment")
        return cls(file, kind)


def check_module_name(name: str) -> None:
    """Raise InvalidInput for a file whose import would take the place of a module of Python or Argosy."""
    path = PurePosixPath(name)
    top = path.parts[0] if len(path.parts) > 1 else path.stem
    if path.suffix == ".py" and (top in sys.stdlib_module_names or top == "argosy"):
        owner = "Argosy" if top == "argosy" else "Python"
        raise InvalidInput(
            f"'{name}' would take the place of {owner}'s own module '{top}'",
            hint="give it another name",
            code="model_file_name",
        )


def read_spec(files: Mapping[str, bytes]) -> PythonSpec:
    """Read what the files of a version say about its model; InvalidInput."""
    try:
        return msgspec.json.decode(files[SPEC_FILE], type=PythonSpec)
    except (KeyError, msgspec.DecodeError) as error:
        raise InvalidInput(
            f"the version's '{SPEC_FILE}' is missing or not understood: {error}",
            hint="it may have been made by a newer Argosy: pip install -U argosy",
            code="model_class_wrong",
        ) from error


def check_requires(requires: tuple[str, ...] | list[str]) -> dict[str, str]:
    """Return the installed version of each required package; PluginError (`missing_package`) names what is missing."""
    if not requires:
        return {}
    from importlib import metadata

    from packaging.requirements import InvalidRequirement, Requirement

    found = {}
    for text in requires:
        try:
            wanted = Requirement(text)
        except InvalidRequirement as error:
            raise InvalidInput(
                f"{text[:100]!r} does not name a package: {str(error).partition(chr(10))[0]}",
                hint="write it as for pip: --requires 'scikit-learn>=1.5'",
            ) from error
        if wanted.url:
            raise InvalidInput(f"{text[:100]!r} names an address; only packages by name and version can be checked")
        if wanted.marker is not None and not wanted.marker.evaluate():
            continue
        try:
            installed = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            installed = ""
        if not installed or not wanted.specifier.contains(installed, prereleases=True):
            has = f"{installed} is installed" if installed else "it is not installed"
            raise PluginError(
                f"the model needs the package '{text}', but {has}",
                hint=f"install it into the environment of Argosy on this machine: pip install '{text}'",
                code="missing_package",
                package=wanted.name,
            )
        found[wanted.name] = installed
    return found
