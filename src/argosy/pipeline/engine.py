"""Plan a run, carry it out, resume it. A stage whose key stands in the log is never run again."""

import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster.launcher import Launcher, ProcessInfo, ProcessSpec
from argosy.core.clock import Clock
from argosy.core.config import Settings
from argosy.core.errors import Conflict, Internal
from argosy.core.files import FileLock
from argosy.core.progress import Progress, Reporter
from argosy.pipeline.config import Recipe, plain
from argosy.pipeline.context import StageRecord
from argosy.pipeline.graph import Sources, Step, difference, steps_of
from argosy.pipeline.sources import read_sources
from argosy.registry.log import Entry, Log
from argosy.registry.registry import Registry
from argosy.train.hosts import Hosts

_POLL_S = 0.05


class PlannedStep(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a plan: what would run, why, and how long it took the last time (-1: never run here)."""

    stage: str
    key: str
    is_done: bool
    why: str
    does: str
    last_s: float = -1.0


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a run would do. `left_s` adds up the known times of what is not done yet, -1 when one is unknown."""

    project: str
    steps: list[PlannedStep]
    where: str = "this machine"

    @property
    def left_s(self) -> float:
        """Seconds that the open steps took the last time; -1 if one of them never ran here."""
        times = [step.last_s for step in self.steps if not step.is_done]
        return -1.0 if any(t < 0 for t in times) else sum(times)


class RunResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a run did: which stages it executed, which it found done, and what each of them left."""

    run: str
    executed: list[str]
    cached: list[str]
    records: dict[str, StageRecord]
    seconds: float


@dataclass
class _Run:
    """One run under way; `records` grows stage by stage."""

    id: str
    recipe: Recipe
    base: Path
    sources: Sources
    steps: list[Step]
    report: Reporter
    records: dict[str, StageRecord]
    hosts: Hosts


class Engine:
    """Plans and executes recipes. Stages run in processes of their own, started by the launcher."""

    def __init__(
        self, registry: Registry, launcher: Launcher, clock: Clock, settings: Settings, randomness: random.Random
    ) -> None:
        self._registry = registry
        self._launcher = launcher
        self._clock = clock
        self._settings = settings
        self._random = randomness

    def plan(self, recipe: Recipe, base: Path, until: str = "publish") -> Plan:
        """Return what `run` would do now. Raises InvalidInput or NotFound for what can be seen to be wrong."""
        recipe.check()
        log = self._registry.log
        log.refresh()
        steps = steps_of(recipe, read_sources(recipe, base), until)
        return Plan(project=recipe.project.name, steps=[self._planned(step, recipe.project.name) for step in steps])

    def _planned(self, step: Step, project: str) -> PlannedStep:
        log = self._registry.log
        former = last_of_stage(log, project, step.stage.name)
        done = find_record(log, step.key) is not None
        return PlannedStep(
            stage=step.stage.name,
            key=step.key,
            is_done=done,
            why="nothing it depends on has changed" if done else _why(step, former),
            does=step.stage.does,
            last_s=float(former.data["seconds"]) if former else -1.0,
        )

    def run(
        self, recipe: Recipe, base: Path, report: Reporter, until: str = "publish", *, hosts: Hosts | None = None
    ) -> RunResult:
        """Carry out what is not done yet, in order. Killed anywhere, the next call goes on from there.

        With `hosts` each of them runs this, and they train together.
        """
        recipe.check()
        started = self._clock.monotonic()
        log = self._registry.log
        log.refresh()
        sources = read_sources(recipe, base)
        steps = steps_of(recipe, sources, until)
        run = _Run(
            f"run-{self._random.getrandbits(48):012x}", recipe, base, sources, steps, report, {}, hosts or Hosts()
        )
        executed: list[str] = []
        for step in steps:
            name = step.stage.name
            record = find_record(log, step.key)
            if record is None:
                if not executed:
                    log.append("run.started", run.id, {"project": recipe.project.name, "base": str(base)})
                report(Progress(stage=name, message="started"))
                record = self._execute(run, step)
                executed.append(name)
                report(Progress(stage=name, message="finished", values=record.values))
            else:
                report(Progress(stage=name, message="cached", values=record.values))
            run.records[name] = record
        if executed:
            log.append("run.finished", run.id, {"executed": executed})
        return RunResult(
            run=run.id,
            executed=executed,
            cached=[step.stage.name for step in steps if step.stage.name not in executed],
            records=run.records,
            seconds=self._clock.monotonic() - started,
        )

    def _execute(self, run: _Run, step: Step) -> StageRecord:
        work = self._settings.home / "work" / f"{step.stage.name}-{step.key[7:23]}"
        lock = FileLock(work.with_suffix(".lock"))
        if not lock.acquire():
            raise Conflict(
                f"stage '{step.stage.name}' of this very run is being done by another `argosy run`",
                hint="wait for it, or stop it, and run again",
            )
        try:
            work.mkdir(parents=True, exist_ok=True)
            started = self._clock.monotonic()
            self._child(step.stage.name, self._task(run, step, work), work, run.report)
            record = msgspec.json.decode((work / "result.json").read_bytes(), type=StageRecord)
            finished = self._finish(run, step, record, self._clock.monotonic() - started)
            shutil.rmtree(work, ignore_errors=True)
            return finished
        finally:
            lock.release()

    def _task(self, run: _Run, step: Step, work: Path) -> dict[str, Any]:
        """Return what `pipeline.worker` is told."""
        return {
            "entry": step.stage.entry,
            "stage": step.stage.name,
            "sources": msgspec.to_builtins(run.sources),
            "recipe": plain(run.recipe, Recipe),
            "base": str(run.base),
            "keys": {s.stage.name: s.key for s in run.steps},
            "run": run.id,
            "work": str(work),
            "inputs": msgspec.to_builtins({name: run.records[name] for name in step.inputs}),
            "settings": msgspec.to_builtins(self._settings, enc_hook=str),
            "hosts": msgspec.to_builtins(run.hosts),
        }

    def _child(self, stage: str, config: dict[str, Any], work: Path, report: Reporter) -> None:
        (work / "events.jsonl").unlink(missing_ok=True)
        spec = ProcessSpec(
            name=f"stage-{stage}-{self._random.getrandbits(32):08x}",
            role="stage",
            entry="argosy.pipeline.worker:main",
            config=config,
            detached=False,
        )
        info = self._launcher.start(spec)
        try:
            finished = self._follow(info, work / "events.jsonl", report)
        except BaseException:  # Ctrl-C too: the child must not go on by itself
            self._launcher.stop(spec.name, grace_s=2.0)
            raise
        if finished.exit_code == 0 and (work / "result.json").is_file():
            self._launcher.stop(spec.name)  # it has said how it ended, but may still be ending
            self._launcher.forget(spec.name)
            return
        error = self._launcher.error(spec.name)
        if error is not None:
            raise error
        raise Internal(
            f"stage '{stage}' ended without a result (exit code {finished.exit_code})",
            hint=f"its log is '{finished.log}'; run again to resume it",
            stage=stage,
        )

    def _follow(self, info: ProcessInfo, events: Path, report: Reporter) -> ProcessInfo:
        seen = 0
        while True:
            now = self._launcher.get(info.name)
            seen = _forward(events, seen, report)
            if now is None or not now.alive:
                _forward(events, seen, report)
                return now or msgspec.structs.replace(info, alive=False)
            self._clock.sleep(_POLL_S)

    def _finish(self, run: _Run, step: Step, record: StageRecord, seconds: float) -> StageRecord:
        data = {
            "stage": step.stage.name,
            "project": run.recipe.project.name,
            "run": run.id,
            "config": step.config,
            "inputs": step.inputs,
            "seconds": round(seconds, 3),
            "outputs": record.outputs,
            "values": record.values,
        }

        def only_once(log: Log) -> None:
            if log.last("stage.finished", step.key) is not None:
                raise Conflict(f"stage '{step.stage.name}' has been finished by somebody else", code="stage_finished")

        log = self._registry.log
        try:
            log.append("stage.finished", step.key, data, check=only_once)
        except Conflict as error:
            if error.code != "stage_finished":
                raise
        return find_record(log, step.key) or record


def find_record(log: Log, key: str) -> StageRecord | None:
    """Return what the stage with this key left, or None if it never finished."""
    entry = log.last("stage.finished", key)
    return None if entry is None else StageRecord(outputs=entry.data["outputs"], values=entry.data["values"])


def last_of_stage(log: Log, project: str, stage: str) -> Entry | None:
    """Return the newest finished execution of a stage in this project."""
    found = None
    for entry in log.entries(kind="stage.finished"):
        if entry.data["project"] == project and entry.data["stage"] == stage:
            found = entry
    return found


def _why(step: Step, former: Entry | None) -> str:
    if former is None:
        return "never run"
    changed = difference(former.data["config"], step.config)
    if changed:
        return f"changed: {', '.join(changed[:4])}" + (" ..." if len(changed) > 4 else "")
    earlier = [name for name, key in step.inputs.items() if former.data["inputs"].get(name) != key]
    return f"'{earlier[0]}' before it changed" if earlier else "its code changed"


def _forward(events: Path, seen: int, report: Callable[[Progress], None]) -> int:
    """Tell `report` the whole lines of `events` after byte `seen`; return where the next one begins."""
    try:
        with events.open("rb") as stream:
            stream.seek(seen)
            new = stream.read()
    except FileNotFoundError:
        return seen
    whole = new[: new.rfind(b"\n") + 1]
    for line in whole.splitlines():
        report(msgspec.json.decode(line, type=Progress))
    return seen + len(whole)
