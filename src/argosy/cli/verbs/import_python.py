"""A Python file with a model class becomes a signed version: its files collected, its code tried in a child process."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.imports import as_name, run_check
from argosy.cli.workspace import Workspace
from argosy.cluster import machine
from argosy.core.digest import digest_of, sha256, sha256_file
from argosy.core.errors import IntegrityError, InvalidInput, NotFound, PluginError
from argosy.core.units import format_size
from argosy.formats.python_spec import (
    SPEC_FILE,
    Entry,
    LocalFile,
    PythonCheck,
    PythonSpec,
    check_module_name,
    read_spec,
)
from argosy.pipeline.config import check_name
from argosy.pipeline.sources import code_commit
from argosy.registry.versions import Evaluation, FileRef, Lineage, Manifest, Version, is_file_name

MAX_FILES = 1000
MAX_BYTES = 20 * 10**9
_LEFT_OUT = ("__pycache__",)


def import_python(
    output: Output, workspace: Workspace, what: str, name: str, *, extra: Sequence[Path], requires: Sequence[str]
) -> Version:
    """Publish a model class with the files it needs; the same files again are the same version.

    `extra` stand in the version under their own names, folders with all that is in them. The code runs here, in a
    child process, to learn its signature and to try it. Raises InvalidInput for code that fails or breaks its
    promises, PluginError for a package that is missing.
    """
    file, _, kind = what.partition(":")
    path = Path(file)
    if not path.is_file():
        raise NotFound(f"there is no file '{path}'", hint="name a Python file or a version: argosy models list")
    entry = Entry.parse(f"{path.name}:{kind}" if kind else path.name)
    chosen = check_name(name or as_name(path.stem))
    files = {name: _local(found) for name, found in _collect(path, extra).items()}
    _check_size(files)
    checked = _check(workspace, path, entry, files, requires)
    for note in checked.inspection.notes:
        output.line(f"[dim]note: {note}[/]")
    if checked.inspection.checks.get("rows_independent") is False:
        raise InvalidInput(
            f"'{path.name}' can't be served: what it answers for one row depends on the other rows of the batch, "
            "so requests of different callers would change each other's answers",
            hint="compute each row by itself, or derive the class from argosy.RowModel",
            code="rows_depend",
        )
    same = _published(workspace, chosen, checked.spec, files)
    return same if same is not None else _publish(workspace, chosen, path, checked, files)


def _collect(path: Path, extra: Sequence[Path]) -> dict[str, Path]:
    """Return the files of the version by their names in it."""
    found = {path.name: path}
    for given in extra:
        if given.is_dir():
            folder = given.resolve()
            named = [(f"{folder.name}/{file.relative_to(folder).as_posix()}", file) for file in _walk(folder)]
        elif given.is_file():
            named = [(given.name, given)]
        else:
            raise NotFound(f"there is no '{given}' to deploy with the model", hint="name files or folders after --with")
        for name, file in named:
            if name in found and not file.samefile(found[name]):
                raise InvalidInput(f"'{found[name]}' and '{file}' would both be '{name}' in the version")
            found[name] = file
            if len(found) > MAX_FILES:
                raise InvalidInput(
                    f"'{given}' has more files than a version may, {MAX_FILES}", hint="deploy only what the model reads"
                )
    for name, file in found.items():
        _check_name(name, file)
    return found


def _check_name(name: str, file: Path) -> None:
    if not is_file_name(name) or name == SPEC_FILE:
        raise InvalidInput(
            f"'{file}' can't be called '{name}' in a version",
            hint="use letters, digits, dots, dashes and underscores"
            if name != SPEC_FILE
            else "Argosy writes a file of this name itself; give it another",
            code="model_file_name",
        )
    check_module_name(name)


def _walk(folder: Path) -> Iterator[Path]:
    """Return the files below a folder, without hidden ones and compiled leftovers."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name not in _LEFT_OUT)
        for name in folders:
            if Path(root, name).is_symlink():
                raise InvalidInput(
                    f"'{Path(root, name)}' is a link to a folder, which could lead anywhere",
                    hint="name the folder itself with --with",
                )
        for name in sorted(names):
            if not name.startswith(".") and not name.endswith(".pyc"):
                yield Path(root, name)


def _local(path: Path) -> LocalFile:
    try:
        return LocalFile(path=str(path.absolute()), digest=sha256_file(path), size_bytes=path.stat().st_size)
    except OSError as error:
        raise InvalidInput(f"'{path}' can't be read: {error.strerror}", path=str(path)) from error


def _check_size(files: dict[str, LocalFile]) -> None:
    total = sum(file.size_bytes for file in files.values())
    if total > MAX_BYTES:
        raise InvalidInput(
            f"the files have {format_size(total)} together; at most {format_size(MAX_BYTES)} can be kept"
        )


def _check(
    workspace: Workspace, path: Path, entry: Entry, files: dict[str, LocalFile], requires: Sequence[str]
) -> PythonCheck:
    config = {
        "entry": f"{entry.file}:{entry.kind}" if entry.kind else entry.file,
        "files": {name: msgspec.to_builtins(file) for name, file in files.items()},
        "requires": list(requires),
        "memory_bytes": machine.memory_bytes() // 2,
    }
    try:
        return run_check(workspace, "argosy.formats.python_check:main", config, path.name, PythonCheck)
    except PluginError as error:
        top = str(error.context.get("module", "")).partition(".")[0]
        beside = next((p for p in (path.parent / f"{top}.py", path.parent / top) if top and p.exists()), None)
        if beside is None:
            raise
        raise InvalidInput(
            error.message.replace("is not installed", "was not deployed with it"),
            hint=f"'{beside.name}' stands beside it: add --with '{beside}'",
            code=error.code,
        ) from error


def _published(workspace: Workspace, name: str, spec: PythonSpec, files: dict[str, LocalFile]) -> Version | None:
    """Return the version that has the same files and asks for the same packages, if there is one."""
    digests = {file_name: file.digest for file_name, file in files.items()}
    versions = workspace.registry.versions
    for version in versions.list(name):
        manifest = version.manifest
        if manifest.format != "python":
            continue
        former = {file_name: file.digest for file_name, file in manifest.files.items() if file_name != SPEC_FILE}
        if former == digests:
            known = read_spec(versions.files(version))
            if (known.entry, known.requires) == (spec.entry, spec.requires):
                return version
    return None


def _publish(workspace: Workspace, name: str, path: Path, checked: PythonCheck, files: dict[str, LocalFile]) -> Version:
    blobs = workspace.registry.blobs
    refs = {}
    for file_name, file in files.items():
        content = Path(file.path).read_bytes()
        if sha256(content) != file.digest:
            raise IntegrityError(f"'{file.path}' changed while it was read", hint="deploy it when nothing writes to it")
        refs[file_name] = FileRef(digest=blobs.put(content), size_bytes=len(content))
    spec = checked.spec.encode()
    refs[SPEC_FILE] = FileRef(digest=blobs.put(spec), size_bytes=len(spec))
    sources = {file_name: ref.digest for file_name, ref in refs.items() if file_name.endswith(".py")}
    found = checked.inspection
    manifest = Manifest(
        name=name,
        created=workspace.clock.now(),
        role="imported",
        task="tensor",
        format="python",
        signature=found.signature,
        files=refs,
        evaluation=Evaluation(
            kind="self-check",
            passed=True,
            metrics={check: float(holds) for check, holds in found.checks.items()},
            samples=found.samples,
        ),
        lineage=Lineage(code_commit=code_commit(path.parent), code_digest=digest_of(sources)),
    )
    return workspace.registry.versions.publish(manifest)
