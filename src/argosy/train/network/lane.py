"""Moves bytes between a rank and all others at once, in both directions, without a thread for any of it.

A lane has one connection with each peer. What is to be sent and where what comes is to go is said with `send` and
`receive`; `run` then moves bytes until the given end is reached. Every message begins with a header that says what its
sender is doing, so ranks that do different things find out.
"""

import collections
import errno
import select
import socket
import struct
from collections.abc import Callable

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, Internal
from argosy.train.network.pulse import Pulse
from argosy.train.transport import DATATYPES, rank_lost, ranks_differ

View = memoryview
_HEADER = struct.Struct("<IHBBQQQ")
"""Generation, root, kind, datatype, number of the message, count of numbers, codec."""
_BUFFERS_AT_ONCE = 16
_WAKE_BYTES = 1 << 16
"""Of a long message, what must have come before this process is woken: on a slow network packets come one by one, and
waking for each would take the processor, and Python's lock, from the computation in front."""
_WOULD_BLOCK = (errno.EAGAIN, errno.EWOULDBLOCK)
SUM, SCATTER, GATHER, BROADCAST, DIRECT = range(5)
_SAYINGS = ("sums {} of all", "sums its part of {}", "gathers {}", "takes {} from rank {}", "exchanges {} with rank {}")


class Doing:
    """What a rank does in one exchange: the same on all ranks, or it is an error."""

    __slots__ = ("codec", "count", "datatype", "kind", "root")

    def __init__(self, kind: int, datatype: int, count: int, *, root: int = 0, codec: int = 0) -> None:
        self.kind = kind
        self.datatype = datatype
        self.count = count
        self.root = root
        self.codec = codec

    def header(self, generation: int, number: int) -> bytes:
        """Return the bytes that announce it as message `number` of a connection."""
        return _HEADER.pack(generation, self.root, self.kind, self.datatype, number, self.count, self.codec)

    def __str__(self) -> str:
        what = f"{self.count} {DATATYPES[self.datatype]}" + (f" in code {self.codec:x}" if self.codec else "")
        return _SAYINGS[self.kind].format(what, self.root)


class _Flow:
    """One connection of a lane: what waits to be sent, and where what comes goes."""

    __slots__ = ("connection", "heard", "interest", "outgoing", "peer", "said", "sent", "target", "then", "wake_bytes")

    def __init__(self, peer: int, connection: socket.socket) -> None:
        self.peer = peer
        self.connection = connection
        self.outgoing: collections.deque[View] = collections.deque()
        self.said = self.heard = 0  # messages
        self.sent = 0  # bytes of this exchange
        self.wake_bytes = 1
        self.target: View | None = None
        self.then: Callable[[], None] = _nothing
        self.interest = 0

    def write(self) -> int:
        """Hand bytes to the kernel; return how many."""
        outgoing = self.outgoing
        views = [outgoing[index] for index in range(min(len(outgoing), _BUFFERS_AT_ONCE))]
        count = left = self.connection.sendmsg(views)
        for view in views:
            if left < len(view):
                if left:
                    outgoing[0] = view[left:]
                break
            left -= len(view)
            outgoing.popleft()
        self.sent += count
        return count

    def read(self) -> int:
        """Take bytes from the kernel, into the target; return how many. OSError at the connection's end."""
        target = self.target
        assert target is not None
        count = self.connection.recv_into(target)
        if not count:
            raise ConnectionResetError
        if count == len(target):
            then, self.target, self.then = self.then, None, _nothing
            then()
        else:
            self.target = target[count:]
        return count


def _nothing() -> None:
    pass


class Lane:
    """One rank's connections for one stream of exchanges, in a fixed order."""

    def __init__(
        self,
        rank: int,
        generation: int,
        connections: dict[int, socket.socket],
        *,
        pulse: Pulse,
        clock: Clock,
        deadline_s: float,
    ) -> None:
        self.rank = rank
        self.peers = sorted(connections)
        self.world_size = len(connections) + 1
        self._generation = generation
        self._pulse = pulse
        self._clock = clock
        self._deadline_s = deadline_s
        self._flows = {peer: _Flow(peer, connections[peer]) for peer in self.peers}
        self._by_descriptor = {flow.connection.fileno(): flow for flow in self._flows.values()}
        self._poll = select.poll()
        self._poll.register(pulse.alarm, select.POLLIN)
        self._error: ArgosyError | None = None

    def begin(self, doing: Doing, to: list[int], of: list[int], then: Callable[[int], None]) -> None:
        """Announce an exchange to the ranks `to`; call `then(peer)` when each of the ranks `of` has, too."""
        if self._error is not None:
            raise self._error
        for peer in to:
            flow = self._flows[peer]
            flow.said += 1
            flow.outgoing.append(memoryview(doing.header(self._generation, flow.said)))
        for peer in of:
            self._expect(peer, doing, then)

    def _expect(self, peer: int, doing: Doing, then: Callable[[int], None]) -> None:
        flow = self._flows[peer]
        flow.heard += 1
        header = doing.header(self._generation, flow.heard)
        found = bytearray(_HEADER.size)

        def compare() -> None:
            if found != header:
                raise self._differs(peer, doing, found)
            then(peer)

        self.receive(peer, memoryview(found), compare)

    def _differs(self, peer: int, doing: Doing, found: bytearray) -> ArgosyError:
        generation, root, kind, datatype, number, count, codec = _HEADER.unpack(found)
        if generation != self._generation or kind >= len(_SAYINGS) or datatype >= len(DATATYPES):
            return Internal(f"rank {peer} sent what belongs to no exchange of generation {self._generation}")
        other = Doing(kind, datatype, count, root=root, codec=codec)
        said = {self.rank: f"{doing}", peer: f"{other}"}
        expected = self._flows[peer].heard
        if number != expected:
            said = {self.rank: f"{doing} as its message {expected}", peer: f"{other} as its message {number}"}
        return ranks_differ(said)

    def send(self, peer: int, view: View) -> None:
        """Send the bytes of `view`, which must not change before they are sent, after those sent before."""
        if len(view):
            self._flows[peer].outgoing.append(view)

    def receive(self, peer: int, view: View, then: Callable[[], None]) -> None:
        """Fill `view` with the next bytes from `peer`, then call `then`; one at a time for each peer."""
        flow = self._flows[peer]
        assert flow.target is None, "one thing is received after the other"
        if len(view):
            flow.target, flow.then = view, then
        else:
            then()

    def sent(self, peer: int) -> int:
        """Return how many bytes of this exchange, without its header, the kernel has taken for `peer` so far."""
        return self._flows[peer].sent - _HEADER.size

    def waiting(self, peer: int) -> int:
        """Return how many views wait to be sent to `peer`."""
        return len(self._flows[peer].outgoing)

    def run(self, is_done: Callable[[], bool]) -> None:
        """Move bytes until `is_done`, and until everything that was to be sent is handed to the kernel."""
        try:
            self._run(is_done)
        except ArgosyError as error:
            self._error = error
            raise
        except BaseException as error:
            # What stands in the connections now fits no next exchange.
            self._error = Internal(f"an exchange was broken off by {type(error).__name__}")
            raise
        finally:
            for flow in self._flows.values():
                flow.sent = 0

    def _run(self, is_done: Callable[[], bool]) -> None:
        flows = list(self._flows.values())
        for flow in flows:
            # Most small messages fit into the kernel's buffer at once: no need to ask first.
            if flow.outgoing:
                self._try(flow, flow.write)
        moved_at = self._clock.monotonic()
        while not is_done() or any(flow.outgoing for flow in flows):
            for flow in flows:
                self._register(flow)
            left_s = self._deadline_s - (self._clock.monotonic() - moved_at)
            ready = self._poll.poll(max(1.0, 1000 * min(1.0, left_s)))
            moved = 0
            for descriptor, events in ready:
                if descriptor == self._pulse.alarm:
                    raise self._pulse.error() or Internal("an alarm without a reason")
                flow = self._by_descriptor[descriptor]
                if events & ~select.POLLOUT and flow.target is not None:
                    moved += self._try(flow, flow.read)
                if events & ~select.POLLIN and flow.outgoing:
                    moved += self._try(flow, flow.write)
            now = self._clock.monotonic()
            if moved:
                moved_at = now
            elif now - moved_at > self._deadline_s:
                raise rank_lost(self._awaited(), f"lives, but took no part for {self._deadline_s:g} s")

    def _register(self, flow: _Flow) -> None:
        interest = (select.POLLIN if flow.target is not None else 0) | (select.POLLOUT if flow.outgoing else 0)
        if flow.target is not None:
            wake_bytes = _WAKE_BYTES if len(flow.target) >= _WAKE_BYTES else 1
            if wake_bytes != flow.wake_bytes:
                flow.wake_bytes = wake_bytes
                flow.connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, wake_bytes)
        if interest == flow.interest:
            return
        # A connection of which nothing is wanted is not watched: its end would be reported again and again.
        if interest:
            self._poll.register(flow.connection, interest)
        else:
            self._poll.unregister(flow.connection)
        flow.interest = interest

    def _try(self, flow: _Flow, move: Callable[[], int]) -> int:
        try:
            return move()
        except OSError as error:
            if error.errno in _WOULD_BLOCK:
                return 0
            raise self._pulse.explain(flow.peer) from error

    def _awaited(self) -> int:
        waiting = [flow.peer for flow in self._flows.values() if flow.target is not None or flow.outgoing]
        return (waiting or self.peers)[0]

    def close(self) -> None:
        """Close the connections."""
        for flow in self._flows.values():
            flow.connection.close()
