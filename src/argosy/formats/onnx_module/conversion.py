"""The walk through an ONNX graph that makes a module of it."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, fx

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.formats.onnx_check import read_model_file
from argosy.formats.onnx_module import (
    activations,
    arithmetic,
    convolution,
    indexing,
    linear,
    normalization,
    pooling,
    recurrent,
    reductions,
    resizing,
    shapes,
    sizes,
)
from argosy.formats.onnx_module.builder import Builder, Value
from argosy.formats.onnx_module.patterns import with_layers
from argosy.formats.onnx_module.reading import Operation, Source, operations_of, ordered, read, to_tensor

Handler: TypeAlias = Callable[..., Any]

OPERATORS: dict[str, Handler] = {
    **activations.OPERATORS,
    **arithmetic.OPERATORS,
    **convolution.OPERATORS,
    **indexing.OPERATORS,
    **linear.OPERATORS,
    **normalization.OPERATORS,
    **pooling.OPERATORS,
    **recurrent.OPERATORS,
    **reductions.OPERATORS,
    **resizing.OPERATORS,
    **shapes.OPERATORS,
}
"""Every operator that can be converted, to the function that adds it to a graph."""

_INNER = ("If", "Loop")
"""Operators with graphs inside of them."""

# What these make of a weight is a weight.
_VIEWS = ("Split", "Squeeze", "Unsqueeze", "Reshape", "Identity", "Flatten")
# Turns of a loop are written out one after the other; no recurrent layer we know of has as many operations.
_MAX_UNROLLED = 20_000
# What turns compute beforehand is kept for each of them.
_MAX_UNROLLED_BYTES = 256 * 2**20

MIN_OPSET, MAX_OPSET = 7, 23
"""Operators of other versions may mean something else under the same name."""


class OnnxModule(fx.GraphModule):
    """A module made of an ONNX graph."""

    input_names: tuple[str, ...]
    """The graph's inputs, in the order of `forward`'s arguments."""
    output_names: tuple[str, ...]
    """The graph's outputs; for more than one `forward` returns a tuple."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "OnnxModule":
        # torch.fx copies what the graph refers to, and no more.
        found: Any = super().__deepcopy__(memo)
        found.input_names, found.output_names = self.input_names, self.output_names
        return cast("OnnxModule", found)


def convert(source: Path | bytes, *, trainable: bool = True) -> OnnxModule:
    """Do what `argosy.formats.onnx_module.to_module` promises."""
    graph = read(read_model_file(source) if isinstance(source, Path) else source)
    if not MIN_OPSET <= graph.opset <= MAX_OPSET:
        raise InvalidInput(
            f"the model is written in opset {graph.opset}; {MIN_OPSET} to {MAX_OPSET} can be converted",
            hint="convert it first: onnx.version_converter.convert_version(model, 18)",
            code="unsupported_opset",
        )
    _refuse_unsupported(graph.operations)
    builder = Builder(graph.known, graph.opset, trainable=trainable)
    for name in graph.inputs:
        builder.values[name] = builder.placeholder(name)
    scope = _Scope(builder, graph)
    scope.run(with_layers(graph.operations, graph.outputs, scope.constants(graph.operations)))
    found = [builder.tensor(scope.value(name)) for name in graph.outputs]
    found = [_as_declared(builder, node, name) for node, name in zip(found, graph.outputs, strict=True)]
    builder.graph.output(found[0] if len(found) == 1 else tuple(found))
    _drop_unused(builder.graph)
    module = OnnxModule(builder.root, builder.graph)
    module.input_names, module.output_names = tuple(graph.inputs), tuple(graph.outputs)
    return module.eval()


def _refuse_unsupported(operations: Iterable[Operation]) -> None:
    # Whether the condition of an If is a constant shows only on the way; so does how often a Loop turns.
    found = [operation for operation in operations if operation.kind not in OPERATORS and operation.kind not in _INNER]
    if found:
        raise unsupported(found)


def unsupported(operations: list[Operation]) -> InvalidInput:
    """Return the error that names operators which can't be converted, with their nodes."""
    by_kind: dict[str, list[str]] = {}
    for operation in operations:
        by_kind.setdefault(operation.kind, []).append(operation.name)
    parts = [
        f"{kind} (node{'s' if len(names) > 1 else ''} {', '.join(repr(name) for name in names[:3])}"
        + (f" and {len(names) - 3} more)" if len(names) > 3 else ")")
        for kind, names in by_kind.items()
    ]
    return InvalidInput(
        f"the model has operators that can't become a PyTorch module: {'; '.join(parts)}",
        hint="train the original where it was made, or use the file as it is: ONNX Runtime may run it",
        code="unsupported_operator",
        operators=by_kind,
    )


class _Scope:
    """The values of a graph, and of what stands around it."""

    def __init__(self, builder: Builder, source: Source) -> None:
        self.builder = builder
        self.weights = dict(source.weights)
        self.loops = 0
        """How many loops are being written out, one inside of the other."""
        self.turns = 0
        """Operations of loops that were written out."""
        self.constants_made: set[int] = set()
        """Places in memory of constants that loops made."""
        self.bytes = 0

    def value(self, name: str) -> Value:
        """Return the value called `name`; a weight is read when it is first needed."""
        if name not in self.builder.values:
            tensor = to_tensor(self.weights[name])
            self.builder.name_constant(tensor, name)
            self.builder.values[name] = tensor
        return self.builder.values[name]

    def constants(self, operations: list[Operation]) -> dict[str, Tensor]:
        """Return the weights that `operations` take, and the numbers in their constants, by name."""
        found: dict[str, Tensor] = {}
        tables = set()
        for operation in operations:
            if operation.kind == "Constant" and isinstance(operation.get("value"), Tensor):
                found[operation.outputs[0]] = operation.get("value")
                continue
            for name in operation.inputs:
                if name in self.weights:
                    value = self.value(name)
                    assert isinstance(value, Tensor)
                    found[name] = value
            if operation.kind == "Gather" and operation.inputs and operation.inputs[0] in found:
                tables.add(operation.inputs[0])
            # Exporters put these between a weight that two layers share and the second of them.
            taken = found.get(operation.inputs[0]) if operation.inputs else None
            if taken is not None and operation.kind == "Identity":
                found[operation.outputs[0]] = taken
            elif taken is not None and operation.kind == "Transpose" and taken.dim() == 2:
                found[operation.outputs[0]] = taken if operation.get("perm") == [0, 1] else taken.t()
        self._tie(found, tables)
        return found

    def _tie(self, constants: dict[str, Tensor], tables: set[str]) -> None:
        """Make a transposed copy of a table of vectors, which exporters write for tied weights, that table again."""
        for table in sorted(tables):
            whole = constants[table]
            if whole.dim() != 2 or not whole.is_floating_point() or min(whole.shape) < 2:
                continue
            for name, other in constants.items():
                is_copy = other.shape == whole.t().shape and other.dtype == whole.dtype and name not in tables
                if is_copy and name in self.weights and torch.equal(other, whole.t()):
                    constants[name] = self.builder.values[name] = whole.t()

    def run(self, operations: list[Operation]) -> None:
        """Add operations to the graph, in order."""
        for operation in operations:
            self.builder.operation = operation
            inputs = [self.value(name) if name else None for name in operation.inputs]
            if operation.kind == "If":
                self._branch(operation, inputs)
                continue
            found = self._turned(operation, inputs) if operation.kind == "Loop" else self._converted(operation, inputs)
            outputs = found if isinstance(found, tuple) else (found,)
            # Further outputs of a handler are those that the node doesn't ask for.
            for name, value in zip(operation.outputs, outputs, strict=False):
                if operation.kind in _VIEWS and isinstance(value, Tensor) and isinstance(inputs[0], Tensor):
                    self.builder.name_part(value, inputs[0])
                self._keep(name, value)

    def _converted(self, operation: Operation, inputs: list[Value | None]) -> Any:
        try:
            found = sizes.followed(self.builder, operation, inputs)
            return OPERATORS[operation.kind](self.builder, operation, *inputs) if found is None else found
        except ArgosyError:
            raise
        except Exception as error:
            # A node with wrong inputs or attributes fails in whichever function of torch looks at them first.
            said = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise InvalidInput(f"{operation} can't be converted: {said}", code="broken_operator") from error

    def _keep(self, name: str, value: Value) -> None:
        if not name:
            return
        if isinstance(value, fx.Node):
            self.builder.describe(value, name)
        elif isinstance(value, Tensor):
            self.builder.name_constant(value, name)
            memory = value.untyped_storage()
            if self.loops and memory.data_ptr() not in self.constants_made:
                self.constants_made.add(memory.data_ptr())
                self.bytes += memory.nbytes()
        self.builder.values[name] = value

    def _branch(self, operation: Operation, inputs: list[Value | None]) -> None:
        if not inputs or not isinstance(inputs[0], Tensor) or inputs[0].numel() != 1:
            raise unsupported([operation])
        graph = operation.get("then_branch" if bool(inputs[0]) else "else_branch")
        if graph is None or len(graph.output) < len(operation.outputs):
            raise InvalidInput(f"{operation} has no branch with as many outputs as it has itself")
        outputs = [value.name for value in graph.output]
        self.weights.update({tensor.name: tensor for tensor in graph.initializer})
        inner = ordered(operations_of(graph), [*self.weights, *self.builder.values], outputs)
        _refuse_unsupported(inner)
        self.run(inner)
        for name, output in zip(operation.outputs, outputs, strict=False):
            self.builder.values[name] = self.value(output)

    def _turned(self, operation: Operation, inputs: list[Value | None]) -> tuple[Value, ...]:
        """Write a loop out turn by turn: what it carries at the end, then what its turns give, each kind stacked.

        How often it turns must follow from constants. Raises InvalidInput where it depends on the values of an input.
        """
        graph = operation.get("body")
        limit, goes_on = (*inputs, None, None)[:2]
        carried: list[Value | None] = inputs[2:]
        given = [] if graph is None else [value.name for value in graph.input]
        outputs = [] if graph is None else [value.name for value in graph.output]
        if graph is None or len(given) != 2 + len(carried) or len(outputs) < 1 + len(carried):
            raise InvalidInput(f"{operation} has no body that carries as many values as it has itself")
        self.weights.update({tensor.name: tensor for tensor in graph.initializer})
        inner = ordered(operations_of(graph), [*self.weights, *self.builder.values, *given], outputs)
        _refuse_unsupported(inner)
        outside = set(self.builder.values)
        collected: list[list[Value]] = [[] for _ in outputs[1 + len(carried) :]]
        turn = 0
        self.loops += 1
        while self._goes_on(operation, limit, goes_on, turn):
            turn += 1
            self.turns += len(inner) + 1
            if self.turns > _MAX_UNROLLED or self.bytes > _MAX_UNROLLED_BYTES:
                raise InvalidInput(
                    f"{operation} turns too often to be written out: after {turn} turns of {len(inner)} operations "
                    f"the module has more than {_MAX_UNROLLED} of them, or too many constants",
                    code="unsupported_operator",
                )
            always = torch.tensor(data=True)
            state = [torch.tensor(turn - 1), always if goes_on is None else goes_on, *carried]
            self.builder.values.update(zip(given, state, strict=True))  # type: ignore[arg-type]
            self.run(inner)
            goes_on, *found = [self.value(name) for name in outputs]
            for values, value in zip(collected, found[len(carried) :], strict=True):
                values.append(value)
            carried = [*found[: len(carried)]]
            # The next turn, and whatever stands behind the loop, may use the same names.
            for name in set(self.builder.values) - outside:
                if name not in self.weights:
                    del self.builder.values[name]
        self.loops -= 1
        if not turn and collected:
            raise InvalidInput(f"{operation} never turns, so it has nothing to give")
        ends = [value for value in carried if value is not None]
        return (*ends, *(self._stacked(values) for values in collected))

    def _goes_on(self, operation: Operation, limit: Value | None, goes_on: Value | None, turn: int) -> bool:
        for value in (limit, goes_on):
            if value is not None and not (isinstance(value, Tensor) and value.numel() == 1):
                raise unsupported([operation])
        if limit is None and goes_on is None:
            raise InvalidInput(f"{operation} would never end")
        is_within = limit is None or turn < int(limit)  # type: ignore[arg-type]
        return is_within and (goes_on is None or bool(goes_on))

    def _stacked(self, values: list[Value]) -> Value:
        found = self.builder.call(torch.stack, values, 0)
        shapes = {self.builder.shape(value) for value in values}
        shape = shapes.pop() if len(shapes) == 1 else None
        if isinstance(found, fx.Node) and shape is not None:
            found.meta["shape"] = (len(values), *shape)
        return cast("Value", found)


def _as_declared(builder: Builder, node: fx.Node, name: str) -> fx.Node:
    declared = builder.known[name].dtype if name in builder.known else None
    is_from_sizes = node.op == "call_function" and node.meta.get("dtype") is None
    if is_from_sizes and declared is not None and declared != torch.int64 and not declared.is_floating_point:
        return builder.graph.call_method("to", (node, declared))
    return node


def _drop_unused(graph: fx.Graph) -> None:
    # torch.fx keeps a call of a layer in which something random could happen; none of ours matters beyond its result.
    for node in reversed(list(graph.nodes)):
        if node.op not in {"placeholder", "output"} and not node.users:
            graph.erase_node(node)
