"""PyTorch's DistributedDataParallel over gloo between hosts, started by torchrun on each; it trains until it is ended.

network_ddp.py SEED SAVE_S [fp16]      saves the model every SAVE_S seconds (0: never)
"""

import itertools
import json
import sys
import time

import given
import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

SEED, SAVE_S, IS_HALF = int(sys.argv[1]), float(sys.argv[2]), "fp16" in sys.argv[3:]


def main() -> None:
    """Train, note the moment of every step, and keep the model from time to time."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    model = DistributedDataParallel(given.model(), gradient_as_bucket_view=True, static_graph=True)
    if IS_HALF:
        model.register_comm_hook(None, default_hooks.fp16_compress_hook)
    optimizer = given.optimizer(model.parameters())
    arrays = np.load(given.TASK / "samples.npz")
    x, y = torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"]).long()
    x = x if x.is_floating_point() else x.long()
    size = given.PLAN["batch"]
    part = slice(size * rank // world_size, size * (rank + 1) // world_size)
    saved = time.monotonic()
    step = 0
    with (given.OUT / f"steps-{rank}.jsonl").open("a", buffering=1) as notes:
        for epoch in itertools.count():
            order = torch.from_numpy(np.random.default_rng([SEED, epoch]).permutation(len(x)))
            for rows in order[: len(x) // size * size].view(-1, size):
                optimizer.zero_grad()
                own = rows[part]
                loss = given.loss_of(model(x[own]), y[own])
                loss.backward()
                optimizer.step()
                step += 1
                notes.write(json.dumps([time.monotonic(), step, float(loss.detach())]) + "\n")
                if rank == 0 and SAVE_S and time.monotonic() - saved >= SAVE_S:
                    saved = time.monotonic()
                    path = given.OUT / f"model-{step}.part"
                    save_file(model.module.state_dict(), path)
                    path.rename(given.OUT / f"model-{step}.safetensors")


if __name__ == "__main__":
    main()
