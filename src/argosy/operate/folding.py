"""State as a fold of the log: what one or another reader makes of its entries, always in order, always all of them."""

import heapq
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

_FEW = 64
"""A longer stretch is mostly about other things, so it is asked for by kind."""


class LogEntry(Protocol):
    """The part of a registry entry that the fold reads."""

    @property
    def seq(self) -> int: ...  # noqa: D102
    @property
    def time(self) -> float: ...  # noqa: D102
    @property
    def actor(self) -> str: ...  # noqa: D102
    @property
    def kind(self) -> str: ...  # noqa: D102
    @property
    def subject(self) -> str: ...  # noqa: D102
    @property
    def data(self) -> dict[str, Any]: ...  # noqa: D102


class LogLike(Protocol):
    """The part of the registry's log that operating needs; `registry.log.Log` has it."""

    @property
    def head(self) -> int:
        """The number of the last entry known."""
        ...

    def refresh(self) -> int:
        """Read what others have written; return the head."""
        ...

    def append(
        self,
        kind: str,
        subject: str,
        data: dict[str, Any] | Callable[[Any], dict[str, Any]],
        *,
        check: Callable[[Any], None] | None = None,
    ) -> LogEntry:
        """Write an entry if `check` still agrees when it is written."""
        ...

    def entries(self, *, after: int = 0, kind: str | None = None, subject: str | None = None) -> Iterable[LogEntry]:
        """Return entries in order."""
        ...

    def last(self, kind: str, subject: str) -> LogEntry | None:
        """Return the newest entry of a kind about a subject."""
        ...


class Fold:
    """The base of a state that is made of entries alone: the same however often reading was interrupted."""

    folds: ClassVar[tuple[str, ...]] = ()
    """Kinds of entries that matter to it."""

    def __init__(self) -> None:
        self.head = 0
        """The number of the last entry that was taken in."""

    def catch_up(self, log: LogLike) -> bool:
        """Take in all entries that `log` has and this has not; return whether there were any of interest."""
        changed = False
        if log.head > self.head:
            for entry in self._relevant(log):
                self.apply(entry)
                changed = True
            self.head = log.head
        return changed

    def apply(self, entry: LogEntry) -> None:
        """Take in one entry; an entry that fits nothing changes nothing."""
        raise NotImplementedError

    def _relevant(self, log: LogLike) -> Iterable[LogEntry]:
        if log.head - self.head <= _FEW:
            return [entry for entry in log.entries(after=self.head) if entry.kind in self.folds]
        return heapq.merge(
            *(log.entries(after=self.head, kind=kind) for kind in self.folds), key=lambda entry: entry.seq
        )
