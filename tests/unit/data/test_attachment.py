import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest

import encoders
from argosy.core.config import read_toml
from argosy.core.errors import InvalidInput, NotFound
from argosy.core.tensors import Signature, TensorSpec
from argosy.data.attachment import Declaration, attach
from argosy.data.prepare import finishing, preparation
from pictures import encoded, pixels


def spec(name, shape, datatype="FP32", **changes):
    return TensorSpec(name=name, datatype=datatype, shape=shape, **changes)


IMAGES = Signature(inputs=(spec("data", (-1, 3, 8, 10)),), outputs=(spec("scores", (-1, 3)),))
ENCODER = Signature(
    inputs=(spec("input_ids", (-1, -1), "INT32"), spec("attention_mask", (-1, -1), "INT32")),
    outputs=(spec("hidden", (-1, -1, 16)), spec("pooler", (-1, 16))),
)


def declared(folder, text):
    (folder / "prepare.toml").write_text(text)
    return read_toml(folder / "prepare.toml", Declaration)


def attached(folder, text, model=IMAGES):
    return attach(declared(folder, text), model, folder)


def column(*items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return found


def test_an_image_model_takes_files_and_its_size_is_its_own(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog\nfinch\n\n")
    found = attached(
        tmp_path,
        """
        [image]
        resize = 12
        mean = [0.5, 0.5, 0.5]
        std = [0.25, 0.25, 0.25]
        [classes]
        labels = "names.txt"
        """,
    )
    assert found.task == "classification"
    assert found.signature.inputs == (spec("image", (-1,), "BYTES", content="image"),)
    assert [s.name for s in found.signature.outputs] == ["probabilities", "label"]
    assert found.signature.outputs[0].columns == ("cat", "dog", "finch")
    assert "resized to 8 x 10" in found.signature.about
    x = preparation(found.prepare)({"image": column(encoded(pixels()), encoded(pixels(9, 9), "JPEG"))})
    assert x["data"].shape == (2, 3, 8, 10)
    answer = finishing(found.finish)({"scores": np.array([[0, 9, 1]], np.float32)}, {})
    assert answer["label"].tolist() == ["dog"]


def test_a_model_that_leaves_its_size_free_is_told_one(tmp_path):
    free = Signature(inputs=(spec("data", (-1, -1, -1, 3)),), outputs=IMAGES.outputs)
    with pytest.raises(InvalidInput, match=r"-1 x -1 pixels") as caught:
        attached(tmp_path, "[image]\n", free)
    assert "size = [height, width]" in caught.value.hint
    found = attached(tmp_path, "[image]\nsize = [6, 7]\nname = 'photo'\n", free)
    assert found.signature.inputs[0].name == "photo"
    assert preparation(found.prepare)({"photo": column(encoded(pixels()))})["data"].shape == (1, 6, 7, 3)


def test_a_model_with_one_row_only_takes_one_image(tmp_path):
    one = Signature(inputs=(spec("data", (1, 3, 8, 8)),), outputs=(spec("scores", (1, 2)),))
    found = attached(tmp_path, "[image]\n[classes]\nlabels = ['a', 'b']\n", one)
    assert found.signature.inputs[0].shape == (1,)
    assert [s.shape for s in found.signature.outputs] == [(1, 2), (1,)]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ENCODER, "one FP32 input"),
        (Signature(inputs=(spec("x", (-1, 4)),), outputs=IMAGES.outputs), "x FP32"),
        (Signature(inputs=(spec("x", (-1, 1, 8, 8)),), outputs=IMAGES.outputs), "3, height, width"),
        (Signature(inputs=(spec("x", (-1, 3, 8, 8), "UINT8"),), outputs=IMAGES.outputs), "one FP32 input"),
        (Signature(inputs=(spec("x", (-1, 3, 9, 9)),), outputs=IMAGES.outputs), "9 x 9 pixels"),
    ],
)
def test_a_model_that_takes_no_such_images_is_refused(tmp_path, model, words):
    with pytest.raises(InvalidInput, match=words):
        attached(tmp_path, "[image]\nsize = [8, 8]\n", model)


def test_an_encoder_takes_texts_and_gives_a_vector_each(tmp_path):
    (tmp_path / "tokens.json").write_bytes(encoders.tokenizer())
    found = attached(
        tmp_path,
        "[text]\ntokenizer = 'tokens.json'\nmax_length = 6\npool = 'mean'\nnormalize = true\nname = 'sentence'",
        ENCODER,
    )
    assert found.task == "tensor"
    assert found.signature.inputs == (spec("sentence", (-1,), "BYTES", content="text"),)
    assert found.signature.outputs == (spec("embedding", (-1, 16)),)
    assert "beyond 6 tokens" in found.signature.about
    assert sorted(found.files) == ["tokenizer.json"]
    made = preparation(found.prepare, found.files)({"sentence": column(b"a b c d e f g")})
    assert sorted(made) == ["attention_mask", "input_ids"]
    assert made["input_ids"].dtype == np.int32
    assert made["input_ids"].shape == (1, 6)
    answer = finishing(found.finish)({"hidden": np.ones((1, 6, 16), np.float32)}, made)["embedding"]
    np.testing.assert_allclose(np.linalg.norm(answer, axis=1), 1.0, rtol=1e-6)


def test_a_text_classifier_has_labels(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(encoders.tokenizer())
    model = Signature(inputs=ENCODER.inputs, outputs=(spec("logits", (-1, 2)),))
    found = attached(tmp_path, "[text]\nmax_length = 6\n[classes]\nlabels = ['bad', 'good']", model)
    assert found.task == "classification"
    assert finishing(found.finish)({"logits": np.array([[0.0, 1.0]])}, {})["label"].tolist() == ["good"]


def test_probabilities_of_the_model_keep_their_name_and_get_names_of_classes(tmp_path):
    found = attached(tmp_path, "[classes]\nlabels = ['a', 'b', 'c']\nsoftmax = false\n")
    assert found.signature.inputs == IMAGES.inputs
    assert found.signature.outputs[0] == spec("scores", (-1, 3), columns=("a", "b", "c"))
    answer = finishing(found.finish)({"scores": np.array([[0.1, 0.2, 0.7]], np.float32)}, {})
    assert answer["label"].tolist() == ["c"]


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("[image]\n[text]\nmax_length = 3\n", InvalidInput, "not both"),
        ("[classes]\nlabels = ['a', 'b']\n", InvalidInput, "2 labels, but the model's output 'scores' is"),
        ("[classes]\nlabels = ['a', 'b', 'a']\n", InvalidInput, "'a' is there twice"),
        ("[classes]\nlabels = ['a']\n", InvalidInput, "two classes or more"),
        ("[classes]\nlabels = ['a', 'b', '']\n", InvalidInput, "two classes or more"),
        ("[classes]\nlabels = 'nowhere.txt'\n", NotFound, "no 'nowhere.txt'"),
        ("[classes]\nlabels = '../names.txt'\n", InvalidInput, "not a name inside"),
        ("[classes]\nlabels = '/etc/passwd'\n", InvalidInput, "not a name inside"),
        ("[classes]\nlabels = ['a', 'b', 'c']\noutput = 'nothing'\n", InvalidInput, "outputs scores"),
        ("[image]\nresize = 4\n", InvalidInput, "resize at least 10"),
        ("[image]\nstd = [1, 0, 1]\n", InvalidInput, "std must be above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, text, error, words):
    with pytest.raises(error, match=words):
        attached(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("[image]\nmeen = [1, 2, 3]\n", "`meen` - at `$.image`"),
        ("[image]\nmean = [1, 2]\n", "$.image.mean"),
        ("[text]\n", "$.text"),
        ("[text]\nmax_length = 0\n", "$.text.max_length"),
        ("[picture]\n", "known fields are: classes, image, text"),
    ],
)
def test_a_wrong_file_says_where(tmp_path, text, where):
    with pytest.raises(InvalidInput, match=re.escape(where)):
        declared(tmp_path, text)


def test_a_spoilt_tokenizer_is_refused_before_anything_is_published(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    with pytest.raises(InvalidInput, match="tokenizer can't be read"):
        attached(tmp_path, "[text]\nmax_length = 5\n", ENCODER)


def test_a_model_that_takes_no_tokens_is_refused(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(encoders.tokenizer())
    with pytest.raises(InvalidInput, match="takes input_ids, attention_mask"):
        attached(tmp_path, "[text]\nmax_length = 5\n", IMAGES)
    odd = Signature(inputs=(spec("input_ids", (-1, -1)), spec("attention_mask", (-1, -1))), outputs=ENCODER.outputs)
    with pytest.raises(InvalidInput, match="FP32, not INT64 or INT32"):
        attached(tmp_path, "[text]\nmax_length = 5\n", odd)
    flat = Signature(inputs=ENCODER.inputs, outputs=(spec("pooler", (-1, 16)),))
    with pytest.raises(InvalidInput, match="a vector per token"):
        attached(tmp_path, "[text]\nmax_length = 5\npool = 'cls'\n", flat)


PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "serve-images.md"


def test_every_field_stands_in_the_documentation():
    page = PAGE.read_text()
    for section in msgspec.structs.fields(Declaration):
        assert f"| `[{section.name}]` |" in page
        kind = next(k for k in section.type.__args__ if k is not type(None))
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}`" in page, field.name


def test_the_example_in_the_documentation_is_one_that_works(tmp_path):
    page = PAGE.read_text()
    text = page.partition("```toml\n")[2].partition("```")[0]
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    model = Signature(inputs=(spec("data", (-1, 3, 224, 224)),), outputs=IMAGES.outputs)
    assert attached(tmp_path, text, model).task == "classification"
