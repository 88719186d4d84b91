"""Runs with their stages and curves, read from the log and from what a stage that runs now tells about itself."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from argosy.cluster.launcher import Launcher
from argosy.core.errors import ArgosyError
from argosy.core.progress import Progress
from argosy.registry.log import Log

MOST_RUNS = 50
MOST_POINTS = 1000
"""Points of one curve; with more, neighbours are passed over."""
_MOST_NEWS_BYTES = 4 << 20
_MOST_CURVES = 12
_KINDS = ("run.started", "stage.finished", "run.finished")


class Curve(msgspec.Struct, frozen=True, kw_only=True):
    """One number of a training over its epochs or steps."""

    name: str
    unit: str
    """What x counts: epochs or steps."""
    points: tuple[tuple[float, float], ...]


class StageRow(msgspec.Struct, frozen=True, kw_only=True):
    """One stage of a run that was executed in it."""

    name: str
    seconds: float
    values: dict[str, Any]


class RunRow(msgspec.Struct, frozen=True, kw_only=True):
    """One run, newest first in a list of them."""

    id: str
    project: str
    started: float
    actor: str
    state: str
    """finished; open: it was stopped or runs still, see `Live`."""
    stages: tuple[StageRow, ...]
    history: str = ""
    """Digest of its training's history; empty when it trained nothing."""
    versions: tuple[str, ...] = ()


class Live(msgspec.Struct, frozen=True, kw_only=True):
    """A stage that runs now on this machine."""

    stage: str
    started: float
    message: str
    done: float
    total: float
    unit: str
    left_s: float
    curves: tuple[Curve, ...]


class BlobsLike(Protocol):
    """The part of the blobs that is read here."""

    def get(self, digest: str, /) -> bytes:
        """Return verified bytes; NotFound or IntegrityError."""
        ...


def read_runs(log: Log, most: int = MOST_RUNS) -> list[RunRow]:
    """Return the last `most` runs of the log that executed something, newest first."""
    found: dict[str, RunRow] = {}
    for entry in sorted((e for kind in _KINDS for e in log.entries(kind=kind)), key=lambda e: e.seq):
        if entry.kind == "run.started":
            found[entry.subject] = RunRow(
                id=entry.subject,
                project=str(entry.data.get("project", "")),
                started=entry.time,
                actor=entry.actor,
                state="open",
                stages=(),
            )
        elif entry.kind == "run.finished" and entry.subject in found:
            found[entry.subject] = msgspec.structs.replace(found[entry.subject], state="finished")
        elif entry.data.get("run") in found:
            run = found[str(entry.data["run"])]
            found[run.id] = _with_stage(run, entry.data)
    return sorted(found.values(), key=lambda run: -run.started)[:most]


def _with_stage(run: RunRow, data: dict[str, Any]) -> RunRow:
    values = data.get("values", {})
    stage = StageRow(name=str(data["stage"]), seconds=float(data.get("seconds", 0.0)), values=values)
    return msgspec.structs.replace(
        run,
        stages=(*run.stages, stage),
        history=str(data.get("outputs", {}).get("history.json", run.history)),
        versions=tuple(map(str, values.get("versions", run.versions))) if stage.name == "publish" else run.versions,
    )


def curves_of(run: RunRow, blobs: BlobsLike) -> tuple[Curve, ...]:
    """Return the curves of a finished training; none when it left none, or what it left is damaged."""
    if not run.history:
        return ()
    try:
        history = msgspec.json.decode(blobs.get(run.history), type=list[dict[str, Any]])
    except (ArgosyError, msgspec.DecodeError):
        return ()
    return curves(((float(n), entry) for n, entry in enumerate(history, 1)), "epochs")


def curves(entries: Iterable[tuple[float, dict[str, Any]]], unit: str) -> tuple[Curve, ...]:
    """Return a curve for each finite number in `entries`, losses first."""
    found: dict[str, list[tuple[float, float]]] = {}
    for x, values in entries:
        for name, value in values.items():
            is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if is_number and name not in ("epoch", "seconds") and (name in found or len(found) < _MOST_CURVES):
                found.setdefault(name, []).append((x, float(value)))
    names = sorted(found, key=lambda name: ("loss" not in name, name))
    return tuple(Curve(name=name, unit=unit, points=tuple(_fewer(found[name]))) for name in names)


def _fewer(points: Sequence[tuple[float, float]]) -> Sequence[tuple[float, float]]:
    every = -(-len(points) // MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]


def running_stages(launcher: Launcher, home: Path) -> list[Live]:
    """Return the stages that run now, each with the news it has told since it began."""
    names = [info.name.split("-")[1] for info in launcher.list() if info.role == "stage" and info.alive]
    found: list[Live] = []
    for stage in sorted(set(names)):
        # A folder is called after its stage's key, which a process does not tell: the newest are of those that live.
        told = sorted(_told(home / "work", stage), key=lambda path: -path.stat().st_mtime)
        found += [live for live in map(_live, told[: names.count(stage)]) if live is not None]
    return found


def _told(folder: Path, stage: str) -> list[Path]:
    return [path.parent for path in folder.glob(f"{stage}-*/events.jsonl") if path.is_file()]


def _live(work: Path) -> Live | None:
    try:
        with (work / "events.jsonl").open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - _MOST_NEWS_BYTES))
            lines = stream.read().splitlines()
        began = work.stat().st_mtime
    except OSError:
        return None
    news = []
    for line in lines:
        try:
            news.append(msgspec.json.decode(line, type=Progress))
        except msgspec.DecodeError:
            continue  # the first may be cut, and the last not whole yet
    stage = work.name.rpartition("-")[0]
    last = news[-1] if news else Progress(stage=stage)
    counted = next((n for n in reversed(news) if n.total), last)
    return Live(
        stage=stage,
        started=began,
        message=last.message,
        done=counted.done,
        total=counted.total,
        unit=counted.unit,
        left_s=counted.left_s,
        curves=curves(((n.done, n.values) for n in news if n.unit == "steps"), "steps"),
    )
