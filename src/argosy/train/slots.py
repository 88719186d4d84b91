"""Gathering and scattering of parts in the memory that the ranks of one machine share.

torch's own exchange between processes of one machine goes through sockets. Here each rank writes once and the others
read; and a rank that waits for a lost one is told so, as in every exchange of a host.
"""

import numpy as np
import torch
from torch import Tensor

from argosy.train.transport import Host, ranks_differ

SLOT_BYTES = 4 << 20
"""Bytes that a rank writes before all meet: few meetings, and little memory."""
_GATHER, _SCATTER = range(2)
_WORDS = 8


class Slots:
    """The exchanges of parts between the ranks of `host`, whose area they use alone.

    All ranks call the same methods with the same sizes in the same order; a rank that does otherwise is told so
    (InvalidInput, `ranks_differ`). Each rank has two slots, used in turn: whoever writes a slot again knows that all
    have met since it was read. Raises Unavailable (`rank_lost`) as every exchange does.
    """

    def __init__(self, host: Host, slot_bytes: int = SLOT_BYTES) -> None:
        self._host, self._rank, self._ranks = host, host.rank, host.world_size
        # As many bytes for each destination, each at a multiple of 64.
        self._share_bytes = max(64, slot_bytes // self._ranks // 64 * 64)
        self._slot_bytes = self._share_bytes * self._ranks
        area = torch.from_numpy(host.area(2 * self._ranks * (_WORDS * 8 + self._slot_bytes)))
        words = 2 * self._ranks * _WORDS * 8
        self._said = area[:words].view(torch.int64).view(2, self._ranks, _WORDS).numpy()
        self._slots = area[words:].view(2, self._ranks, self._slot_bytes)
        self._turn = 0

    def gather(self, output: Tensor | None, part: Tensor) -> None:
        """Fill `output` with the parts of all ranks in their order; `part` may lie in its place there.

        Both are contiguous; `output` is as long as all parts, which are equally long. Without it, only give.
        """
        given = part.detach().view(-1).view(torch.uint8)
        taken = None if output is None else output.detach().view(-1).view(torch.uint8).view(self._ranks, -1)
        for start in range(0, len(given), self._slot_bytes):
            piece = given[start : start + self._slot_bytes]
            slots = self._next(_GATHER, len(given))
            slots[self._rank, : len(piece)].copy_(piece)
            self._meet()
            if taken is not None:
                places = taken[:, start : start + len(piece)]
                for rank in range(self._ranks):
                    if rank != self._rank:
                        places[rank].copy_(slots[rank, : len(piece)])
        if taken is not None and taken[self._rank].data_ptr() != given.data_ptr():
            taken[self._rank].copy_(given)

    def reduce_scatter(self, output: Tensor, parts: Tensor) -> None:
        """Fill `output` with the sum over all ranks of this rank's part of `parts`, added in the order of ranks."""
        given = parts.detach().view(self._ranks, -1)
        taken = output.detach().view(-1)
        step = self._share_bytes // parts.element_size()
        for start in range(0, given.shape[1], step):
            piece = given[:, start : start + step]
            slots = self._next(_SCATTER, parts.nbytes)
            shares = slots.view(parts.dtype).view(self._ranks, self._ranks, step)[:, :, : piece.shape[1]]
            shares[self._rank].copy_(piece)
            self._meet()
            total = taken[start : start + step]
            total.copy_(shares[0, self._rank])
            for rank in range(1, self._ranks):
                total.add_(shares[rank, self._rank])

    def _next(self, kind: int, size_bytes: int) -> Tensor:
        self._turn ^= 1
        self._said[self._turn, self._rank, :2] = kind, size_bytes
        return self._slots[self._turn]

    def _meet(self) -> None:
        self._host.meet()
        said = self._said[self._turn, :, :2]
        if np.any(said != said[0]):
            raise ranks_differ({rank: _described(*words) for rank, words in enumerate(said.tolist())})


def _described(kind: int, size_bytes: int) -> str:
    return f"gathers parts of {size_bytes} bytes" if kind == _GATHER else f"scatters {size_bytes} bytes"
