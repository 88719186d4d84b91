"""Whatever a model comes as, a file or a folder, to a signed version: which import it is for."""

from collections.abc import Sequence
from pathlib import Path

from argosy.cli.output import Output
from argosy.cli.verbs.import_folder import import_folder
from argosy.cli.verbs.import_python import import_python
from argosy.cli.verbs.imports import import_onnx
from argosy.cli.workspace import Workspace
from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.hf_folder import is_folder
from argosy.registry.versions import Version


def import_model(
    output: Output,
    workspace: Workspace,
    what: str,
    name: str,
    *,
    prepare: Path | None = None,
    extra: Sequence[Path] = (),
    requires: Sequence[str] = (),
) -> Version | None:
    """Publish what a path names: an ONNX file, a Python file, a Hugging Face folder; None if it names none of these."""
    path = Path(what)
    is_python = what.partition(":")[0].endswith(".py")
    is_onnx = not is_python and bool(what) and (path.suffix == ".onnx" or path.is_file())
    if (extra or requires) and not is_python:
        raise InvalidInput(
            f"--with and --requires are for Python files, and '{what}' is none",
            hint="argosy deploy model.py --with vocabulary.txt",
        )
    if prepare is not None and not is_onnx:
        raise InvalidInput(
            f"--prepare is for ONNX files, and '{what}' is none", hint="argosy deploy model.onnx --prepare image.toml"
        )
    if is_python:
        return import_python(output, workspace, what, name, extra=extra, requires=requires)
    if is_onnx:
        return import_onnx(output, workspace, path, name, prepare=prepare)
    # A bare word may as well name a version.
    if what and (is_folder(path) or (path.is_dir() and ("/" in what or what in (".", "..")))):
        return import_folder(output, workspace, path, name)
    return None


def publish(
    what: str, *, name: str, prepare: Path | None, extra: Sequence[Path], requires: Sequence[str], as_json: bool
) -> None:
    """`models import`: publish without serving."""
    output = Output(as_json=as_json)
    version = import_model(output, Workspace(), what, name, prepare=prepare, extra=extra, requires=requires)
    if version is None:
        raise NotFound(
            f"there is no file or folder '{what}'", hint="name an ONNX file, a Python file or a Hugging Face folder"
        )
    output.line(f"[green]✓[/] {version} {version.digest[7:19]}")
    output.line(f"  next  argosy deploy {version}")
    output.result({"version": str(version), "digest": version.digest})
