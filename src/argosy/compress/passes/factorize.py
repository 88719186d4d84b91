"""Low rank: a matrix of weights becomes the product of two thinner ones, by its singular values.

A linear layer [m, n] of rank r becomes two with r * (m + n) weights; a convolution becomes one with r filters and a
1x1 convolution behind it. The rank of each layer is the least that keeps a share of the energy, the sum of the squared
singular values (Eckart and Young 1936: no other matrix of that rank is nearer).
"""

import copy
from typing import TYPE_CHECKING, Any, ClassVar

from argosy.compress.passes import Bench, Made, Model, Settings, SoFar, float_module, named_settings
from argosy.compress.passes.export import exported
from argosy.compress.passes.kinds import is_quantized
from argosy.compress.passes.learning import taught
from argosy.compress.passes.slim import parameters
from argosy.compress.passes.stairs import went_well
from argosy.core.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

_ENERGIES = (0.9, 0.8, 0.65)
# Two matrices cost two calls; what saves less than this is not worth them.
_LEAST_SAVING = 0.75
# Nor is a training worth what comes out no better than what was found so far.
_WORTH = 1.05
# Kernels work on vectors of 8 floats.
_ROUNDING = 8


class Factorize:
    """The pass `factorize`. Settings: `energy`, the share of each layer's that is kept; `tune`: train after it."""

    usual: ClassVar[Settings] = {"energy": _ENERGIES[0], "tune": True}
    cost, rank = 1, 0

    def label(self, settings: Settings) -> str:
        """Return the share of energy that is kept."""
        return f"factorize {settings.get('energy', _ENERGIES[0]):.3g}"

    def accepts(self, model: Model) -> bool:
        """Take float networks that nothing was done to."""
        return not model.recipe and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Keep nine tenths of the energy."""
        return {"energy": _ENERGIES[0]}

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Keep most of the energy, then less while that goes well."""
        if any(not went_well(candidate, so_far.budget.max_drop) for candidate in so_far.tried):
            return None
        kept = min((candidate.recipe[-1][1]["energy"] for candidate in so_far.tried), default=1.0)
        for energy in (energy for energy in _ENERGIES if energy < kept):
            sketch = so_far.sketch({"energy": energy})
            if sketch is not None and sketch.ratio < 1.0 and sketch.gain > _WORTH and so_far.keeps(sketch):
                return {"energy": energy}
        return None

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """Factorize without training."""
        return exported(factorized(float_module(model), **_asked(settings))[0], bench, is_draft=True)

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Factorize every layer where it saves something, and train the factors."""
        teacher = float_module(model)
        student, ranks = factorized(teacher, **_asked(settings))
        bench.check_draft(exported(student, bench, is_draft=True))
        done: dict[str, Any] = {}
        if settings.get("tune", True):
            done = taught(student, bench, self.label(settings), is_tried=True)
        return Made(
            onnx=exported(student, bench),
            module=student,
            changed={
                "ranks": ranks,
                "parameters_before": parameters(teacher),
                "parameters_after": parameters(student),
                **done,
            },
        )


def _asked(settings: Settings) -> dict[str, Any]:
    asked = named_settings(settings, Factorize.usual)
    if not 0 < asked["energy"] < 1:
        raise InvalidInput(f"factorize keeps a share of the energy between 0 and 1, not {asked['energy']}")
    return {"energy": float(asked["energy"])}


def factorized(teacher: "nn.Module", *, energy: float) -> tuple["nn.Module", dict[str, str]]:
    """Return a copy with low-rank layers, and the rank of each of them; raise InvalidInput where none would save."""
    from torch import nn

    student = copy.deepcopy(teacher)
    uses: dict[int, int] = {}
    # By every name: a layer that stands in two places is one module, and only one of the two would be replaced.
    for _, layer in student.named_modules(remove_duplicate=False):
        weight = getattr(layer, "weight", None)
        if weight is not None:
            uses[id(weight)] = uses.get(id(weight), 0) + 1
    ranks: dict[str, str] = {}
    for name, layer in list(student.named_modules()):
        if not name or not isinstance(layer, nn.Linear | nn.Conv2d) or uses[id(layer.weight)] > 1:
            continue
        if isinstance(layer, nn.Conv2d) and layer.groups != 1:
            continue
        made = _split(layer, energy)
        if made is not None:
            parent, _, leaf = name.rpartition(".")
            setattr(student.get_submodule(parent), leaf, made[0])
            ranks[name] = f"{made[1]} of {min(layer.weight.flatten(1).shape)}"
    if not ranks:
        raise InvalidInput(
            f"no layer has a low rank: with {energy:.0%} of the energy two factors would be no smaller than any of them"
        )
    return student, ranks


def _split(layer: "nn.Linear | nn.Conv2d", energy: float) -> "tuple[nn.Module, int] | None":
    import torch

    from argosy.compress.passes.low_rank import LowRank

    with torch.no_grad():
        matrix = layer.weight.flatten(1).double()
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        kept = torch.cumsum(s.square(), 0) / s.square().sum().clamp(min=1e-30)
        rank = int((kept < energy).sum()) + 1
        rank = min(len(s), -(-rank // _ROUNDING) * _ROUNDING)
        rows, columns = matrix.shape
        if rank * (rows + columns) > _LEAST_SAVING * rows * columns:
            return None
        root = s[:rank].sqrt()
        first, second = (root[:, None] * v[:rank]).float(), (u[:, :rank] * root).float()
        made = LowRank(layer, rank)
        inner: Any = made[0]
        outer: Any = made[1]
        inner.weight.copy_(first.reshape(inner.weight.shape))
        outer.weight.copy_(second.reshape(outer.weight.shape))
        if layer.bias is not None:
            outer.bias.copy_(layer.bias)
    return made.train(layer.training), rank
