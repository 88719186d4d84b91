"""Keys and TLS in front of a real gateway."""

import contextlib
import http.client
import json
import os
import signal
import socket
import ssl
import time
from pathlib import Path

import msgspec
import pytest

from argosy.cluster.launcher import ProcessSpec
from argosy.core.clock import SystemClock
from argosy.core.errors import InvalidInput
from argosy.operate import access, commands
from argosy.security.api_keys import make_key
from argosy.security.certificates import self_signed
from argosy.serve.access import POLICIES, AccessKey, AccessRules
from argosy.serve.control import GatewayConfig
from controlled import Controlled
from served import KEY, Served, constant, until

ADA, BOB, CAROL, EVE = (make_key() for _ in range(4))
NAMES = ("models.example", "localhost", "127.0.0.1")
ROW = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 1], "data": [1.0]}]}


def granted(key, name, *endpoints):
    return AccessKey(id=key.id, name=name, digest=key.digest, endpoints=endpoints or ("*",))


RULES = AccessRules(is_on=True, keys=(granted(ADA, "ada", "m"), granted(BOB, "bob", "other"), granted(CAROL, "carol")))


def bearer(key):
    return {"authorization": f"Bearer {key.text}"}


def write_certificate(folder, names=NAMES, days=30):
    certificate, key = self_signed(names, time.time(), days)
    (folder / "key.pem").write_bytes(key)
    (folder / "key.pem").chmod(0o600)
    (folder / "cert.pem").write_bytes(certificate)
    return certificate


class Secured(Served):
    """A served model behind TLS."""

    def __init__(self, **changes):
        super().__init__()
        self.certificate = write_certificate(self.folder)
        self.config = {
            "tls_cert": str(self.folder / "cert.pem"),
            "tls_key": str(self.folder / "key.pem"),
            "hosts": ("models.example",),
        } | changes
        self.gateway(**self.config)
        self.version = self.publish(constant(1.0))
        self.ready(self.replica(self.version))
        self.route(self.version)

    def restart(self, **changes):
        """Kill the gateway and start it again, without any word of a controller."""
        self.client.close()
        for info in self.launcher.list("gateway"):
            if info.alive:
                os.kill(info.pid, signal.SIGKILL)
        until(lambda: not any(info.alive for info in self.launcher.list("gateway")))
        return self.gateway(**self.config | changes)

    def context(self, trusted=None):
        context = ssl.create_default_context(cadata=(trusted or self.certificate).decode())
        context.set_alpn_protocols(["h2", "http/1.1"])
        return context

    def connect(self, name="models.example", trusted=None):
        """Return a connection after the handshake, the certificate verified."""
        raw = socket.create_connection(("127.0.0.1", self.port), timeout=15)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.held.append(raw)
        found = self.context(trusted).wrap_socket(raw, server_hostname=name)
        self.held.append(found)
        return found

    def secure(self, method, path, body=None, headers=None, connection=None, *, name="models.example"):
        """As `ask`, over TLS."""
        client = http.client.HTTPConnection(name, self.port, timeout=15)
        client.sock = connection or self.connect(name)
        data = json.dumps(body) if isinstance(body, dict | list) else body
        client.request(method, path, data, headers or {})
        answer = client.getresponse()
        raw = answer.read()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        return answer.status, dict(answer.getheaders()), json.loads(raw) if is_json and raw else raw

    def log(self):
        return "".join(Path(info.log).read_text() for info in self.launcher.list("gateway"))


@pytest.fixture(scope="module")
def secured():
    found = Secured(receive_s=1.5, max_connections=40)
    try:
        found.client.set_access(RULES)
        yield found
    finally:
        found.close()


# ---- keys


@pytest.mark.capability("Z1", "Z2")
def test_over_tls_a_key_is_needed_and_it_must_be_for_the_endpoint(secured):
    path = "/v2/models/m/infer"
    status, headers, body = secured.secure("POST", path, ROW)
    assert (status, body["code"], headers["www-authenticate"]) == (401, "unauthorized", "Bearer")
    assert secured.secure("POST", path, ROW, bearer(EVE))[0] == 401
    status, _, body = secured.secure("POST", path, ROW, bearer(BOB))
    assert (status, body["code"]) == (403, "forbidden")
    status, _, body = secured.secure("POST", path, ROW, bearer(ADA))
    assert (status, body["outputs"][0]["data"]) == (200, [1.0])
    assert secured.secure("POST", "/predict/m", {"inputs": {"x": [1.0]}}, bearer(ADA))[0] == 200


def test_every_path_that_is_not_open_refuses_whoever_has_no_key(secured):
    connection = secured.connect()
    for pattern, policy in POLICIES.items():
        path = pattern.format(endpoint="m", number="1")
        for method in ("GET", "POST"):
            with contextlib.suppress(http.client.HTTPException, OSError):
                status, _, _ = secured.secure(method, path)
                assert (status == 401) != (policy == "open"), (method, path, status)
    connection.close()


def test_lists_show_each_key_its_own_endpoints(secured):
    assert list(secured.secure("GET", "/", headers=bearer(ADA))[2]["endpoints"]) == ["m"]
    assert list(secured.secure("GET", "/", headers=bearer(BOB))[2]["endpoints"]) == []
    assert secured.secure("POST", "/v2/repository/index", b"", bearer(BOB))[2] == []
    assert secured.secure("GET", "/metrics", headers=bearer(BOB))[0] == 200


def test_whether_another_endpoint_exists_is_not_told(secured):
    there = secured.secure("POST", "/predict/m", {}, bearer(BOB))
    nowhere = secured.secure("POST", "/predict/n", {}, bearer(BOB))
    assert there[2]["error"].replace("'m'", "'n'") == nowhere[2]["error"]
    assert there[0] == nowhere[0] == 403
    status, _, body = secured.secure("POST", "/predict/other", {}, bearer(BOB))
    assert (status, body["code"]) == (404, "unknown_endpoint")
    assert (body["error"], body["known"]) == ("there is no endpoint 'other'", [])
    assert secured.secure("POST", "/predict/other", {}, bearer(CAROL))[2]["known"] == ["m"]


@pytest.mark.capability("Z2")
def test_a_revoked_key_ends_on_a_connection_that_is_open(secured):
    connection = secured.connect()
    assert secured.secure("POST", "/v2/models/m/infer", ROW, bearer(ADA), connection)[0] == 200
    assert secured.secure("POST", "/v2/models/m/infer", ROW, bearer(ADA), connection)[0] == 200
    try:
        secured.client.set_access(AccessRules(is_on=True, keys=RULES.keys[1:]))
        assert secured.secure("POST", "/v2/models/m/infer", ROW, bearer(ADA), connection)[0] == 401
    finally:
        secured.client.set_access(RULES)
    assert secured.secure("POST", "/v2/models/m/infer", ROW, bearer(ADA))[0] == 200


def test_a_body_that_nobody_may_send_is_not_read(secured):
    connection = secured.connect()
    head = f"POST /predict/m HTTP/1.1\r\nHost: models.example\r\nContent-Length: {50 << 20}\r\n\r\n"
    connection.sendall(head.encode() + b" " * 1000)
    assert connection.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_no_key_stands_in_the_gateways_log_or_files(secured):
    for key in (ADA, EVE):
        secured.secure("POST", "/predict/m", {}, bearer(key))
        secured.secure("GET", "/nowhere", headers=bearer(key))
        secured.secure("GET", "/", headers={"authorization": f"Bearer {key.text}x"})
    kept = secured.log() + (secured.folder / "run" / "access.json").read_text()
    assert ADA.digest in kept
    assert not any(key.text[16:40] in kept for key in (ADA, BOB, EVE))


# ---- after a restart


@pytest.mark.capability("Z2")
def test_a_restarted_gateway_asks_for_keys_before_any_controller_has_spoken():
    served = Secured()
    try:
        served.client.set_access(RULES)
        for is_guarded in (True, False):
            served.restart(is_guarded=is_guarded)
            assert served.secure("GET", "/")[0] == 401
            assert served.secure("GET", "/", headers=bearer(ADA))[0] == 200
            assert served.client.status().access == RULES.digest
        served.restart(is_guarded=True, state=str(served.folder / "elsewhere" / "routes.json"))
        status, headers, body = served.secure("GET", "/", headers=bearer(ADA))
        assert (status, body["code"]) == (503, "access_unknown")
        assert headers["retry-after"] == "1"
        assert served.secure("GET", "/v2/health/live")[0] == 200
        assert served.client.status().access == ""
        (served.folder / "run" / "access.json").write_text("{spoilt")
        served.restart(is_guarded=False)
        assert served.secure("GET", "/")[0] == 503
        served.client.set_access(RULES)
        assert served.secure("GET", "/", headers=bearer(ADA))[0] == 200
        assert served.secure("GET", "/")[0] == 401
    finally:
        served.close()


@pytest.mark.capability("Z2")
def test_revoking_takes_effect_within_a_second_also_when_gateway_and_controller_were_killed():
    home = Controlled()
    try:
        version = home.publish(constant(1.0))
        accepted = commands.deploy(home.registry, str(version))
        home.start()
        home.ended(accepted.rollout)
        home.serving("m:1")
        assert home.infer([[1.0]])[0] == 200
        granted = access.grant(home.registry, "ada", clock=SystemClock())
        began = time.monotonic()
        until(lambda: home.infer([[1.0]])[0] == 401)
        assert time.monotonic() - began < 1.0
        headers = {"authorization": f"Bearer {granted.key}"}
        assert home.infer([[1.0]], headers=headers)[0] == 200
        home.kill("gateway")
        until(lambda: home.infer([[1.0]], headers=headers)[0] == 200)
        assert home.infer([[1.0]])[0] == 401
        access.revoke(home.registry, "ada")
        began = time.monotonic()
        until(lambda: home.infer([[1.0]], headers=headers)[0] == 401)
        assert time.monotonic() - began < 1.0
        home.kill("controller")
        home.kill("gateway")
        until(lambda: not home.is_controlled())
        home.start()
        until(lambda: home.client.status().port == home.port)
        assert {home.infer([[1.0]], headers=headers)[0] for _ in range(10)} == {401}
        access.lift(home.registry)
        until(lambda: home.infer([[1.0]])[0] == 200)
    finally:
        home.close()


# ---- TLS


@pytest.mark.capability("Z1")
def test_tls_13_is_spoken_and_nothing_older(secured):
    connection = secured.connect()
    assert (connection.version(), connection.selected_alpn_protocol()) == ("TLSv1.3", "http/1.1")
    old = secured.context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    with socket.create_connection(("127.0.0.1", secured.port), timeout=10) as raw, pytest.raises(ssl.SSLError):
        old.wrap_socket(raw, server_hostname="models.example")
    assert secured.secure("GET", "/v2/health/live")[0] == 200


def test_a_client_that_speaks_no_tls_is_let_go_at_once(secured):
    for data in (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"\x00" * 100, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"):
        began = time.monotonic()
        connection = secured.raw(data)
        with contextlib.suppress(ConnectionError):
            assert b"HTTP/1.1 200" not in connection.recv(1000)
        assert time.monotonic() - began < 1.0
        connection.close()
    assert secured.secure("GET", "/v2/health/live")[0] == 200


def ended(connection):
    """Return whether the server has hung up."""
    connection.settimeout(0.05)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.mark.capability("Z1")
def test_who_gets_stuck_in_the_handshake_is_closed_in_time_and_keeps_nobody_out_for_long(secured):
    assert GatewayConfig(socket="", state="", key="").receive_s <= 8.0
    hello = bytes.fromhex("160301020001")
    stuck = [secured.raw(data) for data in (b"", hello, hello[:3]) for _ in range(20)]
    began = time.monotonic()
    # Sixty wait where forty may: those beyond are closed at once, the others within `receive_s`, which is 1.5 here.
    until(lambda: sum(map(ended, stuck)) >= 20)
    assert time.monotonic() - began < 5.0
    for connection in stuck[20:40]:
        with contextlib.suppress(OSError):
            connection.sendall(b"\x00")  # a trickle is no way to stay
    until(lambda: all(map(ended, stuck)), 6.0)
    assert time.monotonic() - began < 10.0
    assert secured.secure("GET", "/v2/health/live")[0] == 200
    text = secured.secure("GET", "/metrics", headers=bearer(ADA))[2].decode()
    assert 'argosy_refused_total{reason="tls_handshake"}' in text
    assert 'argosy_refused_total{reason="too_many_connections"}' in text


def test_who_is_silent_after_the_handshake_is_closed_like_any_other(secured):
    silent, half = secured.connect(), secured.connect()
    half.sendall(b"GET / HT")
    began = time.monotonic()
    half.settimeout(10)
    assert half.recv(1000).startswith(b"HTTP/1.1 408 ")
    until(lambda: ended(silent) and ended(half), 8.0)
    assert time.monotonic() - began < 8.0


def test_an_answer_before_the_end_of_a_connection_arrives_whole(secured):
    connection = secured.connect()
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    data = b""
    while piece := connection.recv(65536):
        data += piece
    assert data.endswith(b'{"live":true}')
    assert ended(connection)
    refused = secured.connect()
    refused.sendall(b"BREW / HTTP/1.1\r\nHost: localhost\r\n\r\n" + b"x" * 100_000)
    assert refused.recv(65536).startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 405 "))


def test_many_requests_on_one_connection_and_large_bodies_come_through(secured):
    connection = secured.connect()
    for _ in range(200):
        assert secured.secure("POST", "/v2/models/m/infer", ROW, bearer(ADA), connection)[0] == 200
    many = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [200_000, 1], "data": [1.0] * 200_000}]}
    status, _, body = secured.secure("POST", "/v2/models/m/infer", many, bearer(ADA), connection)
    assert (status, len(body["outputs"][0]["data"])) == (200, 200_000)


@pytest.mark.capability("Z1")
def test_a_certificate_that_was_renewed_is_used_for_new_connections_and_old_ones_live_on():
    served = Secured()
    try:
        old = served.connect()
        renewed = write_certificate(served.folder)
        assert renewed != served.certificate
        until(lambda: served.connect(trusted=renewed))
        assert served.secure("GET", "/v2/health/live", connection=old)[0] == 200
        with pytest.raises(ssl.SSLError):
            served.connect()
        (served.folder / "cert.pem").write_text("spoilt")
        until(lambda: "certificate_not_reloaded" in served.log())
        assert served.connect(trusted=renewed).version() == "TLSv1.3"
        (served.folder / "cert.pem").unlink()
        again = write_certificate(served.folder)
        until(lambda: served.connect(trusted=again))
        assert "PRIVATE KEY" not in served.log()
    finally:
        served.close()


def test_names_that_were_allowed_may_be_used_and_others_not(secured):
    assert secured.secure("GET", "/v2/health/live", name="localhost")[0] == 200
    status, _, body = secured.secure("GET", "/v2/health/live", headers={"host": "evil.example"})
    assert (status, body["code"]) == (421, "foreign_host")
    origin = {"origin": "https://evil.example"}
    assert secured.secure("GET", "/v2/health/live", headers=origin)[0] == 403


def test_the_address_is_written_where_clients_on_this_machine_look(secured):
    assert (secured.folder / "run" / "gateway.url").read_text() == f"https://models.example:{secured.port}\n"


# ---- rule 2


@pytest.mark.capability("Z1", "Z2")
def test_a_gateway_that_others_could_reach_does_not_start_without_tls_and_keys():
    served = Served()
    try:
        write_certificate(served.folder)
        tls = {"tls_cert": str(served.folder / "cert.pem"), "tls_key": str(served.folder / "key.pem")}
        for changes in ({}, {"is_guarded": True}, tls):
            assert refused_start(served, host="0.0.0.0", **changes).code == "not_loopback"
        assert refused_start(served, **tls | {"tls_key": str(served.folder / "nowhere.pem")}).code == "bad_certificate"
        served.gateway(host="0.0.0.0", is_guarded=True, hosts=("models.example",), **tls)
        with pytest.raises(InvalidInput, match="could reach it, without access control"):
            served.client.set_access(AccessRules(is_on=False))
        assert served.client.status().access == "", "it stays closed"
        served.client.set_access(RULES)
        with pytest.raises(InvalidInput):
            served.client.set_access(AccessRules(is_on=False))
        assert served.client.status().access == RULES.digest
    finally:
        served.close()


@pytest.mark.capability("Z2")
def test_a_front_that_others_can_reach_stays_closed_when_its_gateway_says_it_is_open():
    """Settings change: a front of the former ones meets a gateway that only this machine can reach."""
    served = Served()
    try:
        write_certificate(served.folder)
        tls = {"tls_cert": str(served.folder / "cert.pem"), "tls_key": str(served.folder / "key.pem")}
        served.gateway(fronts=1)
        served.front(host="0.0.0.0", hosts=("models.example",), **tls)
        context = ssl.create_default_context(cafile=tls["tls_cert"])

        def ask(path):
            with (
                socket.create_connection(("127.0.0.1", served.port), timeout=10) as raw,
                context.wrap_socket(raw, server_hostname="models.example") as client,
            ):
                client.sendall(f"GET {path} HTTP/1.1\r\nHost: models.example\r\n\r\n".encode())
                return client.recv(65536)

        assert until(lambda: ask("/v2/models/m")).startswith(b"HTTP/1.1 503 ")
        assert b"access_unknown" in ask("/")
        assert ask("/v2/health/live").startswith(b"HTTP/1.1 200 ")
        served.client.set_access(RULES)
        until(lambda: ask("/").startswith(b"HTTP/1.1 401 "))
        served.client.set_access(AccessRules(is_on=False))
        until(lambda: ask("/").startswith(b"HTTP/1.1 503 "))
    finally:
        served.close()


def refused_start(served, **changes):
    """Start a gateway that is not to live; return the error by which it ended."""
    config = GatewayConfig(socket=served.socket, state=str(served.folder / "routes.json"), key=KEY, port=0, **changes)
    name = f"refused-{len(served.launcher.list())}"
    entry = "argosy.serve.gateway:main"
    served.launcher.start(ProcessSpec(name=name, role="gateway", entry=entry, config=msgspec.to_builtins(config)))
    until(lambda: not served.launcher.get(name).alive)
    return served.launcher.error(name)
