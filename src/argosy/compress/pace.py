"""How fast a training goes: on which cores, in which datatype, and how many steps the time is enough for."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from argosy.compress.lessons import Lesson, Lessons

if TYPE_CHECKING:
    from torch import nn

_TRIED_STEPS = 3
# A step in bfloat16 must be worth the trouble.
_CLEARLY_FASTER = 0.8
# A plan is made anew by the time of so many steps; with less than the last number a student learns nothing.
_TIMED_SHARE, _TIMED_STEPS, _FEWEST_STEPS = 0.05, 5, 100
MOST_NORM = 1.0
"""Of a step's gradients: longer ones are shortened to it."""


class Course:
    """How many steps there will be: planned by the time of a few, and made shorter where the first take longer."""

    def __init__(self, lesson: Lesson, per_epoch: int, step_s: float) -> None:
        self._lesson, self._per_epoch = lesson, per_epoch
        self._fewest = min(per_epoch, _FEWEST_STEPS)
        epochs = lesson.epochs or min(lesson.most_epochs, self._fitting(step_s) // per_epoch)
        self.total = epochs * per_epoch or self._fitting(step_s)
        self._look_at = 0 if lesson.epochs else max(_TIMED_STEPS, int(_TIMED_SHARE * self.total))
        self._begun = time.monotonic()

    @property
    def epochs(self) -> int:
        """Epochs that are begun."""
        return -(-self.total // self._per_epoch)

    def follow(self, done: int) -> None:
        """Take note of a step; after the first ones, the rest is planned by what they took."""
        if done != self._look_at:
            return
        step_s = (time.monotonic() - self._begun) / done
        self.total = max(done, min(self.total, self._fitting(step_s)))

    def _fitting(self, step_s: float) -> int:
        return int(max(self._fewest, min(1e9, self._lesson.seconds / max(1e-6, step_s))))


@contextlib.contextmanager
def fastest(student: "nn.Module", lessons: Lessons) -> "Iterator[tuple[Callable[[], Any], float]]":
    """Find out whether one core or all, float32 or bfloat16 is the fastest; give the context of a step and its time.

    On a busy machine threads of small layers wait for one another (measured on two cores with a load of 6: 44,000
    weights took 20 times as long with two threads); some processors multiply bfloat16 several times as fast.
    """
    import torch

    before = torch.get_num_threads()
    rows, share = lessons.usual()
    plain: Callable[[], Any] = contextlib.nullcontext

    def half() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    def timed(context: Callable[[], Any], threads: int) -> float:
        torch.set_num_threads(threads)
        times = []
        for _ in range(_TRIED_STEPS):
            begun = time.monotonic()
            with context():
                loss = lessons.loss(student, rows)
            torch.autograd.grad(loss, [p for p in student.parameters() if p.requires_grad], allow_unused=True)
            times.append(time.monotonic() - begun)
        return min(times)

    with still(student):
        found = {threads: timed(plain, threads) for threads in dict.fromkeys((1, before))}
        threads = before if found[before] < 0.7 * found[1] else 1
        best, context = found[threads], plain
        with contextlib.suppress(RuntimeError):  # an operation that knows no bfloat16
            quick = timed(half, threads)
            if quick < _CLEARLY_FASTER * best:
                best, context = quick, half
    torch.set_num_threads(threads)
    try:
        yield context, best / share + _update_s(student)
    finally:
        torch.set_num_threads(before)


def _update_s(student: "nn.Module") -> float:
    """How long the optimizer takes for a step: for a large table of words as long as all the rest."""
    import torch

    copies = [p.detach().clone().requires_grad_() for p in student.parameters() if p.requires_grad]
    for copy in copies:
        copy.grad = torch.zeros_like(copy)
    optimizer = torch.optim.AdamW(copies)
    times = []
    for _ in range(_TRIED_STEPS):
        begun = time.monotonic()
        torch.nn.utils.clip_grad_norm_(copies, MOST_NORM)
        optimizer.step()
        times.append(time.monotonic() - begun)
    return min(times)


@contextlib.contextmanager
def still(student: "nn.Module") -> Iterator[None]:
    """Let it answer without moving the statistics of batch norms."""
    training = student.training
    student.eval()
    try:
        yield
    finally:
        student.train(training)
