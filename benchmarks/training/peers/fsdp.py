"""PyTorch's FSDP2: parameters, gradients and optimizer state are shared out, and gathered layer by layer."""

import sys

import given
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

OPTIONS = dict(word.split("=") for word in sys.argv[3:])
LARGE = 500_000
"""Parameters from which a part of the model is sharded by itself: smaller ones go with the whole."""


def main() -> None:
    """Train."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    mesh = init_device_mesh("cpu", (world_size,))
    again = OPTIONS.get("reshard") == "yes"
    model = given.model()
    for part in _parts(model):
        fully_shard(part, mesh=mesh, reshard_after_forward=again)
    fully_shard(model, mesh=mesh, reshard_after_forward=again)
    optimizer = given.optimizer(model.parameters(), is_sharded=True)
    steps = given.Steps(rank)
    for inputs, targets in given.Batches(rank, world_size):
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        steps.done(loss.detach())
    dist.destroy_process_group()


def _parts(model: nn.Module) -> list[nn.Module]:
    blocks = [part for name, part in model.named_modules() if name.startswith("blocks.") and name.count(".") == 1]
    children = blocks or list(model.children())
    return [part for part in children if sum(p.numel() for p in part.parameters()) >= LARGE]


if __name__ == "__main__":
    main()
