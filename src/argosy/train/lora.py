"""Low-rank adaptation (Hu et al. 2021): train two thin factors beside each frozen weight, and merge them at the end.

Shape suffixes: i inputs and o outputs of a layer, r rank.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.errors import InvalidInput
from argosy.train.config import LoraConfig

_FACTORS = ("lora_down", "lora_up")


class LoraLinear(nn.Linear):
    """A linear layer whose weight is W + alpha / r * up down, of which only the factors are trained.

    Source: Hu et al. 2021, equation 3; `down` begins at random and `up` at 0, so the layer begins as it was. The
    parameters keep the names they had, so that merged weights fit the model without adaptation.
    """

    lora_down: nn.Parameter
    lora_up: nn.Parameter
    scale: float

    @classmethod
    def around(cls, layer: nn.Linear, rank: int, alpha: float) -> "LoraLinear":
        """Return a layer with the parameters of `layer`, frozen, and new factors of the given rank."""
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.in_features, made.out_features = layer.in_features, layer.out_features
        made.weight, made.bias = layer.weight, layer.bias
        made.weight.requires_grad_(False)
        if made.bias is not None:
            made.bias.requires_grad_(False)
        down_ri = torch.empty(rank, layer.in_features, dtype=layer.weight.dtype)
        nn.init.kaiming_uniform_(down_ri, a=math.sqrt(5))
        made.lora_down = nn.Parameter(down_ri)
        made.lora_up = nn.Parameter(torch.zeros(layer.out_features, rank, dtype=layer.weight.dtype))
        made.scale = alpha / rank
        made.train(layer.training)
        return made

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """Return the layer's outputs: two thin products more, W itself is not changed."""
        return F.linear(input, self.weight, self.bias) + self.scale * F.linear(
            F.linear(input, self.lora_down), self.lora_up
        )

    def merged(self) -> Tensor:
        """Return W + alpha / r * up down [o, i]."""
        return self.weight + self.scale * (self.lora_up @ self.lora_down)


def adapt(model: nn.Module, config: LoraConfig, head: Collection[str] | None = None) -> None:
    """Freeze `model`, put factors beside the linear layers that `config.targets` name, and keep the head trained.

    `head` are names of parameters that hold nothing learned yet; with None, the last linear layer is the head. A
    target is the end of a layer's dotted name, such as `query`, or a pattern such as `*.attention.*`; no targets: every
    linear layer beside the head. `model` is changed in place.
    Raises InvalidInput for a model without such layers, with the names that it has.
    """
    # A weight that two modules share can't be adapted in one of them alone.
    places = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    linear = {
        name: module
        for name, module in model.named_modules()
        if type(module) is nn.Linear and places[id(module.weight)] == 1
    }
    if not linear:
        raise InvalidInput(
            "[model.lora] adapts linear layers (torch.nn.Linear), and this model has none",
            hint="leave [model.lora] out to train all of it",
            code="no_parameters",
        )
    trained = _last_layer(model, linear) if head is None else set(head)
    chosen = [name for name in linear if f"{name}.weight" not in trained and _is_target(name, config.targets)]
    unused = [target for target in config.targets if not any(_is_target(name, [target]) for name in linear)]
    if unused or not chosen:
        what = f"targets has {unused[0]!r}, which no linear layer is called" if unused else "finds no layer to adapt"
        ends = sorted({name.rpartition(".")[2] for name in linear if f"{name}.weight" not in trained})
        raise InvalidInput(
            f"[model.lora] {what}; the linear layers beside the head are called: {', '.join(ends) or 'none'}",
            hint="a target is the end of a layer's name, or a pattern such as '*.attention.*'",
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for name in chosen:
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, LoraLinear.around(linear[name], config.rank, config.alpha))


def trained_share(model: nn.Module) -> str:
    """Say how many parameters are trained, and how many the model has without factors."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    total = sum(tensor.numel() for name, tensor in model.named_parameters() if not name.endswith(_FACTORS))
    layers = sum(isinstance(module, LoraLinear) for module in model.modules())
    others = any(p.requires_grad and not name.endswith(_FACTORS) for name, p in model.named_parameters())
    what = f"{'the head and ' if others else ''}factors in {layers} layers"
    return f"LoRA trains {trained} of {total} parameters ({trained / total:.2%}): {what}"


def _last_layer(model: nn.Module, linear: Mapping[str, nn.Linear]) -> set[str]:
    name = list(linear)[-1]
    return {f"{name}.{own}" for own, _ in model.get_submodule(name).named_parameters()}


def _is_target(name: str, targets: Collection[str]) -> bool:
    return not targets or any(name == t or name.endswith(f".{t}") or fnmatchcase(name, t) for t in targets)


def merged_weights(model: nn.Module) -> dict[str, Tensor]:
    """Return parameters and buffers by the names they have without adaptation, factors merged into their weights.

    `model` is left unchanged. Without adaptation this is its `state_dict`.
    """
    found = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(_FACTORS)}
    with torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LoraLinear):
                found[f"{name}.weight" if name else "weight"] = module.merged()
    return found
