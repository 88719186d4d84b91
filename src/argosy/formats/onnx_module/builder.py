"""The graph under construction: values, layers and parameters, and their names.

A value is a `torch.fx.Node`, a constant tensor, or `Sizes`: whole numbers that come from shapes. What depends on
constants only is computed at once. Shapes stay Python numbers as far as possible, so that exporters and tracers see
sizes and no tensors of sizes.
"""

import keyword
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import functions
from argosy.formats.onnx_module.reading import Known, Operation, Shape

# A constant that would grow beyond this stays an operation: a file of a kilobyte must not take gigabytes.
_MAX_FOLDED_BYTES = 64 * 2**20
# A constant beyond this is no weight but a mark, such as the -10000 or the smallest float of an attention mask.
_LARGEST_WEIGHT = 1e4
# More numbers than this are data, not a shape.
_MAX_SIZES = 64
_ROLES = {
    "weight", "bias", "kernel", "gamma", "beta", "running_mean", "running_var", "scale", "MatMul", "Gemm", "Conv", "W",
    "B", "R", "ReadVariableOp", "BiasAdd", "Cast", "Gather", "ConvTranspose", "Add", "LayerNormalization", "table",
    "embeddings", "moving_mean", "moving_variance", "resource", "BatchNormalization", "alpha",
}  # fmt: skip

Size: TypeAlias = int | fx.Node


@dataclass(frozen=True)
class Sizes:
    """Whole numbers of which at least one depends on an input's shape: a vector, or one number."""

    items: tuple[Size, ...]
    is_scalar: bool = False


Value: TypeAlias = fx.Node | Tensor | Sizes
_Key: TypeAlias = tuple[Any, ...]


class Builder:
    """Collects the graph and its layers; the operators' functions call it."""

    def __init__(self, known: dict[str, Known], opset: int, *, trainable: bool) -> None:
        self.graph = fx.Graph()
        self.root = nn.Module()
        self.known = known
        self.opset = opset
        self.trainable = trainable
        self.values: dict[str, Value] = {}
        self.operation = Operation("", "", [], [])
        self._names: dict[_Key, str] = {}
        self._parameters: dict[_Key, nn.Parameter] = {}
        self._attributes: dict[_Key, fx.Node] = {}
        self._sizes: dict[tuple[fx.Node, int], fx.Node] = {}
        self._free: dict[str, tuple[fx.Node, int]] = {}
        self._taken: set[str] = set()
        self._parents: set[str] = set()
        self._counts: dict[str, int] = {}
        # Sources of parameters, kept so that no other tensor gets their place in memory, which is their key.
        self._alive: list[Tensor] = []

    # ---- values

    def placeholder(self, name: str) -> fx.Node:
        """Add an input of the module."""
        node = self.graph.placeholder(re.sub(r"\W", "_", f"_{name}" if name[:1].isdigit() else name) or "input")
        self.describe(node, name)
        for axis, size in enumerate(self.known.get(name, Known()).shape or ()):
            if isinstance(size, str):
                self._free.setdefault(size, (node, axis))
        return node

    def describe(self, node: fx.Node, name: str) -> None:
        """Note what is known of the ONNX value `name`, which `node` gives, unless a better shape is known."""
        known = self.known.get(name, Known())
        if node.meta.get("shape") is None:
            node.meta["shape"] = known.shape
        if known.dtype is not None:
            node.meta["dtype"] = known.dtype

    def name_constant(self, tensor: Tensor, name: str) -> None:
        """Remember where a constant came from, for the name of the parameter it may become."""
        self._alive.append(tensor)
        self._names.setdefault(_key(tensor), name)
        if tensor.dim() == 2:
            self._names.setdefault(_key(tensor.t()), name)

    def name_part(self, part: Tensor, whole: Tensor) -> None:
        """Remember that a constant is a piece of another, or the same in another shape."""
        name = self._names.get(_key(whole))
        if name is not None:
            self.name_constant(part, name)

    def call(self, function: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Any:
        """Add a call of a function, or of a method by its name; constants give a constant."""
        if not _holds_node((args, kwargs)):
            folded = self._folded(function, args, kwargs)
            if folded is not None:
                return folded
        args, kwargs = self._plain(args), self._plain(kwargs)
        if isinstance(function, str):
            return self.graph.call_method(function, args, kwargs)
        return self.graph.call_function(function, args, kwargs)

    def module(self, module: nn.Module, name: str, *args: Value) -> Any:
        """Add a layer of this name, with a call of it; constants give a constant where it has no parameters."""
        is_bare = next(module.parameters(), None) is None
        if is_bare and not _holds_node(args):
            with torch.no_grad():
                return module(*args)
        path = self._path(name)
        _set(self.root, path, module)
        return self.graph.call_module(path, tuple(self._plain(args)))

    def parameter(self, tensor: Tensor) -> nn.Parameter:
        """Return the parameter with these numbers: the same one for the same place in the file."""
        # Exporters merge equal vectors, such as the ones of fresh norms, that have nothing to do with each other.
        if tensor.dim() <= 1 and (tensor.numel() < 2 or bool((tensor == tensor.reshape(-1)[0]).all())):
            return self._new_parameter(tensor)
        key = _key(tensor)
        if key not in self._parameters:
            self._alive.append(tensor)
            self._parameters[key] = self._new_parameter(tensor)
        return self._parameters[key]

    def _new_parameter(self, tensor: Tensor) -> nn.Parameter:
        learns = self.trainable and tensor.is_floating_point()
        return nn.Parameter(tensor.detach().clone(memory_format=torch.contiguous_format), requires_grad=learns)

    def tensor(self, value: Value) -> Any:
        """Return a node that gives the value as a tensor."""
        if isinstance(value, fx.Node):
            return value
        if isinstance(value, Sizes):
            return self.graph.call_function(functions.sizes_tensor, (list(value.items), value.is_scalar))
        key = _key(value)
        if key not in self._attributes:
            self._alive.append(value)
            node = self._attributes[key] = self._attribute(value, key)
            node.meta.update(shape=tuple(value.shape), dtype=value.dtype, zero=not bool(value.any()))
        return self._attributes[key]

    def _attribute(self, tensor: Tensor, key: _Key) -> fx.Node:
        if tensor.dim() == 2 and key not in self._parameters and _key(tensor.t()) in self._parameters:
            path = self._place(self._parameters[_key(tensor.t())], self._names.get(key, "weight"))
            return self.graph.call_method("t", (self.graph.get_attr(path),))
        name = self._names.get(key, "")
        if key in self._parameters or _is_learned(tensor, name):
            return self.graph.get_attr(self._place(self.parameter(tensor), name or f"{self.operation.name}.weight"))
        buffer = tensor.detach().clone(memory_format=torch.contiguous_format)
        return self.graph.get_attr(self._place(buffer, name or f"{self.operation.name}.constant"))

    def _place(self, tensor: Tensor, name: str) -> str:
        path = self._path(clean_path(name, keep=True))
        _set(self.root, path, tensor)
        return path

    def operand(self, value: Value) -> Any:
        """Return a value for an elementwise function: a constant without dimensions as a Python number."""
        if isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex():
            return value.item()
        return self.tensor(value) if isinstance(value, Sizes) else value

    # ---- shapes

    def shape(self, value: Value | None) -> Shape | None:
        """Return what is known of a value's shape; None: not even how many dimensions it has."""
        if isinstance(value, fx.Node):
            found: Shape | None = value.meta.get("shape")
            return found
        if isinstance(value, Sizes):
            return () if value.is_scalar else (len(value.items),)
        return None if value is None else tuple(value.shape)

    def rank(self, value: Value) -> int:
        """Return how many dimensions a value has; raises InvalidInput if that isn't known."""
        shape = self.shape(value)
        if shape is None:
            raise InvalidInput(f"{self.operation} takes a value whose number of dimensions the file leaves open")
        return len(shape)

    def dtype(self, value: Value) -> torch.dtype | None:
        """Return a value's datatype if it is known."""
        if isinstance(value, fx.Node):
            found: torch.dtype | None = value.meta.get("dtype")
            return found
        return value.dtype if isinstance(value, Tensor) else torch.int64

    def size(self, value: Value, axis: int) -> Size:
        """Return one size of a value: a number if it is fixed, else a node."""
        shape = self.shape(value)
        found = None if shape is None else shape[axis]
        if isinstance(found, int):
            return found
        node = self.tensor(value)
        if shape is not None:
            axis %= len(shape)
        if isinstance(found, str) and found in self._free:
            node, axis = self._free[found]
        if (node, axis) not in self._sizes:
            self._sizes[node, axis] = self.graph.call_method("size", (node, axis))
        return self._sizes[node, axis]

    def sizes(self, value: Value | None) -> list[Size] | None:
        """Return whole numbers as such if the value is a short vector of them, or one; else None."""
        if isinstance(value, Sizes):
            return list(value.items)
        if isinstance(value, Tensor) and value.dtype in {torch.int64, torch.int32} and value.dim() <= 1:
            return [int(item) for item in value.reshape(-1).tolist()] if value.numel() <= _MAX_SIZES else None
        return None

    def made_sizes(self, items: Sequence[Size], *, is_scalar: bool = False) -> Value:
        """Return sizes as a value: a constant when all are fixed."""
        if all(isinstance(item, int) for item in items):
            return torch.tensor(items[0] if is_scalar else list(items), dtype=torch.int64)
        return Sizes(tuple(items), is_scalar)

    def compute(self, function: Callable[[Any, Any], Any], left: Size, right: Size) -> Size:
        """Return `function` of two sizes."""
        if isinstance(left, int) and isinstance(right, int):
            return int(function(left, right))
        if (function is operator.mul and right == 1) or (function in {operator.add, operator.sub} and right == 0):
            return left
        if (function is operator.mul and left == 1) or (function is operator.add and left == 0):
            return right
        return self.graph.call_function(function, (left, right))

    def ints(self, value: Value | None, what: str) -> list[int]:
        """Return fixed whole numbers; raises InvalidInput, naming `what`, for others."""
        found = self.sizes(value)
        if found is None or not all(isinstance(item, int) for item in found):
            raise InvalidInput(f"{self.operation} computes its {what} from its inputs, which can't be followed")
        return [int(item) for item in found if isinstance(item, int)]

    def constant(self, value: Value | None, what: str) -> Tensor:
        """Return a constant; raises InvalidInput, naming `what`, for a value that is none."""
        if not isinstance(value, Tensor):
            raise InvalidInput(f"{self.operation} computes its {what} from its inputs, which can't be followed")
        return value

    # ---- names

    def layer_name(self, *weights: Value | None) -> str:
        """Return a layer's name: that of its weights if it says something, else that of its node."""
        for weight in weights:
            name = self._names.get(_key(weight), "") if isinstance(weight, Tensor) else ""
            says_something = "/" in name or name.endswith((".weight", ".bias", ".weight_ih_l0", ".weight_hh_l0"))
            if says_something and not name.startswith(("/", "onnx::")) and clean_path(name) not in self._taken:
                return clean_path(name)
        return clean_path(self.operation.name)

    def _path(self, name: str) -> str:
        """Return a free place for a layer or tensor: no other stands there, above it or below it."""
        *parents, last = name.split(".")
        above = ""
        for parent in parents:
            above = self._numbered(f"{above}{parent}", self._taken) + "."
            self._parents.add(above[:-1])
        path = self._numbered(f"{above}{last}", self._taken, self._parents)
        self._taken.add(path)
        return path

    def _numbered(self, path: str, *occupied: set[str]) -> str:
        found = path
        while any(found in places for places in occupied):
            # Counted on, so that many equal names take no longer than as many different ones.
            self._counts[path] = self._counts.get(path, 1) + 1
            found = f"{path}_{self._counts[path]}"
        return found

    # ---- folding

    def _folded(self, function: Callable[..., Any] | str, args: Any, kwargs: Any) -> Any:
        def run(args: Any, kwargs: Any) -> Any:
            with torch.no_grad():
                if isinstance(function, str):
                    return getattr(args[0], function)(*args[1:], **kwargs)
                return function(*args, **kwargs)

        if _bound((args, kwargs)) > _MAX_FOLDED_BYTES:
            try:
                found = run(*fx.node.map_aggregate((args, kwargs), _to_meta))
            except Exception:  # noqa: BLE001 - some functions need numbers to say how many they give
                return None
            parts = found if isinstance(found, tuple | list) else (found,)
            if sum(p.numel() * p.element_size() for p in parts if isinstance(p, Tensor)) > _MAX_FOLDED_BYTES:
                return None
        return run(args, kwargs)

    def _plain(self, args: Any) -> Any:
        """Replace constant tensors and sizes by nodes."""
        if isinstance(args, Tensor | Sizes):
            return self.tensor(args)
        if isinstance(args, slice):
            return slice(self._plain(args.start), self._plain(args.stop), self._plain(args.step))
        if isinstance(args, tuple | list):
            return type(args)(self._plain(item) for item in args)
        if isinstance(args, dict):
            return {name: self._plain(item) for name, item in args.items()}
        return args


def _bound(value: Any) -> float:
    """More bytes than a function can make of its arguments: each number may be a size, and sizes multiply."""
    if isinstance(value, Tensor):
        return 8.0 * max(1, value.numel())
    if isinstance(value, bool) or not isinstance(value, int | float | tuple | list | dict):
        return 1.0
    if isinstance(value, int | float):
        return 1.0 + abs(value)
    return prod(map(_bound, value.values() if isinstance(value, dict) else value), start=1.0)


def _to_meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _key(tensor: Tensor) -> _Key:
    """Where a tensor's numbers lie: two views of the same numbers have the same key."""
    place = tensor.untyped_storage().data_ptr()
    strides = tuple(s for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1)
    return place, tensor.storage_offset(), tuple(tensor.shape), strides, tensor.dtype


def _holds_node(value: Any) -> bool:
    if isinstance(value, fx.Node | Sizes):
        return True
    if isinstance(value, slice):
        return _holds_node((value.start, value.stop, value.step))
    if isinstance(value, dict):
        return any(map(_holds_node, value.values()))
    return isinstance(value, tuple | list) and any(map(_holds_node, value))


def _is_learned(tensor: Tensor, name: str) -> bool:
    """Whether a constant outside of a layer is a weight, as far as its numbers and name tell."""
    if not tensor.is_floating_point() or tensor.dim() == 0 or tensor.numel() == 0:
        return False
    is_named = ("." in name and not name.startswith(("/", "onnx::"))) or "ReadVariableOp" in name
    if tensor.numel() == 1:
        return is_named
    if not bool(torch.isfinite(tensor).all()) or float(tensor.abs().max()) > _LARGEST_WEIGHT:
        return False
    return not bool(((tensor == 0) | (tensor == 1)).all()) or is_named


def clean_path(name: str, *, keep: bool = False) -> str:
    """Return a name of the file as a path of attributes; with `keep`, including what it is of its layer.

    >>> clean_path("/model/encoder/layer/layer.0/query/MatMul"), clean_path("model.query.weight")
    ('model.encoder.layer.0.query', 'model.query')
    >>> clean_path("gru/while/body/kernel", keep=True)
    'gru.while_.body.kernel'
    """
    parts = [part for part in re.split("[/:]", name) if part and part != "0"]
    # The TorchScript exporter names a member of a sequence after the sequence too.
    parts = [p for p, after in zip(parts, [*parts[1:], ""], strict=True) if not after.startswith(f"{p}.")]
    words = [re.sub(r"\W+", "_", word) for part in parts for word in part.split(".") if word]
    while not keep and len(words) > 1 and words[-1].rstrip("_0123456789") in _ROLES:
        words.pop()
    words = [f"{word}_" if _is_taken(word) else word for word in words]
    return ".".join(words) or "layer"


def _is_taken(word: str) -> bool:
    """Whether a word can't name an attribute: it is one of the language's, or of every module."""
    return hasattr(nn.Module, word) or keyword.iskeyword(word) or not word.strip("_")


def _set(root: nn.Module, path: str, value: Any) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in root._modules:  # noqa: SLF001 - has no other way to ask for a child without getattr's error
            root.add_module(parent, nn.Module())
        root = root.get_submodule(parent)
    if isinstance(value, nn.Module):
        root.add_module(name, value)
    elif isinstance(value, nn.Parameter):
        root.register_parameter(name, value)
    else:
        root.register_buffer(name, value)
