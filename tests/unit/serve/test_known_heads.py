"""A head that was seen before is not parsed again, and means exactly what it meant to the parser."""

import gc

import hypothesis
import pytest
from hypothesis import strategies as st

from argosy.core.errors import InvalidInput
from argosy.serve.connection import Connection
from argosy.serve.heads import END, Heads


class Line:
    """The transport of a connection: what was written."""

    def __init__(self):
        self.written = b""
        self.is_closed = False

    def set_write_buffer_limits(self, high=0):
        pass

    def write(self, data):
        self.written += bytes(data)

    def writelines(self, pieces):
        self.write(b"".join(bytes(piece) for piece in pieces))

    def write_eof(self):
        self.is_closed = True

    def can_write_eof(self):
        return True

    def is_closing(self):
        return self.is_closed

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def abort(self):
        self.is_closed = True


class Front:
    """Answers each request with its method, target and body."""

    def __init__(self):
        self.now = 0.0
        self.heads = Heads()
        self.max_body_bytes = 1 << 20
        self.receive_s = 8.0
        self.receiving_bytes = 0
        self.connections = set()
        self.seen = []
        self.parsed = 0

    def admit(self, head):
        self.parsed += 1
        return InvalidInput("no", code="bad_http") if head.method == "PUT" else None

    def handle(self, exchange):
        seen = (exchange.head.method, exchange.head.target, bytes(exchange.body))
        self.seen.append(seen)
        exchange.respond(200, [b"|".join((seen[0].encode(), seen[1], seen[2]))])

    def refuse(self, exchange, error):
        self.seen.append(error.code)
        exchange.respond(400, [error.code.encode()])


def connect(front):
    connection, line = Connection(front), Line()
    connection.connection_made(line)
    return connection, line


def post(body=b"", *headers, target="/a"):
    lines = [f"POST {target} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join(lines).encode() + END + body


def test_the_same_head_is_parsed_once_for_all_connections():
    front = Front()
    for body in (b"one", b"two", b"six"):
        connection, line = connect(front)
        connection.data_received(post(body))
        assert line.written.endswith(b"POST|/a|" + body)
    assert front.parsed == 1


@pytest.mark.parametrize(
    "header", ["Connection: close", "Transfer-Encoding: chunked", "Expect: 100-continue", "Upgrade: h2c"]
)
def test_a_head_that_changes_the_connection_is_not_kept(header):
    front = Front()
    raw = b"\r\n".join([b"GET /a HTTP/1.1", b"Host: x", header.encode()]) + END
    connect(front)[0].data_received(raw)
    assert front.heads.get(raw) is None


def test_a_refused_head_is_not_kept():
    front = Front()
    raw = post(b"abc").replace(b"POST", b"PUT")
    for _ in range(2):
        connect(front)[0].data_received(raw)
    assert front.seen == ["bad_http", "bad_http"]
    assert front.parsed == 2


def test_a_part_of_a_head_is_never_taken_for_a_head():
    front = Front()
    connection, _ = connect(front)
    connection.data_received(b"GET")
    connection.data_received(b" /a HTTP/1.1\r\nHost: x" + END)
    other, _ = connect(front)
    other.data_received(b"GET /b HTTP/1.1\r\nHost: x" + END)
    assert front.seen == [("GET", b"/a", b""), ("GET", b"/b", b"")]


def test_an_empty_line_in_a_body_ends_no_head():
    front = Front()
    raw = post(b"before" + END + b"after")
    for _ in range(3):
        connect(front)[0].data_received(raw)
    assert front.seen == [("POST", b"/a", b"before" + END + b"after")] * 3


LARGE = b"large" * 100_000


def in_pieces(raw, size=60_000):
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def test_the_head_of_a_large_request_is_parsed_once_though_its_body_comes_in_pieces():
    front = Front()
    for _ in range(3):
        connection, line = connect(front)
        for piece in in_pieces(post(LARGE)):
            connection.data_received(piece)
        connection.data_received(post(b"next"))
        assert line.written.endswith(b"next")
    assert front.seen == [("POST", b"/a", LARGE), ("POST", b"/a", b"next")] * 3
    assert (front.parsed, front.receiving_bytes) == (2, 0)


def test_the_head_alone_is_enough_to_begin_a_large_body():
    front = Front()
    raw = post(LARGE)
    end = raw.find(END) + len(END)
    for _ in range(2):
        connection, _ = connect(front)
        for piece in (raw[:end], raw[end:]):
            connection.data_received(piece)
    assert front.seen == [("POST", b"/a", LARGE)] * 2
    assert front.parsed == 1


def test_a_known_large_body_that_does_not_come_is_given_up_and_let_go():
    front = Front()
    connect(front)[0].data_received(post(LARGE))
    slow, line = connect(front)
    slow.data_received(post(LARGE)[:100_000])
    assert front.receiving_bytes > 90_000
    slow.check(7.0)
    assert not line.written
    slow.check(9.0)
    assert b"request_timeout" in line.written
    gone, _ = connect(front)
    gone.data_received(post(LARGE)[:100_000])
    gone.connection_lost(None)
    assert (front.parsed, front.receiving_bytes) == (1, 0)


def test_known_large_bodies_have_the_same_bound_together():
    front = Front()
    connect(front)[0].data_received(post(LARGE))
    front.receiving_bytes = 8 * front.max_body_bytes - 60_000
    connection, line = connect(front)
    for piece in in_pieces(post(LARGE)):
        connection.data_received(piece)
    assert b"too_much_at_once" in line.written
    assert front.receiving_bytes == 8 * front.max_body_bytes - 60_000


def test_a_second_request_in_the_same_read_keeps_the_first_head_from_being_kept_wrongly():
    front = Front()
    connection, _ = connect(front)
    # The parser skips empty lines before a request; the first empty line then ends no head.
    connection.data_received(b"\r\n\r\n" + post(LARGE)[:50_000])
    connection.data_received(post(LARGE)[50_000:] + post(b"x", target="/b"))
    assert front.seen == [("POST", b"/a", LARGE), ("POST", b"/b", b"x")]
    assert front.heads.get(END) is None


def test_heads_that_differ_each_time_do_not_pile_up():
    front = Front()
    connection, _ = connect(front)
    for number in range(5000):
        connection.data_received(post(b"x", f"traceparent: {number}"))
    assert len(front.heads._kept) <= 1024
    assert len(front.seen) == 5000


def test_the_end_of_the_server_does_not_close_later_connections():
    front = Front()
    front.handle = front.seen.append
    first, _ = connect(front)
    first.data_received(post(b"x"))
    first.data_received(post(b"x"))
    first.finish()
    second, line = connect(front)
    second.data_received(post(b"x"))
    front.seen[-1].respond(200, [b"ok"])
    assert b"connection: close" not in line.written


class Holding(Front):
    """Answers nothing; what it would call if a client goes away knows the request, as those of the data plane do."""

    def handle(self, exchange):
        body = exchange.body

        def forget():
            self.seen.append((exchange.head.method, len(body)))

        exchange.on_cancel = forget


def idle(front):
    connection, line = Connection(front), Line()
    connection.connection_made(line)
    return connection


def with_half_a_body(front):
    connection = idle(front)
    connection.data_received(post(LARGE)[:100_000])
    return connection


def with_requests_in_flight(front):
    connection = idle(front)
    for piece in in_pieces(post(LARGE) + post(b"x")):
        connection.data_received(piece)
    return connection


@pytest.mark.parametrize("go", [idle, with_half_a_body, with_requests_in_flight], ids=lambda go: go.__name__)
def test_a_client_that_goes_away_leaves_no_work_for_the_garbage_collector(go):
    """Large bodies in reference cycles pile up, because a quiet process makes too little garbage to collect it."""
    front = Holding()
    go(front).connection_lost(None)
    front.seen.clear()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            go(front).connection_lost(None)
        assert gc.collect() == 0
    finally:
        gc.enable()
    assert len(front.seen) == (40 if go is with_requests_in_flight else 0)


REQUESTS = st.lists(
    st.tuples(
        st.sampled_from(["/a", "/b", "/v2/models/m/infer"]),
        st.sampled_from([(), ("Content-Type: application/json",), ("Connection: keep-alive",)]),
        st.one_of(st.binary(max_size=40), st.builds(lambda part: part * 1500, st.binary(min_size=6, max_size=12))),
    ),
    min_size=1,
    max_size=8,
)


@hypothesis.given(REQUESTS, st.lists(st.one_of(st.integers(1, 400), st.integers(1, 20_000)), max_size=12))
def test_however_the_bytes_are_cut_the_requests_are_the_same(requests, cuts):
    stream = b"".join(post(body, *headers, target=target) for target, headers, body in requests)
    wanted = [("POST", target.encode(), body) for target, _, body in requests]
    front = Front()
    for attempt in range(2):  # the second time all heads may be known
        connection, line = connect(front)
        front.seen.clear()
        at = 0
        for cut in cuts if attempt else []:
            connection.data_received(stream[at : at + cut]) if stream[at : at + cut] else None
            at += cut
        if stream[at:]:
            connection.data_received(stream[at:])
        assert front.seen == wanted
        assert line.written.count(b"HTTP/1.1 200 OK") == len(requests)
