"""ONNX files: run, and followed node by node. Needs onnxruntime; following also onnx."""

from pathlib import Path
from typing import Any

import argosy_child
import numpy as np

from argosy.core.tensors import DATATYPES
from argosy.formats.onnx_check import check_onnx, read_model_file
from argosy.formats.onnx_runtime import OnnxRunner

shared = argosy_child.job("shared")


def content(path: Path) -> bytes:
    """Return a model as one file's bytes, with what lies in other files of its folder put in."""
    data = read_model_file(path)
    if not check_onnx(data, external=path.parent):
        return data
    import onnx

    return bytes(onnx.load(path).SerializeToString())


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through an ONNX file."""
    runner = OnnxRunner.load(content(Path(config["path"])))
    inputs = [shared.describe(one.name, one.shape, _dtype(one.datatype)) for one in runner.signature.inputs]
    samples = shared.samples_for(config, inputs)

    def run(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        texts = {name: a.astype(object) if a.dtype.kind == "U" else a for name, a in rows.items()}
        return dict(runner.run(texts))

    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}


def single(config: dict[str, Any]) -> dict[str, Any]:
    """Write a model as one file, which is what converters are given."""
    Path(config["single"]).write_bytes(content(Path(config["path"])))
    return {}


def _dtype(datatype: str) -> str:
    return "str" if datatype == "BYTES" else DATATYPES[datatype][0]


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run: every value of the outer graph becomes an output."""
    import onnx
    import onnxruntime as ort

    model = onnx.load_from_string(content(Path(config["path"])))
    wanted = [name for node in model.graph.node for name in node.output if name]
    known = {output.name for output in model.graph.output}
    for name in wanted:
        if name not in known:
            model.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    samples = shared.load(Path(config["samples"]))
    values = dict(zip(wanted, session.run(wanted, samples), strict=True))
    weights = {tensor.name for tensor in model.graph.initializer}
    found = shared.Trace()
    for node in model.graph.node:
        takes = [name for name in node.input if name and name not in weights]
        for name in node.output:
            if name:
                value = values[name]
                found.add(
                    node.name or name, node.op_type, takes, name, value if isinstance(value, np.ndarray) else None
                )
    found.write(Path(config["trace"]))
    return {}


def cut(config: dict[str, Any]) -> dict[str, Any]:
    """Write the part of a model that leads to one of its values, which becomes the output."""
    import onnx

    model = onnx.load_from_string(content(Path(config["path"])))
    graph, value = model.graph, config["value"]
    known = {one.name: one for one in onnx.shape_inference.infer_shapes(model).graph.value_info}
    nodes, wanted = argosy_child.job("recurrent").needed(graph.node, [value])
    outputs = {one.name: one for one in graph.output}
    output = outputs.get(value) or known.get(value) or onnx.ValueInfoProto(name=value)
    weights = [tensor for tensor in graph.initializer if tensor.name in wanted]
    piece = onnx.helper.make_graph(nodes, graph.name, graph.input, [output], weights)
    made = onnx.helper.make_model(piece, opset_imports=model.opset_import, functions=model.functions)
    made.ir_version = model.ir_version
    Path(config["piece"]).write_bytes(made.SerializeToString())
    return {}
