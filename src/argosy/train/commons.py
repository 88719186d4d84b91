"""What the ranks of one machine hold in common: one copy of the parameters and of the optimizer's state.

Each rank writes its gradients into a row of its own. When all have, every rank adds up and applies one part of the
parameters, so the sums, the optimizer's work and its memory are shared out, and nothing is copied from rank to rank:
the new values are where everybody reads them. The result is that of one process on the whole batch up to the order of
additions, and the same for all by construction.

A step survives the death of any rank at any moment. Before the rows are full, no parameter has changed: the step is
made again. Afterwards each part advances in chunks; what a chunk was is noted beside it before it is changed, so
whoever takes over a lost rank's part puts the chunk at which it stopped back to what it was, and goes on from there.
"""

import threading
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from argosy.train.between import Between
from argosy.train.marks import Marks
from argosy.train.optimizers import Optimizer, clip_factor
from argosy.train.parameters import Layout
from argosy.train.totals import NotFinite, Totals
from argosy.train.transport import Host, Numbers

CHUNK = 1 << 18
"""The most elements that a rank works on at once. Measured with 20 million parameters and two ranks: 2**16 takes 45 ms
(AdamW 84) per step, 2**17 37 (70), 2**18 36 (66); larger ones leave the caches."""
_SPARSE_CHUNK = 1 << 14
"""The same where gradients may be sparse: a step is made of whole chunks, however few of their rows it is about."""
_LEAST_CHUNK = 1 << 12
"""Below this there is more work in handing out than in doing."""
LINE = 8
DONE, NOTED, SPOILED = range(3)
"""Words per part: chunks done since the beginning of the training, the same for those noted, and the last step (from 1)
in which a gradient was not finite."""
_LOSS, _COUNT, _WISH, _NORM = range(4)
"""Numbers that a rank posts with its gradients: sums over its samples, whether it wishes for a checkpoint, and its part
of the squared norm. With several hosts rank 0 then posts the sums of the first three over all of them."""


class Work(NamedTuple):
    """What all parts of one step have in common."""

    step: int
    scale: float
    """What clips the gradient."""
    rate: float
    row: int = -1
    """The rank whose gradients alone make this step; -1: all ranks'."""


class Commons:
    """The memory of one training on one machine. `layout` and `optimizer` are the same for all ranks."""

    def __init__(
        self,
        host: Host,
        layout: Layout,
        optimizer: Optimizer,
        *,
        clip: float = 0.0,
        between: Between | None = None,
    ) -> None:
        self.layout = layout
        self.host = host
        self.wish = False
        """Whether this rank wishes for a checkpoint; with several hosts all learn of it in the next step."""
        self.is_wished = False
        self._between = between
        self._is_summed = False
        self._optimizer = optimizer
        self._clip = clip
        self._is_alone = host.world_size == 1
        # What other hosts have had gradients for is not known here.
        self._is_sparse = bool(layout.sparse) and optimizer.is_idle_at_zero and between is None
        most = min(CHUNK, _SPARSE_CHUNK) if self._is_sparse else CHUNK
        self._chunk = min(most, max(_LEAST_CHUNK, -(-layout.size // host.world_size)))
        chunks = -(-layout.size // self._chunk)
        self._map(layout, host.world_size, chunks if self._is_sparse else 0)
        self._cuts = [chunks * part // host.world_size for part in range(host.world_size + 1)]
        self._sum = torch.empty(self._chunk, dtype=layout.dtype)
        # Whoever sees a word must see what was written before it. x86 keeps that order; for others the lock does.
        self._fence = threading.Lock()

    def _more_words(self, ranks: int) -> int:
        """Return how many words another way of working needs behind those of the parts."""
        del ranks
        return 0

    def _map(self, layout: Layout, ranks: int, marked: int) -> None:
        """Lay everything out in the shared area, each part at a multiple of 64 bytes. `marked` chunks have marks."""
        names, dtype = self._optimizer.state_names, layout.dtype
        wide = -(-layout.size // LINE) * LINE * dtype.itemsize
        rows = 0 if self._is_alone else ranks
        sizes = [(ranks * LINE + self._more_words(ranks)) * 8, ranks * LINE * 8, wide, ranks * wide, len(names) * wide]
        sizes.append(rows * (1 + len(names)) * self._chunk * dtype.itemsize)
        sizes += [ranks * marked, 8 * marked]
        area = torch.from_numpy(self.host.area(sum(-(-size // 64) * 64 for size in sizes)))
        pieces, start = [], 0
        for size in sizes:
            pieces.append(area[start : start + size])
            start += -(-size // 64) * 64
        self._words = memoryview(pieces[0].numpy().data).cast("q")
        self._posted = pieces[1].view(torch.float64).view(ranks, LINE).numpy()
        self.values = pieces[2].view(dtype)[: layout.size]
        self._gradients = pieces[3].view(dtype).view(ranks, -1)[:, : layout.size]
        state = pieces[4].view(dtype).view(len(names), -1)[:, : layout.size] if names else ()
        self.state: dict[str, Tensor] = dict(zip(names, state, strict=True))
        self._beside = pieces[5].view(dtype).view(rows, 1 + len(names), self._chunk) if rows else torch.empty(0)
        self._marks = pieces[6].view(ranks, marked).numpy()
        self._versions = pieces[7].view(torch.int64).numpy()

    @property
    def gradients(self) -> Tensor:
        """This rank's row, in which backward passes leave sums over its samples."""
        return self._gradients[self.host.rank]

    def marks(self) -> Marks | None:
        """Return where this rank says which chunks have gradients; None where all have."""
        if not self._is_sparse:
            return None
        return Marks(self._marks[self.host.rank], self._chunk, self.gradients, self.layout.stretches())

    def begin(self, step: int) -> None:
        """Say that `step` steps (from 0) have been made, at the start and after loading a checkpoint."""
        for part in range(self.host.world_size):
            for word in (DONE, NOTED):
                self._words[part * LINE + word] = step * self._size(part)
            self._words[part * LINE + SPOILED] = 0

    def apply(self, step: int, loss: float, count: float, rate: float) -> Totals:
        """Make step `step` (from 0) of the sum of all ranks' gradients; return when all parts are done.

        `loss` and `count` are this rank's sums. Raises NotFinite on all ranks together; what ranks hold in
        common stays finite. Raises Unavailable (`rank_lost`) only as long as nothing has been changed.
        """
        host, posted = self.host, self._posted
        self._is_summed = False
        posted[host.rank, : _WISH + 1] = loss, count, self.wish
        host.meet()
        sums = posted[:, : _WISH + 1].sum(axis=0)
        if self._between is not None:
            sums = self._sum_of_hosts(sums)
        totals = Totals(float(sums[_LOSS]), float(sums[_COUNT]))
        self.is_wished = bool(sums[_WISH])
        if not np.isfinite(totals.loss):
            raise NotFinite
        if not totals.samples:
            self._skip(step)
            return totals
        work = Work(step, self._clipped() if self._clip else 1.0, rate)
        self._advance(host.rank, work)
        host.await_parts(lambda part: self._is_late(part, step), lambda part: self._advance(part, work))
        if any(self._words[part * LINE + SPOILED] == step + 1 for part in range(host.world_size)):
            raise NotFinite
        return totals

    def _sum_of_hosts(self, sums: Numbers) -> Numbers:
        """Leave the sum of all hosts' gradients in row 0; return the sums of what all ranks have posted.

        A rank that is lost from here on takes its host along, as others can't do this exchange again.
        """
        between, host, row = self._between, self.host, self._gradients[0].numpy()
        assert between is not None
        if not self._is_alone:
            for chunk in range(self._cuts[host.rank], self._cuts[host.rank + 1]):
                self._gradients[0, self._range(chunk)] = self._total(chunk)
            self._is_summed = True
            host.meet()
        if between.is_leader:
            between.totals(sums, row)
            if np.isfinite(sums[_LOSS]):
                between.sum(row)
            self._posted[0, : _WISH + 1] = sums
        host.meet()
        return self._posted[0, : _WISH + 1].copy()

    def _skip(self, step: int) -> None:
        """Make no step: nobody here had a sample."""
        words, own = self._words, self.host.rank
        for word in (DONE, NOTED):
            words[own * LINE + word] = (step + 1) * self._size(own)

    def _clipped(self) -> float:
        """Return the factor that clips the whole gradient, for which all ranks look at their part once more."""
        own = self.host.rank
        chunks = range(self._cuts[own], self._cuts[own + 1])
        self._posted[own, _NORM] = sum(float(self._total(chunk).double().square().sum()) for chunk in chunks)
        self.host.meet()
        norm = float(np.sqrt(self._posted[:, _NORM].sum()))
        if not np.isfinite(norm):
            raise NotFinite
        return clip_factor(norm, self._clip)

    def _size(self, part: int) -> int:
        """Return how many chunks a part has; one without any counts as one, so that nobody goes on without its rank."""
        return max(1, self._cuts[part + 1] - self._cuts[part])

    def _is_late(self, part: int, step: int) -> bool:
        return self._words[part * LINE + DONE] < (step + 1) * self._size(part)

    @torch.no_grad()
    def _advance(self, part: int, work: Work) -> None:
        """Bring a part to the end of the step, from wherever it stands."""
        words, line, size = self._words, part * LINE, self._size(part)
        before = work.step * size
        for number in self._numbers(part, work, words[line + DONE] - before):
            if words[line + DONE] != before + number:
                self._set_done(part, before + number)
            chunk = self._cuts[part] + number
            if words[line + NOTED] != words[line + DONE] + 1:
                self._note(part, chunk)
                with self._fence:
                    words[line + NOTED] = words[line + DONE] + 1
            else:
                self._undo(part, chunk)
            values = self._change(chunk, work)
            # Here, where a cache still has them. Squares of finite numbers may overflow, so then each is looked at.
            if not np.isfinite(float(torch.dot(values, values))) and not bool(values.isfinite().all()):
                self._undo(part, chunk)
                words[line + SPOILED] = work.step + 1
                break
            if self._is_sparse:
                self._versions[chunk] += 1
            with self._fence:
                words[line + DONE] += 1
        self._set_done(part, before + size)

    def _numbers(self, part: int, work: Work, first: int) -> Iterable[int]:
        """Return the numbers of the chunks of a part that are to be changed, from `first` on."""
        chunks = slice(self._cuts[part] + first, self._cuts[part + 1])
        if not self._is_sparse:
            return range(first, first + chunks.stop - chunks.start)
        marks = self._marks[work.row, chunks] if work.row >= 0 else self._marks[:, chunks].any(axis=0)
        found: list[int] = (np.flatnonzero(marks) + first).tolist()
        return found

    def _set_done(self, part: int, done: int) -> None:
        """Say that so many chunks are done, of which the last ones needed nothing."""
        # In this order: never is a chunk noted that stands at the place of the next one.
        with self._fence:
            self._words[part * LINE + DONE] = done
        self._words[part * LINE + NOTED] = done

    def _gradient(self, chunk: int, work: Work) -> Tensor:
        """Return what a chunk is moved by."""
        del work
        return self._total(chunk)

    def _range(self, chunk: int) -> slice:
        return slice(chunk * self._chunk, min((chunk + 1) * self._chunk, self.layout.size))

    def _total(self, chunk: int) -> Tensor:
        """Return the sum of all ranks' gradients, added in the order of ranks, in memory of this process."""
        place, rows = self._range(chunk), self._gradients
        if self._is_alone or self._is_summed:
            return rows[0, place]
        total = self._sum[: place.stop - place.start]
        torch.add(rows[0, place], rows[1, place], out=total)
        for row in rows[2:]:
            total.add_(row[place])
        return total

    def _change(self, chunk: int, work: Work) -> Tensor:
        """Make the step on a chunk, in place; return its new values."""
        gradient = self._gradient(chunk, work)
        if work.scale != 1.0:
            gradient.mul_(work.scale)
        values, *state = self._places(chunk)
        self._optimizer.update(values, gradient, dict(zip(self.state, state, strict=True)), work.rate, work.step + 1)
        return values

    def _places(self, chunk: int) -> list[Tensor]:
        """Return the values of a chunk, and what the optimizer remembers of it."""
        place = self._range(chunk)
        return [self.values[place], *(remembered[place] for remembered in self.state.values())]

    def _note(self, part: int, chunk: int) -> None:
        """Keep what a chunk is before it is changed. Alone there is nobody who could take over."""
        if not self._is_alone:
            for beside, found in zip(self._beside[part], self._places(chunk), strict=True):
                beside[: len(found)].copy_(found)

    def _undo(self, part: int, chunk: int) -> None:
        """Make a chunk again what was noted."""
        if not self._is_alone:
            for beside, found in zip(self._beside[part], self._places(chunk), strict=True):
                found.copy_(beside[: len(found)])

    def first_not_finite(self) -> str:
        """Return the parameter in whose values or gradients NaN or infinity is first seen, or an empty text."""
        found = self.layout.first_not_finite(self.values)
        for row in self._gradients:
            found = found or self.layout.first_not_finite(row)
        return found
