"""A batch of N is N batches of one: bit for bit where nothing is padded, and within a tolerance where texts are."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

import encoders
from argosy.core.tensors import Signature, TensorSpec
from argosy.data.images import DecodeImage, Normalize, ResizeImage
from argosy.data.prepare import Label, Softmax, finishing, preparation, steps_from_plain, steps_to_plain
from argosy.data.text import L2Normalize, Pool, Tokenize
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.serve.engine import Engine
from pictures import pixels

FILES = {"tokenizer.json": encoders.tokenizer()}
TOKENS = Tokenize(max_length=12, outputs=("input_ids", "attention_mask"))
RUNNER = OnnxRunner.load(encoders.encoder_onnx())
SIGNATURE = Signature(
    inputs=(TensorSpec(name="text", datatype="BYTES", shape=(-1,), content="text"),),
    outputs=(TensorSpec(name="embedding", datatype="FP32", shape=(-1, encoders.WIDTH)),),
)
# Sums over padded positions add exact zeros, but in another grouping: a few units in the last place of float32.
PADDED = 1e-5
# Most words are in the vocabulary; the rest is whatever Unicode has.
words = st.one_of(st.text("abcdefghij", min_size=1, max_size=6), st.text(max_size=4))
sentences = st.lists(words, max_size=14).map(" ".join)
FEW = settings(max_examples=60, deadline=None)


def column(items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def engine(mode, model=RUNNER.run):
    steps = steps_from_plain(json.loads(json.dumps(steps_to_plain([TOKENS]))))
    return Engine(SIGNATURE, preparation(steps, FILES), model, finishing([Pool(mode=mode), L2Normalize()]))


def lookup(arrays):
    """A model that gives each row the same bits in every batch, which no runtime promises."""
    return {"last_hidden_state": TABLE[arrays["input_ids"]]}


TABLE = np.random.default_rng(4).normal(size=(len(encoders.WORDS), encoders.WIDTH)).astype(np.float32)
ENGINES = {mode: engine(mode) for mode in ("mean", "max", "cls")}
EXACT = {mode: engine(mode, lookup) for mode in ("mean", "max", "cls")}


@FEW
@given(st.lists(sentences, min_size=1, max_size=9), st.sampled_from(sorted(ENGINES)))
def test_texts_in_a_padded_batch_get_the_answers_they_get_alone(texts, mode):
    rows = column([text.encode("utf-8", "ignore") for text in texts])
    together = ENGINES[mode].compute({"text": rows})["embedding"]
    assert together.shape == (len(texts), encoders.WIDTH)
    for row in range(len(texts)):
        alone = ENGINES[mode].compute({"text": rows[row : row + 1]})["embedding"]
        np.testing.assert_allclose(together[row], alone[0], rtol=0, atol=PADDED)


@FEW
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.lists(
            st.lists(st.sampled_from("abcdefghij"), min_size=n, max_size=n).map(" ".join), min_size=1, max_size=9
        )
    ),
    st.sampled_from(sorted(ENGINES)),
)
def test_texts_of_equal_length_get_their_answers_bit_for_bit(texts, mode):
    rows = column([text.encode() for text in texts])
    prepared = preparation([TOKENS], FILES)({"text": rows})
    assert prepared["attention_mask"].all()
    together = EXACT[mode].compute({"text": rows})["embedding"]
    alone = [EXACT[mode].compute({"text": rows[row : row + 1]})["embedding"] for row in range(len(rows))]
    assert np.concatenate(alone).tobytes() == together.tobytes()


@FEW
@given(st.lists(sentences, min_size=2, max_size=9), st.randoms(use_true_random=False))
def test_the_order_of_a_batch_does_not_matter_bit_for_bit(texts, rng):
    rows = column([text.encode("utf-8", "ignore") for text in texts])
    order = list(range(len(texts)))
    rng.shuffle(order)
    straight = EXACT["mean"].compute({"text": rows})["embedding"]
    shuffled = EXACT["mean"].compute({"text": rows[order]})["embedding"]
    assert shuffled.tobytes() == straight[order].tobytes()


def test_a_model_that_forgets_its_mask_would_be_noticed_by_these_properties():
    leaky = Engine(
        SIGNATURE,
        preparation([TOKENS], FILES),
        OnnxRunner.load(encoders.leaky_onnx()).run,
        finishing([Pool(), L2Normalize()]),
    )
    rows = column([b"a", b"a b c d e f"])
    together = leaky.compute({"text": rows})["embedding"][0]
    alone = leaky.compute({"text": rows[:1]})["embedding"][0]
    assert np.abs(together - alone).max() > 100 * PADDED


@st.composite
def pictures(draw):
    array = pixels(draw(st.integers(1, 40)), draw(st.integers(1, 40)), draw(st.integers(0, 9)))
    image = Image.fromarray(array).convert(draw(st.sampled_from(["RGB", "L", "1"])))
    kind = draw(st.sampled_from(["JPEG", "PNG", "WEBP"]))
    stream = io.BytesIO()
    (image if kind != "WEBP" else image.convert("RGB")).save(stream, kind)
    return stream.getvalue()


@FEW
@given(
    st.lists(pictures(), min_size=1, max_size=5),
    st.sampled_from(["bilinear", "bicubic"]),
    st.sampled_from([0, 12]),
    st.sampled_from(["channels-first", "channels-last"]),
)
def test_images_of_a_batch_are_prepared_as_they_are_alone_bit_for_bit(files, how, edge, layout):
    steps = [
        DecodeImage(),
        ResizeImage(height=10, width=12, shortest_edge=edge, filter=how),
        Normalize(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), layout=layout),
    ]
    prepare = preparation(steps_from_plain(json.loads(json.dumps(steps_to_plain(steps)))))
    together = prepare({"image": column(files)})["x"]
    assert np.isfinite(together).all()
    for row, file in enumerate(files):
        assert prepare({"image": column([file])})["x"].tobytes() == together[row : row + 1].tobytes()


@pytest.mark.parametrize("classes", [2, 7])
def test_a_classifiers_answers_in_a_batch_are_those_alone_bit_for_bit(classes):
    logits = np.random.default_rng(3).normal(size=(6, classes)).astype(np.float32)
    finish = finishing([Softmax(), Label(labels=tuple(f"c{k}" for k in range(classes)))])
    together = finish({"logits": logits}, {})
    for row in range(6):
        alone = finish({"logits": logits[row : row + 1]}, {})
        assert alone["probabilities"].tobytes() == together["probabilities"][row : row + 1].tobytes()
