"""Frames between gateway, replicas and controller: a msgpack header, then raw tensors, over a Unix socket.

    frame = length of header (uint32 LE) | length of body (uint64 LE) | header | body

A batch's body holds, input after input, the raw little-endian bytes of all its requests one behind the other. As every
tensor is batch-major, that *is* the batch: the gateway joins and splits requests by slicing bytes and never looks at an
element, and the replica maps the body to arrays without a copy.
"""

import socket
import struct
from collections.abc import Iterable, Sequence
from typing import Any, cast

import msgspec

from argosy.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from argosy.core.tensors import Signature
from argosy.serve.awake import look

PREFIX = struct.Struct("<IQ")
MAX_HEADER_BYTES = 16 << 20
"""Status of a gateway with thousands of replicas and windows stays far below this."""
_SMALL_BYTES = 16 << 10
"""Frames up to this size are copied together, or taken in one piece: that is cheaper than another call."""
MAX_BODY_BYTES = 1 << 30
"""The largest batch that may travel; a length beyond it means that the peer speaks something else."""


class Tensor(msgspec.Struct, frozen=True, gc=False):
    """One tensor as raw bytes: little-endian, row-major, `shape` complete; BYTES as a 4-byte length before each."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True):
    """The base of every header; fields travel as an array, so their order is the format."""


class Advice(msgspec.Struct, frozen=True, array_like=True):
    """What a version's calibration on a machine recommends, see `serve/profile.py`."""

    replicas: int
    threads: int
    """Of each replica."""
    alone: int
    """Threads of a replica where the user wants only one."""
    most: int
    """Replicas for which the machine has memory."""
    solo: int = 1
    """Threads of a run that has the machine to itself, where no other run and no request waits."""


class Hello(Message, frozen=True):
    """A replica's first frame: what it has loaded and how it wants to be fed.

    It may be sent again, with the same replica and version, when calibration has learned how to feed it better.
    """

    replica: str
    pid: int
    digest: str
    ref: str
    signature: Signature
    max_batch: int = 1
    """Most rows worth running together, by the replica's calibration."""
    run_s: float = 0.0
    """Seconds one run of `max_batch` rows took then."""
    padding: float = 1.0
    """Texts may share a run if padding them to the longest makes them at most so many times as long together."""
    row_s: float = 0.0
    """Seconds one row alone took then."""
    max_bytes: int = 0
    """Most bytes worth running together, 0: any. Where it takes texts: rows times the longest text, as padded; else the
    bytes of all inputs. Larger batches of long rows run slower than the same rows one by one."""
    spare: float = 0.0
    """Bytes of padding that one run saved is worth: n texts may share a run with (n - 1) times so much padding."""
    threads: int = 0
    """Threads it computes with."""
    advice: Advice | None = None
    """How many replicas with how many threads do best on its machine; None while that is not known."""
    solo: int = 0
    """Threads of its second engine, for runs that have the machine to themselves; 0 without one."""


class Run(Message, frozen=True):
    """Gateway to replica: run this batch. The body holds the inputs in the order of `inputs`."""

    batch: int
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype, and shape of all requests together."""
    rows: tuple[int, ...]
    """Rows of each request, in order; (1,) for a version that can't be batched."""
    due: float = float("inf")
    """Seconds of this machine's monotonic clock after which nobody wants the answer."""
    shared: tuple[int, int, int, int] = (0, 0, 0, 0)
    """Where the body is instead of behind this header: the fields of `arena.Place`, and its bytes; 0 for none."""
    is_solo: bool = False
    """It has the machine to itself."""


class Failure(msgspec.Struct, frozen=True, array_like=True):
    """Why the request at `index` of a batch has no answer."""

    index: int
    code: str
    message: str
    is_callers: bool = False
    """The version's preparation refused the input."""


class Output(msgspec.Struct, frozen=True, array_like=True):
    """One output of a whole batch. `cuts`: bytes of each answered request where the datatype has no fixed size."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    cuts: tuple[int, ...] = ()


class Done(Message, frozen=True):
    """Replica to gateway: the outputs of a batch, or why it, or some of its requests, failed.

    The body holds, output after output, the rows of the requests that did not fail, in order.
    """

    batch: int
    run_s: float
    outputs: tuple[Output, ...] = ()
    failures: tuple[Failure, ...] = ()
    error: tuple[str, str] = ("", "")
    """Code and message when the whole run failed; then there are no outputs."""
    shared: int = 0
    """Bytes of the body that are in the shared memory of the batch instead of behind this header."""


TOO_LATE = "attempt_timeout"
"""Code of a run that was not begun because its time was over."""
NO_ARENA = "no_arena"
"""Code of a run that failed because the replica can't reach the gateway's shared memory."""


class Beat(Message, frozen=True):
    """Replica to gateway, twice a second from a thread of its own: this process runs, even while it computes."""


class GoSolo(Message, frozen=True):
    """Gateway to replica: get an engine with so many threads, for runs that have the machine to themselves, and say
    `Hello` again when you have it.
    """

    threads: int


class Leaving(Message, frozen=True):
    """Replica to gateway: hand me nothing more; answered by `Bye` when nothing is in flight."""


class Bye(Message, frozen=True):
    """Gateway to replica: no batch is on its way to you."""


class Ask(Message, frozen=True):
    """Controller to gateway: do `what` with `given` (plain values)."""

    what: str
    given: Any = None


class Answer(Message, frozen=True):
    """Gateway to controller: the plain result, or an error as `core.errors.to_dict` gives it."""

    result: Any = None
    error: dict[str, Any] | None = None


class FrontHello(Message, frozen=True):
    """A front's first frame: a process that only speaks HTTP with callers (serve/front.py)."""

    front: str
    pid: int


class Told(Message, frozen=True):
    """Gateway to front: what callers may ask for, and who may; first of all, and whenever it changes."""

    signatures: dict[str, dict[str, Signature]]
    """For each endpoint, of each version by number; `""` is the one that serves."""
    access: dict[str, Any] | None
    """The access rules as plain values; None while the gateway doesn't know them."""
    grpc_port: int = 0


class Infer(Message, frozen=True):
    """Front to gateway: a request for an inference. The body holds its tensors, one behind the other."""

    call: int
    endpoint: str
    number: str
    timeout_s: float
    caller: str
    key: str
    weight: float
    inputs: tuple[tuple[str, str, tuple[int, ...], int], ...]
    """Name, datatype, shape and bytes of each."""
    carrier: dict[str, str] | None = None
    """What the caller says of its trace."""


class Inferred(Message, frozen=True):
    """Gateway to front: an answer, its tensors in the body; or an error as `core.errors.to_dict` gives it."""

    call: int
    ref: str = ""
    prediction: str = ""
    failover: str = ""
    outputs: tuple[tuple[str, str, tuple[int, ...], int], ...] = ()
    error: dict[str, Any] | None = None


class Forget(Message, frozen=True):
    """Front to gateway: the caller has gone."""

    call: int


class Page(Message, frozen=True):
    """Front to gateway: any other request, for the gateway to answer; its body is the body."""

    call: int
    method: str
    target: bytes
    headers: dict[bytes, bytes]
    keep_alive: bool


class Written(Message, frozen=True):
    """Gateway to front: the whole answer to a page as HTTP, in the body."""

    call: int


class Counted(Message, frozen=True):
    """Front to gateway, every second: what it has counted by itself since, so that the metrics are of all processes."""

    counts: tuple[tuple[str, tuple[str, ...], float], ...]
    connections: int


Frame = (
    Hello | Run | Done | Beat | GoSolo | Leaving | Bye | Ask | Answer
    | FrontHello | Told | Infer | Inferred | Forget | Page | Written | Counted
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Frame)


def encode(message: Message, body: Sequence[bytes | memoryview] = ()) -> list[bytes | memoryview]:
    """Return the pieces of one frame, for a gathering write; `body` is not copied."""
    header = _encoder.encode(message)
    size = sum(len(piece) for piece in body) if body else 0
    return [PREFIX.pack(len(header), size) + header, *body]


def decode(header: bytes | memoryview) -> Frame:
    """Return the message of a header; InvalidInput when it is none of ours."""
    try:
        return cast("Frame", _decoder.decode(header))
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"a frame's header is not understood: {error}", code="bad_frame") from error


def check_lengths(header_size: int, body_size: int) -> None:
    """Raise InvalidInput for lengths no peer of ours would send."""
    if header_size > MAX_HEADER_BYTES or body_size > MAX_BODY_BYTES:
        raise InvalidInput(
            f"a frame of {header_size} + {body_size} bytes was announced; at most {MAX_HEADER_BYTES} + "
            f"{MAX_BODY_BYTES} are allowed",
            code="bad_frame",
        )


class FrameReader:
    """Puts frames together from the pieces a socket delivers, each byte copied at most once."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        self._have = 0
        self._need = PREFIX.size

    def feed(self, data: bytes) -> Iterable[tuple[Frame, memoryview]]:
        """Take received bytes and yield each frame that is complete, its body as a view."""
        self._pieces.append(data)
        self._have += len(data)
        if self._have < self._need:
            return
        buffer = memoryview(self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces))
        start = 0
        while True:
            left = len(buffer) - start
            if left < PREFIX.size:
                self._need = PREFIX.size
                break
            header_size, body_size = PREFIX.unpack_from(buffer, start)
            check_lengths(header_size, body_size)
            self._need = PREFIX.size + header_size + body_size
            if left < self._need:
                break
            header_end = start + PREFIX.size + header_size
            frame = decode(buffer[start + PREFIX.size : header_end])
            start = header_end + body_size
            yield frame, buffer[header_end:start]
        self._pieces = [bytes(buffer[start:])] if start < len(buffer) else []
        self._have = len(buffer) - start


def send(connection: socket.socket, message: Message, body: Sequence[bytes | memoryview] = ()) -> None:
    """Send one frame over a blocking socket; a small one by one call of the system."""
    encoded = encode(message, body)
    if sum([len(piece) for piece in encoded]) <= _SMALL_BYTES:
        connection.sendall(encoded[0] if len(encoded) == 1 else b"".join(encoded))
        return
    pieces = [memoryview(piece).cast("B") for piece in encoded if len(piece)]
    while pieces:
        sent = connection.sendmsg(pieces[:64])
        while pieces and sent >= len(pieces[0]):
            sent -= len(pieces.pop(0))
        if sent:
            pieces[0] = pieces[0][sent:]


def receive(connection: socket.socket) -> tuple[Frame, memoryview]:
    """Wait for one frame on a blocking socket; Unavailable when the peer is gone, DeadlineExceeded on its timeout.

    Takes not a byte more than the frame, so the next one may be waited for elsewhere.
    """
    header_size, body_size = PREFIX.unpack(_exactly(connection, PREFIX.size))
    check_lengths(header_size, body_size)
    frame = decode(_exactly(connection, header_size))
    return frame, _exactly(connection, body_size)


class Receiver:
    """Takes frames from a blocking socket, a small one by one call of the system.

    Each body is memory of its own that nothing writes to again: a version may keep what it was given.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._rest = memoryview(b"")

    def receive(self, *, look_s: float = 0.0) -> tuple[Frame, memoryview]:
        """Wait for one frame, for `look_s` awake; Unavailable when the peer is gone.

        Raises DeadlineExceeded on the socket's timeout.
        """
        if look_s and not len(self._rest):
            self._rest = memoryview(bytearray(look(self._connection, look_s)))
        data = self._at_least(self._rest, PREFIX.size)
        header_size, body_size = PREFIX.unpack_from(data)
        check_lengths(header_size, body_size)
        start = PREFIX.size + header_size
        end = start + body_size
        data = self._at_least(data, start)
        frame = decode(data[PREFIX.size : start])
        if len(data) >= end:
            self._rest = data[end:]
            return frame, data[start:end]
        self._rest = memoryview(b"")
        body = memoryview(bytearray(body_size))
        have = len(data) - start
        body[:have] = data[start:]
        _fill(self._connection, body, have)
        return frame, body

    def _at_least(self, data: memoryview, size: int) -> memoryview:
        have = len(data)
        if have >= size:
            return data
        buffer = memoryview(bytearray(max(size, _SMALL_BYTES)))
        buffer[:have] = data
        while have < size:
            have += _some(self._connection, buffer[have:])
        return buffer[:have]


def _exactly(connection: socket.socket, size: int) -> memoryview:
    buffer = memoryview(bytearray(size))
    _fill(connection, buffer, 0)
    return buffer


def _fill(connection: socket.socket, buffer: memoryview, have: int) -> None:
    while have < len(buffer):
        have += _some(connection, buffer[have:])


def _some(connection: socket.socket, buffer: memoryview) -> int:
    try:
        count = connection.recv_into(buffer)
    except TimeoutError as error:
        raise DeadlineExceeded("the peer sent nothing in the time given", code="peer_silent") from error
    except OSError as error:
        raise Unavailable(f"the connection broke: {error.strerror}", code="peer_gone") from error
    if count == 0:
        raise Unavailable("the peer closed the connection", code="peer_gone")
    return count
