import socket
import threading

import pytest

from argosy.core.errors import DeadlineExceeded, InvalidInput, Unavailable
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import wire

SIGNATURE = Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),), outputs=())


def joined(message, body=()):
    return b"".join(bytes(piece) for piece in wire.encode(message, body))


@pytest.mark.parametrize(
    "message",
    [
        wire.Hello("r", 7, "sha256:aa", "m:1", SIGNATURE, 8, 0.5),
        wire.Run(3, (("x", "FP32", (2, 4)),), (1, 1)),
        wire.Done(3, 0.1, (wire.Output("y", "BYTES", (2,), (3, 4)),), (wire.Failure(1, "c", "m"),)),
        wire.Beat(), wire.Leaving(), wire.Bye(), wire.Ask("windows", {"r": 3}), wire.Answer({1: 2}, None),
    ],
)  # fmt: skip
def test_each_message_survives_the_wire(message):
    frames = list(wire.FrameReader().feed(joined(message, [b"abc", memoryview(b"de")])))
    assert [(frame, bytes(body)) for frame, body in frames] == [(message, b"abcde")]


@pytest.mark.parametrize("size", [1, 3, 12, 13, 1000])
def test_frames_are_put_together_from_any_pieces(size):
    data = b"".join(joined(wire.Run(n, (), (1,)), [b"x" * n]) for n in range(50))
    reader = wire.FrameReader()
    found = []
    for at in range(0, len(data), size):
        found += [(frame.batch, len(body)) for frame, body in reader.feed(data[at : at + size])]
    assert found == [(n, n) for n in range(50)]


@pytest.mark.parametrize(
    "data",
    [
        wire.PREFIX.pack(2**31, 0), wire.PREFIX.pack(1, 2**40), wire.PREFIX.pack(3, 0) + b"abc",
        wire.PREFIX.pack(1, 0) + b"\x90", b"GET / HTTP/1.1\r\n\r\n",
    ],
)  # fmt: skip
def test_what_is_no_frame_is_refused(data):
    with pytest.raises(InvalidInput) as caught:
        list(wire.FrameReader().feed(data))
    assert caught.value.code == "bad_frame"


def test_blocking_ends_speak_the_same_frames_however_large():
    left, right = socket.socketpair()
    with left, right:
        body = bytes(range(256)) * 20_000
        sender = threading.Thread(target=wire.send, args=(left, wire.Run(1, (), (1,)), [body[:100]] * 100 + [body]))
        sender.start()
        frame, found = wire.receive(right)
        sender.join()
        assert frame == wire.Run(1, (), (1,))
        assert found == body[:100] * 100 + body


def test_a_peer_that_ends_in_the_middle_of_a_frame_is_gone():
    left, right = socket.socketpair()
    with right:
        left.sendall(joined(wire.Beat())[:5])
        left.close()
        with pytest.raises(Unavailable, match="closed"):
            wire.receive(right)


def test_a_silent_peer_meets_the_deadline():
    left, right = socket.socketpair()
    with left, right:
        right.settimeout(0.01)
        with pytest.raises(DeadlineExceeded):
            wire.receive(right)


@pytest.fixture
def ends():
    left, right = socket.socketpair()
    left.settimeout(5)
    right.settimeout(5)
    with left, right:
        yield left, right


def frame(number, size):
    message = wire.Run(number, (("x", "UINT8", (1, size)),), (1,))
    return b"".join(bytes(piece) for piece in wire.encode(message, [bytes([number]) * size]))


@pytest.mark.parametrize("step", [1, 7, 1000, 1 << 20])
@pytest.mark.parametrize("sizes", [(0,), (3, 0, 5), (20_000,), (100, 70_000, 100)])
def test_a_receiver_puts_frames_together_however_they_arrive(ends, step, sizes):
    left, right = ends
    data = b"".join(frame(number, size) for number, size in enumerate(sizes, 1))
    sender = threading.Thread(target=lambda: [left.sendall(data[at : at + step]) for at in range(0, len(data), step)])
    sender.start()
    receiver = wire.Receiver(right)
    bodies = []
    for number, size in enumerate(sizes, 1):
        found, body = receiver.receive()
        assert found.batch == number
        assert (len(body), body.readonly) == (size, False)
        bodies.append(body)
    sender.join()
    # What came earlier is not written over: a version may have kept it.
    for number, body in enumerate(bodies, 1):
        assert set(bytes(body)) <= {number}


def test_a_receiver_says_that_the_peer_is_gone_in_the_middle_of_a_frame(ends):
    left, right = ends
    left.sendall(frame(1, 50_000)[:30_000])
    left.close()
    with pytest.raises(Unavailable, match="closed"):
        wire.Receiver(right).receive()


def test_a_receiver_refuses_absurd_lengths_before_it_takes_memory(ends):
    left, right = ends
    left.sendall(wire.PREFIX.pack(1 << 30, 1 << 60))
    with pytest.raises(InvalidInput, match="announced"):
        wire.Receiver(right).receive()
