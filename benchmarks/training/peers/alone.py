"""The plain loop of PyTorch's manual, in one process: with `--ranks 2` two of them side by side that exchange nothing.

Side by side they are the limit: nothing that exchanges anything can be faster. They begin together, and whoever is done
goes on until the others are, so that all steps that count ran beside others.
"""

import subprocess
import sys
import time

import given

RANKS = int(sys.argv[3])
RANK = int(sys.argv[4]) if len(sys.argv) > 4 else -1


def start() -> None:
    """Start the ranks and wait for them."""
    started = [subprocess.Popen([sys.executable, *sys.argv, str(rank)]) for rank in range(RANKS)]
    sys.exit(max(process.wait() for process in started))


def wait_for_all(sign: str) -> None:
    """Stand still until every rank has shown its sign."""
    (given.OUT / f"{sign}-{RANK}").touch()
    while not have_all(sign):
        time.sleep(0.001)


def have_all(sign: str) -> bool:
    """Whether every rank has shown its sign."""
    return all((given.OUT / f"{sign}-{rank}").exists() for rank in range(RANKS))


def main() -> None:
    """Train."""
    model = given.model()
    optimizer = given.optimizer(model.parameters())
    batches, steps = given.Batches(RANK, RANKS), given.Steps(RANK)

    def step(inputs: given.Tensor, targets: given.Tensor) -> given.Tensor:
        optimizer.zero_grad()
        loss = given.loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    wait_for_all("ready")
    for inputs, targets in batches:
        steps.done(step(inputs, targets))
    (given.OUT / f"done-{RANK}").touch()
    while not have_all("done"):
        step(*batches[0])


if __name__ == "__main__":
    if RANK < 0:
        start()
    else:
        main()
