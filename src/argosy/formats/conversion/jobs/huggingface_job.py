"""Folders of Hugging Face's: run by transformers on real texts, exported to ONNX. Needs `argosy[hf]`."""

from pathlib import Path
from typing import Any

import argosy_child

from argosy.formats.hf_export import export, open_original
from argosy.formats.hf_folder import read_folder

shared = argosy_child.job("shared")
modules = argosy_child.job("torch_job")


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], dict[str, Any]]:
    """Return the model by the positions of its token arrays, these, and texts of several lengths as tokens."""
    folder = read_folder(Path(config["path"]))
    if not folder.weights:
        raise argosy_child.Refused(
            f"the folder holds its model as ONNX already: '{folder.onnx}'",
            hint="convert that file itself",
            code="no_conversion",
        )
    module, samples = open_original(folder)
    inputs = [shared.describe(name, (-1, -1), "int64") for name in samples]
    return module, inputs, samples


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run texts through the folder's model."""
    module, inputs, samples = load(config)
    if config.get("samples"):
        return dict(modules.run_samples(config, module, inputs, modules.torch_run(module, inputs)))
    shared.save(Path(config["folder"]) / "samples.npz", samples)
    shared.answer(config, samples, modules.torch_run(module, inputs))
    rows = len(next(iter(samples.values())))
    return {"inputs": inputs, "precision": modules.precision(module), "rows": rows}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run."""
    module, inputs, _ = load(config)
    return dict(argosy_child.job("torch_watch").follow(config, module, inputs))


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Export the folder's model to one ONNX file."""
    content, _, found = export(read_folder(Path(config["path"])))
    Path(config["target"]).write_bytes(content)
    return {"exporter": found.how}
