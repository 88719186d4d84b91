"""What the monitor tells of jobs and updates, by the log: the same numbers after a restart."""

import contextlib
from collections.abc import Iterable, Iterator

from argosy.cluster.launcher import ProcessInfo
from argosy.core.errors import ArgosyError
from argosy.operate.folding import LogLike
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.view import JobView, look_at_jobs
from argosy.serve.counters import Labels

STATES = (f.WAITING, f.RUNNING, f.STOPPING)
OUTCOMES = (f.DONE, f.FAILED, f.CANCELLED)
UPDATE_OUTCOMES = ("promoted", "rolled_back", "gate_failed", "failed")
"""Those a rule may wait for; the others are shown from the first time they occur."""

Sample = tuple[str, Labels, float]


class JobMetrics:
    """Jobs of one home, and updates of the endpoints it keeps."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._jobs = Jobs()

    def samples(self, log: LogLike, processes: Iterable[ProcessInfo], now: float) -> list[Sample]:
        """Return the metrics at `now`, in seconds since 1970. When the store fails: with what was known before."""
        with contextlib.suppress(ArgosyError):
            self._jobs.catch_up(log)
        mine = {job.id for job in self._jobs.open_jobs(self._place)}
        views = [view for view in look_at_jobs(self._jobs, processes, now=now) if view.id in mine]
        return [*_of_line(views, now), *self._totals(), *self._updates()]

    def _totals(self) -> Iterator[Sample]:
        for outcome in OUTCOMES:
            yield "argosy_jobs_ended_total", (outcome,), float(self._jobs.ended[self._place, outcome])
        yield "argosy_jobs_interrupted_total", (), float(self._jobs.interrupted[self._place])

    def _updates(self) -> Iterator[Sample]:
        for name, watch in sorted(self._jobs.watches.items()):
            if watch.place != self._place:
                continue
            yield "argosy_update_active", (name,), float(bool(watch.job))
            seen = {outcome for endpoint, outcome in self._jobs.updated if endpoint == name}
            for outcome in sorted(seen | set(UPDATE_OUTCOMES)):
                yield "argosy_updates_ended_total", (name, outcome), float(self._jobs.updated[name, outcome])


def _of_line(views: list[JobView], now: float) -> Iterator[Sample]:
    for state in STATES:
        yield "argosy_jobs", (state,), float(sum(view.state == state for view in views))
    waited = [now - view.submitted for view in views if view.state == f.WAITING]
    yield "argosy_jobs_oldest_wait_seconds", (), max(0.0, *waited) if waited else 0.0
    held = [view for view in views if view.state != f.WAITING]
    yield "argosy_jobs_reserved_cores", (), float(sum(view.cpus for view in held))
    yield "argosy_jobs_reserved_memory_bytes", (), float(sum(view.memory_bytes for view in held))
    yield "argosy_jobs_reserved_gpus", (), float(sum(view.gpus for view in held))
