"""MindIR files: MindSpore code written from an ONNX graph, exported in graph mode, and run back.

MindSpore itself reads no ONNX, and its converter (`converter_lite`) is not on the package index; so each operator here
is written as the expression of MindSpore's that does the same. Needs the tool `mindspore`.
"""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argosy_child
import numpy as np

shared = argosy_child.job("shared")

_PLAIN = {
    "Relu": "ops.relu({0})", "Sigmoid": "ops.sigmoid({0})", "Tanh": "ops.tanh({0})", "Erf": "ops.erf({0})",
    "Exp": "ops.exp({0})", "Log": "ops.log({0})", "Sqrt": "ops.sqrt({0})", "Neg": "ops.neg({0})",
    "Abs": "ops.abs({0})", "Reciprocal": "ops.reciprocal({0})", "Floor": "ops.floor({0})", "Ceil": "ops.ceil({0})",
    "Softplus": "ops.softplus({0})", "Sin": "ops.sin({0})", "Cos": "ops.cos({0})", "Not": "ops.logical_not({0})",
    "Add": "ops.add({0}, {1})", "Sub": "ops.sub({0}, {1})", "Mul": "ops.mul({0}, {1})", "Div": "ops.div({0}, {1})",
    "Pow": "ops.pow({0}, {1})", "MatMul": "ops.matmul({0}, {1})", "Equal": "ops.equal({0}, {1})",
    "Greater": "ops.greater({0}, {1})", "Less": "ops.less({0}, {1})", "And": "ops.logical_and({0}, {1})",
    "Or": "ops.logical_or({0}, {1})", "Max": "ops.maximum({0}, {1})", "Min": "ops.minimum({0}, {1})",
    "Where": "ops.where({0}, {1}, {2})", "Identity": "{0}", "Dropout": "{0}",
    "GlobalAveragePool": "ops.mean({0}, (2, 3), True)", "GlobalMaxPool": "ops.amax({0}, (2, 3), True)",
}  # fmt: skip
_CASTS = {1: "float32", 6: "int32", 7: "int64", 9: "bool_", 10: "float16", 11: "float64"}


def from_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Write the graph as MindSpore code, compile it with a free batch where it has one, and export that."""
    import mindspore as ms
    import onnx
    from onnx import numpy_helper

    model = argosy_child.job("recurrent").written_out(onnx.load(config["path"]))
    writer = _Writer(model, {one.name: numpy_helper.to_array(one) for one in model.graph.initializer})
    code = writer.write()
    path = Path(config["folder"]) / "tmp" / "made_network.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("made_network", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["made_network"] = module
    spec.loader.exec_module(module)
    network = module.Network(writer.weights)
    network.set_train(mode=False)
    inputs = [
        ms.Tensor(shape=[None if size < 0 else size for size in one["shape"]], dtype=getattr(ms, one["dtype"]))
        for one in config["signature"]["inputs"]
    ]
    target = Path(config["target"])
    try:
        ms.export(network, *inputs, file_name=str(target.with_suffix("")), file_format="MINDIR")
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip() and "---" not in line]
        raise argosy_child.Refused(
            f"MindSpore can't compile the model: {type(error).__name__}: {' '.join(lines[:2])[:400]}",
            code="export_failed",
        ) from error
    return {}


class _Writer:
    """Writes the `construct` of a network, one line per node."""

    def __init__(self, model: Any, weights: dict[str, np.ndarray]) -> None:
        self.graph = model.graph
        self.constants = dict(weights)
        self.weights: dict[str, np.ndarray] = {}
        self.names: dict[str, str] = {}

    def write(self) -> str:
        """Return the module's text; refuse operators that have no expression here, each named with its node."""
        from onnx import helper, numpy_helper

        given = [one.name for one in self.graph.input if one.name not in self.constants]
        self.names = {name: f"x{at}" for at, name in enumerate(given)}
        lines: list[str] = []
        # By kind: the first of each; what takes a value of these is no reason of its own.
        unknown: dict[str, str] = {}
        missing: list[str] = []
        for number, node in enumerate(self.graph.node):
            named = {one.name: helper.get_attribute_value(one) for one in node.attribute}
            if node.op_type == "Constant" and "value" in named:
                self.constants[node.output[0]] = numpy_helper.to_array(named["value"])
                continue
            write = _OPERATORS.get(node.op_type)
            try:
                expression = write(self, node, named) if write else self.plain(node)
            except _Unknown as error:
                said = f"{node.op_type}{error} (at '{node.name or node.output[0]}')"
                if str(error):
                    missing.append(said)
                else:
                    unknown.setdefault(node.op_type, said)
                continue
            outputs = [f"v{number}_{at}" for at, _ in enumerate(node.output)]
            self.names.update(zip(node.output, outputs, strict=True))
            lines.append(f"        {', '.join(outputs)} = {expression}")
        if unknown or missing:
            told = [*unknown.values()] or missing
            raise argosy_child.Refused(
                f"the model has operators that can't become MindSpore's: {', '.join(told[:8])}",
                hint="replace these layers, or convert by MindSpore Lite's converter_lite",
                code="unsupported_operator",
            )
        results = ", ".join(self.value(one.name) for one in self.graph.output)
        weights = [f"        self.{name} = Parameter(Tensor(weights['{name}']), '{name}')" for name in self.weights]
        return "\n".join((
            "from mindspore import Parameter, Tensor, nn, ops",
            "import mindspore as ms",
            "class Network(nn.Cell):",
            "    def __init__(self, weights):",
            "        super().__init__()",
            *weights,
            f"    def construct(self, {', '.join(self.names[name] for name in given)}):",
            *lines,
            f"        return {results}",
            "",
        ))  # fmt: skip

    def plain(self, node: Any) -> str:
        """Return the expression of an operator that has inputs only."""
        if node.op_type not in _PLAIN:
            raise _Unknown("")
        return _PLAIN[node.op_type].format(*(self.value(one) for one in node.input))

    def value(self, name: str) -> str:
        """Return the expression of a value; a constant becomes a parameter of the network."""
        if name in self.names:
            return self.names[name]
        array = self.constants.get(name)
        if array is None:
            raise _Unknown(f" with the missing input '{name}'")
        found = f"w{len(self.weights)}"
        self.weights[found] = np.array(array)
        self.names[name] = f"self.{found}"
        return self.names[name]

    def numbers(self, node: Any, at: int, named: dict[str, Any], attribute: str) -> tuple[int, ...] | None:
        """Return whole numbers that newer operators take as an input and older ones as an attribute."""
        if attribute in named:
            found = named[attribute]
            return tuple(found) if isinstance(found, (list, tuple)) else (int(found),)
        if len(node.input) <= at or not node.input[at]:
            return None
        array = self.constants.get(node.input[at])
        if array is None:
            raise _Unknown(f" with computed {attribute}")
        return tuple(int(one) for one in np.ravel(array))


class _Unknown(Exception):
    """An operator, or a form of one, that has no expression."""


def _conv(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    kernel = w.constants.get(node.input[1])
    if kernel is None or kernel.ndim != 4 or named.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
        raise _Unknown(" of this form")
    top, left, bottom, right = named.get("pads", [0, 0, 0, 0])
    bias = f", {w.value(node.input[2])}" if len(node.input) > 2 and node.input[2] else ""
    strides, dilations = tuple(named.get("strides", (1, 1))), tuple(named.get("dilations", (1, 1)))
    x, group = w.value(node.input[0]), named.get("group", 1)
    if (top, left) != (bottom, right):
        x, top, left = f"ops.pad({x}, ({left}, {right}, {top}, {bottom}))", 0, 0
    options = f"{strides}, 'pad', ({top}, {left}), {dilations}, {group}"
    return f"ops.conv2d({x}, {w.value(node.input[1])}{bias or ', None'}, {options})"


def _gemm(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    a, b = w.value(node.input[0]), w.value(node.input[1])
    a = f"ops.transpose({a}, (1, 0))" if named.get("transA") else a
    b = f"ops.transpose({b}, (1, 0))" if named.get("transB") else b
    found = f"ops.matmul({a}, {b})"
    if named.get("alpha", 1.0) != 1.0:
        found = f"{found} * {named['alpha']}"
    if len(node.input) > 2 and node.input[2]:
        beta = named.get("beta", 1.0)
        found = f"{found} + {w.value(node.input[2])}" + (f" * {beta}" if beta != 1.0 else "")
    return found


def _batch_norm(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    arrays = [w.constants.get(name) for name in node.input[1:5]]
    if any(array is None for array in arrays):
        raise _Unknown(" with computed statistics")
    scale, bias, mean, variance = (np.asarray(array, np.float64) for array in arrays)
    factor = scale / np.sqrt(variance + named.get("epsilon", 1e-5))
    shape = (1, -1, 1, 1)
    kind = arrays[0].dtype  # type: ignore[union-attr]
    w.constants[f"{node.name}.factor"] = factor.astype(kind).reshape(shape)
    w.constants[f"{node.name}.offset"] = (bias - mean * factor).astype(kind).reshape(shape)
    return f"{w.value(node.input[0])} * {w.value(node.name + '.factor')} + {w.value(node.name + '.offset')}"


def _pool(kind: str) -> Callable[[_Writer, Any, dict[str, Any]], str]:
    def write(w: _Writer, node: Any, named: dict[str, Any]) -> str:
        kernel = tuple(named["kernel_shape"])
        top, left, bottom, right = named.get("pads", [0, 0, 0, 0])
        is_plain = (top, left) == (bottom, right) and not named.get("ceil_mode") and len(kernel) == 2
        if not is_plain or named.get("auto_pad", b"NOTSET") not in (b"NOTSET", b"VALID"):
            raise _Unknown(" of this form")
        strides = tuple(named.get("strides", (1, 1)))
        x = w.value(node.input[0])
        if kind == "max":
            return f"ops.max_pool2d({x}, {kernel}, {strides}, ({top}, {left}), {tuple(named.get('dilations', (1, 1)))})"
        if (top or left) and not named.get("count_include_pad"):
            raise _Unknown(" that leaves padding out of the mean")
        return f"ops.avg_pool2d({x}, {kernel}, {strides}, ({top}, {left}))"

    return write


def _reduce(function: str) -> Callable[[_Writer, Any, dict[str, Any]], str]:
    def write(w: _Writer, node: Any, named: dict[str, Any]) -> str:
        axes = w.numbers(node, 1, named, "axes")
        if axes is None:
            raise _Unknown(" over every dimension")
        return f"ops.{function}({w.value(node.input[0])}, {axes}, {bool(named.get('keepdims', 1))})"

    return write


def _reshape(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    shape = w.numbers(node, 1, named, "shape") or ()
    x = w.value(node.input[0])
    sizes = ", ".join(f"ops.shape({x})[{at}]" if size == 0 else str(size) for at, size in enumerate(shape))
    return f"ops.reshape({x}, ({sizes},))"


def _slice(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    starts, ends = w.numbers(node, 1, named, "starts") or (), w.numbers(node, 2, named, "ends") or ()
    axes = w.numbers(node, 3, named, "axes") or tuple(range(len(starts)))
    steps = w.numbers(node, 4, named, "steps") or (1,) * len(starts)
    if min(axes) < 0 or min(steps) < 1:
        raise _Unknown(" that counts backwards")
    parts = [":"] * (max(axes) + 1)
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        parts[axis] = f"{start}:{'' if end > 2**30 else end}:{step}"
    return f"{w.value(node.input[0])}[{', '.join(parts)}]"


def _layer_norm(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    scale = w.constants.get(node.input[1])
    if scale is None:
        raise _Unknown(" with computed scale")
    if len(node.input) < 3:
        w.constants[f"{node.name}.zero"] = np.zeros_like(scale)
    bias = w.value(node.input[2] if len(node.input) > 2 else f"{node.name}.zero")
    x, epsilon = w.value(node.input[0]), named.get("epsilon", 1e-5)
    return f"ops.layer_norm({x}, {scale.shape}, {w.value(node.input[1])}, {bias}, {epsilon})"


def _gather(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    return f"ops.gather({w.value(node.input[0])}, {w.value(node.input[1])}, {named.get('axis', 0)})"


def _clip(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    bounds = [named.get("min"), named.get("max")]
    for at in (1, 2):
        if len(node.input) > at and node.input[at]:
            array = w.constants.get(node.input[at])
            if array is None:
                raise _Unknown(" with computed bounds")
            bounds[at - 1] = float(array)
    return f"ops.clamp({w.value(node.input[0])}, {bounds[0]}, {bounds[1]})"


def _joined(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    return f"ops.cat(({', '.join(w.value(one) for one in node.input)},), {named['axis']})"


def _cast(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    if named["to"] not in _CASTS:
        raise _Unknown(f" to the datatype {named['to']}")
    return f"ops.cast({w.value(node.input[0])}, ms.{_CASTS[named['to']]})"


def _squeeze(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    return f"ops.squeeze({w.value(node.input[0])}, {w.numbers(node, 1, named, 'axes')})"


def _unsqueeze(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    found = w.value(node.input[0])
    for axis in sorted(w.numbers(node, 1, named, "axes") or ()):
        found = f"ops.expand_dims({found}, {axis})"
    return found


def _flatten(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    if named.get("axis", 1) != 1:
        raise _Unknown(" at another dimension")
    return f"ops.flatten({w.value(node.input[0])})"


def _one(function: str, attribute: str, default: Any) -> Callable[[_Writer, Any, dict[str, Any]], str]:
    """An operator with one input and one attribute."""

    def write(w: _Writer, node: Any, named: dict[str, Any]) -> str:
        found = named.get(attribute, default)
        found = tuple(found) if isinstance(found, list) else found
        return f"ops.{function}({w.value(node.input[0])}, {found})"

    return write


def _gelu(w: _Writer, node: Any, named: dict[str, Any]) -> str:
    how = "tanh" if named.get("approximate", b"none") == b"tanh" else "none"
    return f"ops.gelu({w.value(node.input[0])}, '{how}')"


_OPERATORS: dict[str, Callable[[_Writer, Any, dict[str, Any]], str]] = {
    "Conv": _conv, "Gemm": _gemm, "BatchNormalization": _batch_norm, "MaxPool": _pool("max"),
    "AveragePool": _pool("mean"), "ReduceMean": _reduce("mean"), "ReduceSum": _reduce("sum"),
    "ReduceMax": _reduce("amax"), "Reshape": _reshape, "Slice": _slice, "LayerNormalization": _layer_norm,
    "Gather": _gather, "Clip": _clip, "Concat": _joined, "Cast": _cast, "Squeeze": _squeeze, "Unsqueeze": _unsqueeze,
    "Flatten": _flatten, "Softmax": _one("softmax", "axis", -1), "LogSoftmax": _one("log_softmax", "axis", -1),
    "Transpose": _one("transpose", "perm", ()), "LeakyRelu": _one("leaky_relu", "alpha", 0.01),
    "Elu": _one("elu", "alpha", 1.0), "Gelu": _gelu,
}  # fmt: skip


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a MindIR file."""
    import mindspore as ms
    from mindspore import nn

    inputs = config["signature"]["inputs"]
    samples = shared.samples_for(config, inputs)
    try:
        network = nn.GraphCell(ms.load(config["path"]))
    except Exception as error:
        raise argosy_child.Refused(
            f"the MindIR file can't be loaded: {str(error)[:300]}", code="model_damaged"
        ) from error

    def run(rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = network(*(ms.Tensor(array) for array in rows.values()))
        parts = found if isinstance(found, (tuple, list)) else [found]
        return {f"output_{at}": part.asnumpy() for at, part in enumerate(parts)}

    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}
