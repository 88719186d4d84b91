"""The collective exchanges, over a lane.

Sums are added in the order of ranks, so all ranks get the same bits, and the same as over shared memory. Everything
large moves in chunks: while one is added, others are on their way in both directions.
"""

import itertools

import numpy as np

from argosy.train.network.codec import Bytes, Codec, Floats
from argosy.train.network.forms import CHUNK_BYTES, Coded, Form, Plain
from argosy.train.network.lane import BROADCAST, DIRECT, GATHER, SCATTER, SUM, Doing, Lane
from argosy.train.transport import DATATYPES, Numbers

SMALL_BYTES = 1 << 15
"""Up to here everyone sends everything to everyone: half the delays of summing parts, for more bytes."""
_AHEAD = 4
"""Chunks that wait to be sent to a peer; more would only be encoded before their time."""


def cuts(count: int, world_size: int) -> list[int]:
    """Return where each rank's part of `count` numbers begins, and as the last entry `count`."""
    return [count * rank // world_size for rank in range(world_size + 1)]


class Exchanges:
    """The exchanges of one lane, with the memory they need between them. All take flat arrays."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self._memory: dict[int, Bytes] = {}

    def sum(self, values: Numbers, codec: Codec | None = None, error: Floats | None = None) -> None:
        """Replace `values` by the sum over all ranks."""
        form: Form = Coded(values, codec, error) if codec else Plain(values)
        doing = _doing(SUM, values, code=form.code)
        size = self.lane.world_size
        # Between two ranks whole arrays are as many bytes as halves and then sums of halves, with one delay less.
        if size == 2 or values.nbytes <= SMALL_BYTES:
            _Whole(self, values, form).run(doing)
        else:
            _Parts(self, values, form, scatter=True, gather=True).run(doing)

    def reduce_scatter(self, values: Numbers) -> None:
        """Sum, over all ranks, the part of `values` that is this rank's; the rest stays."""
        _Parts(self, values, Plain(values), scatter=True, gather=False).run(_doing(SCATTER, values))

    def all_gather(self, values: Numbers) -> None:
        """Replace each rank's part of `values` by what that rank has there."""
        _Parts(self, values, Plain(values), scatter=False, gather=True).run(_doing(GATHER, values))

    def broadcast(self, values: Numbers, root: int) -> None:
        """Replace `values` by those of rank `root`; they go down a binary tree, in chunks."""
        size = self.lane.world_size
        place = (self.lane.rank - root) % size
        children = [(root + child) % size for child in (2 * place + 1, 2 * place + 2) if child < size]
        parents = [(root + (place - 1) // 2) % size] if place else []
        _Passing(self.lane, _bytes(values), children).run(_doing(BROADCAST, values, root=root), parents)

    def send(self, values: Numbers, peer: int) -> None:
        """Send `values` to rank `peer`, which receives as many."""
        self.lane.begin(_doing(DIRECT, values), [peer], [], _ignore)
        self.lane.send(peer, _bytes(values))
        self.lane.run(lambda: True)

    def receive(self, values: Numbers, peer: int) -> None:
        """Replace `values` by those that rank `peer` sends."""
        _Passing(self.lane, _bytes(values), []).run(_doing(DIRECT, values), [peer])

    def memory(self, peer: int, size_bytes: int) -> Bytes:
        """Return memory for what comes from `peer`, kept from exchange to exchange."""
        found = self._memory.get(peer)
        if found is None or found.size < size_bytes:
            found = self._memory[peer] = np.empty(max(size_bytes, CHUNK_BYTES), np.uint8)
        return found[:size_bytes]


class _Passing:
    """Bytes come from at most one rank and are passed on to others, chunk by chunk."""

    def __init__(self, lane: Lane, whole: memoryview, to: list[int]) -> None:
        self._lane = lane
        self._to = to
        self._whole = whole
        self._at = 0
        self._is_begun = False

    def run(self, doing: Doing, of: list[int]) -> None:
        self._lane.begin(doing, self._to, of, self._next)
        if not of:
            for peer in self._to:
                self._lane.send(peer, self._whole)
            self._is_begun, self._at = True, len(self._whole)
        self._lane.run(lambda: self._is_begun and self._at == len(self._whole))

    def _next(self, source: int) -> None:
        self._is_begun = True
        chunk = self._whole[self._at : self._at + CHUNK_BYTES]
        if not chunk:
            return

        def pass_on() -> None:
            self._at += len(chunk)
            for peer in self._to:
                self._lane.send(peer, chunk)
            self._next(source)

        self._lane.receive(source, chunk, pass_on)


class _Adding:
    """Adds, chunk by chunk, what comes from all peers to a stretch of this rank's own numbers."""

    def __init__(self, exchanges: Exchanges, values: Numbers, form: Form, start: int, stop: int) -> None:
        self._exchanges = exchanges
        self._lane = exchanges.lane
        self._values = values
        self._form = form
        self.chunks = _chunks(start, stop, form.count)
        self.added = 0
        self._data: dict[int, Bytes] = {}
        self._waits_for = set(self._lane.peers)

    def is_done(self) -> bool:
        return self.added == len(self.chunks)

    def take(self, peer: int) -> None:
        """Have the next chunk come from `peer`."""
        start, stop = self.chunks[self.added]
        data = self._exchanges.memory(peer, self._form.size_bytes(stop - start))
        self._data[peer] = data
        self._lane.receive(peer, data.data, lambda: self._waits_for.discard(peer))

    def add_if_complete(self) -> bool:
        """Add the next chunk if it has come from all peers; return whether it had."""
        if self._waits_for or self.is_done():
            return False
        start, stop = self.chunks[self.added]
        own, rank = self._values[start:stop], self._lane.rank
        parts = [self._form.unpack(self._data[peer], peer, stop - start) for peer in self._lane.peers]
        parts.insert(rank, own)
        _add_in_order(parts, rank, own)
        self.added += 1
        self._waits_for = set(self._lane.peers)
        return True


class _Whole:
    """Everyone sends everything to everyone, and all add in the same order."""

    def __init__(self, exchanges: Exchanges, values: Numbers, form: Form) -> None:
        self._lane = exchanges.lane
        self._form = form
        self._adding = _Adding(exchanges, values, form, 0, values.size)
        self._unheard = set(self._lane.peers)
        self._ends: list[int] = []  # bytes after each packed chunk

    def run(self, doing: Doing) -> None:
        self._lane.begin(doing, self._lane.peers, self._lane.peers, self._heard)
        self._pack()
        self._lane.run(self._step)

    def _heard(self, peer: int) -> None:
        self._unheard.discard(peer)
        if not self._adding.is_done():
            self._adding.take(peer)

    def _pack(self) -> None:
        chunks, lane = self._adding.chunks, self._lane
        while len(self._ends) < len(chunks) and all(lane.waiting(peer) < _AHEAD for peer in lane.peers):
            data = self._form.pack(*chunks[len(self._ends)], keep=True)
            self._ends.append((self._ends[-1] if self._ends else 0) + len(data))
            for peer in lane.peers:
                lane.send(peer, data)

    def _step(self) -> bool:
        adding, lane = self._adding, self._lane
        self._pack()
        # Sums replace the numbers, so these must have been sent before. Nobody waits in a circle: the rank that is
        # the farthest behind is always sent to, and always reads.
        while self._is_sent(adding.added) and adding.add_if_complete():
            if not adding.is_done():
                for peer in lane.peers:
                    adding.take(peer)
        return adding.is_done() and not self._unheard

    def _is_sent(self, index: int) -> bool:
        lane = self._lane
        return index < len(self._ends) and all(lane.sent(peer) >= self._ends[index] for peer in lane.peers)


class _Parts:
    """Every rank adds its own part, which all send to it (scatter), and sends the sums to all (gather).

    With a connection between each two hosts that is as few bytes per host as a ring needs, with two delays instead of
    2 (n - 1), and no rank's numbers pass through others. Each rank sends to each other one its numbers for that one's
    part, and after these the sums of its own part.
    """

    def __init__(self, exchanges: Exchanges, values: Numbers, form: Form, *, scatter: bool, gather: bool) -> None:
        lane = exchanges.lane
        bounds = cuts(values.size, lane.world_size)
        self._exchanges = exchanges
        self._lane = lane
        self._values = values
        self._form = form
        self._gather = gather
        stretches = [_chunks(start, stop, form.count) for start, stop in itertools.pairwise(bounds)]
        self._own = stretches[lane.rank]
        self._to_send = {peer: list(stretches[peer]) if scatter else [] for peer in lane.peers}
        self._to_gather = {peer: list(stretches[peer]) if gather else [] for peer in lane.peers}
        self._is_scattered = scatter
        self._adding = _Adding(exchanges, values, form, *bounds[lane.rank : lane.rank + 2]) if scatter else None
        self._sums: list[memoryview] = []
        self._sums_sent = dict.fromkeys(lane.peers, 0)
        self._unheard = set(lane.peers)

    def run(self, doing: Doing) -> None:
        for chunks in (*self._to_send.values(), *self._to_gather.values()):
            chunks.reverse()  # taken from the end
        self._lane.begin(doing, self._lane.peers, self._lane.peers, self._heard)
        if self._adding is None:
            self._sums = [self._form.pack(*chunk, keep=True) for chunk in self._own]
        for peer in self._lane.peers:
            self._feed(peer)
        self._lane.run(self._step)

    def _heard(self, peer: int) -> None:
        self._unheard.discard(peer)
        self._take(peer)

    def _take(self, peer: int) -> None:
        if self._adding and not self._adding.is_done():
            self._adding.take(peer)
        elif self._to_gather[peer]:
            start, stop = self._to_gather[peer][-1]
            out = self._values[start:stop]
            if isinstance(self._form, Plain):
                self._lane.receive(peer, out.data.cast("B"), lambda: self._gathered(peer))
                return
            data = self._exchanges.memory(peer, self._form.size_bytes(stop - start))

            def decode() -> None:
                self._form.unpack_into(data, out)
                self._gathered(peer)

            self._lane.receive(peer, data.data, decode)

    def _gathered(self, peer: int) -> None:
        self._to_gather[peer].pop()
        self._take(peer)

    def _step(self) -> bool:
        adding = self._adding
        while adding and adding.add_if_complete():
            if self._gather:
                self._sums.append(self._form.pack(*self._own[adding.added - 1], keep=True))
            for peer in self._lane.peers:
                self._take(peer)
        for peer in self._lane.peers:
            self._feed(peer)
        is_sent = all(not chunks for chunks in self._to_send.values()) and (
            not self._gather or all(sent == len(self._own) for sent in self._sums_sent.values())
        )
        is_received = not self._unheard and (not adding or adding.is_done()) and not any(self._to_gather.values())
        return is_sent and is_received

    def _feed(self, peer: int) -> None:
        lane = self._lane
        while lane.waiting(peer) < _AHEAD:
            if self._to_send[peer]:
                lane.send(peer, self._form.pack(*self._to_send[peer].pop(), keep=False))
            elif self._sums_sent[peer] < len(self._sums):
                lane.send(peer, self._sums[self._sums_sent[peer]])
                self._sums_sent[peer] += 1
            else:
                return


def _chunks(start: int, stop: int, size: int) -> list[tuple[int, int]]:
    return [(at, min(at + size, stop)) for at in range(start, stop, size)]


def _add_in_order(parts: list[Numbers], rank: int, out: Numbers) -> None:
    """Write the sum of `parts`, added in their order, to `out`, which is `parts[rank]`; other parts may be spoilt."""
    # The own numbers must stay until they were added, so up to there the sum is kept in another part's memory.
    total = parts[0]
    for index, part in enumerate(parts[1:], 1):
        target = out if index >= rank else parts[0]
        total = np.add(total, part, out=target)


def _doing(kind: int, values: Numbers, *, root: int = 0, code: int = 0) -> Doing:
    return Doing(kind, DATATYPES.index(values.dtype), values.size, root=root, codec=code)


def _bytes(values: Numbers) -> memoryview:
    return values.data.cast("B") if values.size else memoryview(b"")


def _ignore(_: int) -> None:
    pass
