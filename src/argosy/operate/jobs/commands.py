"""What can be asked of jobs and updates. Each command checks, and writes one entry; it starts nothing.

Check and entry are one transaction, and every command may be repeated, as in `operate.commands`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.core.units import format_size
from argosy.operate.folding import LogEntry, LogLike
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.config import check_priority
from argosy.operate.jobs.fold import Job, Jobs, Watch
from argosy.operate.jobs.schedule import Resources

COMMANDS = ("run", "train", "compress", "convert", "evaluate")
"""What can be a job: what ends by itself, and goes on where it was when it is killed."""
MOST_OPEN = 1000


class JobAccepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a command about a job did."""

    job: str
    is_changed: bool
    """False when all was already as asked; nothing was written then."""
    summary: str


class _AsAsked(Exception):
    def __init__(self, accepted: JobAccepted) -> None:
        super().__init__(accepted.summary)
        self.accepted = accepted


def submit(
    log: LogLike,
    command: Sequence[str],
    *,
    title: str,
    folder: str,
    place: str,
    needs: Resources,
    machine: Resources,
    priority: int = 0,
    estimate_s: float = 0.0,
    update: dict[str, Any] | None = None,
) -> JobAccepted:
    """Put a job in line. Raises InvalidInput for what is no job, and for one that this machine can never run.

    The same command in the same folder is not put in line twice while it waits or runs.
    """
    check_command(command)
    check_priority(priority, "priority")
    check_size(needs, machine)
    if estimate_s < 0:
        raise InvalidInput(f"a job can't take {estimate_s:g} s")

    def check(state: Jobs) -> None:
        jobs = state.open_jobs(place)
        same = next((job for job in jobs if job.command == tuple(command) and job.folder == folder), None)
        # The job of an update belongs to it: it counts by the data it was asked for, not by its words.
        if same is not None and update is None and not same.is_cancelled and not same.endpoint:
            raise _AsAsked(
                JobAccepted(job=same.id, is_changed=False, summary=f"'{same.id}' is this very job, and {_stands(same)}")
            )
        if len(jobs) >= MOST_OPEN:
            raise Conflict(f"{len(jobs)} jobs wait or run already, which is the most", hint="cancel some, or wait")

    data: dict[str, Any] = {
        "command": list(command),
        "folder": folder,
        "place": place,
        "needs": msgspec.to_builtins(needs),
        "priority": priority,
        "estimate_s": round(estimate_s, 3),
    }
    if update is not None:
        data["update"] = update
    try:
        _, entry = _transact(log, f.SUBMITTED, title, check, data)
    except _AsAsked as known:
        return known.accepted
    return JobAccepted(job=f"j{entry.seq}", is_changed=True, summary=f"'j{entry.seq}' is in line")


def check_command(command: Sequence[str]) -> None:
    """Raise InvalidInput for what can be no job."""
    if not command or command[0] not in COMMANDS:
        raise InvalidInput(
            f"{' '.join(command) or 'nothing'!r} can't be a job; jobs are: {', '.join(COMMANDS)}",
            hint="argosy jobs submit -- run --file FOLDER",
        )


def check_size(needs: Resources, machine: Resources) -> None:
    """Raise InvalidInput for a job that this machine could not run if it did nothing else."""
    if needs.cpus < 1 or needs.memory_bytes < 1 or needs.gpus < 0:
        raise InvalidInput("a job needs at least one core and some memory")
    if not needs.fits(machine):
        raise InvalidInput(
            f"the job asks for {in_words(needs)}; this machine has {in_words(machine)} for jobs",
            hint="ask for less, or run it on another machine",
            code="job_too_big",
        )


def cancel(log: LogLike, id_: str) -> JobAccepted:
    """Ask that a job ends. What it has finished is kept. Raises NotFound, and Conflict when it has ended."""

    def check(state: Jobs) -> None:
        job = known(state, id_)
        if not job.is_open and job.outcome != f.CANCELLED:
            raise Conflict(f"job '{id_}' {_stands(job)} already", code="job_ended")
        if job.is_cancelled:
            raise _AsAsked(JobAccepted(job=id_, is_changed=False, summary=f"'{id_}' was cancelled already"))

    return _change(log, id_, check, {"action": "cancel"}, f"'{id_}' is being cancelled")


def set_priority(log: LogLike, id_: str, priority: int) -> JobAccepted:
    """Move a job in the line. Raises NotFound, InvalidInput, and Conflict when it has ended."""
    check_priority(priority, "priority")

    def check(state: Jobs) -> None:
        job = known(state, id_)
        if not job.is_open:
            raise Conflict(f"job '{id_}' {_stands(job)} already", code="job_ended")
        if job.priority == priority:
            raise _AsAsked(JobAccepted(job=id_, is_changed=False, summary=f"'{id_}' has priority {priority} already"))

    return _change(
        log, id_, check, {"action": "priority", "priority": priority}, f"'{id_}' has priority {priority} from now on"
    )


def watch(log: LogLike, endpoint: str, *, file: str, place: str, data: str = "", rows: int = -1) -> None:
    """Note which project an endpoint is updated from. Writes nothing when that is known.

    `data`: the digest of what its present version was made from.
    """

    def check(state: Jobs) -> None:
        found = state.watches.get(endpoint)
        if found is not None and (found.file, found.place) == (file, place) and (not data or found.data == data):
            raise _AsAsked(JobAccepted(job="", is_changed=False, summary=""))

    try:
        _transact(log, f.WATCHED, endpoint, check, {"file": file, "place": place, "data": data, "rows": rows})
    except _AsAsked:
        return


def ask_update(log: LogLike, endpoint: str, reason: str, *, now: bool = False) -> JobAccepted:
    """Ask for an update of an endpoint: the hook for whatever finds that one is due, drift for example.

    `now`: its version takes over without the rollout's steps. Raises NotFound for an endpoint without a project.
    """

    def check(state: Jobs) -> None:
        found = known_watch(state, endpoint)
        if found.pending is not None and found.pending.is_switch == now:
            waits = f" after '{found.job}'" if found.job else ""
            raise _AsAsked(
                JobAccepted(
                    job=found.job,
                    is_changed=False,
                    summary=f"an update of '{endpoint}' was asked for already ({found.pending.reason}){waits}",
                )
            )

    data = {"reason": reason, **({"now": True} if now else {})}
    try:
        state, _ = _transact(log, f.ASKED, endpoint, check, data)
    except _AsAsked as asked:
        return asked.accepted
    running = state.watches[endpoint].job
    after = f" after the one under way ('{running}')" if running else ""
    return JobAccepted(job=running, is_changed=True, summary=f"'{endpoint}' is updated{after}: {reason}")


def known(state: Jobs, id_: str) -> Job:
    """Return a job. Raises NotFound with those that are open."""
    job = state.jobs.get(id_)
    if job is None:
        names = [job.id for job in state.jobs.values() if job.is_open]
        raise NotFound(
            f"there is no job '{id_}'; waiting or running are: {', '.join(names) or 'none'}", hint="argosy jobs list"
        )
    return job


def known_watch(state: Jobs, endpoint: str) -> Watch:
    """Return what is known of an endpoint's updates. Raises NotFound."""
    found = state.watches.get(endpoint)
    if found is None:
        names = ", ".join(f"'{name}'" for name in sorted(state.watches)) or "none"
        raise NotFound(
            f"endpoint '{endpoint}' comes from no project that could be run again; those that do: {names}",
            hint="deploy it with its project file: argosy deploy --file FOLDER",
            code="no_project",
        )
    return found


def in_words(amount: Resources) -> str:
    """Return an amount as people say it.

    >>> in_words(Resources(2, 1_500_000_000, 0))
    '2 cores, 1.5 GB of memory, 0 GPUs'
    """
    cores, gpus = ("" if n == 1 else "s" for n in (amount.cpus, amount.gpus))
    memory = format_size(max(0, amount.memory_bytes))
    return f"{amount.cpus} core{cores}, {memory} of memory, {amount.gpus} GPU{gpus}"


def _stands(job: Job) -> str:
    if job.is_open:
        return (
            "is being cancelled"
            if job.is_cancelled
            else {f.WAITING: "waits", f.RUNNING: "runs"}.get(job.state, "will go on")
        )
    return {f.DONE: "is done", f.FAILED: "has failed"}.get(job.outcome, "was cancelled")


def _change(log: LogLike, id_: str, check: Callable[[Jobs], None], data: dict[str, Any], summary: str) -> JobAccepted:
    try:
        _transact(log, f.CHANGED, id_, check, data)
    except _AsAsked as asked:
        return asked.accepted
    return JobAccepted(job=id_, is_changed=True, summary=summary)


def _transact(
    log: LogLike, kind: str, subject: str, check: Callable[[Jobs], None], data: dict[str, Any]
) -> tuple[Jobs, LogEntry]:
    state = Jobs()

    def check_state(log: LogLike) -> None:
        state.catch_up(log)
        check(state)

    entry = log.append(kind, subject, data, check=check_state)
    state.catch_up(log)
    return state, entry
