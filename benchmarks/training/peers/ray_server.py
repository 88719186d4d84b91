"""A synchronous parameter server of Ray actors, as Ray's manual builds it: arrays go through its object store."""

import os
import sys

import given
import numpy as np
import ray
import torch

WORKERS = 2
Arrays = list[np.ndarray]


@ray.remote(num_cpus=1)
class Server:
    """Holds the parameters and makes the steps."""

    def __init__(self) -> None:
        torch.set_num_threads(1)
        self.model = given.model()
        self.optimizer = given.optimizer(self.model.parameters())

    def apply(self, *gradients: Arrays) -> Arrays:
        """Make a step of the mean of all workers' gradients; return the parameters."""
        for parameter, *each in zip(self.model.parameters(), *gradients, strict=True):
            total = torch.from_numpy(each[0]).clone()
            for other in each[1:]:
                total += torch.from_numpy(other)
            parameter.grad = total.div_(len(each))
        self.optimizer.step()
        return self.weights()

    def weights(self) -> Arrays:
        """Return the parameters."""
        return [parameter.detach().numpy() for parameter in self.model.parameters()]


@ray.remote(num_cpus=1)
class Worker:
    """Computes gradients of its part of each batch."""

    def __init__(self, rank: int) -> None:
        torch.set_num_threads(1)
        self.model = given.model()
        self.batches, self.steps = given.Batches(rank, WORKERS), given.Steps(rank)
        self.loss = 0.0
        self.step = 0

    def gradients(self, weights: Arrays) -> Arrays:
        """Return the gradients at `weights`."""
        if self.step:
            self.steps.done(self.loss)
        with torch.no_grad():
            for parameter, values in zip(self.model.parameters(), weights, strict=True):
                parameter.copy_(torch.from_numpy(values))
        self.model.zero_grad()
        inputs, targets = self.batches[self.step]
        loss = given.loss_of(self.model(inputs), targets)
        loss.backward()
        self.loss = float(loss.detach())
        self.step += 1
        return [parameter.grad.numpy() for parameter in self.model.parameters()]

    def end(self) -> None:
        """Note the last step."""
        self.steps.done(self.loss)


def main() -> None:
    """Ask the workers for gradients, and the server for a step of them, again and again."""
    # Ray's own checks of arrays that can't be written to are about code that writes to them.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=3 << 30)
    server = Server.remote()
    workers = [Worker.remote(rank) for rank in range(WORKERS)]
    weights = server.weights.remote()
    for _ in range(given.STEPS * given.EPOCHS):
        weights = server.apply.remote(*[worker.gradients.remote(weights) for worker in workers])
        ray.wait([weights])
    ray.get([worker.end.remote() for worker in workers])
    ray.shutdown()


if __name__ == "__main__":
    sys.exit(main())
