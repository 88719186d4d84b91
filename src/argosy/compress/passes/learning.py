"""What the passes that train have in common: the student learns from the original on the bench."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from argosy.compress.passes import Bench
from argosy.compress.teaching import Lesson, teach

if TYPE_CHECKING:
    from torch import nn


def taught(
    student: "nn.Module",
    bench: Bench,
    label: str,
    *,
    lesson: Lesson | None = None,
    after_step: Callable[[float], None] | None = None,
    is_tried: bool = False,
) -> dict[str, Any]:
    """Train `student` in place to answer as the original does; return what was done, as `teach` says it.

    `lesson` is that of the bench unless another is given. With `is_tried` the bench is shown the student now and then.
    Raises InvalidInput when the training diverges, Hopeless when the bench sees no chance.
    """
    return teach(
        student,
        bench.runner,
        bench.samples,
        lesson or bench.lesson,
        bench.report,
        label=label,
        after_step=after_step,
        trial=bench.check_student if is_tried else None,
        file=bench.original.path,
        notes=bench.notes,
    )
