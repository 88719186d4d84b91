"""Ways to sum flat arrays over all ranks: as they are, encoded, or as thin factors. What was lost is not forgotten."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.train.network.codec import CODECS, MAX_COUNT, Codec, Floats
from argosy.train.network.transport import Pending
from argosy.train.transport import Numbers, Transport

State = dict[str, Numbers]
"""What a checkpoint must hold, by name. It differs from rank to rank."""


@runtime_checkable
class CodingTransport(Transport, Protocol):
    """A transport that compresses, and that exchanges in the background."""

    def all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> None:
        """Sum over all ranks."""
        ...

    def start_all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> Pending:
        """Begin to sum over all ranks."""
        ...


class Reduction(Protocol):
    """Sums arrays of one size over all ranks; every rank gets the same bits.

    Every reduction passes tests/conformance/test_reductions.py.
    """

    def sum(self, values: Numbers) -> None:
        """Replace `values`, flat, in place, by the sum over all ranks, or by what stands for it."""
        ...

    def start(self, values: Numbers) -> Pending:
        """Begin to do the same; `values` belong to it until its end. On one host it is done at once."""
        ...

    def wire_bytes(self, count: int) -> int:
        """Return how many bytes `count` float32 values are on the wire, once."""
        ...

    def state(self) -> State:
        """Return copies of what the next calls depend on."""
        ...

    def load_state(self, state: Mapping[str, Numbers]) -> None:
        """Go on from a `state`."""
        ...


class PlainReduction:
    """Sums numbers as they are."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def sum(self, values: Numbers) -> None:
        """Sum over all ranks."""
        self._transport.all_reduce(values)

    def start(self, values: Numbers) -> Pending:
        """Begin to sum over all ranks."""
        if isinstance(self._transport, CodingTransport):
            return self._transport.start_all_reduce(values)
        return _at_once(lambda: self._transport.all_reduce(values))

    def wire_bytes(self, count: int) -> int:
        """Return the size of the values."""
        return 4 * count

    def state(self) -> State:
        """Return nothing: no call depends on the one before."""
        return {}

    def load_state(self, state: Mapping[str, Numbers]) -> None:
        """Take nothing."""
        del state


class CodedReduction:
    """Sums what a codec makes of float32 numbers; what it loses is added to the next ones (error feedback).

    Source of the error feedback: Karimireddy et al. 2019, "Error feedback fixes SignSGD and other gradient
    compression schemes", algorithm 2.
    """

    def __init__(self, transport: Transport, codec: Codec, *, feedback: bool = True) -> None:
        self._transport = transport
        self._codec = codec
        self._feedback = feedback
        self._error: Floats | None = None

    def sum(self, values: Numbers) -> None:
        """Sum over all ranks what the codec makes of values plus error."""
        error = self._error_of(values)
        if isinstance(self._transport, CodingTransport):
            self._transport.all_reduce(values, codec=self._codec, error=error)
        else:
            self._lose(values, error)
            self._transport.all_reduce(values)

    def start(self, values: Numbers) -> Pending:
        """Begin to do the same."""
        error = self._error_of(values)
        if isinstance(self._transport, CodingTransport):
            return self._transport.start_all_reduce(values, codec=self._codec, error=error)
        return _at_once(lambda: self.sum(values))

    def wire_bytes(self, count: int) -> int:
        """Return the size of the encoded values."""
        whole, rest = divmod(count, MAX_COUNT)
        return whole * self._codec.size_bytes(MAX_COUNT) + (self._codec.size_bytes(rest) if rest else 0)

    def state(self) -> State:
        """Return the error, if there was a call."""
        return {} if self._error is None else {"error": self._error.copy()}

    def load_state(self, state: Mapping[str, Numbers]) -> None:
        """Take the error."""
        self._error = state["error"].astype(np.float32) if "error" in state else None

    def _error_of(self, values: Numbers) -> Floats | None:
        if self._feedback and (self._error is None or self._error.size != values.size):
            self._error = np.zeros(values.size, np.float32)
        return self._error

    def _lose(self, values: Floats, error: Floats | None) -> None:
        """Do to `values` what encoding them for a wire would: ranks of one host lose as much as others."""
        for start in range(0, values.size, MAX_COUNT):
            part = values[start : start + MAX_COUNT]
            if error is not None:
                part += error[start : start + MAX_COUNT]
            data = np.empty(self._codec.size_bytes(part.size), np.uint8)
            self._codec.encode(part, data)
            found = np.empty_like(part)
            self._codec.decode(data, found)
            if error is not None:
                np.subtract(part, found, out=error[start : start + MAX_COUNT])
            part[...] = found


def open_reduction(
    name: str, transport: Transport, shapes: Sequence[tuple[int, ...]] = (), *, seed: int = 0
) -> Reduction:
    """Return the reduction called `name`: `none`, a codec such as `fp16`, `int8` or `top-k`, or `powersgd`.

    A setting may follow a colon: `int8:1024` (numbers per block), `top-k:0.01` (share that is sent), `powersgd:4`
    (rank). PowerSGD needs the `shapes` of all parameters, in the order of the flat array, and the same seed on all
    ranks. Raises NotFound with the known names, InvalidInput for a setting that makes no sense.
    """
    kind, _, setting = name.partition(":")
    if kind == "none":
        return PlainReduction(transport)
    if kind == "powersgd":
        from argosy.train.network.powersgd import PowerSgd

        return PowerSgd(transport, shapes, rank=int(_number(name, setting or "4")), seed=seed)
    made = CODECS.load(kind)
    codec: Codec = made(_number(name, setting)) if setting else made()
    return CodedReduction(transport, codec)


def _number(name: str, setting: str) -> float:
    try:
        return float(setting)
    except ValueError as error:
        raise InvalidInput(f"{setting!r} in {name!r} is not a number", code="bad_codec") from error


def _at_once(work: Callable[[], None]) -> Pending:
    pending = Pending()
    pending.run(work)
    return pending
