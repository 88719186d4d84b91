"""OpenVINO IR: made of ONNX, run, and followed operation by operation. Needs the tool `openvino`."""

from pathlib import Path
from typing import Any

import argosy_child
import numpy as np
import openvino as ov

shared = argosy_child.job("shared")
# Otherwise processors that know bfloat16 compute in it.
_EXACT = {"INFERENCE_PRECISION_HINT": "f32"}


def from_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Convert an ONNX file to `.xml` and `.bin`, weights as they are."""
    try:
        model = ov.convert_model(config["path"])
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        text = " ".join(line for line in lines if "Check " not in line and "Exception from" not in line)[:400]
        raise argosy_child.Refused(f"OpenVINO can't convert the model: {text}", code="unsupported_operator") from error
    ov.save_model(model, config["target"], compress_to_fp16=False)
    return {}


def _runner(model: Any) -> Any:
    compiled = ov.Core().compile_model(model, "CPU", _EXACT)

    def run(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = compiled(dict(zip(compiled.inputs, rows.values(), strict=True)))
        return {_name(port, at): np.array(found[port]) for at, port in enumerate(compiled.outputs)}

    return run


def _name(port: Any, at: int) -> str:
    names = sorted(port.get_names())
    return str(names[0]) if names else f"output_{at}"


def _read(path: str) -> Any:
    try:
        return ov.Core().read_model(path)
    except RuntimeError as error:
        raise argosy_child.Refused(f"the IR can't be read: {str(error)[:300]}", code="model_damaged") from error


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through an IR."""
    model = _read(config["path"])
    inputs = [
        shared.describe(
            _name(port, at),
            (size.get_length() if size.is_static else -1 for size in port.partial_shape),
            np.dtype(port.element_type.to_dtype()).name,
        )
        for at, port in enumerate(model.inputs)
    ]
    samples = shared.samples_for(config, inputs)
    shared.answer(config, samples, _runner(model), config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run: every operation becomes a result."""
    model = _read(config["path"])
    operations = [
        one for one in model.get_ordered_ops() if one.get_type_name() not in ("Constant", "Result", "Parameter")
    ]
    ports = [port for one in operations for port in one.outputs()]
    probe = ov.Model(ports, model.get_parameters())
    compiled = ov.Core().compile_model(probe, "CPU", _EXACT)
    samples = shared.load(Path(config["samples"]))
    values = compiled(dict(zip(compiled.inputs, samples.values(), strict=True)))
    found = shared.Trace()
    for port, result in zip(ports, compiled.outputs, strict=True):
        node = port.get_node()
        found.add(
            node.get_friendly_name(), node.get_type_name(), [], node.get_friendly_name(), np.array(values[result])
        )
    found.write(Path(config["trace"]))
    return {}
