"""Argosy's part of a turn: `run_training` with its settings, as `argosy run` and `argosy train` call it.

Runs in Argosy's environment. Times are those of the training's own history.
"""

import json
import sys
import time
from pathlib import Path

import msgspec

from argosy.core.progress import Progress
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training

OUT, TASK = (Path(argument) for argument in sys.argv[1:3])
PEERS = Path(__file__).parent / "peers"


def main() -> None:
    """Train, and leave what a peer's rank would."""
    plan = json.loads((TASK / "plan.json").read_text())
    train = TrainConfig(
        optimizer=plan["optimizer"],
        learning_rate=plan["rate"],
        batch_size=plan["batch"],
        epochs=plan["epochs"],
        checkpoint_s=3600.0,  # no peer writes any
    )
    train = msgspec.convert(msgspec.to_builtins(train) | json.loads(sys.argv[3]), TrainConfig)
    model = ModelConfig(
        build=f"models:{plan['model']}", options=plan["options"], init=str(TASK / "weights.safetensors")
    )
    signs = {plan["steps"]: "begun", plan["steps"] * (plan["epochs"] - 1): "ended"}

    def report(news: Progress) -> None:
        for steps in [steps for steps in signs if news.done >= steps]:
            (OUT / signs.pop(steps)).touch()

    begun = time.monotonic()
    result = run_training(TASK / "dataset", model, train, PEERS, OUT / "work", report, threads=1)
    ends = [begun + entry["seconds"] for entry in result.history]
    losses = [entry["loss"] for entry in result.history]
    (OUT / "rank-0.json").write_text(json.dumps({"epoch_losses": losses, "ends": ends}))


if __name__ == "__main__":
    main()
