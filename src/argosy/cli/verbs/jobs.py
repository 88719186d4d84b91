"""`jobs` and its commands, and `run --queue`."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.core.errors import ArgosyError, DeadlineExceeded
from argosy.core.units import format_size, format_time, parse_size, parse_time
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.capacity import machine_resources
from argosy.operate.jobs.fold import Job, Jobs
from argosy.operate.jobs.folders import JobFolders, place_of
from argosy.operate.jobs.keeper import scheduler_lock, start_scheduler
from argosy.operate.jobs.needs import needs_like
from argosy.operate.jobs.updater import Needs
from argosy.operate.jobs.view import JobView, look_at_jobs

if TYPE_CHECKING:
    from argosy.cli.project import Project

_LOOK_S = 0.3
_OF_PROJECTS = ("run", "train", "evaluate")
"""Commands that are always about a project."""


class JobFailed(ArgosyError):
    """A job that was waited for did not end well; the message says why."""

    code = "job_failed"


class Stated:
    """What the user said a job needs, as it was typed; empty or 0: not said."""

    def __init__(
        self, *, cpus: int = 0, memory: str = "", gpus: int = 0, estimate: str = "", priority: int = 0
    ) -> None:
        self.cpus = cpus
        self.memory_bytes = parse_size(memory) if memory else 0
        self.gpus = gpus
        self.estimate_s = parse_time(estimate) if estimate else 0.0
        self.priority = priority


def submit(command: list[str], stated: Stated, *, as_json: bool) -> None:
    """Put a command in line."""
    from argosy.cli.job_process import check_words

    output = Output(as_json=as_json)
    commands.check_command(command)
    check_words(command)
    workspace = Workspace()
    machine = machine_resources()
    title = _title(command, Path.cwd())
    needs = _needs(workspace, command, title, stated)
    accepted = commands.submit(
        workspace.registry.log,
        command,
        title=title,
        folder=str(Path.cwd()),
        place=place_of(workspace.settings.home),
        needs=needs.resources,
        machine=machine,
        priority=stated.priority,
        estimate_s=needs.estimate_s,
    )
    start_scheduler(workspace.settings, workspace.launcher)
    output.line(f"[bold]{accepted.job}[/] {accepted.summary}")
    took = f", takes about {format_time(needs.estimate_s)}" if needs.estimate_s else ""
    if accepted.is_changed:
        output.line(f"     counted with {commands.in_words(needs.resources)}{took}")
    output.line(f"next: argosy jobs logs {accepted.job} --follow")
    output.result({"job": accepted.job, "changed": accepted.is_changed, "summary": accepted.summary, "needs": needs})


def list_jobs(*, as_json: bool) -> None:
    """List all jobs: those that run, those that wait in their order, then those that ended."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    shown = look(workspace)
    output.result(shown)
    rows = [
        (
            job.id,
            job.title,
            f"waiting ({job.place_in_line})" if job.place_in_line else job.state,
            str(job.priority),
            f"{job.cpus} cores, {format_size(job.memory_bytes)}" + (f", {job.gpus} GPUs" if job.gpus else ""),
            format_time(job.seconds) if job.seconds else "",
            f"{format_time(job.left_s)} left" if job.left_s > 0 else ", ".join(job.versions),
            job.error or (job.reason if job.state in (f.WAITING, f.STOPPING, f.CANCELLED) else ""),
        )
        for job in shown
    ]
    if rows:
        output.table(("job", "what", "state", "priority", "counted with", "ran", "", ""), rows)
    else:
        output.line("there are no jobs; begin with: argosy jobs submit -- run")
    if any(job.ended == 0 for job in shown) and not scheduler_lock(workspace.settings).is_taken():
        output.line("[yellow]nothing looks after them now[/]; go on with: argosy up")


def show(id_: str, *, as_json: bool) -> None:
    """Show everything about one job, with the end of its log."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    job = _view(workspace, id_)
    tail = JobFolders(workspace.settings.home).tail(id_, 20)
    output.result({"job": job, "log": tail})
    if as_json:
        return
    rows = {
        "what": f"{job.title}: {job.command}",
        "in": job.folder,
        "state": job.state + (f", {job.place_in_line}. in line" if job.place_in_line else ""),
        "why": job.reason,
        "counted": f"{job.cpus} cores, {format_size(job.memory_bytes)} of memory, {job.gpus} GPUs",
        "priority": str(job.priority),
        "ran": f"{format_time(job.seconds)} in {job.attempt} attempts" if job.attempt else "",
        "left": f"about {format_time(job.left_s)}" if job.left_s > 0 else "",
        "peak": format_size(job.peak_bytes) if job.peak_bytes else "",
        "exit code": "" if job.exit_code is None else str(job.exit_code),
        "error": f"({job.error_code}) {job.error}" if job.error_code else "",
        "made": ", ".join(job.versions),
        "updates": job.endpoint,
    }
    output.line(f"[bold]{job.id}[/]")
    for name, text in rows.items():
        if text:
            output.console.print(f"  {name:<10}{text}", markup=False)
    if tail:
        output.line()
        output.console.print(tail.rstrip(), markup=False)


def logs(id_: str, *, follow: bool, last: int) -> None:
    """Write what a job wrote; with `follow` until it ends."""
    output = Output()
    workspace = Workspace()
    _view(workspace, id_)
    folders = JobFolders(workspace.settings.home)
    written = folders.tail(id_, last)
    position = _size(folders.log_path(id_))
    output.console.file.write(written)
    output.console.file.flush()
    while follow:
        job = _job(workspace, id_)
        position = _forward(output, folders.log_path(id_), position)
        if not job.is_open:
            _forward(output, folders.log_path(id_), position)
            return
        _keep_going(workspace)
        workspace.clock.sleep(_LOOK_S)


def cancel(id_: str, *, as_json: bool) -> None:
    """End a job."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.cancel(workspace.registry.log, id_)
    start_scheduler(workspace.settings, workspace.launcher)
    output.line(accepted.summary)
    output.result(accepted)


def set_priority(id_: str, priority: int, *, as_json: bool) -> None:
    """Move a job in the line."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    accepted = commands.set_priority(workspace.registry.log, id_, priority)
    start_scheduler(workspace.settings, workspace.launcher)
    output.line(accepted.summary)
    output.result(accepted)


def wait(id_: str, *, timeout_s: float, as_json: bool) -> None:
    """Return when a job has ended; fail as it failed."""
    output = Output(as_json=as_json)
    workspace = Workspace()
    _view(workspace, id_)
    began = workspace.clock.monotonic()
    while (job := _job(workspace, id_)).is_open:
        if timeout_s and workspace.clock.monotonic() - began > timeout_s:
            raise DeadlineExceeded(f"job '{id_}' has not ended within {format_time(timeout_s)}; it is {job.state}")
        _keep_going(workspace)
        workspace.clock.sleep(_LOOK_S)
    found = _view(workspace, id_)
    if job.outcome != f.DONE:
        raise JobFailed(
            f"job '{id_}' {'was cancelled' if job.outcome == f.CANCELLED else 'failed'}: {job.reason}",
            hint=f"what it wrote: argosy jobs logs {id_}",
            job=id_,
            reason=str(job.error.get("code", "")),
        )
    output.line(f"[green]✓[/] {id_} is done, after {format_time(found.seconds)}  {', '.join(found.versions)}")
    output.result(found)


def look(workspace: Workspace) -> tuple[JobView, ...]:
    """Return all jobs as an operator sees them."""
    return look_at_jobs(
        _jobs(workspace),
        workspace.launcher.list("job"),
        now=workspace.clock.now(),
        usage_of=JobFolders(workspace.settings.home).usage,
    )


def _jobs(workspace: Workspace) -> Jobs:
    workspace.registry.log.refresh()
    workspace.jobs.catch_up(workspace.registry.log)
    return workspace.jobs


def _job(workspace: Workspace, id_: str) -> Job:
    return commands.known(_jobs(workspace), id_)


def _view(workspace: Workspace, id_: str) -> JobView:
    _job(workspace, id_)
    return next(job for job in look(workspace) if job.id == id_)


def _keep_going(workspace: Workspace) -> None:
    """To wait while nobody moves a job would be to wait for ever."""
    start_scheduler(workspace.settings, workspace.launcher)


def _title(command: list[str], folder: Path) -> str:
    """Return what a job is called, and found again by when the next one like it is counted."""
    project = _project_of(command, folder)
    if project is not None:
        return f"{command[0]} {project[0].project.name}"
    model = next((word for word in command[1:] if not word.startswith("-")), "")
    return f"{command[0]} {model}".strip()


def _project_of(command: list[str], folder: Path) -> "tuple[Project, Path] | None":
    """Return the project that a command is about, where it is about one. Raises NotFound where it must be."""
    from argosy.cli.project import FILE_NAME, load_project

    place, changes = folder, []
    words = iter(command[1:])
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--file", "-f"):
            place = folder / (value if equals else next(words, ""))
        elif name == "--set":
            changes.append(value if equals else next(words, ""))
        elif command[0] == "train" and not word.startswith("-") and (folder / word).exists():
            place = folder / word
    is_there = (place / FILE_NAME if place.is_dir() else place).is_file()
    if command[0] not in _OF_PROJECTS and (not is_there or len(command) > 1):
        return None  # what is about a model or a file needs no project
    return load_project(place, changes)


def _needs(workspace: Workspace, command: list[str], title: str, stated: Stated) -> Needs:
    """Return what a job is counted with: as stated, else as the last one like it, else as the plan says."""
    planned_s, planned_bytes = 0.0, 0
    project = _project_of(command, Path.cwd()) if command[0] in _OF_PROJECTS else None
    if project is not None:
        planned_s, planned_bytes = _planned(workspace, *project)
    return needs_like(
        _jobs(workspace),
        title,
        machine_resources(),
        cpus=stated.cpus,
        memory_bytes=stated.memory_bytes,
        gpus=stated.gpus,
        estimate_s=stated.estimate_s or planned_s,
        expected_bytes=planned_bytes,
    )


def _planned(workspace: Workspace, project: "Project", base: Path) -> tuple[float, int]:
    """Return seconds and bytes as `argosy plan` estimates them; 0 for what it doesn't know."""
    from argosy.pipeline.engine import find_record
    from argosy.pipeline.estimates import Estimates, estimate

    plan = workspace.engine.plan(project, base)
    data = find_record(workspace.registry.log, plan.steps[0].key)
    measured = None
    if data is not None:
        measured = Estimates(workspace.settings.home, workspace.registry).find(project, base, data)
    if measured is None:
        return max(0.0, plan.left_s), 0
    expected = estimate(project, measured)
    rest = [step.last_s for step in plan.steps if not step.is_done and step.stage != "train"]
    whole = expected.chosen.total_s + sum(rest) if all(s >= 0 for s in rest) else 0.0
    return whole, expected.chosen.host_bytes


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _forward(output: Output, path: Path, position: int) -> int:
    """Write what is new in a file; return where it ends. A file that was cut is read from its new start."""
    with contextlib.suppress(OSError), path.open("rb") as stream:
        size = _size(path)
        stream.seek(position if position <= size else 0)
        new = stream.read()
        output.console.file.write(new.decode("utf-8", "replace"))
        output.console.file.flush()
        return stream.tell()
    return position
