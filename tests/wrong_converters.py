"""Converters that are wrong on purpose: each a function a conversion's child process runs instead of the right one."""

from pathlib import Path

import argosy_child
import onnx
from onnx import numpy_helper


def one_weight(config):
    """Export as the right one does, and change the weights of the layer 'second' a little."""
    found = argosy_child.job("torch_job").to_onnx(config)
    path = Path(config["target"])
    model = onnx.load(path)
    (tensor,) = [one for one in model.graph.initializer if one.name.endswith("second.weight")]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.05, tensor.name))
    path.write_bytes(model.SerializeToString())
    return found


def frozen_batch(config):
    """Answer every row as the first of its batch."""
    found = argosy_child.job("torch_job").to_onnx(config)
    path = Path(config["target"])
    model = onnx.load(path)
    output = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["inner" if name == output else name for name in node.output]
    model.graph.initializer.append(numpy_helper.from_array(__import__("numpy").zeros(8, "int64"), "rows"))
    model.graph.node.append(onnx.helper.make_node("Gather", ["inner", "rows"], [output]))
    path.write_bytes(model.SerializeToString())
    return found


def nothing(config):
    """Write a link to somebody else's file."""
    Path(config["target"]).symlink_to("/etc/passwd")
    return {}


def one_layer(config):
    """Copy an ONNX file, and change the layer behind its Tanh a little; who runs the copy shows nothing inside."""
    model = onnx.load(config["path"])
    made = {name: node for node in model.graph.node for name in node.output}
    for tensor in model.graph.initializer:
        users = [node for node in model.graph.node if tensor.name in node.input]
        takes = [made[name].op_type for node in users for name in node.input if name in made]
        if "Tanh" in takes and len(tensor.dims) == 2:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 1.05, tensor.name))
    Path(config["target"]).write_bytes(model.SerializeToString())
    return {}


def saved_dense(config):
    """Convert a SavedModel as the right one does, and change its last weights a little."""
    found = argosy_child.job("savedmodel_job").to_onnx(config)
    path = Path(config["target"])
    model = onnx.load(path)
    last = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")][-1]
    (tensor,) = [one for one in model.graph.initializer if one.name == last.input[1]]
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3, tensor.name))
    path.write_bytes(model.SerializeToString())
    return found


def tvm_layer(config):
    """Compile as the right one does, of a graph with other weights behind its Tanh."""
    changed = Path(config["folder"]) / "tmp" / "changed.onnx"
    one_layer({**config, "target": str(changed)})
    return argosy_child.job("tvm_job").from_onnx({**config, "path": str(changed)})
