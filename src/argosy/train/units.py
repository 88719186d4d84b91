"""Which parts of a model are gathered together when its parameters are divided between ranks."""

from collections import Counter

from torch import nn

_LARGE = 1 << 18
"""Weights from which a single layer is gathered on its own: below, asking costs more than the memory is worth."""
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""Layers whose parameters nobody reads but they. Embeddings are not among them: many models use one as their head."""
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def units(model: nn.Module) -> list[nn.Module]:
    """Return the blocks that repeat in `model` and its large layers, none of them inside another.

    All have parameters of their own, which no module outside of them uses, and a `forward`; what is left belongs to
    the model as a whole. At any time a rank needs memory for the whole of one or two units, and for what is left.
    """
    places = _places(model)
    found: list[nn.Module] = []

    def walk(module: nn.Module) -> None:
        kinds = Counter(type(child) for child in module.children()) if isinstance(module, _CONTAINERS) else Counter()
        for child in module.children():
            is_block = kinds[type(child)] > 1 and any(True for _ in child.children())
            if (is_block or _is_large(child, module)) and _is_closed(child, places):
                found.append(child)
            else:
                walk(child)

    walk(model)
    return list(dict.fromkeys(found))


def _is_large(layer: nn.Module, parent: nn.Module) -> bool:
    # Exactly these classes. And torch's own modules read the weights of their layers without calling them.
    is_read = type(parent).__module__.startswith("torch.") and not isinstance(parent, _CONTAINERS)
    return type(layer) in _LAYERS and not is_read and sum(p.numel() for p in layer.parameters()) >= _LARGE


def _is_closed(module: nn.Module, places: Counter[int]) -> bool:
    if isinstance(module, (nn.ModuleList, nn.ModuleDict)):
        return False
    own = _places(module)
    return bool(own) and all(places[number] == count for number, count in own.items())


def _places(module: nn.Module) -> Counter[int]:
    return Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
