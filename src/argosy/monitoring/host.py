"""What the monitor tells of this machine, of the processes of its home, and of runs under way."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from argosy.cluster.launcher import ProcessInfo
from argosy.core.errors import ArgosyError
from argosy.core.files import FileLock
from argosy.core.machine import free_memory, total_memory, usable_cores, worked_s
from argosy.core.progress import Progress
from argosy.operate.folding import LogLike
from argosy.serve.counters import Labels

MOST_RUNNING = 32
"""Stages under way that are looked at; a machine trains few things at once."""
_TAIL_BYTES = 65_536
_LOSSES = ("loss", "train_loss", "validation_loss")

Sample = tuple[str, Labels, float]


def host_samples(home: Path) -> Iterator[Sample]:
    """Return cores, memory and room on the disk."""
    yield "argosy_host_cpu_cores", (), float(usable_cores())
    yield "argosy_host_cpu_seconds_total", (), worked_s()
    yield "argosy_host_memory_bytes", (), float(total_memory())
    yield "argosy_host_memory_free_bytes", (), float(free_memory())
    yield "argosy_host_disk_free_bytes", (), float(shutil.disk_usage(home).free)


def process_samples(processes: Iterable[ProcessInfo]) -> Iterator[Sample]:
    """Return how many processes of each role live, and their memory."""
    counts: dict[str, int] = {}
    memory: dict[str, int] = {}
    for info in processes:
        if info.alive:
            counts[info.role] = counts.get(info.role, 0) + 1
            memory[info.role] = memory.get(info.role, 0) + info.memory_bytes
    for role, count in sorted(counts.items()):
        yield "argosy_processes", (role,), float(count)
        yield "argosy_process_memory_bytes", (role,), float(memory[role])


def running_stages(home: Path) -> list[Progress]:
    """Return the last news of each stage under way, by the files in which stages tell their runs how far they are.

    A stage is under way while its lock is held; what a killed run left lying has no holder.
    """
    found: list[Progress] = []
    for lock in sorted((home / "work").glob("*.lock"))[: 10 * MOST_RUNNING]:
        events = lock.with_suffix("") / "events.jsonl"
        if len(found) < MOST_RUNNING and events.is_file() and FileLock(lock).is_taken():
            stage = lock.name.rpartition("-")[0]
            found.append(_last_news(events) or Progress(stage=stage))
    return found


def _last_news(events: Path) -> Progress | None:
    try:
        with events.open("rb") as stream:
            stream.seek(max(0, events.stat().st_size - _TAIL_BYTES))
            lines = stream.read().splitlines()
    except OSError:
        return None
    news = None
    for line in reversed(lines):
        try:
            said = msgspec.json.decode(line, type=Progress)
        except msgspec.MsgspecError:  # cut at the front of the tail, or not written to its end yet
            continue
        if said.total or said.values:
            return said
        news = news or said
    return news


def stage_samples(stages: Iterable[Progress]) -> Iterator[Sample]:
    """Return how far the stages under way are; trainings are numbered, so that labels stay few."""
    counts: dict[str, int] = {}
    done: dict[str, float] = {}
    left: dict[str, float] = {}
    slot = 0
    for news in stages:
        counts[news.stage] = counts.get(news.stage, 0) + 1
        if news.total > 0:
            done[news.stage] = min(done.get(news.stage, 1.0), news.done / news.total)
        if news.left_s >= 0:
            left[news.stage] = max(left.get(news.stage, 0.0), news.left_s)
        if news.stage == "train":
            yield from _of_training(str(slot), news)
            slot += 1
    for stage, count in sorted(counts.items()):
        yield "argosy_stages_running", (stage,), float(count)
    for stage, ratio in sorted(done.items()):
        yield "argosy_stage_done_ratio", (stage,), ratio
    for stage, seconds in sorted(left.items()):
        yield "argosy_stage_left_seconds", (stage,), seconds


def _of_training(slot: str, news: Progress) -> Iterator[Sample]:
    values = {name: float(found) for name, found in news.values.items() if isinstance(found, int | float)}
    loss = next((values[name] for name in _LOSSES if name in values), None)
    if loss is not None:
        yield "argosy_training_loss", (slot,), loss
    if "samples_per_s" in values:
        yield "argosy_training_samples_per_second", (slot,), values["samples_per_s"]
    if news.unit == "steps":
        yield "argosy_training_step", (slot,), news.done


class RunCounts:
    """Runs and stages by the log: the same numbers after a restart."""

    def __init__(self) -> None:
        self._head = 0
        self._finished: dict[str, int] = {}
        self._started = 0

    def samples(self, log: LogLike) -> list[Sample]:
        """Return the counts, with what is new in the log."""
        try:
            for entry in log.entries(after=self._head, kind="stage.finished"):
                stage = str(entry.data.get("stage", ""))[:40]
                self._finished[stage] = self._finished.get(stage, 0) + 1
            self._started += sum(1 for _ in log.entries(after=self._head, kind="run.started"))
            self._head = log.head
        except ArgosyError:
            pass  # a store that fails: the counts of the last look
        stages: list[Sample] = [
            ("argosy_stages_finished_total", (stage,), float(n)) for stage, n in sorted(self._finished.items())
        ]
        return [*stages, ("argosy_runs_started_total", (), float(self._started))]
