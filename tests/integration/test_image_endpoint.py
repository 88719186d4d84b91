"""Images over HTTP to a version that decodes, resizes and normalizes them itself."""

import base64
import contextlib
import io
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from argosy.core.tensors import Signature, TensorSpec
from argosy.data.images import DecodeImage, Normalize, ResizeImage
from argosy.data.prepare import Label, Softmax, apply, apply_finish, finish_signature, steps_to_plain
from argosy.serve.values import pack_texts
from pictures import HOSTILE, encoded, pixels
from served import Served, graph, linear

SIDE = 16
LABELS = ("red", "green", "blue")
STEPS = [
    DecodeImage(),
    ResizeImage(height=SIDE, width=SIDE, shortest_edge=20),
    Normalize(mean=(0.4, 0.4, 0.4), std=(0.2, 0.2, 0.2)),
]
FINISH = [Softmax(input="y"), Label(labels=LABELS)]


def colours():
    """Return a model whose scores are the mean of each channel."""
    nodes = [("GlobalAveragePool", ["x"], ["p"], {}), ("Flatten", ["p"], ["y"], {"axis": 1})]
    return graph(nodes, [("x", "FLOAT", ["n", 3, SIDE, SIDE])], [("y", "FLOAT", ["n", 3])])


def tinted(channel, kind="JPEG", height=40, width=30, **options):
    array = pixels(height, width) // 3
    array[:, :, channel] += 150
    return encoded(array, kind, **options)


@pytest.fixture(scope="module")
def served():
    found = Served()
    with contextlib.closing(found):
        found.gateway()
        version = found.publish(
            colours(),
            signature=Signature(
                inputs=(TensorSpec(name="image", datatype="BYTES", shape=(-1,), content="image"),),
                outputs=finish_signature("classification", LABELS),
            ),
            prepare=steps_to_plain(STEPS),
            finish=steps_to_plain(FINISH),
        )
        found.ready(found.replica(version))
        found.route(version)
        yield found


def expected(*files):
    import onnxruntime

    rows = np.empty(len(files), dtype=object)
    rows[:] = files
    x = apply(STEPS, {"image": rows})
    y = onnxruntime.InferenceSession(colours(), providers=["CPUExecutionProvider"]).run(None, x)[0]
    return apply_finish(FINISH, {"y": y})


def predict(served, inputs):
    return served.ask("POST", "/predict/m", {"inputs": inputs})


def as_base64(data):
    return base64.b64encode(data).decode()


@pytest.mark.capability("I1")
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_file_is_answered_the_same_as_a_body_and_as_base64(served, kind, channel):
    file = tinted(channel, kind)
    wanted = expected(file)
    status, headers, answer = served.ask("POST", "/predict/m", file, {"content-type": f"image/{kind.lower()}"})
    assert status == 200, answer
    assert answer["outputs"]["label"] == LABELS[channel] == wanted["label"][0]
    assert headers["argosy-version"] == "m:1"
    status, _, again = predict(served, {"image": as_base64(file)})
    assert (status, again["outputs"]) == (200, answer["outputs"])
    found = [answer["outputs"]["probabilities"][name] for name in LABELS]
    np.testing.assert_allclose(found, wanted["probabilities"][0], rtol=0, atol=1e-6)


def test_a_list_of_images_of_different_sizes_and_kinds_is_one_batch(served):
    files = [tinted(0), tinted(1, "PNG", 64, 20), tinted(2, "WEBP", 21, 300)]
    status, _, answer = predict(served, {"image": [as_base64(file) for file in files]})
    assert status == 200, answer
    assert answer["outputs"]["label"] == list(LABELS)


def test_the_protocol_carries_images_in_json_and_as_binary_data(served):
    file = tinted(1)
    entry = {"name": "image", "datatype": "BYTES", "shape": [1]}
    body = {"inputs": [entry | {"parameters": {"content_type": "base64"}, "data": [as_base64(file)]}]}
    status, _, answer = served.ask("POST", "/v2/models/m/infer", body)
    assert status == 200, answer
    assert next(o for o in answer["outputs"] if o["name"] == "label")["data"] == ["green"]
    raw = pack_texts([file])
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}]}).encode()
    status, _, answer = served.ask(
        "POST", "/v2/models/m/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 200, answer
    meta = served.ask("GET", "/v2/models/m")[2]
    assert meta["inputs"][0]["content"] == "image"


@pytest.mark.parametrize(("name", "data", "code"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_a_hostile_file_is_refused_and_others_are_served(served, name, data, code):
    statuses = {"not_an_image": 400, "image_too_large": 413}
    before = served.rss_bytes("replica"), served.rss_bytes("gateway")
    for status, _, answer in (
        served.ask("POST", "/predict/m", data, {"content-type": "image/png"}),
        predict(served, {"image": as_base64(data)}),
        predict(served, {"image": [as_base64(tinted(0)), as_base64(data)]}),
    ):
        assert (status, answer["code"]) == (statuses[code], code)
        assert "/" not in answer["error"]
        assert "Traceback" not in json.dumps(answer)
    assert served.ask("POST", "/predict/m", tinted(2), {"content-type": "image/jpeg"}, timeout=1.0)[0] == 200
    assert served.rss_bytes("replica") - before[0] < 32 << 20
    assert served.rss_bytes("gateway") - before[1] < 32 << 20


def animation():
    stream = io.BytesIO()
    frames = [Image.fromarray(pixels(seed=seed)) for seed in range(2)]
    frames[0].save(stream, "WEBP", save_all=True, append_images=frames[1:])
    return stream.getvalue()


@pytest.mark.parametrize(
    "file",
    [tinted(0)[:-300], tinted(0, "PNG")[:-300], tinted(0, "WEBP")[:-100], tinted(0, "PNG")[:60] + b"\xaa" * 500],
    ids=["a jpeg cut off", "a png cut off", "a webp cut off", "a png of noise"],
)
def test_what_only_decoding_finds_is_the_callers_mistake(served, file):
    for status, _, answer in (
        served.ask("POST", "/predict/m", file, {"content-type": "image/jpeg"}),
        predict(served, {"image": [as_base64(tinted(1)), as_base64(file)]}),
    ):
        assert (status, answer["code"]) == (400, "input_refused"), answer
        assert "/" not in answer["error"]


def test_an_animation_is_refused(served):
    status, _, answer = served.ask("POST", "/predict/m", animation(), {"content-type": "image/webp"})
    assert (status, answer["code"]) == (400, "input_refused")
    assert "animated" in answer["error"]


def test_one_bad_image_of_many_callers_disturbs_nobody(served):
    """Many at once share batches; the damaged ones fail alone."""
    good, bad = tinted(1), tinted(1)[:-300]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(
                lambda i: served.ask("POST", "/predict/m", bad if i % 5 == 0 else good, {"content-type": "image/jpeg"}),
                range(40),
            )
        )
    for i, (status, _, answer) in enumerate(answers):
        assert status == (400 if i % 5 == 0 else 200), answer
        assert i % 5 == 0 or answer["outputs"]["label"] == "green"


@pytest.mark.parametrize(
    ("value", "code"),
    [("?", "not_base64"), ("YQ", "not_base64"), (7, "wrong_value"), ([[1]], "wrong_value"), ([], "empty_input")],
)
def test_wrong_base64_is_a_400(served, value, code):
    status, _, answer = predict(served, {"image": value})
    assert (status, answer["code"]) == (400, code)


def test_image_bodies_are_for_predictions_of_endpoints_that_take_one_image(served):
    image = {"content-type": "image/png"}
    status, _, answer = served.ask("POST", "/v2/models/m/infer", tinted(0, "PNG"), image)
    assert (status, answer["code"]) == (415, "media_type")
    for kind in ("image/gif", "image/svg+xml", "image/tiff", "image/*", "text/html"):
        status, _, answer = served.ask("POST", "/predict/m", b"x", {"content-type": kind})
        assert (status, answer["code"]) == (415, "media_type")
    assert served.ask("POST", "/predict/m", tinted(0), {"content-type": "IMAGE/JPEG; q=1"})[0] == 200


def test_a_models_own_file_and_a_few_lines_make_an_endpoint(installed):
    model = installed.folder / "colours.onnx"
    model.write_bytes(colours())
    (installed.folder / "labels.txt").write_text("\n".join(LABELS))
    (installed.folder / "image.toml").write_text(
        "[image]\nresize = 20\nmean = [0.4, 0.4, 0.4]\nstd = [0.2, 0.2, 0.2]\n[classes]\nlabels = 'labels.txt'\n"
    )
    first = installed.json("models", "import", "colours.onnx", "--prepare", "image.toml")
    assert first["version"] == "colours:1"
    deployed = installed.json("deploy", "colours.onnx", "--prepare", "image.toml", "--port", "0")
    # The same file and preparation are the same version; another preparation is another one.
    assert [v["ref"] for v in deployed["endpoint"]["versions"]] == ["colours:1"]
    file = installed.folder / "green.jpg"
    file.write_bytes(tinted(1))
    said = installed.json("predict", "colours", json.dumps({"inputs": {"image": as_base64(tinted(1))}}))
    assert said["outputs"]["label"] == "green"
    (installed.folder / "image.toml").write_text("[image]\n[classes]\nlabels = ['a', 'b', 'c']\n")
    assert installed.json("models", "import", "colours.onnx", "--prepare", "image.toml")["version"] == "colours:2"
    assert installed.json("models", "import", "colours.onnx")["version"] == "colours:3"


def test_a_preparation_that_does_not_fit_is_refused_with_its_file(installed):
    (installed.folder / "scores.onnx").write_bytes(linear())
    (installed.folder / "image.toml").write_text("[image]\n")
    said = installed.refused("deploy", "scores.onnx", "--prepare", "image.toml")
    assert "'image.toml'" in said
    assert "x FP32 [-1, 4]" in said
    assert "there is no" in installed.refused("deploy", "scores.onnx", "--prepare", "nowhere.toml")
    assert "--prepare is for ONNX files" in installed.refused("deploy", "scores:1", "--prepare", "image.toml")
    assert "there is no file or folder" in installed.refused("models", "import", "nowhere")
