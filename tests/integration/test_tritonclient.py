"""Everything a user of tritonclient's HTTP client can call: it works, or says clearly what is not offered."""

import contextlib

import numpy as np
import pytest

from served import Served, graph

triton = pytest.importorskip("tritonclient.http")
from tritonclient.utils import InferenceServerException  # noqa: E402 - only where it is installed

# ONNX name, NumPy name, the protocol's name
KINDS = [
    ("FLOAT16", "float16", "FP16"), ("FLOAT", "float32", "FP32"), ("DOUBLE", "float64", "FP64"),
    ("BOOL", "bool", "BOOL"), ("INT8", "int8", "INT8"), ("INT16", "int16", "INT16"), ("INT32", "int32", "INT32"),
    ("INT64", "int64", "INT64"), ("UINT8", "uint8", "UINT8"), ("UINT16", "uint16", "UINT16"),
    ("UINT32", "uint32", "UINT32"), ("UINT64", "uint64", "UINT64"), ("STRING", "object", "BYTES"),
]  # fmt: skip


def every_kind():
    """One input and one output of each datatype: y_K = x_K."""
    nodes = [("Identity", [f"x_{name}"], [f"y_{name}"], {}) for _, _, name in KINDS]
    inputs = [(f"x_{name}", kind, ["n", 2]) for kind, _, name in KINDS]
    outputs = [(f"y_{name}", kind, ["n", 2]) for kind, _, name in KINDS]
    return graph(nodes, inputs, outputs)


def values():
    rng = np.random.default_rng(0)
    found = {}
    for _, numpy, name in KINDS:
        if name == "BYTES":
            found[name] = np.array([[b"", "Zoë".encode()], [b"\0", b"a" * 300]], dtype=object)
        elif name == "BOOL":
            found[name] = np.array([[True, False], [False, True]])
        elif name.startswith("FP"):
            found[name] = rng.normal(size=(2, 2)).astype(numpy)
        else:
            bounds = np.iinfo(numpy)
            found[name] = np.array([[bounds.min, bounds.max], [0, 1]], dtype=numpy)
    return found


@pytest.fixture(scope="module")
def served():
    found = Served()
    with contextlib.closing(found):
        found.gateway()
        version = found.publish(every_kind(), "kinds")
        found.ready(found.replica(version))
        found.route(version, "kinds")
        yield found


@pytest.fixture
def client(served):
    with contextlib.closing(triton.InferenceServerClient(f"127.0.0.1:{served.port}", concurrency=4)) as found:
        yield found


def inputs(arrays, *, is_binary=True):
    made = []
    for name, array in arrays.items():
        given = triton.InferInput(f"x_{name}", list(array.shape), name)
        given.set_data_from_numpy(array, binary_data=is_binary)
        made.append(given)
    return made


@pytest.mark.capability("I1")
@pytest.mark.parametrize("asks_for_binary", [True, False, None])
@pytest.mark.parametrize("sends_binary", [True, False])
def test_every_datatype_comes_back_bit_for_bit(client, sends_binary, asks_for_binary):
    arrays = values()
    # tritonclient itself has no JSON form for FP16
    given = inputs({n: a for n, a in arrays.items() if n != "FP16"}, is_binary=sends_binary)
    given += inputs({"FP16": arrays["FP16"]})
    wanted = None
    if asks_for_binary is not None:
        # tritonclient can't read FP16 out of JSON
        wanted = [triton.InferRequestedOutput(f"y_{n}", binary_data=asks_for_binary or n == "FP16") for n in arrays]
    answer = client.infer("kinds", given, outputs=wanted, request_id="id 1")
    assert answer.get_response()["id"] == "id 1"
    for name, array in arrays.items():
        found = answer.as_numpy(f"y_{name}")
        if name == "BYTES":
            found = np.array([[x if isinstance(x, bytes) else x.encode() for x in row] for row in found], dtype=object)
            assert found.tolist() == array.tolist()
        else:
            assert (found.dtype, found.tobytes()) == (array.dtype, array.tobytes())


def test_only_the_outputs_asked_for_come_in_the_order_asked(client):
    wanted = [triton.InferRequestedOutput("y_INT8"), triton.InferRequestedOutput("y_FP32", binary_data=False)]
    answer = client.infer("kinds", inputs(values()), outputs=wanted).get_response()
    assert [output["name"] for output in answer["outputs"]] == ["y_INT8", "y_FP32"]
    assert "data" in answer["outputs"][1]


def test_many_requests_at_once_each_get_their_own_answer(client):
    arrays = values()
    asked = []
    for i in range(20):
        given = inputs(arrays | {"INT32": np.array([[i, i], [i, i]], "int32")})
        asked.append(client.async_infer("kinds", given))
    assert [pending.get_result().as_numpy("y_INT32")[0, 0] for pending in asked] == list(range(20))


def test_a_request_body_made_apart_is_answered_and_its_answer_read_apart(served):
    body, length = triton.InferenceServerClient.generate_request_body(inputs(values()))
    headers = {"Inference-Header-Content-Length": str(length), "Content-Type": "application/octet-stream"}
    status, found, raw = served.ask("POST", "/v2/models/kinds/infer", body, headers)
    assert status == 200
    size = int(found["inference-header-content-length"]) if "inference-header-content-length" in found else None
    data = raw if isinstance(raw, bytes) else __import__("json").dumps(raw).encode()
    answer = triton.InferenceServerClient.parse_response_body(data, header_length=size)
    assert answer.as_numpy("y_INT64").tolist() == values()["INT64"].tolist()


def test_what_the_server_and_its_models_are(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("kinds", "1")
    assert not client.is_model_ready("kinds", "7")
    assert not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert {"binary_tensor_data", "model_repository", "model_configuration", "statistics"} <= set(server["extensions"])
    described = client.get_model_metadata("kinds", "1")
    assert described["versions"] == ["1"]
    assert {(i["name"], i["datatype"], tuple(i["shape"])) for i in described["inputs"]} == {
        (f"x_{name}", name, (-1, 2)) for _, _, name in KINDS
    }
    assert client.get_model_repository_index() == [{"name": "kinds", "version": "1", "state": "READY", "reason": ""}]


def test_a_models_configuration_is_told(client):
    config = client.get_model_config("kinds")
    assert config["name"] == "kinds"
    assert config["max_batch_size"] >= 1
    assert {"name": "x_BYTES", "data_type": "TYPE_STRING", "dims": [2]} in config["input"]
    assert {"name": "y_FP16", "data_type": "TYPE_FP16", "dims": [2]} in config["output"]
    assert client.get_model_config("kinds", "1") == config


def test_statistics_count_what_was_asked(client):
    def counts(found):
        (model,) = found["model_stats"]
        stats = model["inference_stats"]
        return (model["name"], model["version"]), stats["success"]["count"], stats["fail"]["count"], model

    _, before, _, _ = counts(client.get_inference_statistics("kinds"))
    for _ in range(3):
        client.infer("kinds", inputs(values()))
    name, good, bad, model = counts(client.get_inference_statistics("kinds", "1"))
    assert (name, good - before, bad) == (("kinds", "1"), 3, 0)
    assert model["inference_count"] >= 3
    assert model["execution_count"] >= 1
    assert 0 < model["inference_stats"]["compute_infer"]["ns"] <= model["inference_stats"]["success"]["ns"]
    assert counts(client.get_inference_statistics())[1] == good


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda c: c.load_model("kinds"), "argosy deploy"),
        (lambda c: c.unload_model("kinds"), "argosy endpoints remove"),
        (lambda c: c.get_system_shared_memory_status(), "tensors are sent"),
        (lambda c: c.register_system_shared_memory("r", "/r", 8), "tensors are sent"),
        (lambda c: c.unregister_system_shared_memory(), "tensors are sent"),
        (lambda c: c.get_cuda_shared_memory_status(), "tensors are sent"),
        (lambda c: c.get_trace_settings(), "/metrics"),
        (lambda c: c.get_trace_settings("kinds"), "/metrics"),
        (lambda c: c.update_trace_settings(settings={}), "/metrics"),
        (lambda c: c.get_log_settings(), "ARGOSY_LOG_LEVEL"),
        (lambda c: c.update_log_settings({}), "ARGOSY_LOG_LEVEL"),
    ],
)
def test_what_is_not_offered_says_so_and_what_to_do(client, call, words):
    with pytest.raises(InferenceServerException) as caught:
        call(client)
    assert "is not offered here" in str(caught.value)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sequence_id": 7, "sequence_start": True}, "sequence_id"),
        ({"parameters": {"classification": 3}}, "classification"),
    ],
)
def test_what_would_be_ignored_is_refused(client, options, words):
    with pytest.raises(InferenceServerException, match=f"the parameter {words} is not supported"):
        client.infer("kinds", inputs(values()), **options)
    with pytest.raises(InferenceServerException, match="the parameter classification is not supported"):
        client.infer("kinds", inputs(values()), outputs=[triton.InferRequestedOutput("y_FP32", class_count=3)])


def test_a_timeout_in_microseconds_is_kept(client):
    assert client.infer("kinds", inputs(values()), timeout=30_000_000).as_numpy("y_INT8") is not None
    with pytest.raises(InferenceServerException, match=r"did not answer within|too late"):
        client.infer("kinds", inputs(values()), timeout=1)


def test_bytes_that_are_no_text_are_the_callers_mistake_where_the_model_takes_texts(client):
    arrays = values() | {"BYTES": np.array([[b"\xff", b""], [b"", b""]], dtype=object)}
    with pytest.raises(InferenceServerException, match=r"\[400\] input 'x_BYTES' holds bytes that are not UTF-8"):
        client.infer("kinds", inputs(arrays))


def test_shared_memory_is_refused_by_name(client):
    given = inputs(values())
    given[0].set_shared_memory("region", 8)
    with pytest.raises(InferenceServerException, match="the parameter shared_memory_region is not supported"):
        client.infer("kinds", given)


@pytest.mark.parametrize(("kind", "words"), [("gzip", "compressed"), ("deflate", "compressed")])
def test_compressed_requests_are_refused_and_compressed_answers_not_sent(client, kind, words):
    with pytest.raises(InferenceServerException, match=words):
        client.infer("kinds", inputs(values()), request_compression_algorithm=kind)
    assert client.infer("kinds", inputs(values()), response_compression_algorithm=kind).as_numpy("y_INT8") is not None


def test_the_asyncio_client_works_as_well():
    import asyncio

    aio = pytest.importorskip("tritonclient.http.aio")
    served = Served()
    with contextlib.closing(served):
        served.gateway()
        version = served.publish(every_kind(), "kinds")
        served.ready(served.replica(version))
        served.route(version, "kinds")

        async def main():
            async with aio.InferenceServerClient(f"127.0.0.1:{served.port}") as client:
                assert await client.is_model_ready("kinds")
                answers = await asyncio.gather(*(client.infer("kinds", inputs(values())) for _ in range(8)))
                return [answer.as_numpy("y_FP32").tobytes() for answer in answers]

        assert set(asyncio.run(main())) == {values()["FP32"].tobytes()}
