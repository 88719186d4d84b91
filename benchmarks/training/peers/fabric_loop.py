"""Lightning Fabric with its DDP strategy; it starts the second process itself."""

import sys

import given
from lightning.fabric import Fabric
from lightning.fabric.strategies import DDPStrategy

OPTIONS = dict(word.split("=") for word in sys.argv[3:])


def main() -> None:
    """Train."""
    strategy = DDPStrategy(
        process_group_backend="gloo",
        gradient_as_bucket_view=True,
        static_graph=OPTIONS.get("static_graph") == "yes",
    )
    fabric = Fabric(accelerator="cpu", devices=2, strategy=strategy)
    fabric.launch()
    model = given.model()
    model, optimizer = fabric.setup(model, given.optimizer(model.parameters()))
    steps = given.Steps(fabric.global_rank)
    for inputs, targets in given.Batches(fabric.global_rank, fabric.world_size):
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        fabric.backward(loss)
        optimizer.step()
        steps.done(loss.detach())


if __name__ == "__main__":
    main()
