"""A head that begins behind another request, in the same read, is a head like any other."""

import pytest

from fuzzing import Gateway, Line
from malformed import get, infer

TAIL = b"TP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@pytest.fixture
def gateway():
    return Gateway()


@pytest.mark.parametrize("is_known", [False, True])
def test_the_end_of_a_head_is_not_taken_for_a_head(gateway, is_known):
    first, second = get("/v2/health/live", "x: 1"), get("/v2/models/m")
    if is_known:
        gateway.talk([first])
    assert second.endswith(TAIL)
    # The second head comes in two reads; what the second read begins with must mean nothing by itself.
    assert gateway.talk([first + second[: -len(TAIL)], TAIL])[0] == [(200, "ok")] * 2
    assert gateway.front.heads.get(TAIL) is None
    assert gateway.talk([TAIL])[0] == [(400, "bad_http")]
    # Nor may it complete somebody else's request.
    other = get("/v2/models/nobody")
    assert gateway.talk([first + other[: -len(TAIL)], TAIL])[0] == [(200, "ok"), (404, "unknown_endpoint")]


def test_a_second_head_that_trickles_is_given_up_as_soon_as_a_first_one(gateway):
    from argosy.serve.connection import Connection

    connection, line = Connection(gateway.front), Line()
    connection.connection_made(line)
    connection.data_received(infer() + b"GET / HT")
    gateway.work()
    connection.check(gateway.front.now + gateway.front.receive_s + 1)
    assert line.received.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 408" in line.received
    assert line.is_over


def test_an_empty_line_between_requests_begins_nothing(gateway):
    from argosy.serve.connection import Connection

    connection, line = Connection(gateway.front), Line()
    connection.connection_made(line)
    connection.data_received(get("/v2/health/live") + b"\r\n")
    connection.check(gateway.front.now + gateway.front.receive_s + 1)
    assert not line.is_over
    connection.data_received(get("/v2/health/live"))
    assert line.received.count(b"HTTP/1.1 200") == 2
