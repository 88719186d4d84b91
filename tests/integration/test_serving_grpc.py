"""The Open Inference Protocol over gRPC against a real gateway, by bytes and by Triton's own client."""

import asyncio
import contextlib
import queue
from pathlib import Path

import numpy as np
import pytest

import argosy
from argosy.serve.control import EndpointRoute
from argosy.serve.prediction_id import decode
from argosy.serve.rpc import messages
from malformed_rpc import CALLS, COMPRESSED, FRAMES, MESSAGES
from raw_http2 import Raw
from rpc import Rpc, grpc_port, rows_of
from served import KEY, Served, graph, linear, slow, until

triton = pytest.importorskip("tritonclient.grpc")
from tritonclient.utils import InferenceServerException  # noqa: E402 - only where it is installed

# ONNX name, NumPy name, the protocol's name
KINDS = [
    ("FLOAT16", "float16", "FP16"), ("FLOAT", "float32", "FP32"), ("DOUBLE", "float64", "FP64"),
    ("BOOL", "bool", "BOOL"), ("INT8", "int8", "INT8"), ("INT16", "int16", "INT16"), ("INT32", "int32", "INT32"),
    ("INT64", "int64", "INT64"), ("UINT8", "uint8", "UINT8"), ("UINT16", "uint16", "UINT16"),
    ("UINT32", "uint32", "UINT32"), ("UINT64", "uint64", "UINT64"), ("STRING", "object", "BYTES"),
]  # fmt: skip
ROWS = np.random.default_rng(3).normal(size=(5, 4)).astype("float32")
REFUSED_IN = ("127.0.0.1", "Traceback", str(Path(argosy.__file__).parent), "site-packages", ".py")


def echo():
    """One input and one output of each datatype: y_K = x_K."""
    nodes = [("Identity", [f"x_{name}"], [f"y_{name}"], {}) for _, _, name in KINDS]
    inputs = [(f"x_{name}", kind, ["n", 2]) for kind, _, name in KINDS]
    return graph(nodes, inputs, [(f"y_{name}", kind, ["n", 2]) for kind, _, name in KINDS])


def pick():
    """y = w[x], which fails where there is no such place."""
    return graph([("Gather", ["w", "x"], ["y"], {})], [("x", "INT64", ["n"])], [("y", "FLOAT", ["n"])],
                 [("w", np.arange(3, dtype="float32"))])  # fmt: skip


def values():
    rng = np.random.default_rng(0)
    found = {}
    for _, numpy, name in KINDS:
        if name == "BYTES":
            found[name] = np.array([[b"", "Zoë".encode()], [b"a\0b", b"a" * 300]], dtype=object)
        elif name == "BOOL":
            found[name] = np.array([[True, False], [False, True]])
        elif name.startswith("FP"):
            found[name] = rng.normal(size=(2, 2)).astype(numpy)
        else:
            info = np.iinfo(numpy)
            found[name] = np.array([[info.min, info.max], [0, 7]], dtype=numpy)
    return found


@pytest.fixture(scope="module")
def served():
    found = Served()
    try:
        found.gateway(grpc_port=0)
        versions = {
            "m": found.publish(linear()),
            "echo": found.publish(echo(), "echo"),
            "slow": found.publish(slow(), "slow"),
            "pick": found.publish(pick(), "pick"),
        }
        found.ready(*(found.replica(version) for version in versions.values()))
        found.client.set_routes(
            [EndpointRoute(name=name, stable=v.digest, stable_ref=str(v)) for name, v in versions.items()]
        )
        yield found
    finally:
        found.close()


@pytest.fixture(scope="module")
def client(served):
    with triton.InferenceServerClient(f"127.0.0.1:{grpc_port(served)}") as found:
        yield found


@pytest.fixture
def rpc(served):
    with Rpc(grpc_port(served)) as found:
        yield found


def given(name, array, datatype="FP32"):
    found = triton.InferInput(name, list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


# Triton's client -------------------------------------------------------------------------------------------------


@pytest.mark.capability("I1")
def test_tritonclient_asks_about_server_and_models(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("m")
    assert client.is_model_ready("m", "1")
    about = client.get_server_metadata()
    assert (about.name, "model_repository" in about.extensions) == ("argosy", True)
    model = client.get_model_metadata("m")
    assert (model.name, list(model.versions), model.platform) == ("m", ["1"], "argosy_onnx")
    assert [(t.name, t.datatype, list(t.shape)) for t in (*model.inputs, *model.outputs)] == [
        ("x", "FP32", [-1, 4]), ("y", "FP32", [-1, 3]),
    ]  # fmt: skip
    index = client.get_model_repository_index()
    assert {(entry.name, entry.version, entry.state) for entry in index.models} == {
        ("m", "1", "READY"), ("echo", "1", "READY"), ("slow", "1", "READY"), ("pick", "1", "READY"),
    }  # fmt: skip


def test_tritonclient_gets_a_configuration_it_can_generate_load_from(client):
    config = client.get_model_config("m").config
    assert (config.name, config.backend) == ("m", "argosy_onnx")
    assert config.max_batch_size >= 1
    assert [(t.name, list(t.dims)) for t in (*config.input, *config.output)] == [("x", [4]), ("y", [3])]
    kinds = triton.model_config_pb2
    assert {t.data_type for t in (*config.input, *config.output)} == {kinds.TYPE_FP32}
    kept = client.get_model_config("echo", as_json=True)["config"]["input"]
    assert [t["data_type"] for t in kept] == [
        f"TYPE_{'STRING' if name == 'BYTES' else name}" for _, _, name in KINDS
    ]  # fmt: skip


def test_tritonclient_counts(client):
    client.infer("m", [given("x", ROWS)])
    found = {stats.name: stats for stats in client.get_inference_statistics().model_stats}
    assert set(found) == {"m", "echo", "slow", "pick"}
    assert found["m"].inference_stats.success.count >= 1
    assert [stats.name for stats in client.get_inference_statistics("m", "1").model_stats] == ["m"]


@pytest.mark.capability("I1")
def test_the_answer_over_grpc_is_the_answer_over_http(served, client):
    found = client.infer("m", [given("x", ROWS)], outputs=[triton.InferRequestedOutput("y")], request_id="r7")
    _, _, body = served.infer(ROWS)
    over_http = np.array(body["outputs"][0]["data"], "float32").reshape(5, 3)
    np.testing.assert_array_equal(found.as_numpy("y"), over_http)
    assert found.get_response().id == "r7"


def test_every_datatype_goes_through_tritonclient_and_back(client):
    sent = values()
    found = client.infer("echo", [given(f"x_{name}", array, name) for name, array in sent.items()])
    for name, array in sent.items():
        np.testing.assert_array_equal(found.as_numpy(f"y_{name}"), array)


def test_every_datatype_but_half_precision_goes_through_typed_contents(rpc):
    fields = {
        "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
        "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
        "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
    }  # fmt: skip
    sent = values()
    inputs = [
        {
            "name": f"x_{name}",
            "datatype": name,
            "shape": array.shape,
            "contents": {fields[name]: array.ravel().tolist()},
        }
        for name, array in sent.items()
        if name in fields
    ]
    request = messages.ModelInferRequest(model_name="echo", inputs=inputs)
    refused = rpc.call("ModelInfer", request.SerializeToString())
    assert (refused.code, refused.trailers["argosy-code"]) == ("INVALID_ARGUMENT", "missing_input")
    assert "x_FP16" in refused.details


def test_typed_contents_are_answered_by_typed_contents(rpc):
    request = messages.ModelInferRequest(
        model_name="m",
        inputs=[{"name": "x", "datatype": "FP32", "shape": [5, 4], "contents": {"fp32_contents": ROWS.ravel()}}],
    )
    found = rpc.call("ModelInfer", request.SerializeToString()).message()
    typed = np.array(found.outputs[0].contents.fp32_contents, "float32").reshape(5, 3)
    np.testing.assert_array_equal(typed, rows_of(rpc.infer(ROWS)))
    assert not found.raw_output_contents


def test_tritonclient_asks_with_callbacks_and_with_asyncio(served, client):
    answers = queue.Queue()
    for _ in range(20):
        client.async_infer("m", [given("x", ROWS)], lambda result, error: answers.put((result, error)))
    first = client.infer("m", [given("x", ROWS)]).as_numpy("y")
    for _ in range(20):
        result, error = answers.get(timeout=10)
        assert error is None
        np.testing.assert_array_equal(result.as_numpy("y"), first)

    async def ask():
        import tritonclient.grpc.aio as later

        async with later.InferenceServerClient(f"127.0.0.1:{grpc_port(served)}") as found:
            assert await found.is_model_ready("m")
            results = await asyncio.gather(*(found.infer("m", [given("x", ROWS)]) for _ in range(20)))
            return [result.as_numpy("y") for result in results]

    for found in asyncio.run(ask()):
        np.testing.assert_array_equal(found, first)


def test_tritonclient_shows_its_user_what_was_wrong(client):
    with pytest.raises(InferenceServerException, match="there is no endpoint 'nobody'"):
        client.infer("nobody", [given("x", ROWS)])
    with pytest.raises(InferenceServerException, match=r"'x' has the shape \[-1, 4\].*but \[5, 3\] was sent"):
        client.infer("m", [given("x", ROWS[:, :3].copy())])
    with pytest.raises(InferenceServerException, match="does not serve version '9'"):
        client.is_model_ready("m", "9")
    with pytest.raises(InferenceServerException, match=r"no method '.*SystemSharedMemoryStatus'"):
        client.get_system_shared_memory_status()


def test_tritonclients_own_timeout_is_kept_by_the_server(client):
    with pytest.raises(InferenceServerException, match="did not answer within"):
        client.infer("slow", [given("x", np.zeros((6000, 1), "float32"))], timeout=20_000)


# What is told beside the answer ----------------------------------------------------------------------------------


def test_an_answer_says_which_version_gave_it_and_names_the_prediction(served, rpc):
    answer = rpc.infer(ROWS)
    prediction = answer.trailers["argosy-prediction"]
    assert answer.trailers["argosy-version"] == "m:1"
    assert "argosy-failover" not in answer.trailers
    assert answer.message().parameters["prediction"].string_param == prediction
    digests = {replica.version: replica.ref for replica in served.client.status().replicas}
    found = decode(prediction, bytes.fromhex(KEY))
    assert [ref for digest, ref in digests.items() if found.version in digest] == ["m:1"]


def test_an_input_a_version_fails_on_is_an_error_of_the_server_and_the_next_one_is_answered(rpc):
    assert rows_of(rpc.infer([2], name="pick", dtype="int64")) == [2.0]
    failed = rpc.infer([7], name="pick", dtype="int64")
    assert (failed.code, failed.trailers["argosy-code"]) == ("INTERNAL", "model_run_failed")
    assert rows_of(rpc.infer([1], name="pick", dtype="int64")) == [1.0]


def test_a_version_can_be_asked_for_by_number(rpc):
    assert rpc.infer(ROWS, version="1").message().model_version == "1"
    refused = rpc.infer(ROWS, version="2")
    assert (refused.code, refused.trailers["argosy-code"]) == ("NOT_FOUND", "unknown_version")


def test_only_the_outputs_asked_for_are_sent(rpc):
    found = rpc.call(
        "ModelInfer",
        messages.ModelInferRequest(
            model_name="echo",
            inputs=[{"name": f"x_{n}", "datatype": n, "shape": v.shape} for n, v in values().items()],
            raw_input_contents=[_raw(v) for v in values().values()],
            outputs=[{"name": "y_INT64"}, {"name": "y_FP16"}],
        ).SerializeToString(),
    ).message()
    assert [output.name for output in found.outputs] == ["y_INT64", "y_FP16"]
    assert list(found.raw_output_contents) == [values()["INT64"].tobytes(), values()["FP16"].tobytes()]


def _raw(array):
    if array.dtype != object:
        return array.tobytes()
    return b"".join(len(item).to_bytes(4, "little") + item for item in array.ravel())


# Time ------------------------------------------------------------------------------------------------------------


def test_the_time_a_caller_names_is_kept(rpc):
    answer = rpc.infer(np.zeros((6000, 1)), name="slow", metadata=[("argosy-timeout", "30ms")])
    assert (answer.code, answer.trailers["argosy-code"]) == ("DEADLINE_EXCEEDED", "deadline_exceeded")


def counted(served, code):
    """How many requests to `slow` have ended so."""
    line = f'argosy_requests_total{{code="{code}",endpoint="slow",version="slow:1"}} '
    text = served.ask("GET", "/metrics")[2].decode()
    return sum(float(found.partition(line)[2]) for found in text.splitlines() if found.startswith(line))


def test_a_deadline_of_the_client_is_counted_as_not_answered_in_time(served, rpc):
    late, cancelled = counted(served, "deadline_exceeded"), counted(served, "cancelled")
    assert rpc.infer(np.zeros((6000, 1)), name="slow", timeout=0.05).code == "DEADLINE_EXCEEDED"
    until(lambda: counted(served, "deadline_exceeded") == late + 1)
    assert counted(served, "cancelled") == cancelled


def test_a_request_a_client_cancels_is_forgotten_and_its_neighbours_are_answered(served, rpc):
    def waiting():
        return next(e.waiting for e in served.client.status().endpoints if e.name == "slow")

    before = counted(served, "cancelled")
    calls = [rpc.start(np.zeros((60, 1)), name="slow") for _ in range(20)]
    until(lambda: waiting() >= 6)
    for call in calls[::2]:
        call.cancel()
    for call in calls[1::2]:
        assert messages.ModelInferResponse.FromString(call.result()).outputs[0].shape[0] == 60
    until(lambda: counted(served, "cancelled") > before)


# Bad input -------------------------------------------------------------------------------------------------------


def quiet(served, text):
    for shown in (*REFUSED_IN, str(served.folder)):
        assert shown not in text, text


@pytest.mark.parametrize(("name", "data", "statuses"), MESSAGES, ids=[case[0] for case in MESSAGES])
def test_a_malformed_message_is_refused_with_its_status(served, name, data, statuses):
    with Rpc(grpc_port(served), options=[("grpc.max_send_message_length", -1)]) as found:
        answer = found.call("ModelInfer", data)
    assert answer.code in statuses, (name, answer.details)
    if name != "too large":  # that one is stopped by grpc itself
        assert answer.trailers["argosy-code"]
    quiet(served, answer.details)
    alive(served)


@pytest.mark.parametrize("case", CALLS, ids=[case[0] for case in CALLS])
def test_a_malformed_call_is_refused_with_its_status(served, case):
    name, method, data, metadata, statuses = case
    with Rpc(grpc_port(served)) as found:
        answer = found.call(method, data, metadata=metadata)
    assert answer.code in statuses, (name, answer.details)
    quiet(served, answer.details)
    alive(served)


@pytest.mark.parametrize("algorithm", COMPRESSED, ids=[a.name for a in COMPRESSED])
def test_compressed_messages_are_refused_before_they_are_unpacked(served, algorithm):
    before = served.rss_bytes("gateway")
    with Rpc(grpc_port(served), options=[("grpc.max_send_message_length", -1)]) as found:
        answer = found.call("ModelInfer", b"\0" * (400 << 20), compression=algorithm, timeout=60)
    assert answer.code == "UNIMPLEMENTED"
    assert served.rss_bytes("gateway") < before + (100 << 20)
    alive(served)


@pytest.mark.parametrize(("name", "data", "is_whole"), FRAMES, ids=[case[0] for case in FRAMES])
def test_what_is_no_call_at_all_leaves_the_others_alone(served, name, data, is_whole):
    raw = Raw(grpc_port(served), hello=b"" if is_whole else None, timeout=0.3)
    seen = b""
    with contextlib.closing(raw), contextlib.suppress(OSError):
        raw.send(data)
        for _, _, _, payload in raw.frames():
            seen += payload
    quiet(served, seen.decode("latin-1"))
    alive(served)
    assert name


def alive(served):
    """The gateway answers somebody else, within a second."""
    with Rpc(grpc_port(served)) as other:
        assert other.infer(ROWS[:1], timeout=1.0).code == "OK"


def test_nothing_of_what_clients_send_wrong_fills_the_log(served):
    size = sum(path.stat().st_size for path in (served.folder / "processes").glob("gateway*/log"))
    for _, data, is_whole in FRAMES[:20]:
        raw = Raw(grpc_port(served), hello=b"" if is_whole else None, timeout=0.1)
        with contextlib.closing(raw), contextlib.suppress(OSError):
            raw.send(data)
            list(raw.frames())
    assert sum(path.stat().st_size for path in (served.folder / "processes").glob("gateway*/log")) < size + 500
