"""A rollout told from the log: its windows given to the judge again, and what it says compared with what it said."""

import math
from typing import Any

import msgspec

from argosy.core.config import Config
from argosy.core.errors import NotFound
from argosy.evaluate.judge import decides
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Rollout, Target
from argosy.operate.folding import LogEntry, LogLike
from argosy.operate.judging import WindowJudge
from argosy.serve.control import Window

_CLOSE = 1e-9
"""Logged numbers are those of another machine's arithmetic, to the last bits."""


class Moment(Config, frozen=True):
    """What the judge knew after one window."""

    minutes: float
    """Since the first window."""
    share: float
    total: float
    """Evidence that the new version is worse; it is rolled back at `Replay.threshold`."""
    assurance: float
    """The least evidence, of the metrics that promotion waits for, that it is not twice as bad; 20 suffice."""


class Compared(Config, frozen=True):
    """A verdict in the log, and the one that its windows give."""

    seq: int
    logged: str
    replayed: str
    total_logged: float
    total_replayed: float

    @property
    def is_same(self) -> bool:
        """Whether they are the same verdict, by the same numbers."""
        is_close = math.isclose(self.total_logged, self.total_replayed, rel_tol=_CLOSE, abs_tol=_CLOSE)
        return self.logged == self.replayed and is_close


class Replay(Config, frozen=True):
    """One rollout's evidence."""

    rollout: str
    endpoint: str
    threshold: float
    verdict: dict[str, Any]
    """The last, with all its numbers; empty when nothing was judged."""
    moments: tuple[Moment, ...]
    compared: tuple[Compared, ...]

    @property
    def is_same(self) -> bool:
        """Whether every verdict in the log follows from its windows."""
        return all(verdict.is_same for verdict in self.compared)


def entries_of(log: LogLike, rollout: str) -> list[LogEntry]:
    """Return the entries about a rollout, oldest first. Raises NotFound."""
    number = int(rollout[1:]) if rollout[:1] == "r" and rollout[1:].isdigit() else 0
    found = [e for e in log.entries(after=max(0, number - 1)) if _is_about(e, rollout, number)] if number else []
    if not found or found[0].seq != number:
        raise NotFound(f"there is no rollout '{rollout}'", hint="rollouts stand in: argosy models history ENDPOINT")
    return found


def replay(entries: list[LogEntry]) -> Replay:
    """Give the windows in a rollout's entries to a judge and compare it with what they say."""
    asked = entries[0]
    rollout = rollout_of(asked)
    judge = WindowJudge(rollout)
    moments: list[Moment] = []
    compared: list[Compared] = []
    began: float | None = None
    verdict: dict[str, Any] = {}
    for entry in entries[1:]:
        for window in windows_of(entry):
            began = window.start if began is None else began
            judge.take(window)
            verdict = judge.verdict()
            moments.append(_moment(verdict, window, began))
        said = entry.data.get("verdict")
        if said and verdict:
            compared.append(
                Compared(
                    seq=entry.seq,
                    logged=str(said["verdict"]),
                    replayed=str(verdict["verdict"]),
                    total_logged=float(said["total"]),
                    total_replayed=float(verdict["total"]),
                )
            )
    return Replay(
        rollout=rollout.id,
        endpoint=rollout.endpoint,
        threshold=1 / rollout.config.false_alarm,
        verdict=verdict,
        moments=tuple(moments),
        compared=tuple(compared),
    )


def _is_about(entry: LogEntry, rollout: str, number: int) -> bool:
    return (entry.kind == d.ENDPOINT and entry.seq == number) or entry.data.get("rollout") == rollout


def windows_of(entry: LogEntry) -> list[Window]:
    """Return the windows that an entry brought."""
    return [msgspec.convert(plain, Window, str_keys=True) for plain in entry.data.get("windows", ())]


def rollout_of(asked: LogEntry) -> Rollout:
    """Return a rollout as it was asked for, by its first entry."""
    config = msgspec.convert(asked.data.get("rollout") or {}, RolloutConfig)
    version = asked.data.get("version") or {"digest": "", "ref": ""}
    return Rollout(
        id=f"r{asked.seq}",
        endpoint=asked.subject,
        kind=config.style,
        base=None,
        to=msgspec.convert(version, Target),
        config=config,
        actor=asked.actor,
        asked=asked.time,
        since=asked.time,
    )


def _moment(verdict: dict[str, Any], window: Window, began: float) -> Moment:
    found = verdict["metrics"]
    least = min((float(found[name]["assurance"]) for name in found if decides(name, tuple(found))), default=1.0)
    return Moment(
        minutes=(window.start + window.seconds - began) / 60,
        share=window.share,
        total=float(verdict["total"]),
        assurance=least,
    )
