"""Heads of attention that can go, found in whatever a file was turned into, and proved to be found rightly.

Where a layer's inputs have come through a softmax from three linear layers of its width (or one of three times that),
it is taken for the output of attention; the softmax's second dimension counts the heads. What that guess says is cut
and then proved: the network without some heads must answer as the whole one does when it is given nothing of theirs.
What can't be proved stays whole.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from argosy.compress.passes.graph import shapes_of

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

_SOFTMAX = {"softmax", "scaled_dot_product_attention", "_softmax"}
_RESHAPES = {"reshape", "view"}
_PARTS = 3
"""Queries, keys and values."""
_TOLERANCE = 1e-3
"""Of the largest answer: sums of fewer numbers in another order differ in the last bits."""

Example = Sequence["torch.Tensor"]


class Attention(NamedTuple):
    """Layers that make attention, by name."""

    inputs: tuple[str, ...]
    """Of queries, keys and values; or one that makes all three."""
    output: str
    heads: int
    size: int
    """Numbers per head."""
    inside: tuple[str, ...]
    """The operations between, by name."""


def attentions_of(graph: "fx.GraphModule", example: Example) -> list[Attention]:
    """Return what looks like attention, in order."""
    from torch import nn

    shapes = shapes_of(graph, example, of_all=True)
    layers = dict(graph.named_modules())
    found = []
    for node in graph.graph.nodes:
        if node.op != "call_module" or not isinstance(layers[str(node.target)], nn.Linear):
            continue
        inside, sources = _behind(node, layers, shapes)
        softmax = next((n for n in inside if _name(n, layers) in _SOFTMAX), None)
        shape = shapes.get(softmax) if softmax is not None else None
        if shape is None or len(shape) != 4:
            continue
        width = layers[str(node.target)].in_features
        widths = [layers[name].out_features for name in sources]
        heads = shape[1]
        if widths not in ([width] * _PARTS, [_PARTS * width]) or heads < 2 or width % heads:
            continue
        names = tuple(n.name for n in inside)
        found.append(Attention(tuple(sources), str(node.target), heads, width // heads, names))
    return found


def silenced(graph: "fx.GraphModule", attention: Attention, gone: Sequence[int]) -> "fx.GraphModule":
    """Return a copy in which these heads say nothing; it is as large as before."""
    import torch

    made = copy.deepcopy(graph)
    output: Any = made.get_submodule(attention.output)
    with torch.no_grad():
        for head in gone:
            output.weight[:, head * attention.size : (head + 1) * attention.size] = 0
    return made


def without_heads(
    graph: "fx.GraphModule", attention: Attention, gone: Sequence[int], example: Example
) -> "fx.GraphModule | None":
    """Return a copy without these heads, or None where it can't be proved to answer as if they said nothing."""
    import torch

    with torch.no_grad():
        wanted = _answers(silenced(graph, attention, gone), example)
        for is_head_first in (False, True):
            made = copy.deepcopy(graph)
            _cut(made, attention, gone, example, is_head_first=is_head_first)
            try:
                found = _answers(made, example)
            except Exception:  # noqa: BLE001, S112 - a wrong guess may fail in any operation
                continue
            if found.shape == wanted.shape and bool((found - wanted).abs().max() <= _TOLERANCE * wanted.abs().max()):
                return made
            if len(attention.inputs) > 1:
                break
    return None


def _cut(
    graph: "fx.GraphModule", attention: Attention, gone: Sequence[int], example: Example, *, is_head_first: bool
) -> None:
    """Cut in place. `is_head_first`: one layer for all three makes them head by head."""
    import torch

    kept = [head for head in range(attention.heads) if head not in set(gone)]
    _resize(graph, attention, len(kept), example)
    layers = dict(graph.named_modules())
    width = attention.heads * attention.size
    own = torch.cat([torch.arange(head * attention.size, (head + 1) * attention.size) for head in kept])
    for name in attention.inputs:
        layer: Any = layers[name]
        rows = own
        if len(attention.inputs) == 1 and is_head_first:
            each = _PARTS * attention.size
            rows = torch.cat([torch.arange(head * each, (head + 1) * each) for head in kept])
        elif len(attention.inputs) == 1:
            rows = torch.cat([own + part * width for part in range(_PARTS)])
        layer.weight = torch.nn.Parameter(layer.weight.detach()[rows].clone())
        if layer.bias is not None:
            layer.bias = torch.nn.Parameter(layer.bias.detach()[rows].clone())
        layer.out_features = len(rows)
    output: Any = layers[attention.output]
    output.weight = torch.nn.Parameter(output.weight.detach()[:, own].clone())
    output.in_features = len(own)


def _resize(graph: "fx.GraphModule", attention: Attention, heads: int, example: Example) -> None:
    """Write the new sizes into the operations that name them."""
    shapes = shapes_of(graph, example, of_all=True)
    others = _other_shapes(graph, example)
    names = set(attention.inside)
    whole, left = attention.heads * attention.size, heads * attention.size
    for node in graph.graph.nodes:
        shape = shapes.get(node)
        if node.name not in names or shape is None:
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name in _RESHAPES:
            # A dimension that differs between two examples counts samples or tokens.
            other = others.get(node) or shape
            fixed = [size == also for size, also in zip(shape, other, strict=True)]
            _resize_view(node, shape, fixed, attention, heads)
        elif name == "split" and isinstance(node.args[1], int | list | tuple):
            sizes: Any = node.args[1]
            is_one = isinstance(sizes, int)
            found = [left if size == whole else size for size in ([sizes] if is_one else sizes)]
            node.args = (node.args[0], found[0] if is_one else found, *node.args[2:])
        elif name == "unflatten":
            named: Any = node.args[2]
            node.args = (*node.args[:2], [heads if size == attention.heads else size for size in named])
    graph.graph.lint()
    graph.recompile()


def _resize_view(node: "fx.Node", shape: tuple[int, ...], fixed: list[bool], attention: Attention, heads: int) -> None:
    is_listed = len(node.args) == 2 and isinstance(node.args[1], list | tuple)
    target: list[Any] = list(node.args[1]) if is_listed else list(node.args[1:])  # type: ignore[arg-type]
    if len(target) != len(shape):
        return
    whole = attention.heads * attention.size
    for axis, (size, is_fixed) in enumerate(zip(shape, fixed, strict=True)):
        if not is_fixed:
            continue
        behind = [s for s, f in zip(shape[axis + 1 : axis + 3], fixed[axis + 1 : axis + 3], strict=True) if f]
        if size == attention.heads and attention.size in behind:
            size = heads  # noqa: PLW2901
        elif size in (whole, _PARTS * whole):
            size = size // whole * heads * attention.size  # noqa: PLW2901
        target[axis] = size
    node.args = (node.args[0], target) if is_listed else (node.args[0], *target)


def _other_shapes(graph: "fx.GraphModule", example: Example) -> "dict[fx.Node, tuple[int, ...] | None]":
    """Return what shapes are with another number of samples, and of tokens where that may differ."""
    import torch

    more = [torch.cat([part, part[:1]]) for part in example]
    shorter = [part[:, :-1] if part.ndim == 2 and part.shape[1] > 1 else part for part in more]
    for other in (shorter, more):
        try:
            return shapes_of(graph, other, of_all=True)
        except Exception:  # noqa: BLE001, S112 - lengths that are fixed in the graph
            continue
    return {}


def _behind(
    node: "fx.Node", layers: "dict[str, nn.Module]", shapes: "dict[fx.Node, tuple[int, ...] | None]"
) -> "tuple[list[fx.Node], list[str]]":
    """Return the operations a layer's input comes through, and the linear layers these begin at."""
    from torch import nn

    todo, inside, sources = list(node.all_input_nodes), [], []
    seen = set(todo)
    while todo:
        given = todo.pop()
        if given.op == "call_module" and isinstance(layers[str(given.target)], nn.Linear):
            sources.append(str(given.target))
            continue
        inside.append(given)
        for further in given.all_input_nodes:
            # Sizes lead to what has them, which is another way than that of the numbers.
            if further not in seen and shapes.get(further) is not None:
                seen.add(further)
                todo.append(further)
    return inside, sources


def _name(node: "fx.Node", layers: "dict[str, nn.Module]") -> str:
    if node.op == "call_module":
        return type(layers[str(node.target)]).__name__.lower()
    return str(getattr(node.target, "__name__", node.target)) if node.op.startswith("call") else ""


def _answers(graph: "fx.GraphModule", example: Example) -> "torch.Tensor":
    import torch

    answer = graph(*example)
    parts = answer if isinstance(answer, tuple) else (answer,)
    return torch.cat([part.float().reshape(len(part), -1) for part in parts if part.is_floating_point()], dim=1)
