"""A bare ONNX file becomes a signed version: looked at in a child process, never trusted."""

import secrets
from pathlib import Path

import msgspec

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.cluster.launcher import ProcessSpec
from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, Internal, InvalidInput, NotFound
from argosy.formats.inspection import Inspection
from argosy.pipeline.config import check_name
from argosy.registry.versions import Evaluation, FileRef, Manifest, Version

_POLL_S = 0.01
_PATIENCE_S = 120.0


def import_onnx(output: Output, workspace: Workspace, path: Path, name: str) -> Version:
    """Publish an ONNX file under `name` (default: the file's); the same file again is the same version.

    Its evaluation is a self-check on generated samples. They may be outside of what the model is made for, so only
    rows that depend on each other refuse it; the rest is said.
    """
    if not path.is_file():
        raise NotFound(f"there is no file '{path}'", hint="name an ONNX file or a version: argosy models list")
    chosen = check_name(name or _as_name(path.stem))
    found = _inspect(workspace, path)
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
        if version.manifest.role == "imported" and version.manifest.files["model.onnx"].digest == found.digest:
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
        files={"model.onnx": FileRef(digest=digest, size_bytes=len(content))},
        evaluation=Evaluation(
            kind="self-check",
            passed=True,
            metrics={check: float(holds) for check, holds in found.checks.items()},
            samples=found.samples,
        ),
    )
    return versions.publish(manifest)


def _as_name(stem: str) -> str:
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in stem.lower())
    return kept.strip("._-")[:63].rstrip("._-") or "model"


def _inspect(workspace: Workspace, path: Path) -> Inspection:
    launcher = workspace.launcher
    name = f"inspect-{secrets.token_hex(6)}"
    result = workspace.settings.runtime / f"{name}.json"
    spec = ProcessSpec(
        name=name,
        role="inspect",
        entry="argosy.formats.inspect:main",
        config={"model": str(path.absolute()), "result": str(result)},
        threads=1,
        detached=False,
    )
    launcher.start(spec)
    deadline = workspace.clock.monotonic() + _PATIENCE_S
    try:
        while (info := launcher.get(name)) is not None and info.alive:
            if workspace.clock.monotonic() > deadline:
                raise InvalidInput(f"'{path.name}' did not answer its self-check within {_PATIENCE_S:.0f} s")
            workspace.clock.sleep(_POLL_S)
        error = launcher.error(name)
        if error is not None:
            raise error
        if not result.is_file():
            raise Internal(
                f"the process that looked at '{path.name}' ended without a result",
                hint="the model may need more memory than a self-check allows",
            )
        return msgspec.json.decode(result.read_bytes(), type=Inspection)
    finally:
        launcher.stop(name, grace_s=0.5)
        launcher.forget(name)
        result.unlink(missing_ok=True)
