"""Who gets how many replicas when one machine has no room for all. Pure.

A first replica comes before anybody's second; then endpoints of higher priority, and those of the same priority get the
same part of what they ask for. Versions that serve come before those on trial, and these before those kept warm.
"""

from collections.abc import Callable, Iterable, Sequence

import msgspec

from argosy.core.units import format_size

STABLE, CANARY, BACKUP = 0, 1, 2
"""What a version is for, the most important first."""

PART = 0.8
"""Of the machine's memory, for all replicas together: the rest is for gateway, controller, files and jobs."""
_FREE_PART = 0.9
"""Of the memory that is free now, for replicas that are added now."""


class Machine(msgspec.Struct, frozen=True):
    """What there is to share; 0: no bound."""

    memory_bytes: int = 0
    free_bytes: int = 0
    cores: int = 0


class Ask(msgspec.Struct, frozen=True, kw_only=True):
    """What all endpoints together want of one version."""

    digest: str
    ref: str
    replicas: int
    least: int = 1
    """Of these, how many its endpoints say it has at least."""
    purpose: int = STABLE
    priority: int = 0
    memory_bytes: int = 0
    """Of one replica; 0: not known yet."""
    threads: int = 1
    running: int = 0
    """Replicas that are there already."""
    busy: float = 0.0
    """Replicas' worth of work that its endpoints have had of late."""
    is_scaled: bool = False
    """Whether the number follows the load; others are not counted against cores, which their users have weighed."""


class Grant(msgspec.Struct, frozen=True):
    """How many replicas a version gets, and what bounds them; `limit` is empty when that is all it wants."""

    replicas: int
    limit: str = ""


class _Table:
    """What has been given to whom so far."""

    def __init__(self, asks: Sequence[Ask], machine: Machine) -> None:
        self.given = dict.fromkeys((ask.digest for ask in asks), 0)
        self.limits: dict[str, str] = {}
        self._asks = asks
        self._machine = machine
        self._budget = int(PART * machine.memory_bytes)
        self._used = 0

    def give(self, ask: Ask, *, is_extra: bool = False) -> bool:
        """Give a version one replica more, if there is room."""
        limit = self._no_memory(ask) or (self._no_core(ask) if is_extra and ask.is_scaled else "")
        if limit:
            self.limits[ask.digest] = limit
            return False
        self.given[ask.digest] += 1
        self._used += ask.memory_bytes
        return True

    def _no_memory(self, ask: Ask) -> str:
        if not self._budget or self._used + ask.memory_bytes <= self._budget:
            return ""
        others = self._used - self.given[ask.digest] * ask.memory_bytes
        return (
            f"a replica of {ask.ref} takes {format_size(ask.memory_bytes)}, all together may take "
            f"{format_size(self._budget)} of this machine's memory, and others have {format_size(others)} of it"
        )

    def _no_core(self, ask: Ask) -> str:
        cores = self._machine.cores
        if not cores:
            return ""
        others = sum(
            min(self.given[other.digest], other.busy) * other.threads
            for other in self._asks
            if other.is_scaled and other.digest != ask.digest
        )
        if (self.given[ask.digest] + 1) * ask.threads + others <= cores + 1e-9:
            return ""
        kept = f", and other endpoints keep {others:.2g} of them busy" if others else ""
        return f"this machine has {cores} core{'s' * (cores != 1)}{kept}"

    def fill(self, asks: Iterable[Ask], upto: Callable[[Ask], int], *, is_extra: bool = False) -> None:
        """Give each of these up to so many, one by one, always to whom the smallest part of that was given."""
        waiting = {ask.digest: ask for ask in asks if self.given[ask.digest] < upto(ask)}
        while waiting:
            ask = min(waiting.values(), key=lambda ask: (self.given[ask.digest] / upto(ask), ask.ref, ask.digest))
            if not self.give(ask, is_extra=is_extra) or self.given[ask.digest] >= upto(ask):
                del waiting[ask.digest]


def share(asks: Sequence[Ask], machine: Machine) -> dict[str, Grant]:
    """Return for each version how many replicas it gets."""
    table = _Table(asks, machine)
    ordered = sorted(asks, key=lambda ask: (-ask.priority, ask.ref, ask.digest))
    serving = [ask for ask in ordered if ask.purpose == STABLE]
    for ask in serving:
        table.fill([ask], lambda ask: min(1, ask.replicas))
    # What a rollout has begun is not ended by a neighbour's load: that would look like the version's own failure.
    for ask in (ask for ask in ordered if ask.purpose == CANARY and ask.running):
        table.fill([ask], lambda ask: min(1, ask.replicas))
    for ask in serving:
        table.fill([ask], lambda ask: min(ask.least, ask.replicas))
    for purpose in (STABLE, CANARY, BACKUP):
        group = [ask for ask in ordered if ask.purpose == purpose]
        for priority in sorted({ask.priority for ask in group}, reverse=True):
            equals = [ask for ask in group if ask.priority == priority]
            table.fill(equals, lambda ask: ask.replicas, is_extra=purpose == STABLE)
    return {ask.digest: _bounded(ask, table, machine) for ask in asks}


def _bounded(ask: Ask, table: _Table, machine: Machine) -> Grant:
    """Add no more than what is free now has room for; what runs, and a first replica, are left alone."""
    given = table.given[ask.digest]
    limit = table.limits.get(ask.digest, "") if given < ask.replicas else ""
    there = max(ask.running, min(1, given))
    if machine.free_bytes and ask.memory_bytes and given > there:
        room = int(_FREE_PART * machine.free_bytes / ask.memory_bytes)
        if given > there + room:
            given = there + room
            limit = (
                f"a replica of {ask.ref} takes {format_size(ask.memory_bytes)}, and {format_size(machine.free_bytes)} "
                "of memory are free now"
            )
    return Grant(given, limit)
