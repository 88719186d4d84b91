"""What the log's entries about jobs and updates add up to.

    job.submitted    TITLE     command, folder, place, needs, ... ; the job is called after the entry, j12
    job.changed      j12       action: cancel or priority
    job.started      j12       attempt, cores; written before its process is started
    job.interrupted  j12       attempt, reason; written before it is stopped, or after it was found killed
    job.ended        j12       outcome, exit code, seconds, peak memory, error, result
    update.desired   ENDPOINT  the project file that it is made from, and where
    update.asked     ENDPOINT  reason, and the digest of the data
    update.released  ENDPOINT  job, version, rollout
    update.ended     ENDPOINT  job, outcome, reason, version

The fold takes every entry in order, never fails on one, and gives the same state however often it was interrupted.
"""

from collections import Counter
from typing import Any

import msgspec

from argosy.operate.desired import ENDPOINT
from argosy.operate.folding import Fold, LogEntry
from argosy.operate.jobs.schedule import Resources

SUBMITTED, CHANGED, STARTED = "job.submitted", "job.changed", "job.started"
INTERRUPTED, ENDED = "job.interrupted", "job.ended"
WATCHED, ASKED, RELEASED, UPDATED = "update.desired", "update.asked", "update.released", "update.ended"
KINDS = (SUBMITTED, CHANGED, STARTED, INTERRUPTED, ENDED, WATCHED, ASKED, RELEASED, UPDATED)

WAITING, RUNNING, STOPPING, OVER = "waiting", "running", "stopping", "ended"
DONE, FAILED, CANCELLED = "done", "failed", "cancelled"

KEPT_JOBS = 200
"""Ended jobs that are remembered; the oldest go first."""


class Job(msgspec.Struct, kw_only=True):
    """One job."""

    id: str
    title: str
    command: tuple[str, ...]
    """What comes after `argosy`."""
    folder: str
    """Where it is run."""
    place: str
    """The home that runs it, where several share a log."""
    needs: Resources
    priority: int
    estimate_s: float
    submitted: float
    actor: str
    endpoint: str = ""
    """The endpoint it is an update of; empty for others."""
    state: str = WAITING
    attempt: int = 0
    cores: tuple[int, ...] = ()
    gpus: tuple[int, ...] = ()
    started: float = 0.0
    """When its first attempt started; 0 before."""
    attempted: float = 0.0
    """When its last attempt started."""
    is_cancelled: bool = False
    """Whether somebody asked to cancel it."""
    reason: str = ""
    """Why it is in this state."""
    vain: int = 0
    """Attempts in a row that ended without being asked to."""
    outcome: str = ""
    exit_code: int | None = None
    ended: float = 0.0
    ended_seq: int = 0
    seconds: float = 0.0
    """Time that its attempts took together."""
    peak_bytes: int = 0
    error: dict[str, Any] = {}
    result: dict[str, Any] = {}

    @property
    def process(self) -> str:
        """The launcher's name of its present attempt: no two attempts share one."""
        return f"job-{self.id}-{self.attempt}"

    @property
    def is_open(self) -> bool:
        """Whether it has not ended."""
        return self.state != OVER


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """An update that was asked for and has not begun."""

    seq: int
    time: float
    reason: str
    actor: str
    is_switch: bool = False
    """Whether its version is to take over at once, without the rollout's steps."""


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """How an update ended."""

    time: float
    outcome: str
    """promoted, rolled_back, gate_failed, failed, cancelled, unchanged, kept, superseded."""
    reason: str
    version: str
    job: str


class Watch(msgspec.Struct, kw_only=True):
    """An endpoint that is updated from a project."""

    endpoint: str
    file: str
    """The project file."""
    place: str
    since: float
    data: str = ""
    """Digest of the data of the last update, or of what is served."""
    rows: int = -1
    """Its rows; -1: not known."""
    pending: Ask | None = None
    asked: float = 0.0
    """When an update was asked for last, by whatever; 0: never."""
    current: Ask | None = None
    """What the update under way was asked by."""
    job: str = ""
    """The job of the update under way; empty: none."""
    version: str = ""
    """What is being released."""
    rollout: str = ""
    last: Outcome | None = None


class Jobs(Fold):
    """The fold. `catch_up` reads what is new; the attributes are read by whoever holds it."""

    folds = (*KINDS, ENDPOINT)

    def __init__(self) -> None:
        super().__init__()
        self.jobs: dict[str, Job] = {}
        self.watches: dict[str, Watch] = {}
        self.ended: Counter[tuple[str, str]] = Counter()
        """For each home and outcome, how many jobs have ended so, forgotten ones included."""
        self.interrupted: Counter[str] = Counter()
        """For each home, how many attempts were stopped or lost before their job had ended."""
        self.updated: Counter[tuple[str, str]] = Counter()
        """For each endpoint and outcome, how many updates have ended so."""

    def open_jobs(self, place: str) -> list[Job]:
        """Return the jobs of a home that have not ended, in the order they were submitted."""
        return [job for job in self.jobs.values() if job.is_open and job.place == place]

    def is_wanted(self, place: str) -> bool:
        """Return whether a home has anything for its scheduler to do."""
        return bool(self.open_jobs(place)) or any(watch.place == place for watch in self.watches.values())

    def apply(self, entry: LogEntry) -> None:
        """Take in one entry; an entry that fits nothing changes nothing."""
        if entry.kind == SUBMITTED:
            self._submitted(entry)
        elif entry.kind == WATCHED:
            self._watched(entry)
        elif entry.kind == ENDPOINT:
            if entry.data.get("action") == "remove":
                self.watches.pop(entry.subject, None)
        elif entry.kind in (ASKED, RELEASED, UPDATED):
            watch = self.watches.get(entry.subject)
            if watch is not None:
                was = watch.last
                _update(watch, entry)
                if watch.last is not None and watch.last is not was:
                    self.updated[watch.endpoint, watch.last.outcome] += 1
        elif entry.kind in KINDS:
            job = self.jobs.get(entry.subject)
            if job is not None and job.is_open:
                self._advance(job, entry)

    def _advance(self, job: Job, entry: LogEntry) -> None:
        was = job.state
        _advance(job, entry)
        if job.state == STOPPING and was != STOPPING:
            self.interrupted[job.place] += 1
        elif not job.is_open:
            self.ended[job.place, job.outcome] += 1
        self._forget()

    def _submitted(self, entry: LogEntry) -> None:
        fields = {**entry.data, "id": f"j{entry.seq}", "submitted": entry.time, "actor": entry.actor}
        fields |= {"title": entry.subject}
        update = fields.pop("update", None) or {}
        try:
            job = msgspec.convert(fields | {"endpoint": update.get("endpoint", "")}, Job)
        except msgspec.ValidationError:
            return
        self.jobs[job.id] = job
        watch = self.watches.get(job.endpoint)
        if watch is not None:
            watch.job, watch.current = job.id, watch.pending
            watch.pending, watch.version, watch.rollout = None, "", ""
            watch.data, watch.rows = str(update.get("data", "")), int(update.get("rows", -1))

    def _watched(self, entry: LogEntry) -> None:
        data = entry.data
        watch = self.watches.get(entry.subject)
        if watch is None:
            watch = Watch(endpoint=entry.subject, file="", place="", since=entry.time)
            self.watches[entry.subject] = watch
        watch.file, watch.place = str(data.get("file", "")), str(data.get("place", ""))
        if data.get("data"):
            watch.data, watch.rows = str(data["data"]), int(data.get("rows", -1))

    def _forget(self) -> None:
        over = [job.id for job in self.jobs.values() if not job.is_open]
        named = {watch.job for watch in self.watches.values()}
        for id_ in over[:-KEPT_JOBS]:
            if id_ not in named:
                del self.jobs[id_]


def _advance(job: Job, entry: LogEntry) -> None:
    data = entry.data
    if entry.kind == CHANGED:
        if data.get("action") == "cancel":
            job.is_cancelled = True
            job.reason = f"cancelled by {entry.actor}"
        elif data.get("action") == "priority":
            job.priority = int(data["priority"])
    elif entry.kind == STARTED:
        job.attempt = int(data["attempt"])
        job.cores, job.gpus = tuple(data.get("cores", ())), tuple(data.get("gpus", ()))
        job.state, job.reason = RUNNING, str(data.get("reason", ""))
        job.attempted = entry.time
        job.started = job.started or entry.time
    elif data.get("attempt") == job.attempt and entry.kind == INTERRUPTED:
        job.state, job.reason = STOPPING, str(data.get("reason", ""))
        job.vain = job.vain + 1 if data.get("is_vain") else 0
        job.seconds += float(data.get("seconds", 0.0))
        job.peak_bytes = max(job.peak_bytes, int(data.get("peak_bytes", 0)))
        if data.get("memory_bytes"):
            job.needs = msgspec.structs.replace(job.needs, memory_bytes=int(data["memory_bytes"]))
    elif data.get("attempt") == job.attempt and entry.kind == ENDED:
        job.state, job.outcome = OVER, str(data["outcome"])
        job.reason = str(data.get("reason", ""))
        job.exit_code = data.get("exit_code")
        job.ended, job.ended_seq = entry.time, entry.seq
        job.seconds += float(data.get("seconds", 0.0))
        job.peak_bytes = max(job.peak_bytes, int(data.get("peak_bytes", 0)))
        job.error, job.result = data.get("error") or {}, data.get("result") or {}


def _update(watch: Watch, entry: LogEntry) -> None:
    data = entry.data
    if entry.kind == ASKED:
        watch.asked = entry.time
        watch.pending = Ask(
            seq=entry.seq,
            time=entry.time,
            reason=str(data.get("reason", "")),
            actor=entry.actor,
            is_switch=bool(data.get("now", False)),
        )
    elif data.get("job") != watch.job or not watch.job:
        return
    elif entry.kind == RELEASED:
        watch.version, watch.rollout = str(data["version"]), str(data["rollout"])
    else:
        watch.last = Outcome(
            time=entry.time,
            outcome=str(data["outcome"]),
            reason=str(data.get("reason", "")),
            version=str(data.get("version", "")),
            job=watch.job,
        )
        watch.job = watch.version = watch.rollout = ""
        watch.current = None
