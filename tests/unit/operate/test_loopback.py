"""The small server of monitoring: what it answers, what it refuses, and that nobody can hold it up."""

import contextlib
import http.client
import json
import socket
import threading

import pytest

from argosy.core.config import load_settings
from argosy.core.errors import Conflict, InvalidInput, Unavailable
from argosy.operate import loopback
from argosy.operate.loopback import MAX_BODY_BYTES, MOST_AT_ONCE, LoopbackServer, monitoring_token, read_taken

TOKEN = "0123456789abcdef"


def fail(body):
    if body == b"later":
        raise Unavailable("not now")
    raise InvalidInput("wrong", code="bad_notification")


@pytest.fixture
def server(tmp_path):
    refused = []
    routes = {("GET", "/metrics"): lambda _: (b"up 1\n", "text/plain"), ("POST", "/alerts"): lambda b: (b, "a/b"),
              ("POST", "/fail"): fail}  # fmt: skip
    made = LoopbackServer(routes, token=TOKEN, place=tmp_path / "taken.json", refused=refused.append).start()
    made.codes = refused
    yield made
    made.close()


def ask(server, method="GET", path="/metrics", body=None, *, token=TOKEN, headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    try:
        connection.request(method, path, body, {"authorization": f"Bearer {token}"} | dict(headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def test_it_answers_whoever_shows_the_secret(server):
    assert ask(server) == (200, b"up 1\n")
    assert ask(server, "POST", "/alerts", b"x" * 1000) == (200, b"x" * 1000)


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer nope", f"Basic {TOKEN}", "Bearer \xff", f"Bearer {TOKEN}x"])
def test_it_refuses_whoever_does_not_before_anything_is_looked_at(server, header):
    for method, path in (("GET", "/metrics"), ("POST", "/alerts"), ("GET", "/nothing")):
        status, body = ask(server, method, path, b"{}", headers={"authorization": header})
        assert (status, json.loads(body)["error"]["code"]) == (401, "denied")
    assert server.codes == ["denied"] * 3


def test_refusals_say_why(server):
    assert ask(server, "GET", "/other")[0] == 404
    assert ask(server, "POST", "/metrics", b"")[0] == 404
    assert ask(server, "POST", "/fail", b"")[0] == 400
    assert ask(server, "POST", "/fail", b"later")[0] == 503
    assert server.codes == ["not_found", "not_found", "bad_notification", "unavailable"]


def test_a_huge_body_is_refused_unread(server):
    for length in (MAX_BODY_BYTES + 1, 10**30):
        status, body = ask(server, "POST", "/alerts", headers={"content-length": str(length)})
        assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")
    for length in ("-1", "many", ""):
        assert ask(server, "POST", "/alerts", headers={"content-length": length})[0] == 400


def test_the_largest_body_that_is_taken_is_taken_whole(server):
    assert ask(server, "POST", "/alerts", b"y" * MAX_BODY_BYTES) == (200, b"y" * MAX_BODY_BYTES)


def test_callers_that_say_nothing_are_cut_and_never_more_than_so_many_wait(server, monkeypatch):
    monkeypatch.setattr(loopback, "REQUEST_S", 0.3)
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(3 * MOST_AT_ONCE)]
    held[0].sendall(b"GET /metrics HTTP/1.1\r\nauthor")
    for each in held:
        assert each.recv(100) == b"", "it is let go"
        each.close()
    assert ask(server) == (200, b"up 1\n")
    assert server.codes.count("too_many") >= MOST_AT_ONCE


def test_noise_instead_of_a_request_harms_nothing(server):
    for noise in (b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"\r\n" * 100, b"A" * 100_000 + b"\r\n\r\n"):
        # The server may have hung up before all is said.
        with (
            socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
            contextlib.suppress(OSError),
        ):
            connection.sendall(noise)
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(4096):
                pass
    assert ask(server)[0] == 200


def test_a_successor_takes_the_same_port_unless_it_is_taken(tmp_path):
    place = tmp_path / "taken.json"
    first = LoopbackServer({}, token=TOKEN, place=place)
    port = first.port
    other = LoopbackServer({}, token=TOKEN, place=place)
    assert other.port != port
    other.close()
    first.close()
    place.write_text(json.dumps({"port": port, "pid": 1}))
    again = LoopbackServer({}, token=TOKEN, place=place)
    assert again.port == port == read_taken(place).port
    with pytest.raises(Conflict, match="can't be taken"):
        LoopbackServer({}, token=TOKEN, place=place, port=port)
    again.close()


def test_the_secret_is_made_once_for_this_user_only(tmp_path):
    settings = load_settings({"ARGOSY_HOME": str(tmp_path)})
    made = set()
    threads = [threading.Thread(target=lambda: made.add(monitoring_token(settings).read_text())) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert len(made.pop()) == 64
    assert monitoring_token(settings).stat().st_mode & 0o077 == 0
