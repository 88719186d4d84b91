"""The scheduler: makes of the log's jobs processes, one attempt of each at a time. Kill it anywhere, start it again.

What it will do is written first and done after, so that whatever it finds at its start it can tell from the log and
the launcher's records alone. The name of a process holds the attempt, and an attempt's number is only given once the
one before has ended; a job's own lock stands behind that, should the launcher's records be lost.
"""

import threading
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from argosy.cluster.launcher import Launcher, ProcessInfo, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Conflict
from argosy.core.units import format_size
from argosy.operate.desired import Desired
from argosy.operate.folding import LogLike
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.capacity import choose_cores, choose_gpus, endpoint_bytes, jobs_capacity
from argosy.operate.jobs.fold import Job, Jobs
from argosy.operate.jobs.schedule import Action, Resources, Running, Start, Waiting, schedule

ROLE = "job"
STOPPED = 75
"""The exit code of an attempt that was stopped and is to go on later: EX_TEMPFAIL of <sysexits.h>."""
ENTRY = "argosy.cli.job_process:main"
BUSY_S, IDLE_S = 0.25, 1.0
GRACE_S = 60.0
"""How long a preempted job may go on until its next checkpoint; `[train] checkpoint_s` is 10 by default."""
URGENT_GRACE_S = 15.0
"""The same, where replicas need the memory."""
CANCEL_GRACE_S = 0.5
HOLD_S = 30.0
"""How long a job stays out after it was stopped for memory, or failed to start, so that it does not come and go."""
TIDY_S = 60.0
MOST_VAIN = 3
"""Attempts in a row that may end without being asked to: killed, or by an error that says to try again."""
PRESSURE = 0.03
"""Share of the machine's memory; when less is available than that, a job is stopped whatever the accounts say."""


class Report(Protocol):
    """Where the scheduler tells what it does."""

    def __call__(self, event: str, **fields: Any) -> None:
        """Take one event."""
        ...


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """What a job's processes were seen to take."""

    peak_bytes: int = 0
    now_bytes: int = 0


class JobFiles(Protocol):
    """Where jobs leave what they leave; `process.JobFolders` has it on disk."""

    def usage(self, id_: str, attempt: int) -> Usage:
        """Return what an attempt took so far."""
        ...

    def result(self, id_: str) -> dict[str, Any]:
        """Return what a job made; empty when it left nothing."""
        ...

    def path(self, id_: str) -> str:
        """Return the job's own folder."""
        ...

    def forget(self, known: Iterable[str]) -> None:
        """Drop the folders of all other jobs."""
        ...


class Parts(msgspec.Struct, frozen=True, kw_only=True):
    """What a scheduler works with; everything that touches the world is in here."""

    log: LogLike
    launcher: Launcher
    clock: Clock
    files: JobFiles
    place: str
    machine: Resources
    free_memory: Callable[[], int]
    report: Report
    environment: dict[str, str] = {}
    """Where jobs find the home they belong to."""
    updates: "Callable[[Jobs, Desired], float] | None" = None
    """Moves the updates, after the jobs; returns after how many seconds to look again."""


class Scheduler:
    """One scheduler's life: `tick` for ever."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._clock = parts.clock
        self._log = parts.log
        self._launcher = parts.launcher
        self.jobs = Jobs()
        self.desired = Desired()
        self._stoppers: dict[str, threading.Thread] = {}
        self._held: dict[str, float] = {}
        """Until when jobs stay out, by the clock that does not jump."""
        self._since: dict[str, float] = {}
        """When attempts were first seen to run, by that clock."""
        self._trouble: dict[str, str] = {}
        self._next_tidy = 0.0

    @property
    def is_done(self) -> bool:
        """Whether there is nothing to do, so that the process may end."""
        return not self.jobs.is_wanted(self._parts.place) and not self._stoppers

    def is_wanted_now(self) -> bool:
        """Read the log again and return whether there is something to do."""
        self._log.refresh()
        self.jobs.catch_up(self._log)
        return not self.is_done

    def tick(self) -> float:
        """Bring the world one look closer to what is wanted; return after how many seconds to look again."""
        self._log.refresh()
        self.jobs.catch_up(self._log)
        self.desired.catch_up(self._log)
        processes = self._launcher.list()
        attempts = {info.name: info for info in processes if info.role == ROLE}
        self._stoppers = {name: thread for name, thread in self._stoppers.items() if thread.is_alive()}
        for job in self._open():
            self._guard(job, lambda job=job: self._follow(job, attempts))  # type: ignore[misc]
        for action in self._actions(processes, attempts):
            self._guard(self.jobs.jobs[action.id], lambda action=action: self._do(action))  # type: ignore[misc]
        wait = BUSY_S if self._open() else IDLE_S
        if self._parts.updates is not None:
            wait = min(wait, self._parts.updates(self.jobs, self.desired))
        self._tidy(attempts)
        return wait

    def _open(self) -> list[Job]:
        return self.jobs.open_jobs(self._parts.place)

    def _guard(self, job: Job, step: Callable[[], None]) -> None:
        """Do something about one job; what goes wrong with it holds up no other."""
        try:
            step()
        except Conflict as error:
            # Somebody wrote meanwhile, or the process lives: the next look sees it.
            self._parts.report("job_step_late", job_id=job.id, error=error.message)
        except ArgosyError as error:
            self._held[job.id] = self._clock.monotonic() + HOLD_S
            if self._trouble.get(job.id) != error.message:
                self._trouble[job.id] = error.message
                self._parts.report("job_held_up", job_id=job.id, error=error.message, code=error.code)
        else:
            self._trouble.pop(job.id, None)

    # ---- what runs

    def _follow(self, job: Job, attempts: dict[str, ProcessInfo]) -> None:
        """Bring one job from what the log says of it to what its process is."""
        info = attempts.get(job.process) if job.attempt else None
        if info is not None and info.alive:
            self._since.setdefault(job.process, self._clock.monotonic())
            if job.is_cancelled:
                self._stop(job, CANCEL_GRACE_S)
            elif job.state == f.STOPPING:
                # Whoever wrote that it is to stop may have been killed before it did anything.
                self._stop(job, GRACE_S)
            return
        if job.is_cancelled and (info is None or info.exit_code != 0):
            self._end(job, f.CANCELLED, info, reason=job.reason)
        elif job.state == f.RUNNING and info is None:
            if self._clock.monotonic() >= self._held.get(job.id, 0.0):
                self._launch(job)
        elif info is not None and (job.state == f.RUNNING or info.exit_code == 0) and job.state != f.WAITING:
            self._ended(job, info)

    def _ended(self, job: Job, info: ProcessInfo) -> None:
        """Write down how an attempt ended by itself."""
        error = self._launcher.error(info.name)
        if info.exit_code == 0:
            self._end(job, f.DONE, info)
            return
        if info.exit_code == STOPPED:
            self._interrupt(job, "it was stopped; it goes on from what it had done", info=info)
            return
        is_vain = info.exit_code is None or info.exit_code < 0 or (error is not None and error.retryable)
        why = _how_it_ended(info, error)
        if is_vain and job.vain + 1 < MOST_VAIN:
            self._interrupt(job, f"{why}; it goes on from what it had done", is_vain=True, info=info)
            self._held[job.id] = self._clock.monotonic() + (HOLD_S if error is not None else 0.0)
            return
        if is_vain:
            why = f"{why}, for the {MOST_VAIN}rd time in a row"
        self._end(job, f.FAILED, info, reason=why, error=error)

    def _end(
        self,
        job: Job,
        outcome: str,
        info: ProcessInfo | None,
        *,
        reason: str = "",
        error: ArgosyError | None = None,
    ) -> None:
        data: dict[str, Any] = {
            "attempt": job.attempt,
            "outcome": outcome,
            "exit_code": info.exit_code if info is not None else None,
            "seconds": self._seconds(job),
            "peak_bytes": self._parts.files.usage(job.id, job.attempt).peak_bytes,
            "result": self._parts.files.result(job.id),
        }
        if reason:
            data["reason"] = reason[:2000]
        if error is not None:
            data["error"] = {"code": error.code, "message": error.message[:2000], "hint": error.hint[:500]}
        if info is not None:
            self._launcher.stop(info.name)  # what it had started and could not end itself
        self._write(job, f.ENDED, data)
        self._parts.report("job_ended", job_id=job.id, outcome=outcome, reason=reason)

    def _interrupt(self, job: Job, reason: str, *, is_vain: bool = False, info: ProcessInfo | None = None) -> None:
        usage = self._parts.files.usage(job.id, job.attempt)
        data: dict[str, Any] = {"attempt": job.attempt, "reason": reason[:2000], "seconds": self._seconds(job)}
        data["peak_bytes"] = usage.peak_bytes
        if is_vain:
            data["is_vain"] = True
        if info is not None and info.exit_code == -9 and usage.peak_bytes > job.needs.memory_bytes:
            # Most likely the kernel killed it for what it took; next time that is counted before it starts.
            grown = min(int(usage.peak_bytes * 1.2), self._parts.machine.memory_bytes)
            data |= {"memory_bytes": grown, "reason": f"{reason}; counted with {format_size(grown)} from now on"}
        if info is not None:
            self._launcher.stop(info.name)
        self._write(job, f.INTERRUPTED, data)
        self._parts.report("job_interrupted", job_id=job.id, attempt=job.attempt, reason=reason)

    def _seconds(self, job: Job) -> float:
        """Return how long the present attempt took, by the clock that doesn't jump where it was seen to start."""
        if not job.attempt or job.state != f.RUNNING:
            return 0.0
        since = self._since.get(job.process)
        by_log = max(0.0, self._clock.now() - job.attempted)
        return round(by_log if since is None else self._clock.monotonic() - since, 3)

    def _stop(self, job: Job, grace_s: float) -> None:
        """Have a process stop, in a thread of its own: it may take until its checkpoint is written."""
        known = self._stoppers.get(job.process)
        if known is not None and known.is_alive() and not (job.is_cancelled and known.name != "cancel"):
            return
        name = job.process
        thread = threading.Thread(
            target=self._stop_quietly, args=(name, grace_s), name="cancel" if job.is_cancelled else "stop", daemon=True
        )
        self._stoppers[name] = thread
        thread.start()

    def _stop_quietly(self, name: str, grace_s: float) -> None:
        try:
            self._launcher.stop(name, grace_s)
        except ArgosyError as error:  # the next look tries again
            self._parts.report("job_not_stopped", process=name, error=error.message)

    # ---- what is to run

    def _actions(self, processes: Iterable[ProcessInfo], attempts: dict[str, ProcessInfo]) -> list[Action]:
        now, monotonic = self._clock.now(), self._clock.monotonic()
        waiting, running, used, promised = [], [], 0, 0
        for job in self._open():
            info = attempts.get(job.process) if job.attempt else None
            is_alive = info is not None and info.alive
            if job.state == f.RUNNING or is_alive:
                usage = self._parts.files.usage(job.id, job.attempt)
                # One that takes more than it said is counted with what it takes.
                needs = msgspec.structs.replace(job.needs, memory_bytes=max(job.needs.memory_bytes, usage.now_bytes))
                used += usage.now_bytes
                promised += needs.memory_bytes
                since = self._since.get(job.process, monotonic)
                left = job.estimate_s - (monotonic - since) if job.estimate_s else 0.0
                is_stopping = job.state == f.STOPPING or job.is_cancelled
                running.append(
                    Running(
                        id=job.id,
                        needs=needs,
                        priority=job.priority,
                        submitted=job.submitted,
                        left_s=max(0.0, left),
                        is_stopping=is_stopping,
                    )
                )
            elif not job.is_cancelled:
                waiting.append(
                    Waiting(
                        id=job.id,
                        needs=job.needs,
                        priority=job.priority,
                        # A clock that was ahead when it was submitted must not put it behind for ever.
                        submitted=min(job.submitted, now),
                        estimate_s=job.estimate_s,
                        is_held=monotonic < self._held.get(job.id, 0.0),
                    )
                )
        if not waiting and not running:
            return []
        machine = self._parts.machine
        capacity = jobs_capacity(machine, endpoint_bytes(self.desired, processes))
        free = self._parts.free_memory()
        floor = int(machine.memory_bytes * PRESSURE)
        staying = sum(job.needs.memory_bytes for job in running if not job.is_stopping)
        if free < floor and running and not any(job.is_stopping for job in running):
            capacity = msgspec.structs.replace(capacity, memory_bytes=min(capacity.memory_bytes, staying - 1))
        # What running jobs were promised and have not taken yet is not free, though the machine still shows it.
        available = free - floor - max(0, promised - used)
        return schedule(capacity, waiting, running, available_bytes=available)

    def _do(self, action: Action) -> None:
        job = self.jobs.jobs[action.id]
        if isinstance(action, Start):
            self._start(job, action.why)
        else:
            self._interrupt(job, f"stopped after its checkpoint, because {action.reason}")
            if action.is_urgent:
                self._held[job.id] = self._clock.monotonic() + HOLD_S
            self._stop(job, URGENT_GRACE_S if action.is_urgent else GRACE_S)

    def _start(self, job: Job, why: str) -> None:
        # One that is stopping still holds what it was given.
        others = [other for other in self._open() if other.state != f.WAITING and other.id != job.id]
        cores = choose_cores(job.needs.cpus, [other.cores for other in others])
        gpus = choose_gpus(job.needs.gpus, [other.gpus for other in others], self._parts.machine.gpus)
        given = {"cores": list(cores), "gpus": list(gpus)}
        self._write(job, f.STARTED, {"attempt": job.attempt + 1, **given, "reason": why})
        self._parts.report("job_started", job_id=job.id, attempt=job.attempt, reason=why)
        self._launch(job)

    def _launch(self, job: Job) -> None:
        config = {
            "id": job.id,
            "attempt": job.attempt,
            "folder": self._parts.files.path(job.id),
            "command": list(job.command),
            "cwd": job.folder,
            "cores": list(job.cores),
            "gpus": list(job.gpus),
            "has_gpus": self._parts.machine.gpus > 0,
        }
        spec = ProcessSpec(
            name=job.process,
            role=ROLE,
            entry=ENTRY,
            config=config,
            threads=max(1, len(job.cores)),
            # What a job writes to the log, it writes in the name of whoever submitted it.
            env={**self._parts.environment, "ARGOSY_ACTOR": job.actor},
        )
        self._launcher.start(spec)
        self._since[job.process] = self._clock.monotonic()

    def _write(self, job: Job, kind: str, data: dict[str, Any]) -> None:
        """Write an entry about a job, if nobody else has written about it since it was read."""

        def check(log: LogLike) -> None:
            for entry in log.entries(after=self.jobs.head, subject=job.id):
                if entry.kind in f.KINDS:
                    raise Conflict(f"entry {entry.seq} of the log came first", code="state_moved")

        self._log.append(kind, job.id, data, check=check)
        self.jobs.catch_up(self._log)

    def _tidy(self, attempts: dict[str, ProcessInfo]) -> None:
        open_ = {job.process for job in self._open()}
        for name, info in attempts.items():
            if not info.alive and name not in open_:
                self._launcher.forget(name)
                self._since.pop(name, None)
        self._held = {id_: until for id_, until in self._held.items() if until > self._clock.monotonic()}
        if self._clock.monotonic() >= self._next_tidy:
            self._next_tidy = self._clock.monotonic() + TIDY_S
            self._parts.files.forget(self.jobs.jobs)


def _how_it_ended(info: ProcessInfo, error: ArgosyError | None) -> str:
    if error is not None:
        return error.message
    if info.exit_code is None:
        return "it ended while nobody was looking"
    return f"it was ended by signal {-info.exit_code}" if info.exit_code < 0 else f"exit code {info.exit_code}"
