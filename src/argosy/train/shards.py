"""A model whose parameters are divided between ranks: PyTorch's FSDP2 around it, and the ways in and out.

torch.distributed is imported here and nowhere else: that takes a second.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from argosy.core.errors import InvalidInput, Unavailable
from argosy.train.slots import Slots
from argosy.train.transport import Host
from argosy.train.units import units

_FORMING_S = 15.0
"""Between processes of one machine, all of which have just met, a group forms in a fraction of a second."""
_EXCHANGE_S = 600.0
"""The longest that NCCL waits for a rank that lives; one that doesn't is noticed by its missing signs of life."""


@contextlib.contextmanager
def group_of(host: Host, device: torch.device) -> Iterator[DeviceMesh]:
    """Make all ranks a process group of torch's while open. Its store is memory of rank 0, without name or port.

    Raises Unavailable (`rank_lost`) when it can't be formed.
    """
    is_cpu = device.type == "cpu"
    # Open until this process ends: what torch has of the store lives longer than the group, and would write to whatever
    # file has the same number then.
    descriptor = os.memfd_create("argosy-group") if host.rank == 0 else -1
    place = np.array([os.getpid(), descriptor], np.int64)
    host.broadcast(place)
    try:
        dist.init_process_group(
            "gloo" if is_cpu else "nccl",
            store=dist.FileStore(f"/proc/{place[0]}/fd/{place[1]}", host.world_size),  # type: ignore[attr-defined]
            rank=host.rank,
            world_size=host.world_size,
            timeout=timedelta(seconds=_FORMING_S if is_cpu else _EXCHANGE_S),
        )
    except RuntimeError as error:
        raise Unavailable(f"the ranks could not form a group: {error}", code="rank_lost") from error
    world = dist.group.WORLD
    assert world is not None
    try:
        yield DeviceMesh.from_group(world, device.type)
    except BaseException:
        world.abort()  # else it would wait for what the others don't send any more
        raise
    finally:
        dist.destroy_process_group()


class Shards:
    """The parameters of `model`, of each of which this rank holds some rows; `close` gives the model back as it was.

    Whole parameters are there only while a unit computes. Gradients are summed over ranks, not averaged. Numbers (with
    no dimension) can't be divided: every rank has them, and `gradient` is only its own. Memory is 1 / ranks of that of
    the parameters, and the largest units, whole, while they compute.
    """

    def __init__(self, model: nn.Module, mesh: DeviceMesh, slots: Slots) -> None:
        self._model, self._slots = model, slots
        self._rank, self._ranks = mesh.get_local_rank(), mesh.size()
        _check(model)
        self._originals = dict(model.named_parameters())
        self._shapes = {name: parameter.shape for name, parameter in self._originals.items()}
        first = {id(parameter): name for name, parameter in self._originals.items()}
        entries = model.state_dict(keep_vars=True)
        self._names = {name: first.get(id(tensor), "") for name, tensor in entries.items()}
        self._homes = [
            (module, own, first[id(parameter)])
            for module in model.modules()
            for own, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        ]
        self._before = [_Before(module) for module in model.modules()]
        self._divide(mesh)
        self._parameters = dict(model.named_parameters())
        for original in self._originals.values():
            if original.dim():
                original.data = original.data.new_empty(0)

    @torch.no_grad()
    def _divide(self, mesh: DeviceMesh) -> None:
        for parameter in self._originals.values():
            parameter.data = parameter.data.contiguous()
        numbers = {parameter for parameter in self._originals.values() if not parameter.dim()}
        for unit in (*units(self._model), self._model):
            made = fully_shard(unit, mesh=mesh, ignored_params=numbers)
            # Our losses are divided by the samples of all ranks already.
            made.set_gradient_divide_factor(1.0)
            made.set_force_sum_reduction_for_comms(True)
            # Data may lead ranks through different parts of a model.
            made.set_reduce_scatter_unused_params(True, recurse=False)
            if mesh.device_type == "cpu":
                made.set_custom_all_gather(cast("Any", _Gather(self._slots)))
                made.set_custom_reduce_scatter(cast("Any", _Scatter(self._slots)))

    def is_on_all(self, name: str) -> bool:
        """Return whether a parameter isn't divided."""
        return not self._shapes[name]

    def own(self, name: str) -> Tensor:
        """Return this rank's rows of a parameter: the memory itself."""
        return _local(self._parameters[name].detach())

    def gradient(self, name: str) -> Tensor:
        """Return the gradient of this rank's rows [elements], zeros where the parameter had no part in the step."""
        gradient = self._parameters[name].grad
        return torch.zeros_like(self.own(name)).view(-1) if gradient is None else _local(gradient).view(-1)

    def forget_gradients(self) -> None:
        """Let backward passes begin from nothing."""
        for parameter in self._parameters.values():
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """Return this rank's parts by the names of the model's `state_dict`: the memory itself."""
        return {
            name: self.own(parameter) if parameter else self._model.get_buffer(name)
            for name, parameter in self._names.items()
        }

    def part_of(self, name: str, whole: Tensor) -> Tensor:
        """Return this rank's part of a whole tensor of the model's `state_dict`."""
        parameter = self._names[name]
        if not parameter or self.is_on_all(parameter):
            return whole
        rows = self._rows(parameter)
        return whole[rows * self._rank : rows * (self._rank + 1)]

    @torch.no_grad()
    def join(self, name: str, part: Tensor, *, everywhere: bool = False) -> Tensor:
        """Return the whole of `part`, on the CPU; on ranks other than 0 something empty, unless `everywhere`.

        All ranks call it. `part` may have any values in the place of those rows of `name`, as optimizer state has.
        """
        parameter = self._names[name]
        if not parameter or self.is_on_all(parameter):
            return part.detach().cpu().view(self._shapes[parameter] if parameter else part.shape)
        shape = self._shapes[parameter]
        numel = self._rows(parameter) * shape[1:].numel()
        padded = torch.zeros(numel, dtype=part.dtype)
        padded[: part.numel()].copy_(part.reshape(-1))
        is_wanted = everywhere or self._rank == 0
        joined = torch.empty(self._ranks * numel, dtype=part.dtype) if is_wanted else None
        self._slots.gather(joined, padded)
        return part.new_empty(0) if joined is None else joined[: shape.numel()].view(shape)

    def _rows(self, name: str) -> int:
        """Return the rows per rank; the last ranks may have fewer or none."""
        return -(-self._shapes[name][0] // self._ranks)

    def close(self) -> None:
        """Give every rank's model its whole parameters, as it was before. All ranks call it."""
        for name, original in self._originals.items():
            if original.dim():
                original.data = self.join(name, self.own(name), everywhere=True).to(original.device, copy=True)
            original.grad = None
        for before in self._before:
            before.restore()
        for module, own, name in self._homes:
            setattr(module, own, self._originals[name])
        self._parameters = {}


class _Before:
    """What `fully_shard` changes in a module, for which it has no way back."""

    def __init__(self, module: nn.Module) -> None:
        self._module, self._kind = module, type(module)
        self._names = set(vars(module))
        self._hooks = {name: set(found) for name, found in vars(module).items() if _is_hooks(name)}

    def restore(self) -> None:
        """Make the module what it was; what its own code has added in the meantime stays."""
        for name in set(vars(self._module)) - self._names:
            if "fsdp" in name or "composable" in name:
                delattr(self._module, name)
        for name, keys in self._hooks.items():
            found = getattr(self._module, name)
            for key in set(found) - keys:
                del found[key]
        self._module.__class__ = self._kind


def _is_hooks(name: str) -> bool:
    return name.startswith("_") and "_hooks" in name


def _check(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if getattr(module, "sparse", False) is True:
            raise InvalidInput(
                f"'{name}' gives sparse gradients, which [train] strategy = \"sharded\" can't divide between ranks",
                hint='build it with sparse=False, or set strategy = "data-parallel"',
            )


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class _Memory:
    """Where FSDP2 asks for the memory of an exchange."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Return uninitialized memory."""
        return torch.empty(*size, dtype=dtype, device=device)


class _Gather(_Memory):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **how: Any) -> None:
        """Gather parameters; `how` says group and kind, which are always the same."""
        del how
        self._slots.gather(output_tensor, input_tensor)


class _Scatter(_Memory):
    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, **how: Any) -> None:
        """Add up gradients; `how` as for the other."""
        del how
        self._slots.reduce_scatter(output_tensor, input_tensor)
