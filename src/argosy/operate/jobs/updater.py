"""Starts updates when their time or their data has come, and moves those that are under way.

It looks and writes; what to do next is computed by `updates.next_move` from the log alone.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Conflict, Denied, InvalidInput, NotFound
from argosy.operate import commands as serving
from argosy.operate.desired import Desired
from argosy.operate.jobs import commands, updates
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.config import NEW_DATA, SCHEDULE, UpdateConfig, next_time
from argosy.operate.jobs.fold import Jobs, Watch
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.scheduler import Report
from argosy.operate.jobs.sources import DataState, DataWatch, ProjectFile, problem, read_data, read_project
from argosy.operate.metric_files import file_metrics
from argosy.operate.transactions import RegistryLike

LOOK_S = 2.0
"""Time between two looks at a project's file and data."""
BUSY_S, IDLE_S = 0.5, 2.0


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What an update's job is counted with."""

    resources: Resources
    estimate_s: float = 0.0


class _Seen(msgspec.Struct):
    """What is known of one project, between two looks."""

    watch: DataWatch
    looked: float = -1e18
    project: ProjectFile | None = None
    trouble: str = ""
    data: DataState | None = None
    asked: tuple[float, float] = (-1.0, 0.0)
    """When the last update was asked for, by the log, and when that was first seen, by the clock that doesn't jump."""


class Updater:
    """Call `move` after every look of the scheduler."""

    def __init__(
        self,
        registry: RegistryLike,
        clock: Clock,
        *,
        place: str,
        machine: Resources,
        needs: Callable[[Jobs, str], Needs],
        put: Callable[[bytes], str],
        report: Report,
    ) -> None:
        """`put` keeps a blob: the code of a rollout's own metrics."""
        self._registry = registry
        self._log = registry.log
        self._clock = clock
        self._place = place
        self._machine = machine
        self._needs = needs
        self._put = put
        self._report = report
        self._seen: dict[str, _Seen] = {}

    def trouble(self, endpoint: str) -> str:
        """Return why an endpoint can't be updated now; empty when it can."""
        seen = self._seen.get(endpoint)
        return seen.trouble if seen is not None else ""

    def move(self, jobs: Jobs, desired: Desired) -> float:
        """Move every update as far as it goes now; return after how many seconds to look again."""
        mine = [watch for _, watch in sorted(jobs.watches.items()) if watch.place == self._place]
        self._seen = {watch.endpoint: self._seen.get(watch.endpoint) or _Seen(DataWatch()) for watch in mine}
        is_busy = False
        for watch in mine:
            seen = self._seen[watch.endpoint]
            try:
                self._look(watch, seen)
                self._trigger(watch, seen)
                self._step(watch, seen, jobs, desired)
            except Conflict:
                is_busy = True  # somebody wrote meanwhile: the next look decides again
            except ArgosyError as error:
                self._note_trouble(watch, seen, problem(error))
            is_busy = is_busy or bool(watch.job or watch.pending)
            jobs.catch_up(self._log)
            desired.catch_up(self._log)
        return BUSY_S if is_busy else IDLE_S

    # ---- looking

    def _look(self, watch: Watch, seen: _Seen) -> None:
        now = self._clock.monotonic()
        if now - seen.looked < LOOK_S:
            return
        seen.looked = now
        try:
            seen.project = read_project(Path(watch.file))
            config = seen.project.update
            wants_data = config is not None and NEW_DATA in config.on
            seen.data = seen.watch.look(seen.project, now) if wants_data else None
        except (NotFound, InvalidInput) as error:
            seen.data = None
            self._note_trouble(watch, seen, problem(error))
        else:
            seen.trouble = ""

    def _note_trouble(self, watch: Watch, seen: _Seen, trouble: str) -> None:
        if seen.trouble != trouble:
            seen.trouble = trouble
            self._report("update_held_up", endpoint=watch.endpoint, error=trouble)

    def _trigger(self, watch: Watch, seen: _Seen) -> None:
        """Ask for an update when one is due; what is asked for already counts for all."""
        config = seen.project.update if seen.project is not None else None
        if config is None or watch.pending is not None or seen.trouble:
            return
        reason = self._due(watch, seen, config) or _news(watch, seen.data, config)
        if reason:
            commands.ask_update(self._log, watch.endpoint, reason)
            self._report("update_asked", endpoint=watch.endpoint, reason=reason)

    def _due(self, watch: Watch, seen: _Seen, config: UpdateConfig) -> str:
        if SCHEDULE not in config.on or watch.job:
            return ""
        base = watch.asked or watch.since
        monotonic = self._clock.monotonic()
        if seen.asked[0] != base:
            seen.asked = (base, monotonic)
        # A clock that was set back must not put the next one off for as long as it jumped.
        passed = max(self._clock.now() - base, monotonic - seen.asked[1])
        due = next_time(config, base)
        return f"schedule ({config.every or config.at})" if base + passed >= due else ""

    # ---- moving

    def _step(self, watch: Watch, seen: _Seen, jobs: Jobs, desired: Desired) -> None:
        jobs.catch_up(self._log)
        endpoint = desired.endpoints.get(watch.endpoint)
        config = seen.project.update if seen.project is not None else None
        releases = config is None or config.deploy
        move = updates.next_move(watch, jobs.jobs.get(watch.job), endpoint, releases=releases)
        if move.action == updates.SUBMIT:
            self._submit(watch, seen, jobs)
        elif move.action == updates.DEPLOY:
            self._deploy(watch, seen, move)
        elif move.action == updates.NOTE:
            self._write(jobs, f.RELEASED, watch, {"version": move.version, "rollout": move.rollout})
        elif move.action == updates.END:
            self._end(watch, jobs, move.outcome, move.reason, move.version)

    def _submit(self, watch: Watch, seen: _Seen, jobs: Jobs) -> None:
        if seen.project is None or watch.pending is None:
            return  # the file is gone or wrong: `trouble` says so, and the update waits
        config = seen.project.update or UpdateConfig()
        data = seen.data or read_data(seen.project)
        needs = self._needs(jobs, f"update {watch.endpoint}")
        accepted = commands.submit(
            self._log,
            ["run", "--file", watch.file],
            title=f"update {watch.endpoint}",
            folder=str(seen.project.base),
            place=self._place,
            needs=needs.resources,
            machine=self._machine,
            priority=config.priority,
            estimate_s=needs.estimate_s,
            update={"endpoint": watch.endpoint, "data": data.digest, "rows": data.rows, "asked": watch.pending.seq},
        )
        self._report("update_started", endpoint=watch.endpoint, job_id=accepted.job, reason=watch.pending.reason)

    def _deploy(self, watch: Watch, seen: _Seen, move: updates.Move) -> None:
        project = seen.project
        rollout = project.rollout if project is not None else None
        is_switch = watch.current is not None and watch.current.is_switch
        try:
            if rollout is not None and project is not None and not is_switch:
                rollout = file_metrics(rollout, project.base, self._put)
            serving.deploy(
                self._registry,
                move.digest,
                name=watch.endpoint,
                endpoint=project.endpoint if project is not None else None,
                rollout=None if is_switch else rollout,
            )
        except (Denied, InvalidInput, NotFound) as error:
            jobs = Jobs()
            jobs.catch_up(self._log)
            outcome = updates.GATE_FAILED if error.code == "gate_missed" else updates.FAILED
            self._end(watch, jobs, outcome, error.message, move.version)

    def _end(self, watch: Watch, jobs: Jobs, outcome: str, reason: str, version: str) -> None:
        self._write(jobs, f.UPDATED, watch, {"outcome": outcome, "reason": reason[:2000], "version": version})
        self._report("update_ended", endpoint=watch.endpoint, outcome=outcome, reason=reason, version=version)

    def _write(self, jobs: Jobs, kind: str, watch: Watch, data: dict[str, Any]) -> None:
        job = watch.job

        def check(log: Any) -> None:
            jobs.catch_up(log)
            found = jobs.watches.get(watch.endpoint)
            if found is None or found.job != job:
                raise Conflict(f"the update of '{watch.endpoint}' has moved on", code="state_moved")

        self._log.append(kind, watch.endpoint, {"job": job, **data}, check=check)
        jobs.catch_up(self._log)


def _news(watch: Watch, data: DataState | None, config: UpdateConfig) -> str:
    """Return in words what is new in the data, empty when nothing is, or not enough."""
    if data is None or data.digest == watch.data or NEW_DATA not in config.on:
        return ""
    if data.rows < 0 or watch.rows < 0:
        return "new data"
    more = data.rows - watch.rows
    if more < config.min_new_rows:
        return ""
    return f"new data: {abs(more)} rows {'more' if more >= 0 else 'fewer'}" if more else "new data"
