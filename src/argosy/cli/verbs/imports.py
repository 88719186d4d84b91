"""A bare ONNX file becomes a signed version: looked at in a child process, never trusted."""

import secrets
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.cluster.launcher import Launcher, ProcessSpec
from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, Internal, InvalidInput, NotFound
from argosy.formats.inspection import Inspection
from argosy.pipeline.config import check_name
from argosy.registry.versions import MODEL_FILE, Evaluation, FileRef, Manifest, Version

T = TypeVar("T")

_POLL_S = 0.01
_PATIENCE_S = 120.0


def import_onnx(output: Output, workspace: Workspace, path: Path, name: str) -> Version:
    """Publish an ONNX file under `name` (default: the file's); the same file again is the same version.

    Its evaluation is a self-check on generated samples. They may be outside of what the model is made for, so only
    rows that depend on each other refuse it; the rest is said.
    """
    if not path.is_file():
        raise NotFound(f"there is no file '{path}'", hint="name an ONNX file or a version: argosy models list")
    chosen = check_name(name or as_name(path.stem))
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
    versions = workspace.registry.versions
    for version in versions.list(chosen):
        main = version.manifest.files.get(MODEL_FILE)
        if version.manifest.role == "imported" and main is not None and main.digest == found.digest:
            return version
    content = path.read_bytes()
    if sha256(content) != found.digest:
        raise IntegrityError(f"'{path}' changed while it was read", hint="deploy it when nothing writes to it")
    digest = workspace.registry.blobs.put(content)
    manifest = Manifest(
        name=chosen,
        created=workspace.clock.now(),
        role="imported",
        task="tensor",
        signature=found.signature,
        files={MODEL_FILE: FileRef(digest=digest, size_bytes=len(content))},
        evaluation=Evaluation(
            kind="self-check",
            passed=True,
            metrics={check: float(holds) for check, holds in found.checks.items()},
            samples=found.samples,
        ),
    )
    return versions.publish(manifest)


def as_name(stem: str) -> str:
    """Return the name of a model for a file's name without its ending."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower())
    return kept.strip("._-")[:63].rstrip("._-") or "model"


def run_check(workspace: Workspace, entry: str, config: dict[str, Any], what: str, kind: type[T]) -> T:
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
        threads=1,
        detached=False,
    )
    launcher.start(spec)
    deadline = workspace.clock.monotonic() + _PATIENCE_S
    try:
        while (info := launcher.get(name)) is not None and info.alive:
            if workspace.clock.monotonic() > deadline:
                raise InvalidInput(f"'{what}' did not answer its self-check within {_PATIENCE_S:.0f} s")
            workspace.clock.sleep(_POLL_S)
        error = launcher.error(name)
        if error is not None:
            raise error
        if not result.is_file():
            raise Internal(
                f"the process that looked at '{what}' ended without a result: {_last_words(launcher, name)}",
                hint="the model may need more memory than a self-check allows",
            )
        return msgspec.json.decode(result.read_bytes(), type=kind)
    finally:
        launcher.stop(name, grace_s=0.5)
        launcher.forget(name)
        result.unlink(missing_ok=True)


def _last_words(launcher: Launcher, name: str) -> str:
    info = launcher.get(name)
    lines = [line for line in launcher.log_tail(name, 5).splitlines() if line.strip()]
    code = info.exit_code if info is not None else None
    ended = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    return ended + (f", {lines[-1].strip()[:200]}" if lines else "")
