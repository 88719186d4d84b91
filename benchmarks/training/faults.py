"""What a training loses when a rank is killed or frozen, and what a slow rank costs the others.

Runs in Argosy's environment: python faults.py OUT TASK WHAT SETTINGS
"""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.progress import Progress
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import TrainResult, run_training

HERE = Path(__file__).parent
PEERS = HERE / "peers"
SAME = 1e-6
"""Relative difference of losses up to which two trainings count as the same one."""


@dataclass
class Seen:
    """What the job has told, and when."""

    news: list[tuple[float, Progress]] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def __call__(self, news: Progress) -> None:
        """Take one piece of news."""
        with self.changed:
            self.news.append((time.monotonic(), news))
            self.changed.notify_all()

    def await_steps(self, steps: float) -> None:
        """Wait until so many steps are done."""
        with self.changed:
            self.changed.wait_for(lambda: any(news.done >= steps for _, news in self.news), timeout=120)

    def first(self, since: float, *, notice: bool, beyond: float = 0.0) -> float:
        """Return when the first message about ranks came after `since`, or else the first news of further steps."""
        for at, news in self.news:
            is_notice = not news.total and bool(news.message)
            if at >= since and is_notice == notice and (notice or news.done > beyond):
                return at - since
        raise SystemExit("the job said nothing of what was done to its rank" if notice else "no steps came any more")


def train(out: Path, task: Path, settings: dict[str, Any], report: Seen) -> TrainResult:
    """Run a training, as every command does."""
    plan = json.loads((task / "plan.json").read_text())
    told = {"optimizer": plan["optimizer"], "learning_rate": plan["rate"], "batch_size": plan["batch"]}
    options, init = plan["options"], str(task / "weights.safetensors")
    options |= {name: settings[name] for name in options}
    wanted = {name: value for name, value in settings.items() if name not in options}
    config = msgspec.convert(told | {"epochs": plan["epochs"]} | wanted, TrainConfig)
    model = ModelConfig(build=f"models:{plan['model']}", options=options, init=init)
    return run_training(task / "dataset", model, config, PEERS, out, report, threads=1)


def strike(out: Path, task: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Send a signal to one rank in the middle of a training, and compare with the same training left in peace."""
    what, rank = getattr(signal, settings.pop("signal")), settings.pop("rank")
    plan = json.loads((task / "plan.json").read_text())
    calm = train(out / "calm", task, settings, Seen())
    seen, struck = Seen(), [0.0, 0.0]

    def strike_once() -> None:
        seen.await_steps(plan["steps"] * plan["epochs"] // 4)
        pid = rank_pid(out / "struck", rank)
        struck[:] = [time.monotonic(), seen.news[-1][1].done]
        os.kill(pid, what)

    thread = threading.Thread(target=strike_once)
    thread.start()
    found = train(out / "struck", task, settings, seen)
    thread.join()
    at, done = struck
    noticed = seen.first(at, notice=True)
    again = seen.first(at + noticed, notice=False, beyond=done)
    pairs = zip(calm.history, found.history, strict=True)
    differs = max(abs(a["loss"] - b["loss"]) / abs(a["loss"]) for a, b in pairs)
    back = [news.done for moment, news in seen.news if moment > at + noticed and news.total]
    return {
        "noticed_s": noticed,
        "again_s": noticed + again,
        "steps": found.steps,
        "steps_undisturbed": calm.steps,
        "repeated": max(0.0, done - min(back)),
        "same": differs <= SAME,
        "differs": differs,
        "replaced": found.replaced,
        "restarts": found.restarts,
    }


def rank_pid(work: Path, rank: int) -> int:
    """Return the process that is `rank`, from what the launcher keeps of it."""
    records = [path for path in (work / "processes").glob("rank-*/pid.json") if path.parent.name.endswith(f"-{rank}")]
    newest = max(records, key=lambda path: path.stat().st_mtime)
    return int(json.loads(newest.read_text())["pid"])


def straggle(out: Path, task: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the speed of a training, in samples per second without its first epoch."""
    found = train(out, task, settings, Seen())
    plan = json.loads((task / "plan.json").read_text())
    ends = [entry["seconds"] for entry in found.history]
    return {"samples_per_s": plan["batch"] * plan["steps"] * (len(ends) - 1) / (ends[-1] - ends[0])}


def main() -> None:
    """Do what was asked and leave what was found."""
    out, task, settings = Path(sys.argv[1]), Path(sys.argv[2]), json.loads(sys.argv[4])
    found = {"strike": strike, "straggle": straggle}[sys.argv[3]](out, task, settings)
    (out / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
