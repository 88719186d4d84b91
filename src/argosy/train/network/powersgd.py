# ruff: noqa: N803, N806 - shape suffixes
"""Gradients as products of two thin factors. Source: Vogels, Karimireddy, Jaggi 2019, "PowerSGD: practical low-rank
gradient compression for distributed optimization", algorithms 1 and 2.

All matrices share two exchanges: the left factors of all of them with what is not compressed, then the right factors.

Shape suffixes: N rows and M columns of a parameter seen as a matrix, R the rank.
"""

from collections.abc import Mapping, Sequence
from math import prod

import numpy as np
import torch
from torch import Tensor

from argosy.core.errors import InvalidInput
from argosy.train.network.codec import Floats
from argosy.train.network.transport import Pending
from argosy.train.transport import Numbers, Transport

_LEAST_REST = 1e-4
"""Of a column, what must be left beside the former ones: a thousand times float32's rounding."""


class _Factored:
    """One parameter that is sent as factors: where it is in the flat array, and its right factor of the last call."""

    def __init__(self, start: int, rows: int, columns: int) -> None:
        self.where = slice(start, start + rows * columns)
        self.rows = rows
        self.columns = columns


class PowerSgd:
    """Sums matrices over all ranks by one step of subspace iteration, begun at the result of the call before.

    Vectors, and matrices whose factors would have as many numbers as they, are summed as they are. What a rank's
    factors miss of its matrices is added to its next ones. All ranks compute the product of the factors alike; the
    results have the same bits as long as their processors and libraries compute a product of matrices alike.
    """

    def __init__(
        self, transport: Transport, shapes: Sequence[tuple[int, ...]], *, rank: int = 4, seed: int = 0
    ) -> None:
        """`shapes` are those of the parameters in the order of the flat array; all ranks give the same `seed`."""
        if rank < 1 or not shapes:
            raise InvalidInput(
                f"PowerSGD of rank {rank} for {len(shapes)} parameters makes no sense",
                hint="give a rank of 1 or more, and the shapes of all parameters",
                code="bad_codec",
            )
        self._transport = transport
        self._rank = rank
        self.count = sum(prod(shape) for shape in shapes)
        self._factored, self._plain = _divided(shapes, rank)
        self._left_count = rank * sum(m.rows for m in self._factored)
        self._plain_count: int = sum(s.stop - s.start for s in self._plain)
        self._right_count = rank * sum(m.columns for m in self._factored)
        # The flat array of all right factors is also what starts the next call ("warm start", section 4.2).
        self._right = np.random.default_rng(seed).standard_normal(self._right_count, dtype=np.float32)
        self._first = self._right.copy()
        self._error = np.zeros(self.count, np.float32)

    def sum(self, values: Numbers) -> None:
        """Replace `values`, float32, by the product of the factors' sums."""
        if values.size != self.count or values.dtype != np.float32:
            raise InvalidInput(
                f"PowerSGD was made for {self.count} float32 numbers, not {values.size} {values.dtype}",
                code="wrong_size",
            )
        _check_finite(values)
        self._error += values
        first = np.empty(self._left_count + self._plain_count, np.float32)
        lefts = self._split(first, [(m.rows, self._rank) for m in self._factored])
        rights = self._rights(self._right)
        for left_NR, right_MR, matrix_NM in zip(lefts, rights, self._matrices(), strict=True):
            torch.mm(matrix_NM, right_MR, out=left_NR)
        _copy([self._error[where] for where in self._plain], first[self._left_count :])
        self._transport.all_reduce(first)
        self._to_right(lefts, rights)
        for left_NR, right_MR, matrix_NM in zip(lefts, rights, self._matrices(), strict=True):
            matrix_NM.addmm_(left_NR, right_MR.T, alpha=-1)
        self._transport.all_reduce(self._right)
        self._product(values, first, lefts, rights)
        for right_MR, first_MR in zip(rights, self._rights(self._first), strict=True):
            # From nothing nothing comes: columns that have vanished begin again where they began.
            right_MR[:] = torch.where((right_MR == 0).all(dim=0), first_MR, right_MR)

    def start(self, values: Numbers) -> Pending:
        """Do the same at once: its second exchange depends on the first."""
        pending = Pending()
        pending.run(lambda: self.sum(values))
        return pending

    def wire_bytes(self, count: int) -> int:
        """Return the size of both factors and of what is summed as it is."""
        del count
        return 4 * (self._left_count + self._plain_count + self._right_count)

    def state(self) -> dict[str, Numbers]:
        """Return the error and the right factors."""
        return {"error": self._error.copy(), "right": self._right.copy()}

    def load_state(self, state: Mapping[str, Numbers]) -> None:
        """Go on from a `state`."""
        self._error[...] = state["error"]
        self._right[...] = state["right"]

    def _matrices(self) -> list[Tensor]:
        return [torch.from_numpy(self._error[m.where].reshape(m.rows, m.columns)) for m in self._factored]

    def _rights(self, flat: Floats) -> list[Tensor]:
        return self._split(flat, [(m.columns, self._rank) for m in self._factored])

    def _to_right(self, lefts: list[Tensor], rights: list[Tensor]) -> None:
        for left_NR, right_MR, matrix_NM in zip(lefts, rights, self._matrices(), strict=True):
            _orthogonalize(left_NR)
            torch.mm(matrix_NM.T, left_NR, out=right_MR)

    def _product(self, values: Floats, first: Floats, lefts: list[Tensor], rights: list[Tensor]) -> None:
        for matrix, left_NR, right_MR in zip(self._factored, lefts, rights, strict=True):
            found_NM = torch.from_numpy(values[matrix.where].reshape(matrix.rows, matrix.columns))
            torch.mm(left_NR, right_MR.T, out=found_NM)
        start = self._left_count
        for where in self._plain:
            stop = start + where.stop - where.start
            values[where] = first[start:stop]
            self._error[where] = 0.0
            start = stop

    @staticmethod
    def _split(flat: Floats, shapes: list[tuple[int, int]]) -> list[Tensor]:
        found, start = [], 0
        for rows, columns in shapes:
            found.append(torch.from_numpy(flat[start : start + rows * columns].reshape(rows, columns)))
            start += rows * columns
        return found


def _divided(shapes: Sequence[tuple[int, ...]], rank: int) -> tuple[list[_Factored], list[slice]]:
    """Return which parameters are factored, and where the others are."""
    factored: list[_Factored] = []
    plain: list[slice] = []
    start = 0
    for shape in shapes:
        size = prod(shape)
        rows = shape[0] if shape else 1
        columns = size // rows if rows else 0
        if len(shape) > 1 and rank * (rows + columns) < size:
            factored.append(_Factored(start, rows, columns))
        else:
            plain.append(slice(start, start + size))
        start += size
    return factored, plain


def _orthogonalize(left_NR: Tensor) -> None:
    """Make the columns orthonormal, in place, by modified Gram-Schmidt; columns that vanish become zero."""
    for column in range(left_NR.shape[1]):
        vector_N = left_NR[:, column]
        before = float(vector_N.norm())
        # Twice: what the first pass leaves of the former columns is rounding, but large beside a small rest.
        for other in [*range(column), *range(column)]:
            vector_N.sub_(left_NR[:, other] * torch.dot(left_NR[:, other], vector_N))
        length = float(vector_N.norm())
        # A matrix of lower rank leaves nothing but rounding here, and that has the direction of the former columns.
        vector_N.mul_(1.0 / length if length > _LEAST_REST * before else 0.0)


def _check_finite(values: Floats) -> None:
    # In float64 the sum of finite float32 can't overflow.
    if not np.isfinite(values.sum(dtype=np.float64)):
        raise InvalidInput(
            "a gradient is infinite or not a number, so it can't be factored",
            hint="lower the learning rate or clip the gradient",
            code="not_finite",
        )


def _copy(parts: list[Floats], out: Floats) -> None:
    start = 0
    for part in parts:
        out[start : start + part.size] = part
        start += part.size
