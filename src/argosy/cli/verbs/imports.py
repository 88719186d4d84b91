"""A bare ONNX file becomes a signed version: looked at in a child process, never trusted."""

import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.config import read_toml
from argosy.core.digest import sha256
from argosy.core.errors import Conflict, IntegrityError, InvalidInput, NotFound
from argosy.formats.inspection import Inspection
from argosy.pipeline.config import check_name
from argosy.registry.versions import MODEL_FILE, Evaluation, FileRef, Manifest, Version

if TYPE_CHECKING:
    from argosy.data.attachment import Declaration

T = TypeVar("T")

_POLL_S = 0.01
_PATIENCE_S = 120.0
_LAST_BREATH_S = 5.0


def import_onnx(output: Output, workspace: Workspace, path: Path, name: str, *, prepare: Path | None = None) -> Version:
    """Publish an ONNX file under `name` (default: the file's); the same file again is the same version.

    `prepare` is a TOML file that says what callers send instead of tensors (data/attachment.py). The version's
    evaluation is a self-check on generated samples. They may be outside of what the model is made for, so only rows
    that depend on each other refuse it; the rest is said.
    """
    if not path.is_file():
        raise NotFound(f"there is no file '{path}'", hint="name an ONNX file or a version: argosy models list")
    chosen = check_name(name or as_name(path.stem))
    declared = None if prepare is None else _declared(prepare)
    found = run_check(workspace, "argosy.formats.inspect:main", {"model": str(path.absolute())}, path.name, Inspection)
    for note in found.notes:
        output.line(f"[dim]note: {note}[/]")
    if found.checks.get("rows_independent") is False:
        raise InvalidInput(
            f"'{path.name}' can't be served: what it answers for one row depends on the other rows of the batch, "
            "so requests of different callers would change each other's answers",
            hint="export it in inference mode, or with a fixed batch size of 1",
            code="rows_depend",
        )
    content = path.read_bytes()
    if sha256(content) != found.digest:
        raise IntegrityError(f"'{path}' changed while it was read", hint="deploy it when nothing writes to it")
    manifest = Manifest(
        name=chosen,
        created=workspace.clock.now(),
        role="imported",
        task="tensor",
        signature=found.signature,
        files=stored(workspace, {MODEL_FILE: content}),
        evaluation=Evaluation(
            kind="self-check",
            passed=True,
            metrics={check: float(holds) for check, holds in found.checks.items()},
            samples=found.samples,
        ),
    )
    if declared is not None and prepare is not None:
        manifest = _prepared(workspace, manifest, declared, prepare)
    return publish_once(workspace, manifest)


def _declared(path: Path) -> "Declaration":
    from argosy.data.attachment import Declaration

    return read_toml(path, Declaration)


def _prepared(workspace: Workspace, manifest: Manifest, declared: "Declaration", path: Path) -> Manifest:
    from argosy.data.attachment import attach
    from argosy.data.prepare import steps_to_plain

    try:
        attached = attach(declared, manifest.signature, path.absolute().parent)
    except (InvalidInput, NotFound) as error:
        error.message = f"'{path.name}': {error.message}"
        raise
    return msgspec.structs.replace(
        manifest,
        task=attached.task,
        signature=attached.signature,
        prepare=steps_to_plain(attached.prepare),
        finish=steps_to_plain(attached.finish),
        files={**manifest.files, **stored(workspace, attached.files)},
    )


def stored(workspace: Workspace, files: dict[str, bytes]) -> dict[str, FileRef]:
    """Put the files of a version into the blobs and return how its manifest names them."""
    blobs = workspace.registry.blobs
    return {name: FileRef(digest=blobs.put(data), size_bytes=len(data)) for name, data in files.items()}


def publish_once(workspace: Workspace, manifest: Manifest) -> Version:
    """Publish an imported version, or return the one that answers alike: the same files, steps and signature."""
    versions = workspace.registry.versions
    for version in versions.list(manifest.name):
        if _answer(version.manifest) == _answer(manifest):
            return version
    return versions.publish(manifest)


def _answer(manifest: Manifest) -> tuple[Any, ...]:
    m = manifest
    return m.role, m.task, m.format, m.signature, m.prepare, m.finish, m.files


def as_name(stem: str) -> str:
    """Return the name of a model for a file's name without its ending."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower())
    return kept.strip("._-")[:63].rstrip("._-") or "model"


def run_check(
    workspace: Workspace,
    entry: str,
    config: dict[str, Any],
    what: str,
    kind: type[T],
    *,
    patience_s: float = _PATIENCE_S,
    threads: int = 1,
) -> T:
    """Run a check of `what` in a child process and return what it found; `config` gets the path of the result.

    Raises the error by which the child ended, and InvalidInput when it takes too long.
    """
    launcher = workspace.launcher
    name = f"inspect-{secrets.token_hex(6)}"
    result = workspace.settings.runtime / f"{name}.json"
    spec = ProcessSpec(
        name=name,
        role="inspect",
        entry=entry,
        config={**config, "result": str(result)},
        threads=threads,
        detached=False,
    )
    launcher.start(spec)
    deadline = workspace.clock.monotonic() + patience_s
    try:
        while (info := launcher.get(name)) is not None and info.alive:
            if workspace.clock.monotonic() > deadline:
                raise InvalidInput(f"'{what}' did not answer its self-check within {patience_s:.0f} s")
            workspace.clock.sleep(_POLL_S)
        error = launcher.error(name)
        if error is not None:
            raise error
        if not result.is_file():
            raise InvalidInput(
                f"the process that looked at '{what}' ended without a result: {_last_words(launcher, name)}",
                hint="the model may need more memory than a self-check allows, or crash what runs it",
                code="check_ended",
            )
        return msgspec.json.decode(result.read_bytes(), type=kind)
    finally:
        launcher.stop(name, grace_s=0.5)
        _forget(workspace, name)
        result.unlink(missing_ok=True)


def _forget(workspace: Workspace, name: str) -> None:
    """Drop the record of a process that has ended.

    Its last threads may still give gigabytes back and hold its lock meanwhile. What stays is dropped with old records.
    """
    deadline = workspace.clock.monotonic() + _LAST_BREATH_S
    while True:
        try:
            workspace.launcher.forget(name)
        except Conflict:
            if workspace.clock.monotonic() > deadline:
                return
            workspace.clock.sleep(_POLL_S)
        else:
            return


def _last_words(launcher: Launcher, name: str) -> str:
    info = launcher.get(name)
    lines = [line for line in launcher.log_tail(name, 5).splitlines() if line.strip()]
    code = info.exit_code if info is not None else None
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return ended + (f", {lines[-1].strip()[:200]}" if lines else "")
