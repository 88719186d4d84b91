"""PyTorch's DistributedDataParallel over gloo, started by torchrun."""

import sys

import given
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

OPTIONS = dict(word.split("=") for word in sys.argv[3:])


def main() -> None:
    """Train."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(
        given.model(),
        gradient_as_bucket_view=True,
        static_graph=OPTIONS.get("static_graph") == "yes",
        bucket_cap_mb=float(OPTIONS.get("bucket_cap_mb", 25)),
    )
    optimizer = given.optimizer(model.parameters())
    steps = given.Steps(rank)
    for inputs, targets in given.Batches(rank, world_size):
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        steps.done(loss.detach())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
