"""What a classifier knows before its last layer: the values of which its answers are a linear function.

A student of the same width there learns from them as well as from the answers: they say more of each sample than a few
numbers do (Romero et al. 2014, "FitNets", section 2.2, at the last layer, where no regressor is needed).

Shape suffixes: b batch, w width.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

# What may stand between the last layer and the output without being a layer itself.
_BIAS, _NOTHING = "Add", {"Identity", "Dropout"}


class Extended(NamedTuple):
    """A graph that also gives the values before its last layer."""

    content: bytes
    name: str
    """Of that output."""
    width: int
    classes: int


def with_features(content: bytes) -> Extended | None:
    """Return the graph with the input of its last layer as one more output; None where that isn't a linear layer."""
    import onnx

    model = onnx.load_model_from_string(content)
    graph = model.graph
    found = _last_layer(graph)
    if found is None:
        return None
    name, width, classes = found
    if name not in {value.name for value in graph.output}:
        graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return Extended(model.SerializeToString(), name, width, classes)


def _last_layer(graph: "onnx.GraphProto") -> tuple[str, int, int] | None:
    """Return the input of the linear layer whose result is the first output, its width, and the output's."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    makers = {output: node for node in graph.node for output in node.output}
    wanted = graph.output[0].name
    while (node := makers.get(wanted)) is not None:
        if node.op_type in {"Gemm", "MatMul"}:
            weight = weights.get(node.input[1])
            if weight is None or len(weight.dims) != 2 or node.input[0] in weights:
                return None
            flags = {attribute.name: attribute.i for attribute in node.attribute}
            if flags.get("transA"):
                return None
            width, classes = weight.dims if not flags.get("transB") else reversed(weight.dims)
            return node.input[0], width, classes
        inputs = [name for name in node.input if name not in weights]
        if len(inputs) != 1 or node.op_type not in {_BIAS, *_NOTHING}:
            return None
        wanted = inputs[0]
    return None


def has_layer(student: "nn.Module", width: int, classes: int) -> bool:
    """Return whether the student has a linear layer from `width` to `classes`."""
    return bool(_layers(student, width, classes))


def _layers(student: "nn.Module", width: int, classes: int) -> list["nn.Linear"]:
    from torch import nn

    return [
        layer
        for layer in student.modules()
        if isinstance(layer, nn.Linear) and (layer.in_features, layer.out_features) == (width, classes)
    ]


@contextlib.contextmanager
def heard(student: "nn.Module", width: int, classes: int) -> Iterator[Callable[[], "torch.Tensor | None"]]:
    """Listen at the student's last layer; give what returns, and forgets, the values that went into it.

    That is a linear layer from `width` to `classes`; where several are called, the last of them.
    """
    last: list[Any] = []

    def note(_: "nn.Module", given: tuple[Any, ...]) -> None:
        last[:] = [given[0]]

    def take() -> "torch.Tensor | None":
        return last.pop() if last and last[0].ndim == 2 else None

    hooks = [layer.register_forward_pre_hook(note) for layer in _layers(student, width, classes)]
    try:
        yield take
    finally:
        for hook in hooks:
            hook.remove()


def beside(name: str) -> Callable[[Mapping[str, np.ndarray], Mapping[str, np.ndarray]], np.ndarray]:
    """Return what puts the features beside the first output: rows of answers and then features."""

    def both(outputs: Mapping[str, np.ndarray], prepared: Mapping[str, np.ndarray]) -> np.ndarray:
        del prepared
        answers = next(iter(outputs.values()))
        features = outputs[name]
        return np.concatenate([answers.reshape(len(answers), -1), features.reshape(len(features), -1)], axis=1)

    return both
