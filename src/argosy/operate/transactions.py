"""Check and entry as one transaction: what was checked still holds where the entry stands in the log."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec

from argosy.operate.desired import Desired
from argosy.operate.folding import LogLike
from argosy.registry.versions import Version


class VersionsLike(Protocol):
    """The part of the registry's versions that commands need."""

    def get(self, ref: str) -> Version:
        """Return the version a reference names; NotFound."""
        ...

    def list(self, name: str) -> Sequence[Version]:
        """Return the versions of a name, oldest first."""
        ...


class RegistryLike(Protocol):
    """The part of the registry that commands need."""

    @property
    def log(self) -> LogLike:
        """The log."""
        ...

    @property
    def versions(self) -> VersionsLike:
        """The versions."""
        ...


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What a command did."""

    endpoint: str
    is_changed: bool
    """False when all was already as asked; nothing was written then."""
    summary: str
    """What happens now, in one sentence."""
    rollout: str = ""
    """The rollout this starts, moves or ends, to follow it by."""
    undo: str = ""
    """The command line that takes it back."""
    entry: int = 0
    """The number of the log's entry."""


class AsWanted(Exception):
    """Raised by a check: all is already as asked, so nothing is written."""

    def __init__(self, accepted: Accepted) -> None:
        super().__init__(accepted.summary)
        self.accepted = accepted


def transact(
    log: LogLike,
    what: tuple[str, str],
    check: Callable[[Desired], None],
    data: Callable[[Desired], dict[str, Any]],
    answer: Callable[[Desired, int], Accepted],
) -> Accepted:
    """Write one entry if `check` agrees with everything written before it, and answer from the state it makes."""
    state = Desired()

    def check_state(log: LogLike) -> None:
        state.catch_up(log)
        check(state)

    def data_then(log: LogLike) -> dict[str, Any]:
        del log
        return data(state)

    try:
        entry = log.append(*what, data_then, check=check_state)
    except AsWanted as known:
        return known.accepted
    state.catch_up(log)
    return answer(state, entry.seq)
