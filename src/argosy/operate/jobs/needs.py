"""What a job is counted with when nobody has said it: what one like it took, or a careful guess."""

from argosy.operate.jobs import fold as f
from argosy.operate.jobs.fold import Job, Jobs
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.updater import Needs

GUESS_BYTES = 1_000_000_000
"""A small training with PyTorch takes some 700 MB, most of it PyTorch's own."""
MARGIN = 1.1
"""How much more than the last one of its kind took."""


def last_like(jobs: Jobs, title: str) -> Job | None:
    """Return the last job of this title that was done and seen to take memory."""
    found = [job for job in jobs.jobs.values() if job.title == title and job.outcome == f.DONE and job.peak_bytes]
    return max(found, key=lambda job: job.ended_seq, default=None)


def needs_like(
    jobs: Jobs,
    title: str,
    machine: Resources,
    *,
    cpus: int = 0,
    memory_bytes: int = 0,
    gpus: int = 0,
    estimate_s: float = 0.0,
    expected_bytes: int = 0,
) -> Needs:
    """Return what a job is counted with. What is stated counts; 0 is not stated.

    Memory, in this order: stated, what the last one of its title took at most, `expected_bytes` (what a plan says),
    a gigabyte. Cores: all of them, so that jobs run one after the other, which wastes the least.
    """
    former = last_like(jobs, title)
    seen = int(former.peak_bytes * MARGIN) if former is not None else 0
    memory = memory_bytes or min(seen or expected_bytes or GUESS_BYTES, machine.memory_bytes)
    took = former.seconds if former is not None else 0.0
    return Needs(
        resources=Resources(cpus or machine.cpus, memory, gpus),
        estimate_s=estimate_s or took,
    )
