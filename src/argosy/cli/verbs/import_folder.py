"""A Hugging Face or sentence-transformers folder becomes a signed version that takes texts."""

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from argosy.cli.output import Output
from argosy.cli.verbs.imports import as_name, run_check, stored
from argosy.cli.workspace import Workspace
from argosy.core.config import private_folder
from argosy.core.digest import sha256
from argosy.core.errors import IntegrityError, PluginError
from argosy.core.tensors import Signature, TensorSpec
from argosy.core.units import format_size, format_time
from argosy.formats.hf_folder import TOKENIZER_FILE, Exported, Folder, read_folder
from argosy.pipeline.config import check_name
from argosy.registry.versions import MODEL_FILE, Evaluation, Lineage, Manifest, Version

# Raised when an export gives another answer or another graph than before, so that old versions are made anew.
_EXPORT = 1
_PATIENCE_S = 1800.0


def import_folder(output: Output, workspace: Workspace, path: Path, name: str) -> Version:
    """Publish an encoder under `name` (default: the folder's); the same folder again is the same version.

    It is exported to ONNX in a child process without network and compared with the original there. Raises
    InvalidInput, NotFound or PluginError, each saying what to do.
    """
    folder = usable(read_folder(path))
    chosen = check_name(name or as_name(path.absolute().name))
    recipe: dict[str, Any] = {
        "source": folder.digest,
        "weights": "safetensors" if folder.weights else folder.onnx,
        "export": _EXPORT,
    }
    for version in workspace.registry.versions.list(chosen):
        if version.manifest.lineage.recipe.items() >= recipe.items():
            return version
    for note in folder.notes:
        output.line(f"[dim]note: {note}[/]")
    output.line(f"{'exporting' if folder.weights else 'checking'} {folder.architecture or 'the encoder'} …")
    began = workspace.clock.monotonic()
    work = tempfile.TemporaryDirectory(prefix="export-", dir=private_folder(workspace.settings.home / "work"))
    with work as place:
        found = run_check(
            workspace,
            "argosy.formats.hf_export:main",
            {"folder": msgspec.to_builtins(folder), "place": place},
            path.name,
            Exported,
            patience_s=_PATIENCE_S,
            threads=0,
        )
        files = {name: (Path(place) / name).read_bytes() for name in (MODEL_FILE, TOKENIZER_FILE)}
    if [sha256(data) for data in files.values()] != [found.digest, found.tokenizer_digest]:
        raise IntegrityError("what the export wrote changed before it was read")
    _say(output, found, len(files[MODEL_FILE]), workspace.clock.monotonic() - began)
    manifest = _manifest(chosen, folder, found, recipe)
    return workspace.registry.versions.publish(
        msgspec.structs.replace(manifest, created=workspace.clock.now(), files=stored(workspace, files))
    )


def usable(folder: Folder) -> Folder:
    """Return the folder with the weights this machine can use, after checking that the libraries are there."""
    has_export = all(importlib.util.find_spec(library) for library in ("transformers", "torch", "onnxscript"))
    if folder.weights and not has_export:
        if not folder.onnx:
            raise PluginError(
                "a Hugging Face folder needs transformers and torch to be exported, which are not installed; install "
                "them with: pip install 'argosy[hf]'",
                hint="only this machine needs them; serving needs 'argosy[text]'",
                code="missing_extra",
            )
        folder = msgspec.structs.replace(
            folder, weights=(), notes=(*folder.notes, f"without 'argosy[hf]' its own {folder.onnx} is taken as it is")
        )
    if importlib.util.find_spec("tokenizers") is None:
        raise PluginError(
            "texts need 'tokenizers', which is not installed; install it with: pip install 'argosy[text]'",
            code="missing_extra",
        )
    return folder


def _say(output: Output, found: Exported, size_bytes: int, seconds: float) -> None:
    parity = f", at most {found.checks['parity']:.1g} from the original" if "parity" in found.checks else ""
    output.line(
        f"  {format_size(size_bytes)} of ONNX in {format_time(seconds)}; {found.samples} texts alone and padded"
        f"{parity}, {found.checks['padding']:.1g} between the two"
    )


def _manifest(name: str, folder: Folder, found: Exported, recipe: dict[str, Any]) -> Manifest:
    from argosy.data.attachment import embedding, text_about, text_input
    from argosy.data.prepare import FinishStep, Label, Softmax, finish_signature, steps_to_plain
    from argosy.data.text import Tokenize

    step = Tokenize(
        max_length=folder.max_length,
        outputs=found.inputs,
        datatype=found.datatype,
        pad_id=folder.pad_id,
        prefix=folder.prefix,
    )
    finish: list[FinishStep]
    outputs: tuple[TensorSpec, ...]
    if folder.task == "embedding":
        finish, vector = embedding(found.output, found.width, folder.pooling, normalizes=folder.normalizes)
        outputs = (vector,)
    else:
        finish = [Softmax(input=found.output), Label(labels=folder.labels)]
        outputs = finish_signature("classification", folder.labels)
    return Manifest(
        name=name,
        created=0.0,
        role="imported",
        task="classification" if folder.task == "classification" else "tensor",
        signature=Signature(inputs=(text_input(),), outputs=outputs, about=text_about(step)),
        prepare=steps_to_plain([step]),
        finish=steps_to_plain(finish),
        files={},
        evaluation=Evaluation(kind="self-check", passed=True, metrics=found.checks, samples=found.samples),
        lineage=Lineage(
            recipe={**recipe, "architecture": folder.architecture, "how": found.how, "versions": found.versions}
        ),
    )
