"""From the bytes of an ONNX file to its nodes in order, its weights, and what is known of shapes beforehand."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import onnx
import torch
from onnx import helper, inliner, numpy_helper

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_check import check_onnx

Shape = tuple[int | str | None, ...]
"""What is known of a value's shape: a size, the name of a free one, or nothing."""

DTYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.BOOL: torch.bool,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
    onnx.TensorProto.UINT8: torch.uint8,
    onnx.TensorProto.UINT16: torch.uint16,
    onnx.TensorProto.UINT32: torch.uint32,
    onnx.TensorProto.UINT64: torch.uint64,
}
# Larger weights are left out when shapes are inferred: only numbers that describe shapes matter there.
_MAX_SHAPE_NUMBERS = 1024
# Functions may call functions; more nodes than this is a bomb, not a model.
_MAX_NODES = 200_000


@dataclass
class Operation:
    """One node, with its attributes as Python values."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any] = field(default_factory=dict)
    captured: list[str] = field(default_factory=list)
    """What the graphs inside of it may take from outside."""

    def get(self, name: str, default: Any = None) -> Any:
        """Return an attribute, or `default`."""
        return self.attributes.get(name, default)

    def __str__(self) -> str:
        return f"{self.kind} '{self.name}'"


@dataclass
class Known:
    """What is known of a value before it is converted."""

    shape: Shape | None = None
    dtype: torch.dtype | None = None


@dataclass
class Source:
    """A graph that was read: everything that conversion needs of the file."""

    operations: list[Operation]
    weights: dict[str, onnx.TensorProto]
    inputs: list[str]
    outputs: list[str]
    known: dict[str, Known]
    opset: int


def read(content: bytes) -> Source:
    """Return the graph in `content`; raise InvalidInput for what is no sound ONNX model."""
    check_onnx(content)
    try:
        model = onnx.load_from_string(content)
    except Exception as error:
        # Protocol buffers raise classes of their own that differ between their versions.
        raise InvalidInput("the file is not an ONNX model: it is damaged") from error
    if model.functions:
        model = _without_functions(model)
    graph = model.graph
    opset = max((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), default=0)
    weights = {tensor.name: tensor for tensor in graph.initializer}
    inputs = [value.name for value in graph.input if value.name not in weights]
    outputs = [value.name for value in graph.output]
    if not outputs:
        raise InvalidInput("the model has no outputs, so it can't answer anything")
    if len(graph.sparse_initializer):
        raise InvalidInput("the model keeps weights as sparse tensors; write them as dense ones")
    operations = ordered(operations_of(graph), [*weights, *inputs], outputs)
    return Source(operations, weights, inputs, outputs, _known(model), opset)


def operations_of(graph: onnx.GraphProto) -> list[Operation]:
    """Return a graph's nodes as they stand in the file, each with a name."""
    found = []
    for number, node in enumerate(graph.node):
        name = node.name or f"{node.op_type}_{number}"
        kind = node.op_type if node.domain in {"", "ai.onnx"} else f"{node.domain}.{node.op_type}"
        attributes = {a.name: _attribute(a, name) for a in node.attribute}
        captured = [taken for a in node.attribute if a.HasField("g") for taken in _taken_inside(a.g)]
        found.append(Operation(kind, name, list(node.input), list(node.output), attributes, captured))
    return found


def _taken_inside(graph: onnx.GraphProto) -> list[str]:
    found = [value.name for value in graph.output]
    for node in graph.node:
        found.extend(node.input)
        found.extend(name for a in node.attribute if a.HasField("g") for name in _taken_inside(a.g))
    return found


def _attribute(attribute: onnx.AttributeProto, node: str) -> Any:
    if attribute.ref_attr_name:
        raise InvalidInput(f"node '{node}' takes its attribute '{attribute.name}' from a function it doesn't stand in")
    try:
        found = helper.get_attribute_value(attribute)
    except ValueError as error:
        raise InvalidInput(f"node '{node}' has an attribute '{attribute.name}' without a known type") from error
    if isinstance(found, bytes):
        return found.decode(errors="replace")
    if isinstance(found, onnx.TensorProto):
        return to_tensor(found)
    if attribute.type == onnx.AttributeProto.STRINGS:
        return [item.decode(errors="replace") for item in found]
    return list(found) if isinstance(found, Iterable) and not isinstance(found, str) else found


def to_tensor(proto: onnx.TensorProto) -> torch.Tensor:
    """Return the numbers of a tensor; raise InvalidInput where they are texts, or not as many as promised."""
    dtype = DTYPES.get(proto.data_type)
    if dtype is None:
        kind = onnx.TensorProto.DataType.Name(proto.data_type) if proto.data_type in _TYPES else proto.data_type
        raise InvalidInput(f"tensor '{proto.name}' holds {kind}, which PyTorch has no tensors for")
    try:
        array = numpy_helper.to_array(proto)
    except (ValueError, TypeError) as error:
        raise InvalidInput(f"tensor '{proto.name}' does not hold as many numbers as its shape says") from error
    if dtype == torch.bfloat16:
        return torch.from_numpy(array.view("uint16").copy()).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


_TYPES = set(onnx.TensorProto.DataType.values())


def ordered(operations: list[Operation], given: Iterable[str], outputs: list[str]) -> list[Operation]:
    """Return the operations that `outputs` need, each behind those it needs. Raises InvalidInput if there is none."""
    producer: dict[str, int] = {}
    known = set(given)
    for number, operation in enumerate(operations):
        for name in filter(None, operation.outputs):
            if name in producer or name in known:
                raise InvalidInput(f"two nodes of the model give a value called '{name}'; names must be unique")
            producer[name] = number
    needs: dict[int, set[int]] = {}
    todo = deque((name, "the model's outputs") for name in outputs)
    while todo:
        name, asker = todo.popleft()
        if name in known or not name:
            continue
        if name not in producer:
            raise InvalidInput(f"{asker} takes a value '{name}' that no node, input or weight of the model gives")
        number = producer[name]
        if number not in needs:
            operation = operations[number]
            # What an inner graph takes may be its own.
            captured = [one for one in operation.captured if one in producer]
            taken = [*operation.inputs, *captured]
            needs[number] = {producer[one] for one in taken if one in producer}
            todo.extend((one, f"node '{operation.name}'") for one in taken)
    return _sorted(operations, needs)


def _sorted(operations: list[Operation], needs: dict[int, set[int]]) -> list[Operation]:
    users: dict[int, list[int]] = {}
    left = {}
    for number in sorted(needs):
        left[number] = len(needs[number])
        for needed in needs[number]:
            users.setdefault(needed, []).append(number)
    ready = deque(number for number in left if not left[number])
    order: list[int] = []
    while ready:
        number = ready.popleft()
        order.append(number)
        for user in users.get(number, ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    if len(order) < len(left):
        stuck = ", ".join(f"'{operations[number].name}'" for number in sorted(set(left) - set(order))[:3])
        raise InvalidInput(
            f"the model's graph has a cycle, through {stuck} among others; a graph must not wait on itself"
        )
    return [operations[number] for number in order]


def _known(model: onnx.ModelProto) -> dict[str, Known]:
    """Infer shapes without trusting those that the file claims for values inside of the graph."""
    graph = model.graph
    slim = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import)
    slim.graph.name = graph.name or "graph"
    slim.graph.node.extend(graph.node)
    slim.graph.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.output)
    given = {tensor.name for tensor in graph.initializer}
    slim.graph.input.extend(value for value in graph.input if value.name not in given)
    for tensor in graph.initializer:
        count = 1
        for size in tensor.dims:
            count *= size
        if count <= _MAX_SHAPE_NUMBERS:
            slim.graph.initializer.append(tensor)
        else:
            slim.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    try:
        found = onnx.shape_inference.infer_shapes(slim, data_prop=True).graph
    except Exception:  # noqa: BLE001 - it raises RuntimeError and classes of its own; without it less is known
        found = slim.graph
    known: dict[str, Known] = {}
    graphs = [found]
    while graphs:
        one = graphs.pop()
        for value in (*one.input, *one.value_info, *one.output):
            known.setdefault(value.name, _of(value))
        graphs.extend(a.g for node in one.node for a in node.attribute if a.HasField("g"))
    return known


def _of(value: onnx.ValueInfoProto) -> Known:
    tensor = value.type.tensor_type
    dtype = DTYPES.get(tensor.elem_type)
    if not tensor.HasField("shape"):
        return Known(None, dtype)
    return Known(tuple(_size(d) for d in tensor.shape.dim), dtype)


def _size(dimension: Any) -> int | str | None:
    if dimension.HasField("dim_value"):
        return int(dimension.dim_value) if dimension.dim_value >= 0 else None
    return dimension.dim_param or None


def _without_functions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Put functions where they are called; refuse those that call themselves or grow beyond any model."""
    functions = {(f.domain, f.name): f for f in model.functions}
    sizes: dict[tuple[str, str], int] = {}

    def size(nodes: Iterable[onnx.NodeProto], above: tuple[tuple[str, str], ...]) -> int:
        total = 0
        for node in nodes:
            key = (node.domain, node.op_type)
            if key in above:
                raise InvalidInput(f"function '{node.op_type}' in the model calls itself")
            if key in functions and key not in sizes:
                sizes[key] = size(functions[key].node, (*above, key))
            total += sizes.get(key, 1)
            total += sum(size(a.g.node, above) for a in node.attribute if a.HasField("g"))
            if total > _MAX_NODES:
                raise InvalidInput(f"the model's functions grow to more than {_MAX_NODES} nodes; it is refused")
        return total

    size(model.graph.node, ())
    inlined: onnx.ModelProto = inliner.inline_local_functions(model)
    return inlined
