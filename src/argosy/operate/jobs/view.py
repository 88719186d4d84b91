"""What an operator sees of jobs and updates, as plain values; CLI and page only draw them. Nothing is changed."""

from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from argosy.cluster.launcher import ProcessInfo
from argosy.core.errors import ArgosyError
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.config import UpdateConfig, next_time
from argosy.operate.jobs.fold import Job, Jobs, Outcome, Watch
from argosy.operate.jobs.schedule import Waiting, place_in_line
from argosy.operate.jobs.scheduler import Usage
from argosy.operate.jobs.sources import problem, read_project
from argosy.operate.jobs.updates import in_words


class JobView(msgspec.Struct, frozen=True, kw_only=True):
    """One job."""

    id: str
    title: str
    command: str
    """As it would be typed."""
    folder: str
    state: str
    """waiting, running, stopping, done, failed, cancelled."""
    reason: str
    """Why it is in this state."""
    place_in_line: int
    """1 for the first that waits; 0 for those that don't."""
    priority: int
    cpus: int
    memory_bytes: int
    gpus: int
    actor: str
    submitted: float
    started: float
    """0 before."""
    ended: float
    """0 before."""
    seconds: float
    """Time it has run, all attempts together."""
    left_s: float
    """About how long it will still take; -1 when not known."""
    attempt: int
    peak_bytes: int
    exit_code: int | None
    error: str
    error_code: str
    versions: tuple[str, ...]
    """What it made."""
    endpoint: str
    """What it is an update of; empty for others."""


class UpdateView(msgspec.Struct, frozen=True, kw_only=True):
    """The updates of one endpoint."""

    endpoint: str
    file: str
    on: tuple[str, ...]
    state: str
    """off (the file has no [update]), idle, asked, running, releasing, trouble."""
    detail: str
    """More on the state, in words."""
    job: str
    version: str
    rollout: str
    last: Outcome | None
    last_in_words: str
    next_at: float
    """When the next one is due by schedule, in seconds since 1970; 0: by nothing but data or hand."""


def look_at_jobs(
    jobs: Jobs,
    processes: Iterable[ProcessInfo] = (),
    *,
    now: float,
    usage_of: Callable[[str, int], Usage] = lambda _id, _attempt: Usage(),
) -> tuple[JobView, ...]:
    """Return all known jobs: those that run, those that wait in their order, then those that ended, newest first.

    `processes`: those of role `job`; `usage_of`: what an attempt takes (`JobFolders(home).usage`).
    """
    living = {info.name for info in processes if info.alive}
    line = sorted((job for job in jobs.jobs.values() if _state(job, living) == f.WAITING), key=_line_key)
    places = {job.id: number for number, job in enumerate(line, start=1)}
    shown = sorted(jobs.jobs.values(), key=lambda job: _order(job, places))
    return tuple(_view(job, places, living, now, usage_of) for job in shown)


def look_at_updates(jobs: Jobs) -> tuple[UpdateView, ...]:
    """Return the updates of all endpoints that come from a project. Reads the project files of this machine."""
    return tuple(look_at_update(jobs, watch) for _, watch in sorted(jobs.watches.items()))


def look_at_update(jobs: Jobs, watch: Watch) -> UpdateView:
    """Return the updates of one endpoint."""
    config, trouble = _config(watch)
    state, detail = _update_state(jobs, watch, config, trouble)
    return UpdateView(
        endpoint=watch.endpoint,
        file=watch.file,
        on=config.on if config is not None else (),
        state=state,
        detail=detail,
        job=watch.job,
        version=watch.version,
        rollout=watch.rollout,
        last=watch.last,
        last_in_words=in_words(watch),
        next_at=next_time(config, watch.asked or watch.since) if config is not None else 0.0,
    )


def _config(watch: Watch) -> tuple[UpdateConfig | None, str]:
    try:
        project = read_project(Path(watch.file))
    except ArgosyError as error:
        return None, problem(error)
    if project.update is not None and project.train and "://" not in project.train:
        missing = [name for name in (project.train, project.test) if name and not (project.base / name).exists()]
        if missing:
            return project.update, f"there is no data '{missing[0]}' any more, as '{watch.file}' names it"
    return project.update, ""


def _update_state(jobs: Jobs, watch: Watch, config: UpdateConfig | None, trouble: str) -> tuple[str, str]:
    if watch.rollout:
        return "releasing", f"{watch.version} by rollout {watch.rollout}"
    job = jobs.jobs.get(watch.job)
    if watch.job and job is not None and job.is_open:
        why = f", because of: {watch.current.reason}" if watch.current is not None else ""
        return "running", f"job {job.id} {job.state}{why}"
    if watch.job:
        return "releasing", f"job {watch.job} has ended"
    if trouble:
        return "trouble", trouble
    if watch.pending is not None:
        return "asked", watch.pending.reason
    if config is None or not config.on:
        return "off", "by hand only: argosy update " + watch.endpoint
    return "idle", ""


def _state(job: Job, living: set[str]) -> str:
    if not job.is_open:
        return job.outcome
    if job.state == f.STOPPING and job.process not in living:
        return f.WAITING
    return f.STOPPING if job.is_cancelled and job.state == f.RUNNING else job.state


def _line_key(job: Job) -> tuple[float, str]:
    return place_in_line(Waiting(id=job.id, needs=job.needs, priority=job.priority, submitted=job.submitted))


def _order(job: Job, places: dict[str, int]) -> tuple[int, float]:
    if job.id in places:
        return 1, places[job.id]
    return (0, job.started) if job.is_open else (2, -job.ended)


def _view(
    job: Job, places: dict[str, int], living: set[str], now: float, usage_of: Callable[[str, int], Usage]
) -> JobView:
    state = _state(job, living)
    usage = usage_of(job.id, job.attempt) if job.is_open and job.attempt else Usage()
    running = max(0.0, now - job.attempted) if state in (f.RUNNING, f.STOPPING) else 0.0
    left = max(0.0, job.estimate_s - running) if job.estimate_s and job.is_open else -1.0
    return JobView(
        id=job.id,
        title=job.title,
        command=" ".join(["argosy", *job.command]),
        folder=job.folder,
        state=state,
        reason=job.reason,
        place_in_line=places.get(job.id, 0),
        priority=job.priority,
        cpus=job.needs.cpus,
        memory_bytes=job.needs.memory_bytes,
        gpus=job.needs.gpus,
        actor=job.actor,
        submitted=job.submitted,
        started=job.started,
        ended=job.ended,
        seconds=round(job.seconds + running, 3),
        left_s=left,
        attempt=job.attempt,
        peak_bytes=max(job.peak_bytes, usage.peak_bytes),
        exit_code=job.exit_code,
        error=str(job.error.get("message", "")) or (job.reason if job.outcome == f.FAILED else ""),
        error_code=str(job.error.get("code", "")),
        versions=tuple(str(made.get("version", "")) for made in job.result.get("versions", ())),
        endpoint=job.endpoint,
    )
