"""Single weights to zero, and a file that is really smaller for it.

The smallest go first, over all layers alike in units of each layer's own spread. With training data the share grows
step by step while the rest learns to do without them (Zhu and Gupta 2017, equation 1). No runtime computes faster for
scattered zeros, so this pass makes files small, nothing else; `compress.sparse` says how they are stored.
"""

import copy
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from argosy.compress.passes import Bench, Made, Model, Settings, SoFar, float_module, named_settings
from argosy.compress.passes.export import exported
from argosy.compress.passes.kinds import is_quantized
from argosy.compress.passes.learning import taught
from argosy.compress.sparse import stored_sparse
from argosy.core.errors import InvalidInput

if TYPE_CHECKING:
    from torch import nn

_SPARSITIES = (0.5, 0.75, 0.9)
# The rest of the training belongs to the weights that are left.
_RAMP = 0.6
# Masks are drawn anew so often on the way.
_STEPS = 20
# Biases, norms and small tables decide much and weigh nothing.
_SMALLEST = 256


class Prune:
    """The pass `prune`. Settings: `sparsity`, the share of zeros; or `threshold`, below which weights go; `tune`."""

    usual: ClassVar[Settings] = {"sparsity": 0.0, "threshold": 0.0, "tune": True}
    cost, rank = 1, 1

    def label(self, settings: Settings) -> str:
        """Return the share of zeros, or the threshold."""
        if settings.get("threshold"):
            return f"prune below {settings['threshold']:.3g}"
        return f"prune {settings.get('sparsity', _SPARSITIES[1]):.3g}"

    def accepts(self, model: Model) -> bool:
        """Take float networks, thinner ones too."""
        return "prune" not in model.passes and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Take three quarters."""
        return {"sparsity": _SPARSITIES[1]}

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Only where a size is asked for that nothing else has reached: zeros make nothing faster."""
        budget = so_far.budget
        # What was lost with the fewest zeros that will do is lost with more of them as well.
        if so_far.tried or not np.isfinite(budget.size_bytes):
            return None
        if any(c.status == "measured" and not c.misses(budget) for c in so_far.elsewhere):
            return None
        # The most first: where they are too few, that is all there is to find out.
        if not _is_enough(_SPARSITIES[-1], so_far):
            return None
        return {"sparsity": next(sparsity for sparsity in _SPARSITIES if _is_enough(sparsity, so_far))}

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """Take the smallest weights at once: what is left to store doesn't depend on which they are."""
        return self.apply(model, {**settings, "tune": False}, bench).onnx

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Zero the smallest weights, gradually while training, and store the rest."""
        asked = named_settings(settings, self.usual)
        if not asked["threshold"] and not 0 < asked["sparsity"] < 1:
            raise InvalidInput(f"prune takes a share of zeros between 0 and 1, not {asked['sparsity']}")
        student = copy.deepcopy(float_module(model))
        masks = _Masks(student)
        if asked["threshold"]:
            masks.draw_below(float(asked["threshold"]))
        done: dict[str, Any] = {}
        if asked["tune"]:
            goal, last = float(asked["sparsity"]), -1

            def after_step(progress: float) -> None:
                nonlocal last
                step = int(min(1.0, progress / _RAMP) * _STEPS)
                if not asked["threshold"] and step > last:
                    last = step
                    masks.draw(goal * (1 - (1 - step / _STEPS) ** 3))
                masks.apply()

            done = taught(student, bench, self.label(settings), after_step=after_step)
        if not asked["threshold"]:
            masks.draw(float(asked["sparsity"]))
        masks.apply()
        dense = exported(student, bench)
        onnx = stored_sparse(dense)
        changed = {"zeros": round(masks.zeros(), 4), "dense_bytes": len(dense), "stored_bytes": len(onnx)}
        return Made(onnx=onnx, module=student, changed={**changed, **done})


def _is_enough(sparsity: float, so_far: SoFar) -> bool:
    """Whether so many zeros come within the budget's size and latency; what runs is dense, so its ratio is noise."""
    sketch, budget = so_far.sketch({"sparsity": sparsity}), so_far.budget
    return sketch is not None and sketch.size_bytes <= budget.size_bytes and sketch.p95_s <= budget.latency_p95_s


class _Masks:
    """Which weights are left."""

    def __init__(self, module: "nn.Module") -> None:
        import torch

        self._weights = {
            name: weight
            for name, weight in module.named_parameters()
            if weight.ndim >= 2 and weight.numel() >= _SMALLEST and weight.is_floating_point()
        }
        if not self._weights:
            raise InvalidInput(f"no layer has as many as {_SMALLEST} weights, so there is nothing to prune")
        self._masks: dict[str, torch.Tensor] = {name: torch.ones_like(w) for name, w in self._weights.items()}

    def draw(self, sparsity: float) -> None:
        """Keep the largest, in units of each layer's spread."""
        import torch

        with torch.no_grad():
            sizes = {name: w.abs() / w.std().clamp(min=1e-12) for name, w in self._weights.items()}
            every = torch.cat([size.flatten() for size in sizes.values()])
            # More than 16 million numbers are too many for torch's own quantile.
            bound = (
                torch.kthvalue(every, max(1, min(len(every), round(sparsity * len(every))))).values if sparsity else -1
            )
            self._masks = {name: (size > bound).to(size.dtype) for name, size in sizes.items()}

    def draw_below(self, threshold: float) -> None:
        """Keep what is as large as `threshold`, in the weights' own unit."""
        self._masks = {name: (w.detach().abs() >= threshold).to(w.dtype) for name, w in self._weights.items()}

    def apply(self) -> None:
        import torch

        with torch.no_grad():
            for name, weight in self._weights.items():
                weight.mul_(self._masks[name])

    def zeros(self) -> float:
        """Return the share of zeros among the weights that can go."""
        total = sum(weight.numel() for weight in self._weights.values())
        return 1 - sum(float((weight != 0).sum()) for weight in self._weights.values()) / total
