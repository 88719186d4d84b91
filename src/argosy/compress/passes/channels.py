"""Fewer channels: whole rows and columns of the weights go, so that any runtime is faster.

Which channels can only go together (through residual sums, norms and reshapes) is torch-pruning's dependency graph
(Fang et al. 2023, "DepGraph"); which go first is the L2 norm over such a group.
"""

import copy
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing

if TYPE_CHECKING:
    import torch
    from torch import nn

# Fewer channels than this carry too little, and save nothing that can be measured.
_MIN_CHANNELS = 4
# Kernels work on vectors of 8 floats; layers too thin for that are rounded to 4 or not at all.
_ROUNDINGS = (8, 4, 1)


def cut(teacher: "nn.Module", example: "torch.Tensor", ratio: float) -> tuple["nn.Module", list[str]]:
    """Return a copy of `teacher` without `ratio` of its channels, and the layers that could not be cut, with reasons.

    After each cut two samples are run: a cut that breaks the model or changes the output's shape is undone, and its
    layer left whole.
    """
    import torch

    with torch.no_grad():
        shape = teacher(example).shape
    keep = _outermost(teacher, example, shape[-1])
    skipped: list[str] = []
    # Every round finds at most one layer that can't be cut, and begins again without it.
    for _ in range(sum(1 for _ in teacher.modules())):
        student = copy.deepcopy(teacher)
        failed = _cut_all(student, example, ratio, shape, keep)
        if failed is None:
            return student.eval(), skipped + _left_whole(teacher, student, ratio, keep)
        layer, reason = failed
        if not layer or layer in keep:
            raise InvalidInput(f"the channels of this model can't be cut: {reason}")
        keep.add(layer)
        skipped.append(f"{layer}: {reason}")
    return copy.deepcopy(teacher), skipped


def _cut_all(
    student: "nn.Module", example: "torch.Tensor", ratio: float, shape: Any, keep: set[str]
) -> tuple[str, str] | None:
    """Cut in place; return the layer whose cut has failed and why, or None."""
    try:
        import torch_pruning
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error

    layers = dict(student.named_modules())
    names = {id(layer): name for name, layer in layers.items()}
    width = min((size for name, layer in layers.items() if name not in keep and (size := _channels(layer))), default=0)
    rounding = next(size for size in _ROUNDINGS if width * (1 - ratio) >= size or size == 1)
    at: str = ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.pruner.BasePruner(
                student,
                example,
                importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
                pruning_ratio=ratio,
                # Thin layers are cut as far as they can be: the larger the ratio, the smaller the network.
                pruning_ratio_dict={
                    layer: max(0.0, 1 - _MIN_CHANNELS / _channels(layer))
                    for layer in layers.values()
                    if _is_thin(layer, ratio)
                },
                ignored_layers=[layers[name] for name in sorted(keep) if name in layers],
                round_to=rounding,
            )
            for group in pruner.step(interactive=True):
                at = names.get(id(group[0].dep.target.module), "")
                group.prune()
                problem = _broken(student, example, shape)
                if problem:
                    return at, problem
    except Exception as error:  # noqa: BLE001 - torch-pruning traces the user's code and raises whatever that does
        return at, f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:300]
    return None


def _left_whole(teacher: "nn.Module", student: "nn.Module", ratio: float, keep: set[str]) -> list[str]:
    """Return the layers that should have been cut and were not: torch-pruning passes over them without a word."""
    after = dict(student.named_modules())
    return [
        f"{name}: with so many of its channels, all of another layer's would go"
        for name, layer in teacher.named_modules()
        if name not in keep
        and _channels(layer) == _channels(after[name])
        and not _is_thin(layer, ratio)
        and _channels(layer) * (1 - ratio) <= _channels(layer) - _ROUNDINGS[0]
    ]


def _broken(student: "nn.Module", example: "torch.Tensor", shape: Any) -> str:
    import torch

    try:
        with torch.no_grad():
            found = student(example).shape
    except Exception as error:  # noqa: BLE001 - whatever the user's forward method raises
        return f"the model no longer runs without these channels ({type(error).__name__})"
    return "" if found == shape else f"the output would have the shape {list(found)} instead of {list(shape)}"


def _outermost(teacher: "nn.Module", example: "torch.Tensor", outputs: int) -> set[str]:
    """Names of the layers that make the output: the last to run, and what has as many channels as there are outputs."""
    import torch

    ran: list[str] = []
    hooks = [
        layer.register_forward_hook(_noting(ran, name)) for name, layer in teacher.named_modules() if _channels(layer)
    ]
    try:
        with torch.no_grad():
            teacher(example)
    finally:
        for hook in hooks:
            hook.remove()
    layers = dict(teacher.named_modules())
    return set(ran[-1:]) | {name for name in ran if _channels(layers[name]) == outputs}


def _noting(ran: list[str], name: str) -> Callable[..., None]:
    def note(*_: object) -> None:
        ran.append(name)

    return note


def _channels(layer: "nn.Module") -> int:
    from torch import nn

    if isinstance(layer, nn.Linear):
        return layer.out_features
    return layer.out_channels if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) else 0


def _is_thin(layer: "nn.Module", ratio: float) -> bool:
    return 0 < _channels(layer) * (1 - ratio) < _MIN_CHANNELS
