"""What can be cut from a traced network, whatever it is called: whole blocks, and the insides of pairs of layers.

A block is what stands between two places of a network with the same shape, when nothing else leads past it: taking it
out means using the earlier place for the later one. Attention and feed-forward parts of encoders and decoders are such
blocks, and residual blocks of convolutional networks that keep their width.

A pair is a linear layer whose outputs reach, value by value, nothing but another linear layer: each value between them
can go with a row of the first matrix and a column of the second.
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

# What works on each number by itself, so that one channel more or less changes no other.
_BY_VALUE = {
    "relu", "gelu", "silu", "sigmoid", "tanh", "elu", "leaky_relu", "hardtanh", "hardswish", "hardsigmoid", "softplus",
    "mul", "add", "sub", "div", "truediv", "pow", "erf", "neg", "abs", "exp", "sqrt", "clamp", "clip", "identity",
    "dropout", "relu6", "mish", "square", "to", "float",
}  # fmt: skip


# What is asked about a value, and is none of its numbers.
_ABOUT = {"size", "dim", "numel", "shape", "ndim", "dtype", "device"}
# A block of a real network has fewer operations than this.
_FARTHEST = 400


class Block(NamedTuple):
    """A part of the network that can go: from the output of `begin` to that of `end`."""

    begin: str
    end: str
    modules: tuple[str, ...]
    """The layers within it."""
    parameters: int


class Pair(NamedTuple):
    """Two linear layers with nothing but functions of single values between them."""

    first: str
    second: str


def traced(module: "nn.Module") -> "fx.GraphModule":
    """Return the network as a graph; raises what tracing raises for code that depends on values."""
    from torch import fx

    return module if isinstance(module, fx.GraphModule) else fx.symbolic_trace(module)


def blocks_of(graph: "fx.GraphModule", example: "Sequence[torch.Tensor]") -> list[Block]:
    """Return the smallest blocks that can go, in order, without overlaps."""
    shapes = shapes_of(graph, example)
    nodes = list(graph.graph.nodes)
    place = {node: index for index, node in enumerate(nodes)}
    weights = {name: sum(p.numel() for p in layer.parameters(recurse=False)) for name, layer in graph.named_modules()}
    anchors = [
        n for n in nodes if shapes.get(n) is not None and n.op in ("call_module", "call_function", "call_method")
    ]
    found: list[Block] = []
    free_from = -1
    for start in anchors:
        if place[start] < free_from:
            continue
        for end in anchors:
            if place[end] - place[start] > _FARTHEST:
                break
            if place[end] <= place[start] or shapes[end] != shapes[start]:
                continue
            if _block(graph, start, end, place, shapes, weights) is None:
                continue
            # Of all places that everything from `start` goes through, the last: what comes from the side, such as the
            # vectors of positions, shall not go with the block.
            narrows = (begin for begin in reversed(_narrows(start, end, place)) if shapes[begin] == shapes[end])
            found.append(next(filter(None, (_block(graph, n, end, place, shapes, weights) for n in narrows))))
            free_from = place[end]
            break
    return found


def _block(  # noqa: PLR0917 - called by `blocks_of`, with all it has found out
    graph: "fx.GraphModule",
    begin: "fx.Node",
    end: "fx.Node",
    place: "dict[fx.Node, int]",
    shapes: "dict[fx.Node, tuple[int, ...] | None]",
    weights: dict[str, int],
) -> Block | None:
    """Return what stands between two nodes, unless something leads past it or it is next to nothing."""
    inside = _between(begin, end, place)
    past = [user for user in begin.users if shapes.get(user) is not None]  # a size that is asked for leads nowhere
    past += [user for node in inside for user in node.users if not _is_about(user)]
    if not inside or any(user is not end and user not in inside for user in past):
        return None
    if _is_bypassed(graph, begin, end, inside, place, shapes):
        return None
    layers = tuple(
        str(n.target)
        for n in sorted((*inside, end), key=lambda n: place[n])
        if n.op == "call_module" and weights.get(str(n.target), 0)
    )
    if sum(_is_heavy(graph, name) for name in layers) < 2:
        return None
    return Block(begin.name, end.name, layers, sum(weights[name] for name in layers))


def _is_bypassed(  # noqa: PLR0917 - called by `_block`, with all that is known there
    graph: "fx.GraphModule",
    begin: "fx.Node",
    end: "fx.Node",
    inside: "set[fx.Node]",
    place: "dict[fx.Node, int]",
    shapes: "dict[fx.Node, tuple[int, ...] | None]",
) -> bool:
    """Whether something from before is added within, or to what comes out: then that is where the block begins."""

    def takes_from_before(node: "fx.Node", known: "set[fx.Node]") -> bool:
        others = [n for n in node.all_input_nodes if n not in known and shapes.get(n) == shapes[begin]]
        return any(other in _ancestors(begin, other, place) for other in others)

    if any(takes_from_before(node, inside | {begin}) for node in (*inside, end)):
        return True
    node = end
    while True:
        users = [user for user in node.users if shapes.get(user) is not None]
        if len(users) != 1 or (users[0].op == "call_module" and _is_heavy(graph, str(users[0].target))):
            return False
        if len(users[0].all_input_nodes) > 1:
            return takes_from_before(users[0], {node})
        node = users[0]


def without_block(graph: "fx.GraphModule", block: Block) -> "fx.GraphModule":
    """Return a copy in which the block does nothing; `graph` is left as it was."""
    made = copy.deepcopy(graph)
    remove_block(made, block)
    return made


def remove_block(graph: "fx.GraphModule", block: Block) -> None:
    """Take a block out in place, with the layers nothing uses any more."""
    nodes = {node.name: node for node in graph.graph.nodes}
    nodes[block.end].replace_all_uses_with(nodes[block.begin], delete_user_cb=lambda user: user is not nodes[block.end])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()


def drop_idle_norms(graph: "fx.GraphModule") -> int:
    """Take out, in place, layer norms that only another one of the same width reads; return how many.

    They are left where blocks went that add before they norm, as BERT's do, and one costs a tiny network as much as a
    layer. The last norm makes of its input the same mean and deviation with them and without.
    """
    from torch import nn

    layers = dict(graph.named_modules())

    def norm(node: Any) -> Any:
        layer = layers.get(str(node.target)) if getattr(node, "op", "") == "call_module" else None
        return layer if isinstance(layer, nn.LayerNorm) else None

    count = 0
    for node in graph.graph.nodes:
        before = node.args[0] if norm(node) is not None and node.args else None
        while before is not None and norm(before) is not None and len(before.users) == 1:
            if norm(before).normalized_shape != norm(node).normalized_shape:
                break
            count += 1
            before = before.args[0]
            node.args = (before, *node.args[1:])
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return count


def pairs_of(graph: "fx.GraphModule") -> list[Pair]:
    """Return the pairs of linear layers of which the inner width can shrink."""
    from torch import nn

    layers = dict(graph.named_modules())
    uses: dict[str, int] = {}
    for node in graph.graph.nodes:
        if node.op == "call_module":
            uses[str(node.target)] = uses.get(str(node.target), 0) + 1
    found = []
    for node in graph.graph.nodes:
        if (
            node.op != "call_module"
            or not isinstance(layers[str(node.target)], nn.Linear)
            or uses[str(node.target)] > 1
        ):
            continue
        ends = _reached(node, layers)
        if ends is None or len(ends) != 1:
            continue
        second = str(next(iter(ends)).target)
        first = layers[str(node.target)]
        if uses[second] == 1 and layers[second].in_features == first.out_features:
            found.append(Pair(str(node.target), second))
    return found


def shrink_pair(graph: "fx.GraphModule", pair: Pair, keep: "torch.Tensor") -> None:
    """Keep only the inner values `keep` (positions) of a pair, in place."""
    import torch

    layers = dict(graph.named_modules())
    first, second = layers[pair.first], layers[pair.second]
    with torch.no_grad():
        first.weight = torch.nn.Parameter(first.weight[keep].clone())
        if first.bias is not None:
            first.bias = torch.nn.Parameter(first.bias[keep].clone())
        second.weight = torch.nn.Parameter(second.weight[:, keep].clone())
    first.out_features = second.in_features = len(keep)


def _reached(node: "fx.Node", layers: "dict[str, nn.Module]") -> "set[fx.Node] | None":
    """The layers a node's values reach by functions of single values; None where anything else comes in between."""
    from torch import nn

    todo, seen, ends = [node], {node}, set()
    while todo:
        for user in todo.pop().users:
            if user in seen or user in ends:
                continue
            if user.op == "call_module" and isinstance(layers[str(user.target)], nn.Linear):
                ends.add(user)
            elif _is_by_value(user, layers, seen):
                seen.add(user)
                todo.append(user)
            else:
                return None
    return ends


def _is_by_value(node: "fx.Node", layers: "dict[str, nn.Module]", seen: "set[fx.Node]") -> bool:
    if node.op == "call_module":
        return type(layers[str(node.target)]).__name__.lower() in _BY_VALUE
    if node.op not in ("call_function", "call_method"):
        return False
    name = getattr(node.target, "__name__", str(node.target)).strip("_").removesuffix("_")
    # What else goes in must be a number: a tensor could have a value per channel.
    return name in _BY_VALUE and all(
        given in seen or (given.op == "get_attr" and _is_scalar(given)) for given in node.all_input_nodes
    )


def _is_scalar(node: "fx.Node") -> bool:
    value: Any = node.graph.owning_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return bool(value.numel() == 1)


def _is_heavy(graph: "fx.GraphModule", name: str) -> bool:
    """Whether a layer multiplies by a matrix: norms alone make no block."""
    weight = getattr(graph.get_submodule(name), "weight", None)
    return weight is not None and weight.ndim >= 2


def shapes_of(
    graph: "fx.GraphModule", example: "Sequence[torch.Tensor]", *, of_all: bool = False
) -> "dict[fx.Node, tuple[int, ...] | None]":
    """Return the shapes of activations (floating-point numbers of two dimensions and more), or of all tensors.

    Of several tensors together it is the first one's.
    """
    import torch
    from torch import fx

    found: dict[fx.Node, tuple[int, ...] | None] = {}

    class Noting(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            is_activation = isinstance(value, torch.Tensor) and value.is_floating_point() and value.ndim >= 2
            one = value[0] if of_all and isinstance(value, tuple | list) and value else value
            is_wanted = isinstance(one, torch.Tensor) if of_all else is_activation
            found[n] = tuple(one.shape) if is_wanted else None
            return value

    with torch.no_grad():
        Noting(graph).run(*example)
    return found


def flat(answer: Any) -> "torch.Tensor":
    """Return what a network answers, a row per sample [b, n]; of several outputs side by side."""
    import torch

    parts = answer if isinstance(answer, tuple) else (answer,)
    return torch.cat([part.float().reshape(len(part), -1) for part in parts if part.is_floating_point()], dim=1)


def _narrows(start: "fx.Node", end: "fx.Node", place: "dict[fx.Node, int]") -> "list[fx.Node]":
    """Return `start` and the nodes behind it that every way from there to `end` goes through, in order."""
    inside = _between(start, end, place)
    found, farthest = [], place[start]
    for node in sorted((start, *inside), key=lambda n: place[n]) if inside else ():
        # Nothing that began before this node ends behind it.
        if place[node] >= farthest:
            found.append(node)
        farthest = max([farthest, *(place[user] for user in node.users if user in inside or user is end)])
    return found


def _ancestors(end: "fx.Node", begin: "fx.Node", place: "dict[fx.Node, int]") -> "set[fx.Node]":
    """What `end` depends on, no further back than `begin`."""
    todo, seen = [end], set()
    while todo:
        for given in todo.pop().all_input_nodes:
            if given not in seen and place[given] >= place[begin]:
                seen.add(given)
                todo.append(given)
    return seen


def _is_about(node: "fx.Node") -> bool:
    """Whether a node only asks for the size of a value, or the like: masks are made by sizes, and lead past blocks."""
    if node.op == "call_method":
        return str(node.target) in _ABOUT
    return node.op == "call_function" and getattr(node.target, "__name__", "") == "getattr" and node.args[1] in _ABOUT


def _between(begin: "fx.Node", end: "fx.Node", place: "dict[fx.Node, int]") -> "set[fx.Node]":
    """What lies on a way of values from `begin` to `end`, both left out."""
    before_end = _ancestors(end, begin, place)
    todo, found = [begin], set()
    while todo:
        for user in todo.pop().users:
            if user in before_end and user not in found and not _is_about(user):
                found.add(user)
                todo.append(user)
    return found - {begin}
