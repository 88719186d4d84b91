"""A parameter server in memory that ranks of one machine share: each pushes its gradients when it has them.

Parameters lie in shards. Whoever pushes holds a shard's lock, applies its gradients with the server's optimizer, and
takes the new values along into its own copy, chunk by chunk, while a cache has them. So push and pull are one pass, a
rank computes with parameters of one moment per shard, and nobody waits but for a shard that another one is at.

Nothing is lost with a rank: the system takes its locks, and whoever comes next to a shard first finishes the push that
was under way, from the chunk where it stopped. What it had begun to compute or to push is taken over by the process
that comes in its place. Every push counts exactly once.

Source of the bound on staleness: Ho et al. 2013, "More effective distributed ML via a stale synchronous parallel
parameter server", section 3.
"""

import contextlib

import numpy as np
import torch
from torch import Tensor

from argosy.train.commons import LINE, SPOILED, Commons, Work
from argosy.train.optimizers import Optimizer
from argosy.train.parameters import Layout
from argosy.train.totals import NotFinite
from argosy.train.transport import Host

_ROW, _STARTED, _ENDED, _CLAIM, _IS_PUSHING = 3, 4, 5, 6, 7
"""Words per shard: whose gradients it is at, and how many pushes have been started and ended. Per rank: its work plus
1, or 0 for none; and whether its gradients are complete and not yet everywhere."""
_RATE, _SCALE = 3, 4
"""Numbers per shard, behind those of `commons`: of the push that it is at."""
_EPOCH, _NEXT = 0, 1
_CLAIMS = 1 << 20
"""The lock of the table of claims; shards have those from 0 on."""


class Served(Commons):
    """Shards of one training on one machine, one per rank, and which work is whose."""

    def _more_words(self, ranks: int) -> int:
        # The table of claims, and for each rank which shards have its push.
        return LINE + ranks * ranks

    def __init__(self, host: Host, layout: Layout, optimizer: Optimizer, *, clip: float = 0.0) -> None:
        super().__init__(host, layout, optimizer, clip=clip)
        self._seen = np.full_like(self._versions, -1)
        """Of each chunk, the version that this rank's copy has."""

    def start(self, step: int, epoch: int, work: int) -> None:
        """Say that shards have had `step` pushes, and that `work` pieces of work of `epoch` are done."""
        self.begin(step)
        ranks, words = self.host.world_size, self._words
        for rank in range(ranks):
            words[rank * LINE + _STARTED] = words[rank * LINE + _ENDED] = step
            words[rank * LINE + _CLAIM] = words[rank * LINE + _IS_PUSHING] = 0
        for place in range(ranks * LINE, ranks * LINE + self._more_words(ranks)):
            words[place] = 0
        words[self._claims + _EPOCH], words[self._claims + _NEXT] = epoch, work

    @property
    def _claims(self) -> int:
        return self.host.world_size * LINE

    def claim(self, epoch: int, first: int, pieces: int, ahead: int | None) -> int | None:
        """Return the next piece of work of an epoch, or None when all are taken.

        `first` is where an epoch begins that nobody has begun. A rank gets no piece of a round (of one piece per rank)
        more than `ahead` rounds after the oldest that is not done. Raises Unavailable when the one that keeps it
        waiting is lost.
        """
        words, own = self._words, self.host.rank * LINE + _CLAIM
        while True:
            with self.host.lock(_CLAIMS):
                if words[self._claims + _EPOCH] != epoch:
                    words[self._claims + _EPOCH], words[self._claims + _NEXT] = epoch, first
                if words[own]:
                    return words[own] - 1  # of the process that this one came in the place of
                piece = words[self._claims + _NEXT]
                if piece >= pieces:
                    return None
                if not self._is_too_far(piece, ahead):
                    words[own], words[self._claims + _NEXT] = piece + 1, piece + 1
                    return piece
            self.host.await_turn(
                lambda: not self._is_too_far(words[self._claims + _NEXT], ahead), lambda rank: self._claimed(rank) >= 0
            )

    def oldest(self) -> int:
        """Return the first piece of work that is not done."""
        claimed = [self._claimed(rank) for rank in range(self.host.world_size)]
        return min([piece for piece in claimed if piece >= 0], default=self._words[self._claims + _NEXT])

    def _claimed(self, rank: int) -> int:
        return self._words[rank * LINE + _CLAIM] - 1

    def _is_too_far(self, piece: int, ahead: int | None) -> bool:
        ranks = self.host.world_size
        return ahead is not None and piece // ranks - min(self.oldest(), piece) // ranks > ahead

    def push(self, rate: float, cache: Tensor) -> None:
        """Apply this rank's gradients to all shards and fill `cache` with the new values; its work is done then.

        Raises NotFinite when the values would not be finite; they stay what they were.
        """
        own, words = self.host.rank, self._words
        scale = self._own_scale()
        self._posted[own, _RATE], self._posted[own, _SCALE] = rate, scale
        with self._fence:
            words[own * LINE + _IS_PUSHING] = 1
        self._push_on(own, cache)

    def take_over(self, cache: Tensor) -> None:
        """Finish what the process before this one had begun to push, and pull."""
        own = self.host.rank
        if self._words[own * LINE + _IS_PUSHING]:
            self._push_on(own, cache)
        self.pull(cache)

    def pull(self, cache: Tensor) -> None:
        """Fill `cache` with the values of all shards."""
        for shard in range(self.host.world_size):
            with self.host.lock(shard):
                self._finish(shard)
                self._take_along(shard, cache)

    def hold(self, held: contextlib.ExitStack) -> None:
        """Take the locks of all shards, none of which is then in the midst of a push."""
        for shard in range(self.host.world_size):
            held.enter_context(self.host.lock(shard))
            self._finish(shard)

    def _push_on(self, row: int, cache: Tensor) -> None:
        words, ranks = self._words, self.host.world_size
        if words[row * LINE + _CLAIM]:
            for number in range(ranks):
                shard = (row + number) % ranks  # each begins elsewhere, so that they rarely meet
                with self.host.lock(shard):
                    self._finish(shard)
                    if not words[self._has(row, shard)]:
                        self._start(shard, row)
                        self._finish(shard)
                    self._take_along(shard, cache)
            words[row * LINE + _CLAIM] = 0
        for shard in range(ranks):
            words[self._has(row, shard)] = 0
        words[row * LINE + _IS_PUSHING] = 0

    def _take_along(self, shard: int, cache: Tensor) -> None:
        """Copy a shard's values, or with sparse gradients what has changed of them since the last time."""
        if not self._is_sparse:
            place = self._shard(shard)
            cache[place].copy_(self.values[place])
            return
        own = slice(self._cuts[shard], self._cuts[shard + 1])
        for chunk in np.flatnonzero(self._versions[own] != self._seen[own]) + own.start:
            place = self._range(int(chunk))
            cache[place].copy_(self.values[place])
        self._seen[own] = self._versions[own]

    def _has(self, row: int, shard: int) -> int:
        return self._claims + LINE + row * self.host.world_size + shard

    def _start(self, shard: int, row: int) -> None:
        words, line = self._words, shard * LINE
        words[line + _ROW] = row
        with self._fence:
            words[line + _STARTED] += 1

    def _finish(self, shard: int) -> None:
        """Bring the push that a shard is at, if any, to its end. The shard's lock is held."""
        words, line = self._words, shard * LINE
        done = words[line + _ENDED]
        if words[line + _STARTED] == done:
            return
        row = words[line + _ROW]
        work = Work(done, float(self._posted[row, _SCALE]), float(self._posted[row, _RATE]), row)
        self._advance(shard, work)
        words[self._has(row, shard)] = 1
        with self._fence:
            words[line + _ENDED] = done + 1
        if words[line + SPOILED] == done + 1:
            raise NotFinite

    def _gradient(self, chunk: int, work: Work) -> Tensor:
        # A copy, because regularization changes it, and whoever finishes a push must find it unchanged.
        place = self._range(chunk)
        return self._sum[: place.stop - place.start].copy_(self._gradients[work.row, place])

    def _own_scale(self) -> float:
        if not self._clip:
            return 1.0
        norm = float(torch.linalg.vector_norm(self.gradients))
        if not np.isfinite(norm):
            raise NotFinite
        return min(1.0, self._clip / norm) if norm else 1.0

    def _shard(self, shard: int) -> slice:
        chunks = self._cuts[shard], self._cuts[shard + 1]
        return slice(self._range(chunks[0]).start, min(self._range(chunks[1]).start, self.layout.size))
