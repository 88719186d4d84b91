"""A synchronous parameter server over torch.distributed.rpc, after the pattern of PyTorch's tutorial on batched RPC.

Started by torchrun as three processes: one serves, two train.
"""

import os
import threading
import warnings

import given
import torch
from torch.distributed import rpc
from torch.futures import Future, wait_all

WORKERS = 2
Tensors = list[torch.Tensor]


class Server:
    """Holds the parameters; a step is made when all workers' gradients are there."""

    def __init__(self) -> None:
        self.model = given.model()
        self.optimizer = given.optimizer(self.model.parameters())
        self.lock = threading.Lock()
        self.answer: Future[Tensors] = Future()
        self.came = 0

    def weights(self) -> Tensors:
        """Return the parameters."""
        return [parameter.detach() for parameter in self.model.parameters()]

    @staticmethod
    @rpc.functions.async_execution
    def push(server: "rpc.RRef[Server]", gradients: Tensors) -> Future[Tensors]:
        """Take a worker's gradients; the answer comes with the step."""
        self = server.local_value()
        with self.lock:
            answer, parameters = self.answer, list(self.model.parameters())
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if self.came == 0:
                    parameter.grad = gradient
                else:
                    parameter.grad += gradient
            self.came += 1
            if self.came == WORKERS:
                for parameter in parameters:
                    parameter.grad /= WORKERS
                self.optimizer.step()
                self.came, self.answer = 0, Future()
                answer.set_result(self.weights())
        return answer


def train(server: "rpc.RRef[Server]", rank: int) -> None:
    """Train, as one worker."""
    model = given.model()
    steps = given.Steps(rank)
    for inputs, targets in given.Batches(rank, WORKERS):
        model.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        loss.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        weights = rpc.rpc_sync(server.owner(), Server.push, args=(server, gradients))
        with torch.no_grad():
            for parameter, values in zip(model.parameters(), weights, strict=True):
                parameter.copy_(values)
        steps.done(loss.detach())


def main() -> None:
    """Be one of the three."""
    rank = int(os.environ["RANK"])
    warnings.simplefilter("ignore")
    name = "server" if rank == WORKERS else f"worker-{rank}"
    rpc.init_rpc(name, rank=rank, world_size=WORKERS + 1)
    if rank == WORKERS:
        server = rpc.RRef(Server())
        wait_all(
            [rpc.rpc_async(f"worker-{worker}", train, args=(server, worker), timeout=0) for worker in range(WORKERS)]
        )
    rpc.shutdown()


if __name__ == "__main__":
    main()
