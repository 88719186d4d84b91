"""Does distillation beat hard labels? One student, trained twice from the same weights: as the teacher answers, and
as the labels say.

The student has every second layer of the fine-tuned encoder, so half of the work. Both trainings are Argosy's own
(`argosy.compress.teaching`), with the same batches, steps and rates; they differ in the share of the teacher's answers
alone. Accuracy is on the independent test set.
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

EPOCHS = 3
SOFT_SHARE = 0.7
KEPT = (0, 2, 4)
"""The layers of the encoder that the student begins with."""


def student_of(teacher: Any) -> Any:
    """Return a copy with every second layer."""
    import torch

    student = copy.deepcopy(teacher)
    student.model.encoder.layer = torch.nn.ModuleList(student.model.encoder.layer[number] for number in KEPT)
    student.model.config.num_hidden_layers = len(KEPT)
    return student


def distillation_against_hard_labels(
    place: Place, job: given.Job, seeds: Sequence[int], *, epochs: int = EPOCHS
) -> list[dict[str, Any]]:
    """Return one entry per seed and way: accuracy on the test part, seconds, epochs."""
    from argosy.compress.quality import Samples
    from argosy.compress.teaching import Lesson, teach
    from argosy.core.progress import silent
    from argosy.formats.onnx_runtime import OnnxRunner

    runner = OnnxRunner.load(place.onnx)
    samples = Samples(Prepared(job), runner)
    teacher = modules.build(place.spec)
    with np.load(place.hidden / "test.npz") as test:
        inputs = {name: test[name] for name in test.files if name != "y"}
        truth = test["y"]
    found = [{"way": "the teacher", "seed": 0, "accuracy": _accuracy(teacher, inputs, truth), "seconds": 0.0}]
    for seed in seeds:
        for way, share in (("hard labels", 0.0), ("distilled", SOFT_SHARE)):
            student = student_of(teacher)
            lesson = Lesson(
                epochs=epochs, seconds=float("inf"), batch_size=16, learning_rate=3e-4, seed=seed, soft_share=share
            )
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
