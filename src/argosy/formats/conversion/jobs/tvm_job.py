"""Libraries that TVM compiles of ONNX graphs, and runs back. Needs the tool `tvm` and a C++ compiler."""

import shutil
from typing import Any

import argosy_child
import numpy as np

shared = argosy_child.job("shared")
# More numbers than that are no constant that an exporter writes out.
_MAX_FILLED = 65_536


def from_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Compile an ONNX file for this machine's kind of processor, sizes that are free included."""
    import onnx
    import tvm
    from tvm.relax.frontend.onnx import from_onnx as imported

    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise argosy_child.Refused(
            "TVM links with a C++ compiler, and there is none on this machine",
            hint="install one, for example with: apt-get install g++",
            code="missing_tool",
        )
    # TVM has recurrent layers only where every size is fixed.
    model = _filled(argosy_child.job("recurrent").written_out(onnx.load(config["path"])))
    try:
        module = imported(model, keep_params_in_input=False)
        library = tvm.compile(module, target="llvm")
    except Exception as error:
        raise _unsupported(error, model) from error
    library.export_library(config["target"])
    return {}


def _filled(model: Any) -> Any:
    """Write tensors that are filled with one number as constants: TVM 0.27 can't fill one without dimensions.

    Exporters of encoders make the masks of attention of such.
    """
    from onnx import helper, numpy_helper

    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer if len(tensor.dims) == 1}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            sizes[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        elif node.op_type == "ConstantOfShape" and node.input[0] in sizes:
            shape = [int(size) for size in sizes[node.input[0]]]
            if np.prod(shape, dtype=float) <= _MAX_FILLED:
                number = numpy_helper.to_array(node.attribute[0].t)[0] if node.attribute else np.float32(0)
                value = numpy_helper.from_array(np.full(shape, number))
                node.CopyFrom(helper.make_node("Constant", [], node.output, node.name, value=value))
    return model


def _unsupported(error: Exception, model: Any) -> Any:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    kind = next((node for node in model.graph.node if f"{node.op_type}" in text and "not" in text.lower()), None)
    at = f" (first at '{kind.name or kind.output[0]}')" if kind is not None else ""
    code = "unsupported_operator" if kind is not None else "export_failed"
    return argosy_child.Refused(f"TVM can't compile the model: {type(error).__name__}: {text[-400:]}{at}", code=code)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a library, which knows the order of its inputs but not their names."""
    import tvm
    from tvm import relax

    inputs = config["signature"]["inputs"]
    samples = shared.samples_for(config, inputs)
    machine = relax.VirtualMachine(tvm.runtime.load_module(config["path"]), tvm.cpu())

    def run(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = machine["main"](*(tvm.runtime.tensor(array) for array in rows.values()))
        # One tensor, or a tuple of them.
        parts = [found] if hasattr(found, "numpy") else list(found)
        return {f"output_{at}": part.numpy() for at, part in enumerate(parts)}

    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}
