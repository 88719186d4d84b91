"""Signs of life: who is lost, who has only left, and what is said about it."""

import select
import socket
import struct

import pytest

from argosy.core.clock import SystemClock
from argosy.train.network.pulse import Pulse


@pytest.fixture
def pair():
    """Two ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    for end in (one, other):
        end.setblocking(False)
    yield one, other
    for end in (one, other):
        end.close()


def pulse(rank, connections, **options):
    return Pulse(rank, connections, SystemClock(), **({"silence_s": 5.0, "beat_s": 0.05} | options))


def alarm(found, seconds=5.0):
    ready, _, _ = select.select([found.alarm], [], [], seconds)
    return bool(ready)


def end(found, **how):
    found.part(**({"failed": False} | how))
    found.close()


def test_ranks_that_beat_are_not_lost(pair):
    pulses = [pulse(rank, {1 - rank: pair[rank]}, silence_s=0.5) for rank in range(2)]
    assert not alarm(pulses[0], 1.2)
    assert pulses[0].error() is None
    for each in pulses:
        end(each)


@pytest.mark.parametrize("beat_s", [0.05, 10.0])
def test_a_peer_that_says_nothing_is_lost_however_seldom_this_rank_beats(pair, beat_s):
    found = pulse(0, {1: pair[0]}, silence_s=0.4, beat_s=beat_s)
    assert alarm(found)
    assert "rank 1 gave no sign of life for 0." in str(found.error())
    end(found, failed=True)


def test_a_peer_whose_connection_ends_without_a_word_is_lost_at_once(pair):
    found = pulse(0, {1: pair[0]})
    pair[1].close()
    assert alarm(found)
    assert "rank 1 has ended without a word" in str(found.error())
    end(found, failed=True)


def test_a_peer_that_says_goodbye_is_not_lost(pair):
    one, other = pulse(0, {1: pair[0]}), pulse(1, {0: pair[1]})
    end(other)
    assert "rank 1 has left" in str(one.explain(1))
    assert not alarm(one, 0.3)
    end(one)


def test_who_is_to_blame_is_passed_on(pair):
    one, other = pulse(0, {1: pair[0]}), pulse(1, {0: pair[1]})
    end(other, failed=True, blame=7)
    assert alarm(one)
    assert "rank 7 took no part in an exchange in time" in str(one.error())
    end(one, failed=True)


def test_a_rank_that_others_have_given_up_is_told_so(pair):
    found = pulse(0, {1: pair[0]})
    reason = b"gave no sign of life for 9.0 s"
    pair[1].send(b"F" + struct.pack(">hH", 0, len(reason)) + reason)
    assert alarm(found)
    assert str(found.error()).startswith("rank 0 was given up by rank 1: it gave no sign of life for 9.0 s")
    end(found, failed=True)


@pytest.mark.parametrize("said", [b"x", b"..\xff", b"GET / HTTP/1.1\r\n"])
def test_a_peer_that_speaks_another_language_is_lost(pair, said):
    found = pulse(0, {1: pair[0]})
    pair[1].send(said)
    assert alarm(found)
    assert "rank 1 speaks another language" in str(found.error())
    end(found, failed=True)


def test_what_is_said_may_come_in_pieces(pair):
    found = pulse(0, {1: pair[0]})
    for byte in b"..F" + struct.pack(">hH", -1, 3) + b"why":
        pair[1].send(bytes([byte]))
    assert alarm(found)
    assert "rank 1 stopped with an error" in str(found.error())
    end(found, failed=True)
