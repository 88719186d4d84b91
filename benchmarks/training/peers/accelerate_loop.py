"""Hugging Face Accelerate, started by torchrun, as its manual allows."""

import sys

import given
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

OPTIONS = dict(word.split("=") for word in sys.argv[3:])


def main() -> None:
    """Train."""
    handler = DistributedDataParallelKwargs(
        gradient_as_bucket_view=True, static_graph=OPTIONS.get("static_graph") == "yes"
    )
    accelerator = Accelerator(cpu=True, kwargs_handlers=[handler])
    model = given.model()
    model, optimizer = accelerator.prepare(model, given.optimizer(model.parameters()))
    steps = given.Steps(accelerator.process_index)
    for inputs, targets in given.Batches(accelerator.process_index, accelerator.num_processes):
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        accelerator.backward(loss)
        optimizer.step()
        steps.done(loss.detach())
    accelerator.end_training()


if __name__ == "__main__":
    main()
