"""Codecs for gradients and for what training has changed: half precision, blocks of int8, the largest numbers only."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from argosy.core.errors import InvalidInput
from argosy.train.network.codec import MAX_COUNT, Bytes, Floats

_SCALE_BYTES = 4


def not_finite() -> InvalidInput:
    """Return the error of numbers that can't be encoded."""
    return InvalidInput(
        "numbers to be sent are infinite or not a number, and no codec can stand for them",
        hint="lower the learning rate or clip the gradient",
        code="not_finite",
    )


class Half:
    """IEEE half precision, after scaling by a power of two that puts the largest number just below the overflow.

    2 bytes a number and 4 a chunk. The error is at most 2^-11 of a number, or 2^-40 of the largest number of the
    chunk where that is more (there half precision's subnormal numbers begin).
    """

    name = "fp16"
    _EXPONENT = 15
    """Scaled numbers stay below 2^15, half of the largest half-precision number: rounding up can't overflow."""

    def __init__(self) -> None:
        self._scaled = np.empty(MAX_COUNT, np.float32)

    def size_bytes(self, count: int) -> int:
        """Return 2 bytes a number, and the scale."""
        return _SCALE_BYTES + 2 * count if count else 0

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write the scale, then the scaled numbers."""
        if not values.size:
            return
        largest = _largest(values.reshape(1, -1))[0]
        if not np.isfinite(largest):
            raise not_finite()
        _, exponent = np.frexp(largest)
        # Bounded, so that both the scale and its inverse are normal numbers; then multiplying by them is exact.
        scale = np.ldexp(np.float32(1.0), min(self._EXPONENT - int(exponent), 120))
        out[:_SCALE_BYTES].view(np.float32)[0] = np.float32(1.0) / scale
        scaled = np.multiply(values, scale, out=self._scaled[: values.size])
        halves = torch.from_numpy(out[_SCALE_BYTES:].view(np.float16))
        halves.copy_(torch.from_numpy(scaled))

    def decode(self, data: Bytes, out: Floats) -> None:
        """Undo the scaling."""
        if not out.size:
            return
        torch.from_numpy(out).copy_(torch.from_numpy(data[_SCALE_BYTES:].view(np.float16)))
        np.multiply(out, data[:_SCALE_BYTES].view(np.float32)[0], out=out)


class BlockInt8:
    """Whole numbers from -127 to 127 times a scale for each block, symmetric about zero.

    A byte a number and 4 a block. Rounded to the nearest, the error is at most 1/254 of the block's largest number;
    with a `generator` rounding goes up or down by chance so that it is right on average (at most 1/127). Blocks whose
    largest number is below 2^-119 become zero. Source: Dettmers et al. 2022, "8-bit optimizers via block-wise
    quantization", section 2, here with equal steps.
    """

    _LEAST = np.float32(2.0**-119)  # its inverse times 127 is still a float32

    def __init__(self, block: float = 512, *, generator: np.random.Generator | None = None) -> None:
        """`block`: numbers that share a scale, from 16 to the size of a chunk."""
        if block != int(block) or not 16 <= block <= MAX_COUNT:
            raise InvalidInput(f"int8 with blocks of {block:g} numbers: give a whole number from 16 to {MAX_COUNT}")
        self._block = int(block)
        self._generator = generator
        self.name = f"int8:{self._block}"
        self._scaled = np.empty(MAX_COUNT + self._block, np.float32)
        self._drawn = np.empty(MAX_COUNT + self._block if generator else 0, np.float32)

    def size_bytes(self, count: int) -> int:
        """Return a byte a number, and the scales."""
        return _SCALE_BYTES * self._blocks(count) + count

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write the scales of all blocks, then the whole numbers."""
        count, blocks = values.size, self._blocks(values.size)
        scaled = self._scaled[: blocks * self._block].reshape(blocks, self._block)
        whole = count // self._block
        if whole < blocks:
            # The last block is not full: it is made so with zeros, which are not sent.
            scaled.reshape(-1)[whole * self._block : count] = values[whole * self._block :]
            scaled.reshape(-1)[count:] = 0.0
        full = values[: whole * self._block].reshape(whole, self._block)
        largest = np.concatenate([_largest(full), _largest(scaled[whole:])])
        if not np.isfinite(largest).all():
            raise not_finite()
        scales = out[: _SCALE_BYTES * blocks].view(np.float32)
        scales[...] = self._scales(largest)
        steps = np.divide(np.float32(1.0), scales, out=np.zeros_like(scales), where=scales > 0)[:, None]
        np.multiply(full, steps[:whole], out=scaled[:whole])
        np.multiply(scaled[whole:], steps[whole:], out=scaled[whole:])
        self._round(scaled.reshape(-1), out[_SCALE_BYTES * blocks :].view(np.int8))

    def decode(self, data: Bytes, out: Floats) -> None:
        """Multiply whole numbers and scales."""
        blocks = self._blocks(out.size)
        scales = data[: _SCALE_BYTES * blocks].view(np.float32)[:, None]
        numbers = data[_SCALE_BYTES * blocks :].view(np.int8)
        np.copyto(out, numbers)
        whole = out.size // self._block
        full = out[: whole * self._block].reshape(whole, self._block)
        np.multiply(full, scales[:whole], out=full)
        if whole < blocks:
            rest = out[whole * self._block :]
            np.multiply(rest, scales[whole], out=rest)

    def _blocks(self, count: int) -> int:
        return -(-count // self._block)

    def _scales(self, largest: Floats) -> Floats:
        scales = largest / np.float32(127.0)
        # Next to the largest float32, 127 times the rounded quotient could be infinite.
        with np.errstate(over="ignore"):
            is_over = np.isinf(scales * np.float32(127.0))
        scales[is_over] = np.nextafter(scales[is_over], np.float32(0.0))
        scales[largest < self._LEAST] = 0.0
        return scales

    def _round(self, scaled: Floats, out: NDArray[np.int8]) -> None:
        if self._generator is not None:
            drawn = self._generator.random(out=self._drawn[: scaled.size], dtype=np.float32)
            scaled += drawn
            np.floor(scaled, out=scaled)
            # 127 plus a number next to 1 can round to 128.
            np.minimum(scaled, np.float32(127.0), out=scaled)
        else:
            np.rint(scaled, out=scaled)
        np.copyto(out, scaled[: out.size], casting="unsafe")


class TopK:
    """The largest numbers of each chunk, as they are, with their places; the others are zero.

    6 bytes for each number that is sent. Without error feedback most of a gradient would be lost for good. Source:
    Stich et al. 2018, "Sparsified SGD with memory".
    """

    def __init__(self, share: float = 0.01) -> None:
        """`share`: of the numbers of a chunk, what is sent, above 0 and at most 1; at least one."""
        if not 0 < share <= 1:
            raise InvalidInput(f"top-k sends a share above 0 and at most 1 of the numbers, not {share:g}")
        self._share = share
        self.name = f"top-k:{share:g}"

    def size_bytes(self, count: int) -> int:
        """Return 6 bytes for each number that is sent."""
        return 6 * self._kept(count)

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write the numbers, then their places in 16 bits."""
        kept = self._kept(values.size)
        if not kept:
            return
        tensor = torch.from_numpy(values)
        found = torch.topk(tensor.abs(), kept, sorted=False)
        # A number that is not one counts as the largest.
        if not bool(torch.isfinite(found.values).all()):
            raise not_finite()
        places = found.indices.numpy()
        out[: 4 * kept].view(np.float32)[...] = values[places]
        out[4 * kept :].view(np.uint16)[...] = places

    def decode(self, data: Bytes, out: Floats) -> None:
        """Put the numbers into their places, and zeros everywhere else."""
        kept = self._kept(out.size)
        out[...] = 0.0
        out[data[4 * kept :].view(np.uint16)] = data[: 4 * kept].view(np.float32)

    def _kept(self, count: int) -> int:
        return max(1, round(self._share * count)) if count else 0


def _largest(rows: NDArray[Any]) -> Floats:
    """Return the greatest absolute value of each row; NaN if there is one in it."""
    if not rows.size:
        return np.zeros(rows.shape[0], np.float32)
    greatest: Floats = np.maximum(rows.max(axis=1), -rows.min(axis=1))
    return greatest
