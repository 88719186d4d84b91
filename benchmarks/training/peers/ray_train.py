"""Ray Train's TorchTrainer, which wraps DDP."""

import sys

import given
import ray
import ray.train
import ray.train.torch
import torch

OPTIONS = dict(word.split("=") for word in sys.argv[3:])


def loop(config: dict[str, str]) -> None:
    """Train, as one worker."""
    torch.set_num_threads(1)
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    model = ray.train.torch.prepare_model(
        given.model(),
        parallel_strategy_kwargs={
            "gradient_as_bucket_view": True,
            "static_graph": config.get("static_graph") == "yes",
        },
    )
    optimizer = given.optimizer(model.parameters())
    steps = given.Steps(rank)
    for inputs, targets in given.Batches(rank, world_size):
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        steps.done(loss.detach())


def main() -> None:
    """Start two workers and wait for them."""
    ray.init(num_cpus=4, include_dashboard=False, log_to_driver=False)
    trainer = ray.train.torch.TorchTrainer(
        loop,
        train_loop_config=OPTIONS,
        torch_config=ray.train.torch.TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(storage_path=str(given.OUT / "storage")),
    )
    trainer.fit()
    ray.shutdown()


if __name__ == "__main__":
    main()
