"""Does distillation beat hard labels? One student, trained twice from the same weights: as the teacher answers, and
as the labels say.

The student is what Argosy makes of the fine-tuned encoder for a size of 1 MB: one layer, a quarter of its widths and
heads, shared rows of embeddings. Both trainings are Argosy's own (`argosy.compress.teaching`), with the same batches,
steps and rates; they differ in the share of the teacher's answers alone. Accuracy is on the independent test set.
"""

import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from compression.models import Place
from compression.ours import Prepared
from compression.peers import given, modules

EPOCHS = 10
SOFT_SHARE = 0.7
RATE = 1e-3
CUT = {"embeddings": 0.96, "blocks": 0.84, "ratio": 0.75, "heads": 0.75}


def student_of(teacher: Any, place: Place, runner: Any, samples: Any, lesson: Any) -> Any:
    """Return what `slim` with these settings leaves of the teacher, untrained."""
    from argosy.compress.passes import Bench, Model
    from argosy.compress.passes.slim import slimmer
    from argosy.core.progress import silent

    bench = Bench(
        original=Model(path=place.onnx, module=lambda: teacher),
        runner=runner,
        samples=samples,
        lesson=lesson,
        seed=0,
        check_draft=lambda _: None,
        check_student=lambda *_: None,
        report=silent,
    )
    return slimmer(teacher, CUT, bench)[0]


def distillation_against_hard_labels(
    place: Place, job: given.Job, seeds: Sequence[int], *, epochs: int = EPOCHS
) -> list[dict[str, Any]]:
    """Return one entry per seed and way: accuracy on the test part, seconds, epochs."""
    from argosy.compress.lessons import Lesson
    from argosy.compress.quality import Samples
    from argosy.compress.teaching import teach
    from argosy.core.progress import silent
    from argosy.formats.onnx_runtime import OnnxRunner

    runner = OnnxRunner.load(place.onnx)
    samples = Samples(Prepared(job), runner)
    teacher = modules.build(place.spec)
    with np.load(place.hidden / "test.npz") as test:
        inputs = {name: test[name] for name in test.files if name != "y"}
        truth = test["y"]
    found = [{"way": "the teacher", "seed": 0, "accuracy": _accuracy(teacher, inputs, truth), "seconds": 0.0}]
    untrained = None
    for seed in seeds:
        for way, share in (("hard labels", 0.0), ("distilled", SOFT_SHARE)):
            lesson = Lesson(
                epochs=epochs, seconds=float("inf"), batch_size=16, learning_rate=RATE, seed=seed, soft_share=share
            )
            untrained = untrained or student_of(teacher, place, runner, samples, lesson)
            student = copy.deepcopy(untrained)
            begun = time.monotonic()
            # Hard labels alone say nothing of what the teacher knows before its last layer.
            file = place.onnx if share else None
            teach(student, runner, samples, lesson, silent, label=f"{way}, seed {seed}", file=file)
            line = {
                "way": way,
                "seed": seed,
                "accuracy": _accuracy(student, inputs, truth),
                "seconds": time.monotonic() - begun,
                "epochs": epochs,
            }
            print(f"  {way}, seed {seed}: {line['accuracy']:.2%} in {line['seconds']:.0f} s", flush=True)
            found.append(line)
    return found


def gains(found: Sequence[dict[str, Any]]) -> list[float]:
    """Return by how much of accuracy distillation is ahead, for each seed."""
    by = {(line["way"], line["seed"]): line["accuracy"] for line in found}
    return [value - by["hard labels", seed] for (way, seed), value in by.items() if way == "distilled"]


def _accuracy(module: Any, inputs: given.Arrays, truth: np.ndarray) -> float:
    import torch

    def run(batch: given.Arrays) -> np.ndarray:
        with torch.inference_mode():
            return module(*(torch.from_numpy(array) for array in batch.values())).numpy()

    return given.quality("accuracy", given.answers(run, inputs), truth)


if __name__ == "__main__":
    sys.exit(f"started by {Path(__file__).parents[1] / 'compression.py'}")
