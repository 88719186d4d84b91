"""What comes in a moment is waited for awake, exactly once, and never at the cost of others."""

import asyncio
import socket
import time

import pytest

from argosy.core.errors import Unavailable
from argosy.serve import glance as module
from argosy.serve import wire
from argosy.serve.awake import look
from argosy.serve.glance import QUICK_S, Glance
from plane import World

pytestmark = pytest.mark.capability("I3")


class Seen(asyncio.Protocol):
    def __init__(self):
        self.pieces, self.came, self.lost = [], asyncio.Event(), asyncio.Event()

    def data_received(self, data):
        self.pieces.append(data)
        self.came.set()

    def connection_lost(self, exc):
        self.lost.set()


def glancing(act):
    """Run `act(glance, seen, other end)` on a loop that has one end of a connection."""

    async def run():
        ours, theirs = socket.socketpair()
        with theirs:
            transport, seen = await asyncio.get_running_loop().connect_accepted_socket(Seen, ours)
            glance = Glance(transport)
            await asyncio.wait_for(act(glance, seen, theirs), 30)
            glance.close()
            transport.close()

    asyncio.run(run())


async def turn(times=3):
    for _ in range(times):
        await asyncio.sleep(0)


def test_what_comes_while_it_looks_is_handed_on_once(monkeypatch):
    asked = []
    monkeypatch.setattr(module, "look", lambda *given: asked.append(given) or look(*given))

    async def act(glance, seen, theirs):
        theirs.sendall(b"answer")
        glance._transport.pause_reading()  # so that only the glance can have seen it
        glance.begin(lambda: True)
        await turn()
        assert seen.pieces == [b"answer"]
        glance._transport.resume_reading()
        seen.came.clear()
        theirs.sendall(b"more")
        await seen.came.wait()
        assert seen.pieces == [b"answer", b"more"]
        assert len(asked) == 1

    glancing(act)


def test_it_gives_up_soon_and_what_comes_later_comes_as_ever():
    async def act(glance, seen, theirs):
        begun = time.monotonic()
        glance.begin(lambda: True)
        await turn()
        assert time.monotonic() - begun < 0.1
        assert seen.pieces == []
        theirs.sendall(b"late")
        await seen.came.wait()
        assert seen.pieces == [b"late"]

    glancing(act)


def test_it_does_not_look_for_what_is_not_wanted_any_more_or_can_not_come(monkeypatch):
    monkeypatch.setattr(module, "look", lambda *_: pytest.fail("it looked"))

    async def act(glance, seen, theirs):
        glance.begin(lambda: False)
        await turn()
        glance._transport.close()
        glance.begin(lambda: True)
        await turn()
        assert seen.pieces == []

    glancing(act)


def test_a_peer_that_goes_while_it_looks_is_lost_once():
    async def act(glance, seen, theirs):
        theirs.close()
        glance.begin(lambda: True)
        await seen.lost.wait()
        assert seen.pieces == []
        glance.close()
        glance.close()

    glancing(act)


def test_a_receiver_that_looks_takes_whole_frames_parts_of_them_and_the_end():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        receiver = wire.Receiver(ours)
        pieces = b"".join(bytes(piece) for piece in wire.encode(wire.Beat()))
        theirs.sendall(pieces + pieces[:3])
        assert receiver.receive(look_s=0.05)[0] == wire.Beat()
        theirs.sendall(pieces[3:])
        assert receiver.receive(look_s=0.05)[0] == wire.Beat()
        begun = time.monotonic()
        theirs.sendall(pieces)
        assert receiver.receive(look_s=10.0)[0] == wire.Beat()
        assert time.monotonic() - begun < 5
        theirs.close()
        with pytest.raises(Unavailable):
            receiver.receive(look_s=0.05)


def test_a_body_that_came_while_it_looked_may_be_written_to():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        order = wire.Run(1, (("x", "FP32", (1, 1)),), (1,), 5.0)
        theirs.sendall(b"".join(bytes(piece) for piece in wire.encode(order, [b"\0\0\0\0"])))
        _, body = wire.Receiver(ours).receive(look_s=0.05)
        body[0] = 1  # as a version's own code may do


class Begun:
    def __init__(self):
        self.wanted = []

    def begin(self, is_wanted):
        self.wanted.append(is_wanted)

    def close(self):
        pass


@pytest.fixture
def world():
    world = World()
    world.route()
    return world


def test_the_gateway_looks_for_the_answer_of_a_quick_replica_when_nothing_else_is_going_on(world):
    replica = world.replica()
    replica.inside._glance = begun = Begun()
    world.send()
    assert begun.wanted == []  # nothing is known of it yet
    replica.answer()
    replica.inside._run_s = QUICK_S / 2
    world.send()
    (is_wanted,) = begun.wanted
    assert is_wanted()
    replica.answer()
    assert not is_wanted()
    replica.inside._run_s = 2 * QUICK_S
    world.send()
    assert len(begun.wanted) == 1


def test_the_gateway_looks_for_nothing_while_others_run_or_wait(world):
    first, second = world.replica(), world.replica()
    for replica in (first, second):
        replica.inside._glance, replica.inside._run_s = Begun(), QUICK_S / 2
    world.send()
    world.send()
    busy = [r.inside._glance.wanted for r in (first, second)]
    assert sorted(map(len, busy)) == [0, 1]  # the second was not alone
    (is_wanted,) = busy[0] or busy[1]
    assert not is_wanted(), "the first is not alone any more"
    world.send()
    for replica in (first, second):
        replica.answer()
    assert sum(len(r.inside._glance.wanted) for r in (first, second)) <= 2
