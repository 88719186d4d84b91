"""The jobs of this home, as the page shows them."""

from collections.abc import Sequence
from pathlib import Path

from argosy.cluster.launcher import Launcher
from argosy.core.clock import Clock
from argosy.core.units import format_size
from argosy.operate.folding import LogLike
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.folders import JobFolders
from argosy.operate.jobs.view import JobView, look_at_jobs
from argosy.web.feed import JobRow, JobSource

MOST_JOBS = 200
"""So many are shown: those that run and wait first, then the newest that ended."""


def jobs_of(home: Path, launcher: Launcher, clock: Clock) -> JobSource:
    """Return what reads the jobs anew at each call; the log is followed, not read again."""
    jobs, folders = Jobs(), JobFolders(home)

    def look(log: LogLike) -> Sequence[JobRow]:
        jobs.catch_up(log)
        seen = look_at_jobs(jobs, launcher.list("job"), now=clock.now(), usage_of=folders.usage)
        return tuple(_row(job) for job in seen[:MOST_JOBS])

    return look


def _row(job: JobView) -> JobRow:
    parts = [f"{job.cpus} core{'s' * (job.cpus != 1)}"]
    parts += [format_size(job.memory_bytes)] if job.memory_bytes else []
    parts += [f"{job.gpus} GPU{'s' * (job.gpus != 1)}"] if job.gpus else []
    return JobRow(
        id=job.id,
        title=job.title,
        state=job.state,
        reason=job.error or job.reason,
        priority=job.priority,
        needs=", ".join(parts),
        submitted=job.submitted,
        seconds=job.seconds,
        endpoint=job.endpoint,
    )
