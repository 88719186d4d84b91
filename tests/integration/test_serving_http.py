"""The gateway and its replicas as processes, over HTTP."""

import contextlib
import json
import math
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from argosy.core.errors import Conflict, InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import prediction_id
from malformed import get, infer
from served import KEY, Served, constant, linear, logarithm, until


@pytest.fixture(scope="module")
def served():
    found = Served()
    try:
        found.gateway()
        version = found.publish(linear())
        found.ready(found.replica(version))
        found.version = version
        found.route(version)
        yield found
    finally:
        found.close()


def reference(model, x):
    import onnxruntime

    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


ROW = np.array([[0.1, -2.5, 3.25, 1e-3]], dtype="float32")


@pytest.mark.capability("I1")
@pytest.mark.parametrize("is_binary", [True, False])
def test_tritonclient_works_unchanged_and_gets_what_onnxruntime_answers_bit_for_bit(served, is_binary):
    triton = pytest.importorskip("tritonclient.http")
    with contextlib.closing(triton.InferenceServerClient(f"127.0.0.1:{served.port}")) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("m")
        assert client.is_model_ready("m", "1")
        assert not client.is_model_ready("m", "2")
        assert client.get_server_metadata()["name"] == "argosy"
        assert client.get_model_metadata("m")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, 4]}]
        assert client.get_model_repository_index() == [{"name": "m", "version": "1", "state": "READY", "reason": ""}]
        given = triton.InferInput("x", [1, 4], "FP32")
        given.set_data_from_numpy(ROW, binary_data=is_binary)
        wanted = [triton.InferRequestedOutput("y", binary_data=is_binary)]
        for outputs in (wanted, None):
            answer = client.infer("m", [given], outputs=outputs, request_id="7")
            assert answer.as_numpy("y").tobytes() == reference(linear(), ROW).tobytes()
            assert answer.get_response()["id"] == "7"
        pinned = client.infer("m", [given], model_version="1")
        assert pinned.get_response()["model_version"] == "1"
        with pytest.raises(
            triton.InferenceServerException if hasattr(triton, "InferenceServerException") else Exception
        ) as caught:
            client.infer("other", [given])
        assert "there is no endpoint 'other'" in str(caught.value)


@pytest.mark.capability("I2")
def test_plain_predictions_take_one_row_or_many(served):
    status, headers, one = served.ask("POST", "/predict/m", {"inputs": {"x": ROW[0].tolist()}})
    _, _, many = served.ask("POST", "/predict/m", {"inputs": {"x": ROW.tolist()}})
    expected = reference(linear(), ROW).astype("float64").tolist()
    assert status == 200
    assert one["outputs"]["y"] == expected[0]
    assert many["outputs"]["y"] == expected
    assert one["version"] == headers["argosy-version"] == "m:1"
    assert one["prediction"] == headers["argosy-prediction"]
    found = prediction_id.decode(one["prediction"], bytes.fromhex(KEY))
    assert found.version in served.version.digest
    assert abs(found.time - time.time()) < 60


def test_the_index_health_and_metrics_say_what_is_served(served):
    served.infer(ROW)
    assert served.ask("GET", "/")[2]["endpoints"]["m"]["version"] == "m:1"
    assert served.ask("GET", "/v2/health/live")[0] == 200
    assert served.ask("HEAD", "/v2/health/ready")[0] == 200
    text = served.ask("GET", "/metrics")[2].decode()
    assert 'argosy_requests_total{code="ok",endpoint="m",version="m:1"}' in text
    assert 'argosy_request_seconds_bucket{endpoint="m",le="+Inf",version="m:1"}' in text
    assert 'argosy_replicas{state="ready",version="m:1"} 1.0' in text


@pytest.mark.capability("M1")
def test_metrics_are_read_by_prometheus_own_parser(served):
    from prometheus_client.parser import text_string_to_metric_families

    served.infer(ROW)
    families = {f.name: f for f in text_string_to_metric_families(served.ask("GET", "/metrics")[2].decode())}
    buckets = [s for s in families["argosy_request_seconds"].samples if s.name.endswith("_bucket")]
    assert [s.value for s in buckets] == sorted(s.value for s in buckets)
    assert families["argosy_requests"].samples


def test_unknown_names_make_no_metric_labels(served):
    for i in range(20):
        served.ask("POST", f"/predict/nobody{i}", {})
    assert "nobody" not in served.ask("GET", "/metrics")[2].decode()


def test_a_wrong_field_is_named_by_its_path(served):
    status, _, body = served.ask(
        "POST",
        "/v2/models/m/infer",
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, "3", 4]}]},
    )
    assert (status, body["code"], body["path"]) == (400, "wrong_value", "$.inputs[0].data[2]")


def answers(connection, count):
    """Read `count` answers with a content-length off a connection."""
    data, bodies = b"", []
    while len(bodies) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        if separator:
            size = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
            if len(rest) >= size:
                bodies.append(rest[:size])
                data = rest[size:]
                continue
        piece = connection.recv(65536)
        assert piece, data
        data += piece
    return bodies


def test_pipelined_requests_are_answered_in_order(served):
    rows = [infer(data=[float(i), 0, 0, 0]) for i in range(50)]
    # A page in between is answered at once, an inference is not: order must hold all the same.
    mixed = [piece for row in rows for piece in (row, get("/v2/health/live"))]
    connection = served.raw(b"".join(mixed))
    bodies = answers(connection, 100)
    weights = reference(linear(), np.eye(4, dtype="float32")) - reference(linear(), np.zeros((1, 4), "float32"))
    first = [json.loads(body)["outputs"][0]["data"][0] for body in bodies[::2]]
    slope = np.diff(first)
    assert np.allclose(slope, weights[0, 0], rtol=1e-4)
    assert all(json.loads(body) == {"live": True} for body in bodies[1::2])


def test_more_pipelined_requests_than_are_read_ahead_are_all_answered(served):
    connection = served.raw(infer() * 2000)
    assert len(answers(connection, 2000)) == 2000


def test_a_body_in_small_pieces_is_put_together(served):
    connection = served.raw()
    raw = infer()
    for at in range(0, len(raw), 7):
        connection.sendall(raw[at : at + 7])
    assert json.loads(answers(connection, 1)[0])["model_name"] == "m"


def test_an_offer_to_upgrade_is_ignored_and_the_connection_goes_on(served):
    offer = b"Host: 127.0.0.1\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAE\r\n"
    raw = infer().replace(b"Host: 127.0.0.1\r\n", offer)
    bodies = answers(served.raw(raw + get("/v2/health/live") + raw), 3)
    assert [max(json.loads(body)) for body in bodies] == ["parameters", "live", "parameters"]


def test_a_chunked_body_is_accepted(served):
    body = infer().partition(b"\r\n\r\n")[2]
    half = len(body) // 2
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:half], body[half:])) + b"0\r\n\r\n"
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert json.loads(answers(served.raw(head + chunks), 1)[0])["model_name"] == "m"


def test_a_client_that_asks_to_continue_is_told_to(served):
    head, _, body = infer().partition(b"\r\n\r\n")
    connection = served.raw(head + b"\r\nExpect: 100-continue\r\n\r\n")
    assert connection.recv(1000) == b"HTTP/1.1 100 Continue\r\n\r\n"
    connection.sendall(body)
    assert answers(connection, 1)


@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_connection_is_closed_when_the_client_asks_for_it(served, version):
    raw = b"GET /v2/health/live HTTP/" + version + b"\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    connection = served.raw(raw)
    data = b""
    while piece := connection.recv(1000):
        data += piece
    assert data.startswith(b"HTTP/1.1 200")


@pytest.mark.capability("I3")
def test_a_large_binary_batch_goes_through_bit_for_bit(served):
    triton = pytest.importorskip("tritonclient.http")
    x = np.random.default_rng(0).normal(size=(50_000, 4)).astype("float32")
    with contextlib.closing(triton.InferenceServerClient(f"127.0.0.1:{served.port}")) as client:
        given = triton.InferInput("x", list(x.shape), "FP32")
        given.set_data_from_numpy(x)
        assert client.infer("m", [given]).as_numpy("y").tobytes() == reference(linear(), x).tobytes()


def test_a_body_over_the_limit_is_refused_while_it_is_sent():
    served = Served()
    try:
        served.gateway(max_body_bytes=1000)
        body = b"x" * 5000
        head = b"POST /predict/m HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        connection = served.raw(head + b"".join(b"%x\r\n%s\r\n" % (500, body[:500]) for _ in range(10)))
        assert connection.recv(100).startswith(b"HTTP/1.1 413")
    finally:
        served.close()


def test_bodies_on_their_way_are_bounded_over_all_connections():
    served = Served()
    try:
        served.gateway(max_body_bytes=10_000)
        head = b"POST /predict/m HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000\r\n\r\n"
        connections = [served.raw(head + b"x" * 9_999) for _ in range(9)]
        until(lambda: served.ask("GET", "/v2/health/live")[0] == 200)
        refused = []
        for connection in connections:
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                refused.append(connection.recv(4000))
        assert len(refused) == 1
        assert refused[0].startswith(b"HTTP/1.1 503")
        assert b"too_much_at_once" in refused[0]
        for connection in connections:
            connection.close()
        # What they held is given back.
        _status, _, body = until(lambda: (a := served.ask("POST", "/predict/m", b"x" * 9000))[0] == 404 and a)
        assert body["code"] == "unknown_endpoint"
    finally:
        served.close()


def test_json_too_large_to_be_read_at_once_is_sent_to_the_binary_form(served):
    status, _, body = served.ask("POST", "/v2/models/m/infer", b" " * (17 << 20))
    assert (status, body["code"]) == (413, "body_too_large")
    assert "binary" in body["hint"]


# Slow and hostile clients ---------------------------------------------------------------------------------------------


def test_the_table_of_descriptors_is_large_enough_before_clients_come():
    """While it grows, a process of several threads stands still for milliseconds."""
    served = Served()
    try:
        served.gateway(max_connections=700)
        lines = Path(f"/proc/{served.client.status().pid}/status").read_text().splitlines()
        (size,) = (int(line.split()[1]) for line in lines if line.startswith("FDSize"))
        assert size >= 700
    finally:
        served.close()


def test_clients_that_trickle_or_never_read_are_closed_and_others_are_served():
    served = Served()
    try:
        served.gateway(receive_s=1.0, max_connections=300)
        version = served.publish(linear())
        served.ready(served.replica(version))
        served.route(version)
        slow = {
            "silence": [served.raw() for _ in range(20)],
            "half a line": [served.raw(b"GET /v2/he") for _ in range(20)],
            "half a head": [served.raw(b"GET / HTTP/1.1\r\nHost: localhost\r\n") for _ in range(20)],
            "half a body": [served.raw(infer()[:-10]) for _ in range(20)],
        }
        deadline = time.monotonic() + 10
        for kind, connections in slow.items():
            for connection in connections:
                connection.settimeout(max(0.1, deadline - time.monotonic()))
                said = connection.recv(100)
                assert not said or said.startswith(b"HTTP/1.1 408"), kind
            assert served.infer(ROW)[0] == 200
        deaf = served.raw()
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setblocking(False)
        big = infer(shape=[20_000, 4], data=[1.0] * 80_000)

        def is_cut_off():
            try:
                deaf.send(big)
            except BlockingIOError:
                return False
            except ConnectionError:
                return True
            return False

        until(is_cut_off, seconds=15)
        assert served.infer(ROW)[0] == 200
    finally:
        served.close()


def test_one_connection_too_many_is_told_to_come_again():
    served = Served()
    try:
        served.gateway(max_connections=3)
        for _ in range(3):
            served.raw(get("/v2/health/live")).recv(100)
        assert served.raw().recv(100).startswith(b"HTTP/1.1 503")
    finally:
        served.close()


# Models ---------------------------------------------------------------------------------------------------------------


def test_a_number_that_is_not_finite_is_an_error_of_that_request_only(served):
    version = served.publish(logarithm(), "log")
    served.ready(served.replica(version))
    served.route(version, "log")
    try:
        raw = b"".join(
            infer(shape=[1, 1], data=[v]).replace(b"models/m", b"models/log") for v in (1.0, -1.0, math.e, 0.0)
        )
        bodies = [json.loads(body) for body in answers(served.raw(raw), 4)]
        assert bodies[0]["outputs"][0]["data"] == [0.0]
        assert bodies[2]["outputs"][0]["data"] == pytest.approx([1.0])
        assert [bodies[i]["code"] for i in (1, 3)] == ["non_finite_output"] * 2
        assert served.infer([[-1.0]], "log")[0] == 500
    finally:
        served.route(served.version)


@pytest.mark.capability("D2")
def test_preparation_and_labels_travel_inside_the_version(served):
    signature = Signature(
        inputs=(TensorSpec(name="features", datatype="FP32", shape=(-1, 4), columns=("a", "b", "c", "d")),),
        outputs=(
            TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 3), columns=("red", "green", "blue")),
            TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
        ),
    )
    prepare = [
        {"step": "take", "input": "features", "datatype": "FP32", "shape": [-1, 4]},
        {"step": "impute", "input": "features", "fill": [1.0, 1.0, 1.0, 1.0]},
        {"step": "standardize", "input": "features", "mean": [1.0] * 4, "scale": [2.0] * 4},
        {"step": "join", "inputs": ["features"], "output": "x"},
    ]
    finish = [{"step": "softmax", "input": "y"}, {"step": "label", "labels": ["red", "green", "blue"]}]
    version = served.publish(linear(), "colours", signature=signature, prepare=prepare, finish=finish)
    served.ready(served.replica(version))
    served.route(version, "colours")
    try:
        status, _, body = served.ask("POST", "/predict/colours", {"inputs": {"a": 3, "b": 1, "c": None, "d": 5.0}})
        assert status == 200, body
        logits = reference(linear(), np.array([[1.0, 0.0, 0.0, 2.0]], "float32"))[0].astype("float64")
        expected = np.exp(logits) / np.exp(logits).sum()
        assert list(body["outputs"]["probabilities"].values()) == pytest.approx(expected.tolist(), rel=1e-5)
        assert body["outputs"]["label"] == ("red", "green", "blue")[int(expected.argmax())]
        _, _, many = served.ask("POST", "/predict/colours", {"inputs": [{"a": 3, "b": 1, "c": 1, "d": 5}] * 2})
        assert many["outputs"]["label"] == [body["outputs"]["label"]] * 2
    finally:
        served.route(served.version)


def test_the_same_input_to_two_versions_never_shares_an_answer(served):
    one, two = served.publish(constant(1.0), "c"), served.publish(constant(2.0), "c")
    served.ready(served.replica(one), served.replica(two))
    served.route(one, "c", canary=two, share=0.5, rollout="r", window_s=0.5)
    try:
        request = infer(shape=[1, 1], data=[0.5]).replace(b"models/m", b"models/c")
        bodies = [json.loads(body) for body in answers(served.raw(request * 400), 400)]
        pairs = {(body["model_version"], body["outputs"][0]["data"][0]) for body in bodies}
        assert pairs == {("1", 1.0), ("2", 2.0)}
        windows = until(served.client.windows)
        assert all(window.share == 0.5 for window in windows)
        assert served.client.windows({"r": windows[-1].index}) == []
    finally:
        served.route(served.version)


def test_mirrored_answers_are_compared(served):
    one, two = served.publish(constant(1.0), "mir"), served.publish(constant(2.0), "mir")
    served.ready(served.replica(one), served.replica(two))
    served.route(one, "mir", canary=two, share=0.0, mirror=1.0, rollout="s", window_s=0.3)
    try:
        for _ in range(20):
            assert served.infer([[0.5]], "mir")[2]["outputs"][0]["data"] == [1.0]
        pairs = until(lambda: [w.bad["agreement"] for w in served.client.windows() if "agreement" in w.bad])
        assert all(bad == total for bad, total in pairs)
    finally:
        served.route(served.version)


# Starting -------------------------------------------------------------------------------------------------------------


def test_a_port_in_use_is_said_with_a_hint(served):
    from argosy.serve.gateway import listen

    with pytest.raises(Conflict, match=f"port {served.port} on 127.0.0.1 is in use") as caught:
        listen("127.0.0.1", served.port)
    assert "ss -ltnp" in caught.value.hint


def test_a_second_gateway_of_one_home_does_not_start(served):
    from argosy.serve.gateway import main

    with pytest.raises(Conflict, match="another gateway"):
        main({"socket": served.socket, "state": "x", "key": KEY, "port": 0})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"host": "0.0.0.0"}, "without TLS and access control"),
        ({"host": "192.168.1.5"}, "without TLS and access control"),
        ({"host": "::"}, "without TLS and access control"),
        ({"host": "example.org"}, "not an address"),
        ({"port": 70_000}, "does not exist"),
        ({"key": "abcd"}, "16 to 64 bytes"),
        ({"key": "x" * 32}, "16 to 64 bytes"),
        ({"socket": "/tmp/" + "a" * 120}, "107 bytes"),
    ],
)
def test_an_unsafe_or_impossible_gateway_does_not_start(changes, words):
    from argosy.serve.gateway import main

    with pytest.raises(InvalidInput, match=words):
        main({"socket": "/tmp/x.sock", "state": "x", "key": KEY} | changes)


def test_a_start_is_cheap(served):
    gateway, replica = Served(), None
    try:
        gateway.gateway()
        # Measured on two busy cores; a quiet machine needs half.
        assert gateway.cpu_s("gateway") < 0.8
        assert gateway.rss_bytes("gateway") < 50e6
        replica = gateway.replica(gateway.publish(linear()))
        gateway.ready(replica)
        assert gateway.cpu_s("replica") < 1.0
    finally:
        gateway.close()
