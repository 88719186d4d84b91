"""Programs of torch.export: made of modules, run, followed, exported to ONNX. Needs torch."""

from pathlib import Path
from typing import Any

import argosy_child
import torch

shared = argosy_child.job("shared")
modules = argosy_child.job("torch_job")
watching = argosy_child.job("torch_watch")


def _program(config: dict[str, Any]) -> Any:
    try:
        return torch.export.load(config["path"])
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        raise argosy_child.Refused(
            f"the torch.export archive can't be loaded: {type(error).__name__}: {lines[0][:300]}", code="model_damaged"
        ) from error


def _inputs(program: Any) -> list[dict[str, Any]]:
    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    found = []
    for name in program.graph_signature.user_inputs:
        value = nodes[name].meta["val"]
        dtype = str(value.dtype).removeprefix("torch.")
        found.append(shared.describe(name, (size if isinstance(size, int) else -1 for size in value.shape), dtype))
    return found


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return a program as a module, and its inputs."""
    program = _program(config)
    return program.module(), _inputs(program)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a program."""
    module, inputs = load(config)
    return dict(modules.run_samples(config, module, inputs, modules.torch_run(module, inputs)))


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a program's run."""
    module, inputs = load(config)
    return dict(watching.follow(config, module, inputs))


def from_module(config: dict[str, Any]) -> dict[str, Any]:
    """Export a module with the dimensions free that its inputs say are."""
    module, inputs = modules.load(config)
    example = modules.examples(config, inputs)
    module, _ = modules.exportable(module, example)
    batch = torch.export.Dim("batch")
    shapes: Any = tuple(
        {at: batch if at == 0 else torch.export.Dim.AUTO for at, size in enumerate(one["shape"]) if size < 0}
        for one in inputs
    )
    if isinstance(module, modules.Flat):
        shapes = (shapes,)
    try:
        program = torch.export.export(module, tuple(example), dynamic_shapes=shapes)
    except Exception as error:
        where = watching.value_dependence(module, example, Path(config["path"]).parent)
        if where:
            raise watching.control_flow(where, "write it with torch.where or torch.cond") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise argosy_child.Refused(
            f"torch.export can't take the model: {type(error).__name__}: {' '.join(lines[:2])[:400]}",
            code="export_failed",
        ) from error
    torch.export.save(program, config["target"])
    return {}


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Export a program to one ONNX file."""
    from argosy.formats.onnx_export import OPSET, clean_bytes, silence

    program = _program(config)
    names = [one["name"] for one in _inputs(program)]
    with silence():
        found = torch.onnx.export(
            program, dynamo=True, opset_version=OPSET, input_names=names, external_data=False, verbose=False
        )
    assert found is not None
    Path(config["target"]).write_bytes(clean_bytes(found.model_proto))
    return {}
