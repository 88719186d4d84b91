"""Codecs for gradients and for what training has changed: half precision, blocks of int8, the largest numbers only."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import InvalidInput
from argosy.train.network.codec import MAX_COUNT, Bytes, Codec, Floats

_SCALE_BYTES = 4
_LEAST_TRIES, _MOST_TRIES = 3, 100


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

    _OVERFLOW = 128
    """The exponent of float32's largest numbers."""
    _LARGEST = np.float32(2.0**15 - 2.0**4)
    """The half-precision number before 2^15."""

    def __init__(self) -> None:
        self._scaled = np.empty(MAX_COUNT, np.float32)

    def size_bytes(self, count: int) -> int:
        """Return 2 bytes a number, and the scale."""
        return _SCALE_BYTES + 2 * count if count else 0

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write the scale, then the scaled numbers."""
        if not values.size:
            return
        largest = max(values.max(), -values.min())
        if not np.isfinite(largest):
            raise not_finite()
        _, exponent = np.frexp(largest)
        # Bounded, so that both the scale and its inverse are normal numbers; then multiplying by them is exact.
        scale = np.ldexp(np.float32(1.0), min(self._EXPONENT - int(exponent), 120))
        out[:_SCALE_BYTES].view(np.float32)[0] = np.float32(1.0) / scale
        scaled = np.multiply(values, scale, out=self._scaled[: values.size])
        if exponent == self._OVERFLOW:
            # Rounding these up gives 2^15, which would be infinite in float32 when it is scaled back.
            np.clip(scaled, -self._LARGEST, self._LARGEST, out=scaled)
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

    _MOST = np.float32(3.402e38)

    def __init__(self, block: float = 512, *, generator: np.random.Generator | None = None) -> None:
        """`block`: numbers that share a scale, from 16 to the size of a chunk."""
        if block != int(block) or not 16 <= block <= MAX_COUNT:
            raise InvalidInput(f"int8 with blocks of {block:g} numbers: give a whole number from 16 to {MAX_COUNT}")
        self._block = int(block)
        self._generator = generator
        self.name = f"int8:{self._block}"
        self._scaled = torch.empty(MAX_COUNT + self._block)
        self._drawn = np.empty(MAX_COUNT + self._block if generator else 0, np.float32)

    def size_bytes(self, count: int) -> int:
        """Return a byte a number, and the scales."""
        return _SCALE_BYTES * self._blocks(count) + count

    def encode(self, values: Floats, out: Bytes) -> None:
        """Write the scales of all blocks, then the whole numbers."""
        count, blocks = values.size, self._blocks(values.size)
        numbers = torch.from_numpy(values)
        if blocks * self._block > count:
            # The last block is made full with zeros, which are not sent.
            numbers = functional.pad(numbers, (0, blocks * self._block - count))
        rows = numbers.view(blocks, self._block)
        scaled = self._scaled[: blocks * self._block].view(blocks, self._block)
        largest: Floats = torch.abs(rows, out=scaled).amax(dim=1).numpy()
        if not np.isfinite(largest).all():
            raise not_finite()
        scales = out[: _SCALE_BYTES * blocks].view(np.float32)
        scales[...] = self._scales(largest)
        steps = np.divide(np.float32(1.0), scales, out=np.zeros_like(scales), where=scales > 0)
        torch.mul(rows, torch.from_numpy(steps)[:, None], out=scaled)
        self._round(scaled.view(-1))
        torch.from_numpy(out[_SCALE_BYTES * blocks :].view(np.int8)).copy_(scaled.view(-1)[:count])

    def decode(self, data: Bytes, out: Floats) -> None:
        """Multiply whole numbers and scales."""
        blocks, whole = self._blocks(out.size), out.size // self._block
        scales = torch.from_numpy(data[: _SCALE_BYTES * blocks].view(np.float32))
        found = torch.from_numpy(out)
        found.copy_(torch.from_numpy(data[_SCALE_BYTES * blocks :].view(np.int8)))
        found[: whole * self._block].view(whole, self._block).mul_(scales[:whole, None])
        if whole < blocks:
            found[whole * self._block :].mul_(scales[whole])

    def _blocks(self, count: int) -> int:
        return -(-count // self._block)

    def _scales(self, largest: Floats) -> Floats:
        scales = largest / np.float32(127.0)
        # Next to the largest float32, 127 times the rounded quotient could be infinite.
        is_most = largest > self._MOST
        if is_most.any():
            scales[is_most] = np.nextafter(scales[is_most], np.float32(0.0))
        scales[largest < self._LEAST] = 0.0
        return scales

    def _round(self, scaled: Tensor) -> None:
        if self._generator is None:
            torch.round(scaled, out=scaled)
            return
        drawn = self._drawn[: scaled.numel()]
        self._generator.random(out=drawn, dtype=np.float32)
        # 127 plus a number next to 1 can round to 128.
        scaled.add_(torch.from_numpy(drawn)).floor_().clamp_(max=127.0)


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
        sizes = np.abs(values)
        # A number that is not one counts as the largest here.
        places = np.argpartition(sizes, values.size - kept)[values.size - kept :]
        if not np.isfinite(sizes[places]).all():
            raise not_finite()
        out[: 4 * kept].view(np.float32)[...] = values[places]
        out[4 * kept :].view(np.uint16)[...] = places

    def decode(self, data: Bytes, out: Floats) -> None:
        """Put the numbers into their places, and zeros everywhere else."""
        kept = self._kept(out.size)
        out[...] = 0.0
        out[data[4 * kept :].view(np.uint16)] = data[: 4 * kept].view(np.float32)

    def _kept(self, count: int) -> int:
        return max(1, round(self._share * count)) if count else 0


def coding_s(codec: Codec, *, clock: Clock | None = None, most_s: float = 0.02) -> float:
    """Return the seconds per number that encoding and decoding take here, found in about `most_s` seconds.

    A codec pays where this, for all numbers, is less than the time it saves on the wire: exchanges code one chunk
    while others travel, so the longer of the two counts. The least of some tries, so that others here count less.
    """
    timing = clock or SystemClock()
    values = np.random.default_rng(0).standard_normal(MAX_COUNT, dtype=np.float32)
    data, found = np.empty(codec.size_bytes(MAX_COUNT), np.uint8), np.empty_like(values)
    taken_s: list[float] = []
    begun = timing.monotonic()
    while len(taken_s) < _LEAST_TRIES or (timing.monotonic() - begun < most_s and len(taken_s) < _MOST_TRIES):
        start = timing.monotonic()
        codec.encode(values, data)
        codec.decode(data, found)
        taken_s.append(timing.monotonic() - start)
    return min(taken_s) / MAX_COUNT
