"""Which jobs to start and which to stop now: a pure function. `docs/decisions/0018-jobs.md` says why so.

Jobs stand in one line. A step of priority is worth half an hour of waiting, so that the line needs no clock and nobody
waits for ever. The first in line that does not fit yet is the head: what stands behind it may pass only where that
does not delay it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec

PRIORITY_S = 1800.0
"""Seconds of waiting that one step of priority is worth."""
MOST_PRIORITY = 10


class Resources(msgspec.Struct, frozen=True, order=False):
    """An amount of what jobs share."""

    cpus: int = 0
    memory_bytes: int = 0
    gpus: int = 0

    def __add__(self, other: "Resources") -> "Resources":
        return Resources(*(a + b for a, b in zip(self.parts, other.parts, strict=True)))

    def __sub__(self, other: "Resources") -> "Resources":
        return Resources(*(a - b for a, b in zip(self.parts, other.parts, strict=True)))

    @property
    def parts(self) -> tuple[int, int, int]:
        """The amounts, in the order of the fields."""
        return self.cpus, self.memory_bytes, self.gpus

    def fits(self, room: "Resources") -> bool:
        """Return whether `room` has all of this; what is not asked for does not count, even where it is overdrawn."""
        return all(need <= has or need == 0 for need, has in zip(self.parts, room.parts, strict=True))


class Waiting(msgspec.Struct, frozen=True, kw_only=True):
    """A job that does not run."""

    id: str
    needs: Resources
    priority: int = 0
    submitted: float
    """Wall clock, of its entry in the log."""
    estimate_s: float = 0.0
    """How long it will take; 0: not known."""
    is_held: bool = False
    """Whether it must not start yet, because it was just stopped or has just failed to start."""


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A job that has its resources."""

    id: str
    needs: Resources
    priority: int = 0
    submitted: float
    left_s: float = 0.0
    """How long it will still take; 0: not known, or longer than was thought."""
    is_stopping: bool = False
    """Whether it was asked to stop; it holds what it has until it is gone."""


class Start(NamedTuple):
    """Give a job what it needs, all at once."""

    id: str
    why: str


class Stop(NamedTuple):
    """Have a job stop after its checkpoint; it goes on later."""

    id: str
    reason: str
    is_urgent: bool
    """Whether replicas need the memory."""


Action = Start | Stop


class _Room:
    """What is free, while jobs are being placed."""

    def __init__(self, free: Resources, available_bytes: int) -> None:
        self.free = free
        self.available_bytes = available_bytes

    def takes(self, needs: Resources) -> bool:
        return needs.fits(self.free) and needs.memory_bytes <= self.available_bytes

    def give(self, needs: Resources) -> None:
        self.free -= needs
        self.available_bytes -= needs.memory_bytes


def place_in_line(job: Waiting | Running) -> tuple[float, str]:
    """Return what jobs are ordered by, first come first: when it was submitted, earlier by its priority."""
    return job.submitted - PRIORITY_S * job.priority, job.id


def schedule(
    capacity: Resources, waiting: Sequence[Waiting], running: Sequence[Running], *, available_bytes: int = 1 << 62
) -> list[Action]:
    """Return what to do now. `available_bytes`: memory that the machine really has left for jobs that start.

    Every set it admits fits `capacity`; when that shrinks below what runs, jobs are stopped until the rest fits.
    """
    actions: list[Action] = list(_relieve(capacity, running))
    gone = {action.id for action in actions}
    running = [msgspec.structs.replace(job, is_stopping=True) if job.id in gone else job for job in running]
    room = _Room(capacity - _total(running), available_bytes)
    line = [job for job in sorted(waiting, key=place_in_line) if not job.is_held and job.needs.fits(capacity)]
    ends = [(job.needs, 0.0 if job.is_stopping else job.left_s) for job in running]
    while line and room.takes(line[0].needs):
        job = line.pop(0)
        room.give(job.needs)
        ends.append((job.needs, job.estimate_s))
        actions.append(Start(job.id, "first in line"))
    if line:
        head = line[0]
        stops = _preempt(head, room.free, running)
        actions += stops
        # What is being stopped may be gone at any moment.
        actions += _pass(head, line[1:], room, [*ends, (Resources(), 0.0)] if stops else ends)
    return actions


def _relieve(capacity: Resources, running: Sequence[Running]) -> Iterable[Stop]:
    """Stop the lowest and youngest jobs until the others fit what is there."""
    staying = [job for job in running if not job.is_stopping]
    while staying and not (total := _total(staying)).fits(capacity):
        short = [n > c for n, c in zip(total.parts, capacity.parts, strict=True)]
        victims = [j for j in staying if any(n and s for n, s in zip(j.needs.parts, short, strict=True))]
        victim = min(victims, key=_worth)
        staying.remove(victim)
        yield Stop(victim.id, "endpoints need the memory" if short[1] else "the machine has become smaller", True)


def _worth(job: Running) -> tuple[int, float, str]:
    return job.priority, -job.submitted, job.id


def _preempt(head: Waiting, free: Resources, running: Sequence[Running]) -> list[Stop]:
    """Stop jobs of strictly lower priority that stand behind the head, as few as make it fit; none if that fails.

    Behind it in line: otherwise a job that has waited long would start again before the one it was stopped for.
    """
    free = free + _total(job for job in running if job.is_stopping)
    chosen: list[Running] = []
    lower = [
        job
        for job in running
        if not job.is_stopping and job.priority < head.priority and place_in_line(job) > place_in_line(head)
    ]
    for job in sorted(lower, key=_worth):
        if head.needs.fits(free):
            break
        chosen.append(job)
        free += job.needs
    if not head.needs.fits(free):
        return []
    for job in reversed(chosen[:]):
        if head.needs.fits(free - job.needs):
            chosen.remove(job)
            free -= job.needs
    return [Stop(job.id, f"'{head.id}' of priority {head.priority} needs its place", False) for job in chosen]


def _pass(
    head: Waiting, behind: Sequence[Waiting], room: _Room, ends: Sequence[tuple[Resources, float]]
) -> Iterable[Start]:
    """Start jobs that don't delay the head: those that end before it can start, and those it leaves room for.

    Where it is not known when something ends, the head may start at any moment; then only what uses nothing that the
    head waits for may pass. Source of the rule: Lifka 1995, "The ANL/IBM SP scheduling system" (EASY backfilling).
    """
    is_known = all(left > 0 for _, left in ends)
    starts_s, spare = _reservation(head, room.free, ends) if is_known else (0.0, Resources())
    for job in behind:
        if not room.takes(job.needs):
            continue
        if not is_known:
            if not _is_beside(job.needs, head.needs, room.free):
                continue
        elif not 0 < job.estimate_s <= starts_s:
            if not job.needs.fits(spare):
                continue
            spare -= job.needs
        room.give(job.needs)
        yield Start(job.id, f"it does not delay '{head.id}', which waits")


def _reservation(head: Waiting, free: Resources, ends: Sequence[tuple[Resources, float]]) -> tuple[float, Resources]:
    """Return after how many seconds the head fits, as far as is known, and what is left beside it then."""
    moment = 0.0
    for needs, left in sorted(ends, key=lambda end: end[1]):
        if left > moment and head.needs.fits(free):
            break
        free += needs
        moment = left
    return moment, free - head.needs


def _is_beside(needs: Resources, head: Resources, free: Resources) -> bool:
    return all(
        need == 0 or wanted + need <= has for need, wanted, has in zip(needs.parts, head.parts, free.parts, strict=True)
    )


def _total(jobs: Iterable[Running]) -> Resources:
    total = Resources()
    for job in jobs:
        total += job.needs
    return total
