"""How fast the links between ranks are, measured through the transport itself in a few hundred milliseconds."""

import itertools
import math

import msgspec
import numpy as np

from argosy.core.clock import Clock, SystemClock
from argosy.train.network.transport import TcpTransport

_PINGS = 8
_FIRST_BYTES = 1 << 16
_MOST_BYTES = 1 << 28
_ENOUGH_S = 0.04
"""A transfer that takes so long says enough, if the delay is short."""
_ENOUGH_DELAYS = 4
_MOST_TRANSFERS = 6


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """One direction of a link."""

    bytes_s: float
    """Bandwidth: bytes of numbers per second in one long transfer."""
    round_trip_s: float
    """Time for a few bytes to go there and others back, as exchanges see it."""

    def transfer_s(self, size_bytes: float) -> float:
        """Return how long one transfer of that size takes."""
        return size_bytes / self.bytes_s + self.round_trip_s / 2


class Links(msgspec.Struct, frozen=True, kw_only=True):
    """All links between ranks."""

    world_size: int
    between: dict[str, Link]
    """By `"0>1"`: from rank 0 to rank 1."""

    def link(self, source: int, target: int) -> Link:
        """Return the link from one rank to another."""
        return self.between[f"{source}>{target}"]

    def worst(self) -> Link:
        """Return a link as slow as the slowest and as far as the farthest: what bounds an exchange of all."""
        found = list(self.between.values())
        if not found:
            return Link(bytes_s=math.inf, round_trip_s=0.0)
        return Link(bytes_s=min(link.bytes_s for link in found), round_trip_s=max(link.round_trip_s for link in found))

    def all_reduce_s(self, wire_bytes: float) -> float:
        """Return how long summing an array of that many bytes, as they are on the wire, takes over the worst link."""
        return all_reduce_s(self.worst(), wire_bytes, self.world_size)


def all_reduce_s(link: Link, wire_bytes: float, world_size: int) -> float:
    """Return how long a sum over `world_size` ranks takes, each with one such link to a switch, both ways at once.

    Two ranks exchange everything at once. More scatter and gather: each sends 2 (n - 1) / n of the bytes, with one
    delay more.
    """
    if world_size == 1:
        return 0.0
    sent = wire_bytes if world_size == 2 else 2 * (world_size - 1) / world_size * wire_bytes
    delays = 1 if world_size == 2 else 2
    return sent / link.bytes_s + delays * link.round_trip_s / 2


def measure_links(transport: TcpTransport, *, clock: Clock | None = None) -> Links:
    """Measure, one pair of ranks after the other, the links of all; all ranks call it and get the same result.

    Each pair takes 0.3 to 0.6 s, more at delays of tens of milliseconds; pairs that share no rank measure at once.
    """
    timing = clock or SystemClock()
    size = transport.world_size
    found = np.zeros((size, size, 2))
    for pairs in _tournament(size):
        for one, other in pairs:
            if transport.rank in (one, other):
                _measure(transport, one, other, found, timing)
    transport.all_reduce(found)
    between = {}
    for source, target in itertools.permutations(range(size), 2):
        bytes_s, round_trip_s = found[source, target].tolist()
        between[f"{source}>{target}"] = Link(bytes_s=bytes_s, round_trip_s=round_trip_s)
    return Links(world_size=size, between=between)


def _tournament(size: int) -> list[list[tuple[int, int]]]:
    """Return rounds of pairs in which every pair of ranks meets once and no rank is in two pairs of a round.

    >>> _tournament(3)
    [[(1, 2)], [(0, 2)], [(0, 1)]]
    """
    # The circle method; with an odd number one rank sits out each round.
    players = list(range(size)) + ([-1] if size % 2 else [])
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [tuple(sorted(pair)) for pair in zip(players[:half], reversed(players[half:]), strict=True)]
        rounds.append([(a, b) for a, b in pairs if a >= 0])
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _measure(transport: TcpTransport, one: int, other: int, found: np.ndarray, clock: Clock) -> None:
    round_trip_s = _round_trip(transport, one, other, clock)
    for source, target in ((one, other), (other, one)):
        bytes_s = _transfer(transport, source, target, round_trip_s, clock)
        if transport.rank == source:
            found[source, target] = bytes_s, round_trip_s


def _round_trip(transport: TcpTransport, one: int, other: int, clock: Clock) -> float:
    """Return the seconds for a number to go there and back, as rank `one` sees it: the other may have had it before."""
    least_s = math.inf
    number = np.zeros(1)
    for _ in range(_PINGS):
        begun = clock.monotonic()
        if transport.rank == one:
            transport.send(number, other)
            transport.receive(number, other)
        else:
            transport.receive(number, one)
            transport.send(number, one)
        least_s = min(least_s, clock.monotonic() - begun)
    number[0] = least_s
    if transport.rank == one:
        transport.send(number, other)
    else:
        transport.receive(number, one)
    return float(number[0])


def _transfer(transport: TcpTransport, source: int, target: int, round_trip_s: float, clock: Clock) -> float:
    """Return the bytes per second from `source` to `target`; right on `source` only."""
    size_bytes, long_enough = _FIRST_BYTES, max(_ENOUGH_S, _ENOUGH_DELAYS * round_trip_s)
    rates: list[float] = []  # of transfers of the last size
    verdict = np.zeros(1)  # bytes of the next transfer, or 0
    while size_bytes:
        values = np.zeros(size_bytes // 8)
        begun = clock.monotonic()
        if transport.rank == source:
            transport.send(values, target)
            transport.receive(verdict, target)  # all has arrived
            taken_s = max(clock.monotonic() - begun - round_trip_s, 1e-9)
            rates.append(size_bytes / taken_s)
            if taken_s < long_enough and size_bytes < _MOST_BYTES and len(rates) == 1:
                # A token bucket lets a short transfer pass at any speed, so its figure doesn't count.
                growth = min(8.0, max(2.0, 1.3 * long_enough / taken_s))
                size_bytes, rates = round(growth * size_bytes), []
            elif not _still_grows(rates):
                size_bytes = 0
            verdict[0] = size_bytes
            transport.send(verdict, target)
        else:
            transport.receive(values, source)
            transport.send(verdict, source)
            transport.receive(verdict, source)
            size_bytes = int(verdict[0])
    return max(rates, default=0.0)


def _still_grows(rates: list[float]) -> bool:
    """Return whether another transfer is worth its time.

    A connection speeds up over its first delays, and one lost packet can make it wait: so a figure counts when the
    next transfer doesn't better it much.
    """
    return len(rates) < 2 or (rates[-1] > 1.2 * max(rates[:-1]) and len(rates) < _MOST_TRANSFERS)
