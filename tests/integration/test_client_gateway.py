"""`argosy.Client` and `argosy predict` against a real gateway and real replicas."""

import asyncio
import contextlib
import os
import signal
import threading

import numpy as np
import pytest

import argosy
from argosy.core.errors import DeadlineExceeded, InvalidInput, NotFound, Unavailable
from argosy.core.tensors import Signature, TensorSpec
from installed import Installed
from served import Served, graph, linear, slow, until

ROW = np.array([[0.1, -2.5, 3.25, 1e-3]], dtype="float32")


def same(name):
    return graph([("Identity", [name], ["y"], {})], [(name, "STRING", ["n"])], [("y", "STRING", ["n"])])


def of_content(name, content):
    return Signature(
        inputs=(TensorSpec(name=name, datatype="BYTES", shape=(-1,), content=content),),
        outputs=(TensorSpec(name="y", datatype="BYTES", shape=(-1,)),),
    )


@pytest.fixture(scope="module")
def served():
    found = Served()
    with contextlib.closing(found):
        found.gateway()
        versions = {
            "m": found.publish(linear(), "m"),
            "words": found.publish(same("text"), "words", signature=of_content("text", "text")),
            "slow": found.publish(slow(layers=40), "slow"),
        }
        found.ready(*(found.replica(version) for version in versions.values()))
        found.route_all([(name, version, f"{name}:1") for name, version in versions.items()])
        yield found


@pytest.fixture
def client(served):
    with argosy.Client(f"http://127.0.0.1:{served.port}") as found:
        yield found


def expected(x):
    import onnxruntime

    return onnxruntime.InferenceSession(linear(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


@pytest.mark.capability("I2")
def test_arrays_and_lists_are_answered_as_onnxruntime_answers(client):
    answer = client.infer("m", {"x": ROW})
    assert answer.outputs["y"].tobytes() == expected(ROW).tobytes()
    assert (answer.version, answer.failover) == ("m:1", "")
    assert len(answer.prediction) > 30
    lists = client.infer("m", {"x": ROW.tolist()}, outputs=["y"], version="1").outputs["y"]
    assert lists == expected(ROW).astype(float).tolist()
    one = client.predict("m", {"x": ROW[0]}).outputs["y"]
    assert one == expected(ROW)[0].astype(float).tolist()
    assert client.predict("m", [{"x": ROW[0].tolist()}] * 3).outputs["y"] == [one] * 3


def test_a_text_needs_no_name_where_there_is_one_text_input(client):
    assert client.predict("words", "Zoë's sentence").outputs["y"] == "Zoë's sentence"
    assert client.predict("words", ["one", "two"]).outputs["y"] == ["one", "two"]
    assert client.infer("words", {"text": np.array(["a", "Zoë"])}).outputs["y"].tolist() == [b"a", "Zoë".encode()]
    with pytest.raises(InvalidInput, match="does not take a text alone"):
        client.predict("m", "a sentence")


def test_what_is_served_is_told(client):
    assert {(model.name, model.version, model.is_ready) for model in client.models()} == {
        ("m", "1", True), ("words", "1", True), ("slow", "1", True)
    }  # fmt: skip
    (x,) = client.metadata("m").inputs
    assert (x.name, x.datatype, x.shape) == ("x", "FP32", (-1, 4))
    assert client.metadata("words").inputs[0].content == "text"
    assert client.ready("m")
    assert not client.ready("other")
    client.wait_ready("m", 5.0)


def test_the_gateways_words_arrive(client):
    with pytest.raises(InvalidInput) as caught:
        client.predict("m", {"x": [1, 2, "3", 4]})
    assert (caught.value.code, caught.value.context["path"]) == ("wrong_value", "$.inputs.x[2]")
    with pytest.raises(NotFound, match="there is no endpoint 'other'"):
        client.predict("other", {})


def test_the_deadline_reaches_the_gateway(served, client):
    before = served.ask("GET", "/v2/models/slow/stats")[2]["model_stats"][0]["inference_stats"]["fail"]["count"]
    ones = np.ones((64, 1), "float32")
    with pytest.raises((DeadlineExceeded, Unavailable)):
        # More rows than can be run in this time.
        client.infer("slow", {"x": np.repeat(ones, 64, axis=0)}, timeout_s=0.01)
    stats = until(
        lambda: (
            (s := served.ask("GET", "/v2/models/slow/stats")[2]["model_stats"][0]["inference_stats"]["fail"])["count"]
            > before
            and s
        )
    )
    assert stats["count"] > before


@pytest.mark.capability("R7")
def test_calls_outlive_a_gateway_that_is_killed_and_started_again():
    served = Served()
    with contextlib.closing(served):
        served.gateway()
        version = served.publish(linear())
        served.ready(served.replica(version))
        served.route(version)
        client = argosy.Client(f"http://127.0.0.1:{served.port}", timeout_s=20.0, retries=30)
        answers, errors, stop = [], [], threading.Event()

        def work():
            while not stop.is_set():
                try:
                    answers.append(client.infer("m", {"x": ROW}).outputs["y"].tobytes())
                except Unavailable as error:
                    errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            until(lambda: len(answers) > 100)
            os.kill(served.client.status().pid, signal.SIGKILL)
            served.client.close()
            served.gateway()
            seen = len(answers)
            client.wait_ready("m", 20.0)
            until(lambda: len(answers) > seen + 100)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            client.close()
        assert errors == []
        assert set(answers) == {expected(ROW).tobytes()}


def test_waiting_for_an_endpoint_begins_before_its_gateway_does():
    served = Served()
    with contextlib.closing(served):
        served.gateway()
        port = served.port
        version = served.publish(linear())
        client = argosy.Client(f"http://127.0.0.1:{port}")
        with pytest.raises(DeadlineExceeded, match="there is no endpoint 'm'"):
            client.wait_ready("m", 0.3)
        waited = threading.Thread(target=client.wait_ready, args=("m", 30.0))
        waited.start()
        served.route(version)
        served.ready(served.replica(version))
        waited.join(timeout=30)
        assert not waited.is_alive()
        assert client.ready("m")
        client.close()


def test_the_asyncio_client_asks_many_at_once(served):
    async def main():
        async with argosy.AsyncClient(f"http://127.0.0.1:{served.port}", connections=8) as client:
            await client.wait_ready("m", 5.0)
            rows = [np.full((1, 4), i, "float32") for i in range(200)]
            answers = await asyncio.gather(*(client.infer("m", {"x": row}) for row in rows))
            with pytest.raises(NotFound):
                await client.predict("other", {})
            text = await client.predict("words", "a sentence")
            return rows, answers, text, await client.models()

    rows, answers, text, models = asyncio.run(main())
    for row, answer in zip(rows, answers, strict=True):
        np.testing.assert_allclose(answer.outputs["y"], expected(row), rtol=1e-5)
    assert text.outputs["y"] == "a sentence"
    assert len(models) == 3


# The command ----------------------------------------------------------------------------------------------------------


def test_the_command_asks_any_gateway(served, tmp_path):
    installed = Installed(tmp_path / "home", tmp_path)
    url = f"http://127.0.0.1:{served.port}"
    told = installed.json("predict", "words", "a sentence", "--url", url)
    assert told["outputs"] == {"y": "a sentence"}
    assert told["version"] == "words:1"
    (tmp_path / "rows.json").write_text('{"x": [[1, 2, 3, 4]]}')
    shown = installed.ok("predict", "m", "@rows.json", "--url", url)
    assert "by m:1" in shown
    assert "argosy why" in shown
    refused = installed.refused("predict", "m", "a sentence", "--url", url)
    assert "does not take a text alone" in refused
    refused = installed.refused("predict", "m", '{"x": [1]}', "--url", url, "--timeout", "5")
    assert "answered 400" in refused
    assert "nobody can be reached" in installed.refused("predict", "m", "{}", "--url", "http://127.0.0.1:9")
