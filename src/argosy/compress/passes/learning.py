"""What the passes that train have in common: the student learns from the original on the bench."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgspec

from argosy.compress.lessons import Lesson
from argosy.compress.passes import Bench
from argosy.compress.teaching import teach

if TYPE_CHECKING:
    from torch import nn

# The fewer weights are left, the less there is to forget, and the faster a network may learn. (A 25th of a MiniLM, 30
# epochs of Reuters R52: 94.12 % of the test part at a rate of 1e-3, 93.65 % at 3e-4. A 286th of a network for digits, a
# minute: 2.1 and 2.4 points of the validation part lost at 2e-3, 0.3 and 0.6 at 1e-2; a 16th: 0.0 and -0.2 at 5e-3.)
_FASTER, _FASTEST = 1 / 3, 5.0
# Steps of more than that are too long for any network, whatever they began with.
_HIGHEST = 1e-2


def taught(
    student: "nn.Module",
    bench: Bench,
    label: str,
    *,
    lesson: Lesson | None = None,
    shrunk: float = 1.0,
    after_step: Callable[[float], None] | None = None,
    is_tried: bool = False,
) -> dict[str, Any]:
    """Train `student` in place to answer as the original does; return what was done, as `teach` says it.

    `lesson` is that of the bench unless another is given; `shrunk` is how many times as many weights the original has,
    and lets what is left learn faster. With `is_tried` the bench is shown the student now and then.
    Raises InvalidInput when the training diverges, Hopeless when the bench sees no chance.
    """
    lesson = lesson or bench.lesson
    rate = lesson.learning_rate * min(_FASTEST, max(1.0, shrunk) ** _FASTER)
    lesson = msgspec.structs.replace(lesson, learning_rate=max(lesson.learning_rate, min(rate, _HIGHEST)))
    return teach(
        student,
        bench.runner,
        bench.samples,
        lesson,
        bench.report,
        label=label,
        after_step=after_step,
        trial=bench.check_student if is_tried else None,
        file=bench.original.path,
        notes=bench.notes,
    )
