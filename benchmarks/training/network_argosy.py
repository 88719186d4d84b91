"""Argosy's part of a training over emulated hosts: `run_training` on one of them, until it is ended.

    network_argosy.py OUT TASK SETTINGS HOSTS HOST ADDRESS TOKEN

Runs in Argosy's environment. Checkpoints are kept under the name `model-STEP.safetensors` as they come.
"""

import contextlib
import json
import os
import sys
import threading
import time
from pathlib import Path

import msgspec

from argosy.core.progress import Progress
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.hosts import Hosts
from argosy.train.job import run_training
from argosy.train.outcome import CHECKPOINTS

OUT, TASK = (Path(argument) for argument in sys.argv[1:3])
SETTINGS, COUNT, NUMBER, ADDRESS, TOKEN = json.loads(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), *sys.argv[6:8]
PEERS = Path(__file__).parent / "peers"
_LOOK_S = 0.2


def main() -> None:
    """Train, and note the moment of what is said."""
    plan = json.loads((TASK / "plan.json").read_text())
    train = TrainConfig(optimizer=plan["optimizer"], learning_rate=plan["rate"], batch_size=plan["batch"], epochs=1000)
    train = msgspec.convert(msgspec.to_builtins(train) | SETTINGS, TrainConfig)
    model = ModelConfig(
        build=f"models:{plan['model']}", options=plan["options"], init=str(TASK / "weights.safetensors")
    )
    work = OUT / f"work-{NUMBER}"
    if NUMBER == 0:
        threading.Thread(target=keep, args=(work / CHECKPOINTS,), daemon=True).start()
    with (OUT / f"news-{NUMBER}.jsonl").open("a", buffering=1) as notes:

        def report(news: Progress) -> None:
            notes.write(json.dumps([time.monotonic(), news.done, news.message, bool(news.is_note)]) + "\n")

        run_training(
            TASK / "dataset",
            model,
            train,
            PEERS,
            work,
            report,
            threads=1,
            hosts=Hosts(count=COUNT, number=NUMBER, address=ADDRESS, token=TOKEN),
        )


def keep(folder: Path) -> None:
    """Give every checkpoint a second name, which stays."""
    while True:
        for manifest in folder.glob("step-*.json"):
            target = OUT / f"model-{int(manifest.stem.removeprefix('step-'))}.safetensors"
            if not target.exists():
                with contextlib.suppress(OSError):
                    os.link(manifest.with_suffix(".safetensors"), target)
        time.sleep(_LOOK_S)


if __name__ == "__main__":
    main()
