"""TorchScript archives: made of modules, run, followed, exported to ONNX. Needs torch."""

import io
import warnings
from pathlib import Path
from typing import Any

import argosy_child
import torch

shared = argosy_child.job("shared")
modules = argosy_child.job("torch_job")
watching = argosy_child.job("torch_watch")


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return an archive as a module and its inputs, which it doesn't know itself."""
    try:
        script = torch.jit.load(config["path"], map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise argosy_child.Refused(
            f"the TorchScript archive can't be loaded: {_first(error)}", code="model_damaged"
        ) from error
    return script.eval(), modules.given_inputs(config)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through an archive."""
    script, inputs = load(config)
    return dict(modules.run_samples(config, script, inputs, modules.torch_run(script, inputs)))


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run; the operations of an archive carry no names of layers."""
    script, inputs = load(config)
    return dict(watching.follow(config, script, inputs))


def from_module(config: dict[str, Any]) -> dict[str, Any]:
    """Trace a module; one that decides by values is scripted instead."""
    module, inputs = modules.load(config)
    example = modules.examples(config, inputs)
    where = watching.value_dependence(module, example, Path(config["path"]).parent)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if where:
            try:
                script = torch.jit.script(module)
            except Exception as error:
                raise watching.control_flow(
                    f"{where}; and scripting it fails: {_first(error)}",
                    "write it with torch.where, or so that torch.jit.script takes it",
                ) from error
        else:
            module, _ = modules.exportable(module, example)
            script = torch.jit.trace(module, tuple(example), check_trace=False)  # type: ignore[no-untyped-call]
    script.save(config["target"])
    return {}


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Export an archive to one ONNX file, branches and loops included."""
    import onnx

    from argosy.formats.onnx_export import BATCH, OPSET, clean_bytes, silence

    script, inputs = load(config)
    example = modules.examples(config, inputs)
    with torch.no_grad():
        outputs = list(modules.flat(script(*example)))
    names = [one["name"] for one in inputs]
    axes = {
        one["name"]: {
            at: BATCH if at == 0 else f"{one['name']}_{at}" for at, size in enumerate(one["shape"]) if size < 0
        }
        for one in inputs
    }
    axes |= {name: {0: BATCH} for name in outputs if any(0 in found for found in axes.values())}
    buffer: Any = io.BytesIO()  # the exporter takes streams, but doesn't say so
    with silence():
        try:
            torch.onnx.export(
                script, tuple(example), buffer, dynamo=False, opset_version=OPSET, input_names=names,
                output_names=outputs, dynamic_axes={name: found for name, found in axes.items() if found},
            )  # fmt: skip
        except torch.onnx.errors.UnsupportedOperatorError as error:
            raise argosy_child.Refused(
                f"the model uses an operator that ONNX has no form of: {_first(error)}", code="unsupported_operator"
            ) from error
    Path(config["target"]).write_bytes(clean_bytes(onnx.load_from_string(buffer.getvalue())))
    return {}


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:400] or type(error).__name__
