"""Looks into runs of PyTorch modules: what decides by values, and every operation with its result. Needs torch."""

import linecache
import traceback
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import argosy_child
import torch
from torch.utils._python_dispatch import TorchDispatchMode

shared = argosy_child.job("shared")
modules = argosy_child.job("torch_job")


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Finds where a forward reads a value out of a tensor, to decide by it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = folder
        self.found = ""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if function._overloadpacket is torch.ops.aten._local_scalar_dense and not self.found:  # noqa: SLF001
            for frame in reversed(traceback.extract_stack()):
                if Path(frame.filename).is_relative_to(self.folder):
                    line = linecache.getline(frame.filename, frame.lineno or 0).strip()
                    self.found = f"line {frame.lineno} of '{Path(frame.filename).name}': {line[:120]}"
                    break
        return function(*args, **(kwargs or {}))


def value_dependence(module: Any, example: list[Any], folder: Path) -> str:
    """Return where a module's own code decides by the values of tensors; empty if it doesn't."""
    with torch.no_grad(), _Watch(folder) as watch:
        module(*example)
    return str(watch.found)


def control_flow(where: str, hint: str) -> Any:
    """Return the error for a model whose path depends on values."""
    return argosy_child.Refused(
        f"the model decides by the values of tensors, which a trace can't hold: {where}", hint=hint, code="control_flow"
    )


def follow(config: dict[str, Any], module: Any, inputs: list[dict[str, Any]]) -> dict[str, Any]:
    """Write every operation of one run, with the module it belongs to."""
    samples = shared.load(Path(config["samples"]))
    given = modules.tensors(samples, inputs)
    found = shared.Trace()
    with torch.no_grad(), _Follow(found, given, inputs) as mode, _named(module, mode):
        module(*given)
    found.write(Path(config["trace"]))
    return {}


class _Follow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, found: Any, given: list[Any], inputs: list[dict[str, Any]]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.found = found
        self.layers: list[str] = []
        self.kept = list(given)  # as long as they live, no other tensor has their identity
        self.names = {id(t): one["name"] for t, one in zip(given, inputs, strict=True)}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        result = function(*args, **(kwargs or {}))
        takes = [self.names[id(t)] for t in _tensors((args, kwargs or {})) if id(t) in self.names]
        for tensor in _tensors(result):
            name = f"t{len(self.kept)}"
            self.kept.append(tensor)
            self.names[id(tensor)] = name
            layer = self.layers[-1] if self.layers else ""
            # A copy, because operations in place would change it later.
            value = modules.as_array(tensor).copy() if takes else None
            self.found.add(layer, str(function._overloadpacket).removeprefix("aten."), takes, name, value)  # noqa: SLF001
        return result


def _tensors(found: Any) -> Iterator[Any]:
    if isinstance(found, torch.Tensor):
        yield found
    elif isinstance(found, Mapping):
        for one in found.values():
            yield from _tensors(one)
    elif isinstance(found, (tuple, list)):
        for one in found:
            yield from _tensors(one)


class _named:  # noqa: N801 - used like a function
    """Lets a mode know which submodule runs."""

    def __init__(self, module: Any, mode: _Follow) -> None:
        self.names = {id(part): name for name, part in module.named_modules()}
        self.mode = mode
        self.hooks: list[Any] = []

    def __enter__(self) -> None:
        from torch.nn.modules import module as registry

        def before(part: Any, _: Any) -> None:
            self.mode.layers.append(self.names.get(id(part), ""))

        def after(_: Any, __: Any, ___: Any) -> None:
            self.mode.layers.pop()

        self.hooks = [
            registry.register_module_forward_pre_hook(before),
            registry.register_module_forward_hook(after),
        ]

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
