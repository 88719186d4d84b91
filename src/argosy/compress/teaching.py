"""Training a smaller model to answer as the original does, from arrays in memory.

The student only ever sees what the original answered, so an epoch costs what the student costs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from argosy.compress.lessons import Arrays, Insight, Lesson, Lessons, named, tensor_of
from argosy.compress.pace import MOST_NORM, Course, fastest, still
from argosy.compress.quality import Samples
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress, Reporter, seldom
from argosy.formats.runner import Answering, Runner

if TYPE_CHECKING:
    import torch
    from torch import nn

TRIALS = (0.25, 0.5, 0.75)
"""Whether a training has a chance is asked at these shares of it."""
_WARMUP = 0.1
_WEIGHT_DECAY = 0.01
_ASKED = "teaching: what the original answers to the training part"


def teach(
    student: "nn.Module",
    original: Runner,
    samples: Samples,
    lesson: Lesson,
    report: Reporter,
    *,
    label: str,
    after_step: Callable[[float], None] | None = None,
    trial: Callable[[Answering, float], None] | None = None,
    file: Path | None = None,
    notes: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train `student` in place, in the order of its inputs; return what was done: epochs, steps, the last loss.

    `after_step` is told after each step how much of the training is done, 0 to 1. `trial` is shown the student at each
    share of `TRIALS`; what it raises ends the training. `file` is the original's ONNX file, for a classifier to learn
    the values before its last layer from. What the original answers is kept in `notes` for the next training.
    Raises InvalidInput when the training diverges; the student is of no use then.
    """
    import torch

    names = [spec.name for spec in original.signature.inputs]
    inputs = named(samples.train, names)
    notes = {} if notes is None else notes
    insight = None
    if samples.task in {"classification", "regression"}:
        if _ASKED not in notes:
            notes[_ASKED] = Insight.of(original, samples, file, _asking(report, label))
        insight = notes[_ASKED].for_student(student)
    lessons = Lessons(original, samples, inputs, lesson, insight)
    parameters = [p for p in student.parameters() if p.requires_grad]
    if not parameters:
        raise InvalidInput("the model has no weights that could be trained")
    threads = torch.get_num_threads()
    was = torch.random.get_rng_state()
    torch.manual_seed(lesson.seed)
    try:
        student.train()
        with lessons.listening(student), fastest(student, lessons) as (context, step_s):
            course = Course(lesson, lessons.batches, step_s)
            tell = _telling(student, original, after_step, trial)
            return _train(student, parameters, lessons, lesson, context, course, report, label, tell)
    finally:
        student.eval()
        torch.set_num_threads(threads)
        torch.random.set_rng_state(was)


def _asking(report: Reporter, label: str) -> Callable[[int, int], None]:
    report = seldom(report)

    def tell(done: int, total: int) -> None:
        message = f"{label}: asking the original"
        report(Progress(stage="compress", message=message, done=done, total=total, unit="samples"))

    return tell


def _train(  # noqa: PLR0917 - called once, from `teach`
    student: "nn.Module",
    parameters: "Sequence[torch.Tensor]",
    lessons: Lessons,
    lesson: Lesson,
    context: Callable[[], Any],
    course: Course,
    report: Reporter,
    label: str,
    tell: Callable[[float], None],
) -> dict[str, Any]:
    import torch

    optimizer = torch.optim.AdamW(parameters, lr=lesson.learning_rate, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / course.total))
    report, done = seldom(report), 0
    while done < course.total:
        epoch = done // lessons.batches
        for rows in lessons.epoch(epoch):
            with context():
                loss = lessons.loss(student, rows)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(parameters, MOST_NORM)
            optimizer.step()
            done += 1
            course.follow(done)
            schedule.step()
            tell(done / course.total)
            report(
                Progress(
                    stage="compress",
                    message=f"{label}: epoch {epoch + 1} of {course.epochs}, loss {float(loss.detach()):.4g}",
                    done=done,
                    total=course.total,
                    unit="steps",
                )
            )
            if done >= course.total:
                break
        mean = float(loss.detach())
        if not np.isfinite(mean):
            raise InvalidInput(f"the training of the smaller model diverged in epoch {epoch + 1}")
    whole, rest = divmod(done, lessons.batches)
    return {"epochs": round(done / lessons.batches, 2) if rest else whole, "steps": done, "loss": round(mean, 6)}


def _telling(
    student: "nn.Module",
    original: Runner,
    after_step: Callable[[float], None] | None,
    trial: Callable[[Answering, float], None] | None,
) -> Callable[[float], None]:
    """What is called after each step."""
    left = list(TRIALS if trial is not None else ())

    def tell(share: float) -> None:
        if after_step is not None:
            after_step(share)
        if trial is not None and left and share >= left[0]:
            reached = left.pop(0)
            if share < 1:
                with still(student):
                    trial(Student(student, original), reached)

    return tell


class Student:
    """A module in training, with the original's inputs and outputs."""

    def __init__(self, student: "nn.Module", original: Runner) -> None:
        self._student, self.signature = student, original.signature

    def run(self, inputs: Arrays) -> Arrays:
        """Answer as the student does now."""
        import torch

        given = (tensor_of(inputs[spec.name]) for spec in self.signature.inputs)
        with torch.no_grad():
            answer = self._student(*given)
        parts = answer if isinstance(answer, tuple) else (answer,)
        return {spec.name: part.numpy() for spec, part in zip(self.signature.outputs, parts, strict=False)}


def _rate(progress: float) -> float:
    """Linear warm-up, then the half of a cosine (Loshchilov and Hutter 2017, equation 5)."""
    if progress < _WARMUP:
        return (progress + 1e-3) / (_WARMUP + 1e-3)
    return float(0.5 * (1 + np.cos(np.pi * (progress - _WARMUP) / (1 - _WARMUP))))
