"""Mutating requests and frames, and a gateway's HTTP side without sockets to send them to.

Each input is made from its number alone, so a failure is repeated by `case(seed, number)`.
"""

import json
import struct
from random import Random

import httptools

from argosy.core.clock import FakeClock
from argosy.core.tensors import Signature, TensorSpec
from argosy.security.api_keys import make_key
from argosy.serve import wire
from argosy.serve.access import Access, AccessKey, AccessRules
from argosy.serve.connection import Connection
from argosy.serve.gateway_front import GatewayFront
from malformed import CORPUS, CORPUS_OF_KINDS, HOST, binary, chunked, get, infer, photo, plain, png, post, texts
from plane import FakeReplica, World, digest

GOOD = [
    get("/"), get("/v2"), get("/v2/health/live"), get("/v2/models/m"), get("/v2/models/m/versions/1/ready"),
    get("/v2/models/m/stats"), get("/v2/models/stats"), get("/metrics", method="HEAD"), get("/openapi.json"),
    infer(), infer(data=[[1, 2, 3, 4]]), infer(shape=[2, 4], data=[1.5] * 8), binary(), plain({"x": [1, 2, 3, 4]}),
    plain([{"x": [1, 2, 3, 4]}] * 2), plain({"n": [1, -2]}, "small"), plain({"text": "Zoë"}, "words"),
    texts(b"a", b"bc"),
    plain({"a": 1, "b": None}, "table"), plain({"a": [1, 2], "b": [3, 4]}, "table"), photo(png(2, 2)),
    post({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1] * 4}], "id": "7",
          "outputs": [{"name": "y", "parameters": {"binary_data": True}}], "parameters": {"timeout": 5_000_000}},
         path="/v2/models/m/versions/1/infer"),
    infer().replace(HOST, HOST + b"argosy-timeout: 250ms\r\nargosy-caller: me\r\n"),
    chunked(b"10\r\n" + b'{"inputs": {"x":' + b"\r\n", b"b\r\n [1,2,3,4]}\r\n", b"1\r\n}\r\n", b"0\r\n\r\n").replace(
        b"/v2/models/m/infer", b"/predict/m"),
    get("/", "Connection: Upgrade", "Upgrade: h2c"), get("/", "Expect: 100-continue"),
    post(b"{}", "Content-Type: application/json; charset=utf-8"),
]  # fmt: skip
TOKENS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b": ", b"\0", b"\xff", b" ", b"0", b"-1", b"18446744073709551616", b"1e400",
    b"NaN",
    b"null", b"true", b"{}", b"[]", b"[[", b'"', b"\\ud800", b"%2e%2e%2f", b"%00", b"Content-Length: 4\r\n",
    b"Transfer-Encoding: chunked\r\n", b"Host: x\r\n", b"Connection: close\r\n", b"Expect: 100-continue\r\n",
    b"Upgrade: websocket\r\n", b"Inference-Header-Content-Length: 9\r\n", b"HTTP/1.0", b"GET / HTTP/1.1\r\n", b"PUT",
    b"binary_data_size", b"BYTES", b"FP16", b"shape", b"0\r\n\r\n", b"ffffffff\r\n", b"/versions/1", b"?", b"#",
]  # fmt: skip


def mutated(random, data, pool):
    """Return `data` changed in up to a few places: as a sender's mistake, a broken line or an attacker would."""
    data = bytearray(data)
    for _ in range(random.choice((0, 1, 1, 2, 3, 6))):
        at = random.randrange(len(data) + 1)
        size = random.choice((1, 1, 2, 4, 16, 64))
        kind = random.randrange(9)
        if kind == 0 and data:
            data[min(at, len(data) - 1)] ^= 1 << random.randrange(8)
        elif kind == 1:
            del data[at : at + size]
        elif kind == 2:
            data[at:at] = data[at : at + size] * random.choice((1, 2, 50))
        elif kind == 3:
            data[at:at] = random.choice(TOKENS)
        elif kind == 4:
            data[at : at + size] = random.choice(TOKENS)
        elif kind == 5:
            other = random.choice(pool)
            start = random.randrange(len(other) + 1)
            data[at:at] = other[start : start + size * 4]
        elif kind == 6:
            data[at:at] = bytes(random.randrange(256) for _ in range(size))
        elif kind == 7:
            del data[at:]
        else:
            # another number in the place of one
            digits = [i for i, byte in enumerate(data) if 48 <= byte <= 57]
            if digits:
                spot = random.choice(digits)
                data[spot : spot + 1] = random.choice((b"0", b"9", b"-1", b"99999999999", b"1.5", b"0x1", b"1e9"))
    return bytes(data)


def case(seed, number, pool=None):
    """Return the bytes of one connection: some requests in a row, most of them changed."""
    random = Random(f"{seed}-{number}")
    pool = pool or POOL
    raw = b"".join(mutated(random, random.choice(pool), pool) for _ in range(random.choice((1, 1, 1, 2, 3))))
    return raw[:200_000]


POOL = GOOD + [raw for _, raw, _ in CORPUS + CORPUS_OF_KINDS if len(raw) < 5000]


def cuts(random, data):
    """Return `data` in pieces, as a network may deliver it."""
    if random.random() < 0.3 and len(data) < 3000:
        return [data[i : i + 1] for i in range(len(data))]
    places = sorted(random.randrange(len(data) + 1) for _ in range(random.choice((0, 1, 2, 5))))
    return [data[a:b] for a, b in zip([0, *places], [*places, len(data)], strict=True) if a < b]


class Line:
    """A client's end of a connection, without a socket."""

    def __init__(self):
        self.received = bytearray()
        self.is_over = False
        self.is_paused = False

    def set_write_buffer_limits(self, high):
        pass

    def write(self, data):
        assert not self.is_over, "bytes after the end"
        self.received += data

    def writelines(self, pieces):
        for piece in pieces:
            self.write(piece)

    def can_write_eof(self):
        return True

    def write_eof(self):
        self.is_over = True

    def is_closing(self):
        return self.is_over

    def pause_reading(self):
        self.is_paused = True

    def resume_reading(self):
        self.is_paused = False

    def get_write_buffer_size(self):
        return 0

    def get_extra_info(self, name, default=None):
        return default

    def abort(self):
        self.is_over = True


def signature(*inputs):
    return Signature(inputs=inputs, outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),))


SIGNATURES = {
    "m": signature(TensorSpec(name="x", datatype="FP32", shape=(-1, 4))),
    "small": signature(TensorSpec(name="n", datatype="INT8", shape=(-1, 2))),
    "words": signature(TensorSpec(name="text", datatype="BYTES", shape=(-1,), content="text")),
    "photo": signature(TensorSpec(name="image", datatype="BYTES", shape=(-1,), content="image")),
    "table": signature(TensorSpec(name="f", datatype="FP32", shape=(-1, 2), columns=("a", "b"))),
}


KEY = make_key(lambda count: bytes(range(count)))


def signed(raw):
    """Return requests with the key in each."""
    return raw.replace(HOST, HOST + f"Authorization: Bearer {KEY.text}\r\n".encode())


class Gateway:
    """The HTTP side of a gateway with a replica for each of `SIGNATURES`; every row is answered with 0.5.

    `is_guarded`: only for holders of `KEY`.
    """

    def __init__(self, *, is_guarded=False):
        self.world = World()
        holder = AccessKey(id=KEY.id, name="ada", digest=KEY.digest, endpoints=("*",))
        access = Access(self.world.clock, AccessRules(is_on=is_guarded, keys=(holder,)))
        self.front = GatewayFront(
            self.world.plane, access, FakeClock(), max_body_bytes=100_000, receive_s=8.0, host="127.0.0.1"
        )
        self.replicas = [
            FakeReplica(self.world.plane, name, f"r-{name}", signature=found) for name, found in SIGNATURES.items()
        ]
        from argosy.serve.control import EndpointRoute

        self.world.plane.set_routes(
            [EndpointRoute(name=name, stable=digest(name), stable_ref=f"{name}:1") for name in SIGNATURES]
        )

    def work(self):
        """Let the replicas answer what they were given, until there is nothing left to do."""
        self.world.turn()
        while any(self._answered(replica) for replica in self.replicas):
            self.world.turn()

    def _answered(self, replica):
        if replica.run is None:
            return False
        order, _ = replica.run
        replica.wire.frames.clear()
        count = sum(order.rows)
        outputs = (wire.Output("y", "FP32", (count, 1)),)
        replica._done(wire.Done(order.batch, 0.001, outputs), struct.pack("<f", 0.5) * count)
        return True

    def talk(self, pieces):
        """Send pieces over a connection of its own; return what was answered, and whether it was closed."""
        connection, line = Connection(self.front), Line()
        connection.connection_made(line)
        for piece in pieces:
            connection.data_received(piece)
            self.work()
        connection.connection_lost(None)
        self.work()
        assert self.front.receiving_bytes == 0, "bytes of a body that is gone are still counted"
        assert not self.front.connections
        return answers(bytes(line.received)), line.is_over


class _Reader:
    def __init__(self):
        self.found = []
        self.parser = httptools.HttpResponseParser(self)

    def on_message_begin(self):
        self.headers, self.body = {}, b""

    def on_header(self, name, value):
        self.headers[name.lower()] = value

    def on_body(self, data):
        self.body += data

    def on_message_complete(self):
        if self.parser.get_status_code() >= 200:
            self.found.append((self.parser.get_status_code(), self.headers, self.body))


def answers(raw):
    """Return (status, code or kind of answer) for each answer; they must be whole, well-formed, and say no more than
    they should.

    An answer to HEAD has no body, which a parser of answers can't know: its length is taken out first.
    """
    found = []
    while raw:
        head, separator, rest = raw.partition(b"\r\n\r\n")
        assert separator, f"half an answer: {raw[:200]!r}"
        reader = _Reader()
        size = int(dict(_lines(head)).get(b"content-length", b"0"))
        # What follows is either the body or, after HEAD, the next answer or nothing.
        has_body = not (size and (not rest or rest.startswith(b"HTTP/1.1 ")))
        body, raw = (rest[:size], rest[size:]) if has_body else (b"", rest)
        assert not has_body or len(body) == size, f"half a body: {head!r}"
        lengthless = b"\r\n".join(line for line in head.split(b"\r\n") if not line.startswith(b"content-length"))
        reader.parser.feed_data(lengthless + b"\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
        if head.startswith(b"HTTP/1.1 100"):
            continue
        ((status, headers, inside),) = reader.found
        found.append((status, _kind(status, headers, inside, has_body=has_body)))
    return found


def _lines(head):
    return [tuple(line.lower().split(b": ", 1)) for line in head.split(b"\r\n")[1:]]


def _kind(status, headers, body, *, has_body):
    assert status < 500 or status in (503, 504), (status, body[:500])
    if status < 400 or not has_body:
        return "ok"
    assert headers[b"content-type"] == b"application/json"
    said = json.loads(body)
    assert said["error"]
    assert not any(word in body for word in (b"Traceback", b".py", b"site-packages", b"object at 0x")), body
    assert len(body) < 5000, body[:1000]
    return said["code"]
