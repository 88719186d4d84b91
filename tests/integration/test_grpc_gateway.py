"""A gateway's gRPC from start to end: its port, its memory, keys and TLS, and what is answered when it stops."""

import contextlib
import os
import signal
import socket
import ssl
import time
from pathlib import Path

import grpc
import msgspec
import numpy as np
import pytest

from argosy.cluster.launcher import ProcessSpec
from argosy.core.errors import Conflict
from argosy.security.api_keys import make_key
from argosy.security.certificates import self_signed
from argosy.serve.access import AccessKey, AccessRules
from argosy.serve.control import GatewayConfig
from argosy.serve.gateway import reserve
from argosy.serve.rpc import messages
from raw_http2 import ACK, INFER, PING, Raw, call, frame
from rpc import SERVICE, Rpc, grpc_port, infer, rows_of
from served import KEY, Served, constant, linear, slow, until

ADA, BOB = make_key(), make_key()
ROWS = np.random.default_rng(3).normal(size=(5, 4)).astype("float32")


@pytest.fixture
def served():
    found = Served()
    try:
        yield found
    finally:
        found.close()


def config(**changes):
    return GatewayConfig(socket="s", state="s", key="00" * 16, **changes)


# The port --------------------------------------------------------------------------------------------------------


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as found:
        yield found.getsockname()[1]


def free_pair():
    """A port whose next one is free too."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as first:
            port = first.getsockname()[1]
            with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
                return port


def held(http_port=0, **changes):
    found = reserve(config(**changes), http_port)
    with contextlib.closing(found):
        return found.getsockname()[1]


def test_without_grpc_no_port_is_held():
    assert reserve(config(grpc_port=-1), 8700) is None


def test_the_port_after_https_is_taken_when_it_is_free():
    port = free_pair()
    assert held(port, grpc_port=0) == port + 1


def test_another_port_is_taken_when_it_is_not(taken):
    assert held(taken - 1, grpc_port=0) not in (taken, taken - 1, 0)


def test_the_port_of_last_time_comes_first(taken):
    before, port = free_pair(), free_pair()
    assert held(port, grpc_port=0, grpc_before=before) == before
    assert held(port, grpc_port=0, grpc_before=taken) == port + 1


def test_a_port_that_was_asked_for_is_had_or_refused(taken):
    port = free_pair()
    assert held(grpc_port=port) == port
    with pytest.raises(Conflict, match=f"port {taken} on 127.0.0.1 is in use"):
        held(grpc_port=taken)


def test_a_gateway_whose_grpc_port_is_taken_says_so_and_ends(served, taken):
    wanted = GatewayConfig(
        socket=served.socket, state=str(served.folder / "run" / "routes.json"), key=KEY, port=0, grpc_port=taken
    )
    served.launcher.start(
        ProcessSpec(
            name="gateway", role="gateway", entry="argosy.serve.gateway:main", config=msgspec.to_builtins(wanted)
        )
    )
    error = until(lambda: served.launcher.error("gateway"))
    assert (error.code, str(taken) in error.message) == ("port_in_use", True)


def test_two_gateways_never_share_a_port(served):
    served.gateway(grpc_port=0)
    other = Served()
    try:
        other.gateway(grpc_port=0)
        assert grpc_port(other) != grpc_port(served)
    finally:
        other.close()


# What it costs ---------------------------------------------------------------------------------------------------


def maps(served):
    pid = next(info.pid for info in served.launcher.list("gateway") if info.alive)
    return Path(f"/proc/{pid}/maps").read_text()


def test_a_gateway_without_grpc_never_loads_it(served):
    served.gateway()
    assert served.client.status().grpc_port == -1
    assert "cygrpc" not in maps(served)


@pytest.mark.capability("I1")
def test_a_gateway_with_grpc_stays_small(served):
    served.gateway(grpc_port=0)
    version = served.publish(linear())
    served.ready(served.replica(version)).route(version)
    with Rpc(grpc_port(served)) as rpc:
        for _ in range(500):
            assert rpc.infer(ROWS).code == "OK"
    assert "cygrpc" in maps(served)
    assert served.rss_bytes("gateway") < 80e6


def test_http_is_served_before_grpc_is_loaded(served):
    served.gateway(grpc_port=0)
    events = until(lambda: [line for line in log_of(served) if "grpc_listens" in line]) and log_of(served)
    places = [next(i for i, line in enumerate(events) if what in line) for what in ("gateway_listens", "grpc_listens")]
    assert places == sorted(places)


def log_of(served):
    return (served.folder / "processes" / "gateway-1" / "log").read_text().splitlines()


def test_large_tensors_go_both_ways_and_their_memory_is_given_back(served):
    served.gateway(grpc_port=0)
    version = served.publish(linear(inputs=1024, outputs=1024))
    served.ready(served.replica(version)).route(version)
    rows = np.random.default_rng(1).normal(size=(4096, 1024)).astype("float32")  # 16 MiB each way
    with Rpc(grpc_port(served), options=[("grpc.max_send_message_length", -1)]) as rpc:
        first = rows_of(rpc.infer(rows, timeout=30))
        for _ in range(8):
            np.testing.assert_array_equal(rows_of(rpc.infer(rows, timeout=30)), first)
    assert first.shape == (4096, 1024)
    until(lambda: served.rss_bytes("gateway") < 80e6)


# Keys and TLS ----------------------------------------------------------------------------------------------------


def granted(key, name, *endpoints):
    return AccessKey(id=key.id, name=name, digest=key.digest, endpoints=endpoints or ("*",))


def bearer(key):
    return [("authorization", f"Bearer {key.text}")]


@pytest.fixture
def guarded(served):
    served.gateway(grpc_port=0)
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    served.client.set_access(AccessRules(is_on=True, keys=(granted(ADA, "ada", "m"), granted(BOB, "bob", "other"))))
    return served


@pytest.mark.capability("Z2")
def test_a_key_is_asked_for_and_counts_for_its_endpoints_only(guarded):
    with Rpc(grpc_port(guarded)) as rpc:
        without = rpc.infer([[1.0]])
        assert (without.code, without.trailers["argosy-code"]) == ("UNAUTHENTICATED", "unauthorized")
        wrong = rpc.infer([[1.0]], metadata=[("authorization", "Bearer nonsense")])
        assert (wrong.code, wrong.trailers["argosy-code"]) == ("UNAUTHENTICATED", "unauthorized")
        other = rpc.infer([[1.0]], metadata=bearer(BOB))
        assert (other.code, other.trailers["argosy-code"]) == ("PERMISSION_DENIED", "forbidden")
        assert rows_of(rpc.infer([[1.0]], metadata=bearer(ADA))) == [[1.0]]


def test_every_method_but_health_needs_a_key(guarded):
    about = messages.ModelReadyRequest(name="m").SerializeToString()
    with Rpc(grpc_port(guarded)) as rpc:
        for method in ("ServerLive", "ServerReady"):
            assert rpc.call(method).code == "OK"
        for method in messages.POOL.FindServiceByName("inference.GRPCInferenceService").methods_by_name:
            if method in ("ServerLive", "ServerReady"):
                continue
            assert rpc.call(method, about).code == "UNAUTHENTICATED", method
        for method in ("ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics"):
            assert rpc.call(method, about, metadata=bearer(BOB)).code == "PERMISSION_DENIED", method
            assert rpc.call(method, about, metadata=bearer(ADA)).code == "OK", method
        for method, kind in (("RepositoryIndex", "models"), ("ModelStatistics", "model_stats")):
            answer = getattr(messages, f"{method}Response")
            assert [m.name for m in getattr(rpc.call(method, metadata=bearer(ADA)).message(answer), kind)] == ["m"]
            assert not getattr(rpc.call(method, metadata=bearer(BOB)).message(answer), kind)


def test_whoever_has_no_key_is_refused_before_the_message_is_read(guarded):
    raw = Raw(grpc_port(guarded))
    with contextlib.closing(raw):
        raw.send(call())
        assert any(b"unauthorized" in payload for _, _, _, payload in raw.frames())


@pytest.mark.parametrize(
    "value", [b"\xff\xfe", b"Bearer \xc3\xa9", b"Bearer argosy_", b"Basic YTpi", b"B" * 9000, b""], ids=repr
)
def test_an_authorization_that_is_none_is_refused_as_such(guarded, value):
    raw = Raw(grpc_port(guarded))
    with contextlib.closing(raw):
        raw.send(call(INFER, ("authorization", value)))
        assert any(b"unauthorized" in payload for _, _, _, payload in raw.frames())


def test_a_key_that_was_revoked_ends_at_once(guarded):
    with Rpc(grpc_port(guarded)) as rpc:
        assert rpc.infer([[1.0]], metadata=bearer(ADA)).code == "OK"
        guarded.client.set_access(AccessRules(is_on=True))
        assert rpc.infer([[1.0]], metadata=bearer(ADA)).code == "UNAUTHENTICATED"


def write_certificate(folder):
    certificate, key = self_signed(("localhost", "127.0.0.1"), time.time(), 30)
    (folder / "key.pem").write_bytes(key)
    (folder / "cert.pem").write_bytes(certificate)
    return certificate


def trusting(certificate):
    return grpc.ssl_channel_credentials(root_certificates=certificate)


@pytest.mark.capability("Z1")
def test_grpc_speaks_tls_with_the_gateways_certificate_and_takes_a_new_one(served):
    first = write_certificate(served.folder)
    served.gateway(grpc_port=0, tls_cert=str(served.folder / "cert.pem"), tls_key=str(served.folder / "key.pem"))
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    with Rpc(grpc_port(served), credentials=trusting(first)) as rpc:
        assert rows_of(rpc.infer([[1.0]])) == [[1.0]]
        second = write_certificate(served.folder)

        def is_renewed():
            with Rpc(grpc_port(served), credentials=trusting(second)) as other:
                return other.infer([[1.0]], timeout=2.0).code == "OK"

        until(is_renewed)
        assert rows_of(rpc.infer([[1.0]])) == [[1.0]]  # a connection keeps the certificate it began with
    with Rpc(grpc_port(served)) as plain:
        assert plain.infer([[1.0]], timeout=0.5).code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
    assert shake_hands(served, ssl.TLSVersion.TLSv1_3, second) == "TLSv1.3"
    with pytest.raises(ssl.SSLError):
        shake_hands(served, ssl.TLSVersion.TLSv1_2, second)


def shake_hands(served, version, trusted):
    context = ssl.create_default_context(cadata=trusted.decode())
    context.set_alpn_protocols(["h2"])
    context.minimum_version = context.maximum_version = version
    raw = socket.create_connection(("127.0.0.1", grpc_port(served)), timeout=10)
    with context.wrap_socket(raw, server_hostname="localhost") as found:
        return found.version()


# The end ---------------------------------------------------------------------------------------------------------


@pytest.mark.capability("I1")
def test_what_was_accepted_is_answered_when_the_gateway_stops(served):
    served.gateway(grpc_port=0)
    version = served.publish(slow())
    served.ready(served.replica(version)).route(version)
    port = grpc_port(served)
    pid = served.launcher.list("gateway")[0].pid
    with Rpc(port) as rpc:
        calls = [rpc.start(np.zeros((60, 1), "float32")) for _ in range(12)]
        until(lambda: served.client.status().endpoints[0].waiting >= 5)
        os.kill(pid, signal.SIGTERM)
        for found in calls:
            assert messages.ModelInferResponse.FromString(found.result()).model_name == "m"
    until(lambda: not served.launcher.list("gateway")[0].alive, seconds=6)
    assert served.launcher.list("gateway")[0].exit_code == 0
    with Rpc(port) as late:
        ask = late.channel.unary_unary(f"{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            ask(infer([[1.0]]), timeout=2.0)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_call_without_a_message_does_not_keep_the_gateway_from_stopping(served):
    served.gateway(grpc_port=0)
    raw = Raw(grpc_port(served))
    with contextlib.closing(raw):
        raw.send(call(), frame(PING, payload=b"is heard"))
        assert any(kind == PING and flags & ACK for kind, flags, _, _ in raw.frames())
        os.kill(served.launcher.list("gateway")[0].pid, signal.SIGTERM)
        assert any(b"stopping" in payload for _, _, _, payload in raw.frames())
        until(lambda: not served.launcher.list("gateway")[0].alive, seconds=8)
    assert served.launcher.list("gateway")[0].exit_code == 0
