"""The client's sockets against a server that does what it is told, also what no good server does."""

import asyncio
import contextlib
import datetime as dt
import ipaddress
import json
import os
import socket
import ssl
import threading
import time

import pytest

import argosy
from argosy.core.errors import DeadlineExceeded, IntegrityError, InvalidInput, Unavailable

BODY = json.dumps({"outputs": {"y": 1.0}, "version": "m:1", "prediction": "p"}).encode()


def whole(body=BODY, extra=b"", status=b"200 OK"):
    return b"HTTP/1.1 " + status + b"\r\n" + extra + b"content-length: %d\r\n\r\n" % len(body) + body


class Server:
    """Runs `behave(connection, count)` for every connection, `count` from 0."""

    def __init__(self, behave, context=None):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.behave = behave
        self.context = context
        self.count = 0
        self.requests = []
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.count += 1
                threading.Thread(target=self.one, args=(connection, self.count - 1), daemon=True).start()

    def one(self, connection, count):
        connection.settimeout(20)
        try:
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
            self.behave(self, connection, count)
        except OSError:
            pass  # the client has gone
        finally:
            connection.close()

    def read(self, connection):
        """Return one request; b"" when the client has gone."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = connection.recv(65536)
            if not piece:
                return b""
            data += piece
        head, _, body = data.partition(b"\r\n\r\n")
        size = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
        while len(body) < size:
            body += connection.recv(65536)
        self.requests.append(head)
        return head + b"\r\n\r\n" + body

    def close(self):
        self.listener.close()


def answering(*pieces):
    def behave(server, connection, count):
        while server.read(connection):
            for piece in pieces:
                connection.sendall(piece)

    return behave


def once(*pieces):
    """Answer one request and hang up."""

    def behave(server, connection, count):
        server.read(connection)
        for piece in pieces:
            connection.sendall(piece)

    return behave


class OnALoop:
    """An AsyncClient with the methods of a Client."""

    def __init__(self, *args, **kwargs):
        self.loop = asyncio.new_event_loop()
        self.inner = argosy.AsyncClient(*args, **kwargs)

    def predict(self, *args, **kwargs):
        return self.loop.run_until_complete(self.inner.predict(*args, **kwargs))

    def close(self):
        self.loop.run_until_complete(self.inner.close())
        self.loop.run_until_complete(asyncio.sleep(0))
        self.loop.close()


@pytest.fixture(params=["blocking", "asyncio"])
def connect(request):
    """Return a function that starts a server and a client for it."""
    made = []

    def start(behave, *, scheme="http", context=None, host="127.0.0.1", **options):
        server = Server(behave, context)
        kind = argosy.Client if request.param == "blocking" else OnALoop
        client = kind(f"{scheme}://{host}:{server.port}", **options)
        made.extend((server, client))
        return client, server

    yield start
    for thing in made:
        thing.close()


def ask(client, **options):
    return client.predict("m", {"x": 1}, **options)


def test_a_connection_is_used_again(connect):
    client, server = connect(answering(whole()))
    for _ in range(20):
        assert ask(client).version == "m:1"
    assert server.count == 1
    assert b"user-agent: argosy/" in server.requests[0]


def test_a_connection_the_server_closed_meanwhile_costs_no_attempt(connect):
    client, server = connect(once(whole()), retries=0)
    for _ in range(5):
        assert ask(client).version == "m:1"
    assert server.count == 5


def test_a_connection_the_server_closes_at_the_next_request_costs_no_attempt(connect):
    def behave(server, connection, count):
        server.read(connection)
        connection.sendall(whole())
        server.read(connection)

    client, server = connect(behave, retries=0)
    for _ in range(3):
        assert ask(client).version == "m:1"
    assert server.count == 3


def test_a_connection_the_server_wants_closed_is_not_used_again(connect):
    client, server = connect(answering(whole(extra=b"connection: close\r\n")))
    ask(client)
    ask(client)
    assert server.count == 2


@pytest.mark.parametrize("piece", [b"", b"HTTP/1.1 200 OK\r\n", whole()[:-5]], ids=["nothing", "a head", "half a body"])
def test_a_connection_lost_before_the_whole_answer_is_another_attempt(connect, piece):
    def behave(server, connection, count):
        server.read(connection)
        connection.sendall(piece if count < 2 else whole())

    client, server = connect(behave, retries=2)
    assert ask(client).version == "m:1"
    assert server.count == 3


def test_a_lost_connection_is_said_when_the_attempts_are_over(connect):
    client, server = connect(once(b""), retries=1)
    with pytest.raises(Unavailable, match="ended before the answer") as caught:
        ask(client)
    assert caught.value.code == "connection_lost"
    assert server.count == 2


def test_nobody_there_is_said_with_the_address(connect):
    client, server = connect(once(b""), retries=1)
    server.listener.close()
    with pytest.raises(Unavailable, match=f"nobody can be reached at 'http://127.0.0.1:{server.port}'") as caught:
        ask(client)
    assert caught.value.code == "not_reachable"


def trickle(server, connection, count):
    server.read(connection)
    for i in range(200):
        connection.sendall(whole()[i : i + 1])
        time.sleep(0.05)


@pytest.mark.parametrize("behave", [trickle, lambda s, c, n: (s.read(c), time.sleep(5))], ids=["trickle", "silence"])
def test_the_deadline_is_kept_whatever_the_server_does(connect, behave):
    client, _ = connect(behave)
    began = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"did not answer within 0.5 s"):
        ask(client, timeout_s=0.5)
    assert 0.5 <= time.monotonic() - began < 1.5


def test_the_deadline_is_kept_when_the_server_never_reads(connect):
    client, _ = connect(lambda server, connection, count: time.sleep(5))
    with pytest.raises(DeadlineExceeded):
        client.predict("m", {"x": "a" * (64 << 20)}, timeout_s=1.0)


def test_what_the_server_says_before_it_has_the_whole_request_is_heard(connect):
    said = whole(
        b'{"error": "too large", "code": "body_too_large"}', b"connection: close\r\n", b"413 Content Too Large"
    )

    def behave(server, connection, count):
        connection.recv(1000)
        connection.sendall(said)
        connection.shutdown(socket.SHUT_WR)
        # As the gateway does: read on for a moment, so that the answer is not lost by a reset.
        while connection.recv(1 << 20):
            pass

    client, _ = connect(behave)
    with pytest.raises(InvalidInput, match="too large") as caught:
        client.predict("m", {"x": "a" * (8 << 20)})
    assert caught.value.code == "body_too_large"


def test_answers_in_chunks_after_a_continue_and_up_to_the_end_of_the_connection_are_read(connect):
    chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    chunked += b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in (BODY[:7], BODY[7:])) + b"0\r\n\r\n"
    interim = b"HTTP/1.1 100 Continue\r\n\r\n" + whole()
    for behave in (answering(chunked), answering(interim), once(b"HTTP/1.1 200 OK\r\n\r\n" + BODY)):
        client, _ = connect(behave)
        assert ask(client).version == "m:1"
        assert ask(client).version == "m:1"


@pytest.mark.parametrize(
    "data",
    [
        b"220 smtp.example.org ESMTP\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"\x15\x03\x01\x00\x02\x02\x50",
        whole() + whole(),
        b"HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"a" * (70 << 10) + b"\r\n\r\n",
    ],
    ids=["smtp", "http/2", "tls alert", "two answers", "length", "two lengths", "upgrade", "endless head"],
)
def test_what_is_no_answer_is_said_and_not_asked_again(connect, data):
    client, server = connect(once(data))
    with pytest.raises(InvalidInput, match=r"does not speak HTTP/1\.1") as caught:
        ask(client)
    assert caught.value.code == "not_a_gateway"
    assert server.count == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n186a0\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
    ],
    ids=["announced", "chunked", "unannounced"],
)
def test_an_answer_too_large_is_not_taken_into_memory(connect, head):
    client, _ = connect(once(head + b" " * 100_000), max_answer_bytes=10_000)
    with pytest.raises(InvalidInput, match="larger than the 10000 bytes") as caught:
        ask(client)
    assert caught.value.code == "answer_too_large"


def test_a_closed_client_says_so(connect):
    client, _ = connect(answering(whole()))
    ask(client)
    inner = getattr(client, "inner", client)
    if inner is client:
        client.close()
    else:
        client.loop.run_until_complete(inner.close())
    with pytest.raises(InvalidInput, match="closed"):
        ask(client)


# Only for one of the two ----------------------------------------------------------------------------------------------


def test_threads_share_a_bounded_number_of_connections():
    server = Server(answering(whole()))
    found = []

    def work(client):
        for _ in range(50):
            found.append(ask(client).version)  # noqa: PERF401

    with argosy.Client(f"http://127.0.0.1:{server.port}", connections=3) as client:
        threads = [threading.Thread(target=work, args=(client,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    server.close()
    assert found == ["m:1"] * 800
    assert server.count <= 3


def test_a_thread_that_gets_no_connection_in_time_says_so():
    release = threading.Event()

    def behave(server, connection, count):
        server.read(connection)
        release.wait(10)
        connection.sendall(whole())

    server = Server(behave)
    with argosy.Client(f"http://127.0.0.1:{server.port}", connections=1) as client:
        first = threading.Thread(target=lambda: ask(client))
        first.start()
        while not server.requests:
            time.sleep(0.01)
        with pytest.raises(DeadlineExceeded, match="all 1 connections of this client are in use"):
            ask(client, timeout_s=0.2)
        release.set()
        first.join()
        assert ask(client).version == "m:1"
    server.close()


def test_many_tasks_share_a_bounded_number_of_connections():
    server = Server(answering(whole()))

    async def main():
        async with argosy.AsyncClient(f"http://127.0.0.1:{server.port}", connections=3) as client:
            return await asyncio.gather(*(client.predict("m", {"x": i}) for i in range(100)))

    assert {p.version for p in asyncio.run(main())} == {"m:1"}
    server.close()
    assert server.count <= 3


def test_a_cancelled_call_closes_its_connection_and_no_other_gets_its_answer():
    def behave(server, connection, count):
        while server.read(connection):
            if count == 0:
                time.sleep(0.3)
            connection.sendall(whole(BODY.replace(b"m:1", b"m:%d" % count)))

    server = Server(behave)

    async def main():
        async with argosy.AsyncClient(f"http://127.0.0.1:{server.port}", connections=1) as client:
            task = asyncio.create_task(client.predict("m", {"x": 1}))
            while not server.requests:  # noqa: ASYNC110 - a thread fills it
                await asyncio.sleep(0.01)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            assert task.cancelled()
            return await client.predict("m", {"x": 2})

    assert asyncio.run(main()).version == "m:1"
    server.close()


def test_a_forked_process_uses_connections_of_its_own():
    server = Server(answering(whole()))
    with argosy.Client(f"http://127.0.0.1:{server.port}") as client:
        ask(client)
        child = os.fork()
        if child == 0:
            with contextlib.suppress(BaseException):
                os._exit(0 if ask(client).version == "m:1" else 1)
            os._exit(2)
        assert os.waitpid(child, 0)[1] == 0
        ask(client)
    server.close()
    assert server.count == 2


# TLS ------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1 that only who has its file trusts."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "argosy test")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    (folder / "key.pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder / "cert.pem", folder / "key.pem"


@pytest.fixture
def context(certificate):
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    made.minimum_version = ssl.TLSVersion.TLSv1_3
    made.load_cert_chain(*certificate)
    return made


def test_tls_with_a_trusted_certificate_carries_the_key(connect, context, certificate):
    client, server = connect(
        answering(whole()), scheme="https", context=context, ca_file=certificate[0], api_key="tops3cret"
    )
    for _ in range(3):
        assert ask(client).version == "m:1"
    assert server.count == 1
    assert b"authorization: Bearer tops3cret" in server.requests[0]
    assert "tops3cret" not in repr(client)


@pytest.mark.parametrize("is_named", [True, False], ids=["unknown authority", "another name"])
def test_a_certificate_that_is_not_trusted_ends_the_call_before_anything_is_sent(
    connect, context, certificate, is_named
):
    options = {"api_key": "tops3cret"} if is_named else {"ca_file": certificate[0], "host": "localhost"}
    client, server = connect(answering(whole()), scheme="https", context=context, **options)
    with pytest.raises(IntegrityError, match="is not trusted") as caught:
        ask(client)
    assert caught.value.code == "untrusted_certificate"
    assert server.count == 1
    assert not server.requests


def test_tls_to_a_server_without_is_said(connect):
    def behave(server, connection, count):
        connection.recv(1000)
        connection.sendall(b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n")

    client, server = connect(behave, scheme="https")
    with pytest.raises(InvalidInput, match="can't be reached with TLS"):
        ask(client)
    assert server.count == 1
