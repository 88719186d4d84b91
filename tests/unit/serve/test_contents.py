import base64
import json

import pytest

from argosy.core.errors import InvalidInput
from argosy.core.tensors import MAX_TEXT_BYTES, Signature, TensorSpec
from argosy.serve import plain, v2
from argosy.serve.contents import check_content, image_of_body, parse_base64
from argosy.serve.requests import check_inputs
from argosy.serve.values import pack_texts, split_texts
from argosy.serve.wire import Tensor
from pictures import HOSTILE, encoded, pixels

TEXT = TensorSpec(name="text", datatype="BYTES", shape=(-1,), content="text")
IMAGE = TensorSpec(name="image", datatype="BYTES", shape=(-1,), content="image")
OUTPUT = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
TEXTS = Signature(inputs=(TEXT,), outputs=(OUTPUT,), about="texts are cut after 8 tokens")
IMAGES = Signature(inputs=(IMAGE,), outputs=(OUTPUT,))
PICTURE = encoded(pixels(), "JPEG")
BASE64 = base64.b64encode(PICTURE).decode()


def asked(inputs, signature):
    """Return the rows a plain request carries, and whether it is single."""
    found = plain.decode_request(json.dumps({"inputs": inputs}).encode(), signature)
    checked = check_inputs(signature, found.inputs)
    return split_texts(checked.tensors[0].data), found.is_single


def code_of(call, *given):
    with pytest.raises(InvalidInput) as caught:
        call(*given)
    return caught.value.code


def test_a_text_or_a_list_of_them_is_sent_as_it_is():
    assert asked({"text": "grün 🙂\0"}, TEXTS) == (["grün 🙂\0".encode()], True)
    assert asked({"text": ["a", ""]}, TEXTS) == ([b"a", b""], False)
    assert asked([{"text": "a"}, {"text": "b"}], TEXTS) == ([b"a", b"b"], False)


def test_an_image_or_a_list_of_them_is_sent_as_base64():
    assert asked({"image": BASE64}, IMAGES) == ([PICTURE], True)
    assert asked({"image": [BASE64, BASE64]}, IMAGES) == ([PICTURE, PICTURE], False)
    assert asked({"image": f"data:image/jpeg;base64,{BASE64}"}, IMAGES) == ([PICTURE], True)
    # Some encoders write / as \/.
    body = json.dumps({"inputs": {"image": BASE64}}).replace("/", "\\/").encode()
    assert split_texts(plain.decode_request(body, IMAGES).inputs["image"].data) == [PICTURE]


@pytest.mark.parametrize(
    ("value", "code", "path"),
    [
        (BASE64[:-1], "not_base64", "$.inputs.image"),
        (BASE64 + "\n", "not_base64", "$.inputs.image"),
        (" " + BASE64, "not_base64", "$.inputs.image"),
        ("not base64!", "not_base64", "$.inputs.image"),
        (BASE64.replace("/", "_"), "not_base64", "$.inputs.image"),
        ("é", "not_base64", "$.inputs.image"),
        ("data:image/png;base64", "not_an_image", None),
        ("data:image/png;base64,###", "not_base64", "$.inputs.image"),
        ("data:text/html;base64," + BASE64, "not_base64", "$.inputs.image"),
        ([BASE64, "?"], "not_base64", "$.inputs.image[1]"),
        (["?", BASE64], "not_base64", "$.inputs.image[0]"),
        ("", "not_an_image", None),
        (7, "wrong_value", "$.inputs.image"),
        ([BASE64, 7], "wrong_value", "$.inputs.image[1]"),
        (None, "wrong_value", "$.inputs.image"),
        ({"b64": BASE64}, "wrong_value", "$.inputs.image"),
        ([[BASE64]], "wrong_shape", "$.inputs.image"),
        ([], "empty_input", None),
        ([[1, 2], [3]], "wrong_value", None),
    ],
)
def test_wrong_base64_is_refused_with_its_path(value, code, path):
    with pytest.raises(InvalidInput) as caught:
        asked({"image": value}, IMAGES)
    assert caught.value.code == code
    if path:
        assert caught.value.context["path"].startswith(path)


@pytest.mark.parametrize(("name", "data", "code"), HOSTILE, ids=[name for name, _, _ in HOSTILE])
def test_hostile_images_do_not_get_into_the_queue(name, data, code):
    assert code_of(asked, {"image": base64.b64encode(data).decode()}, IMAGES) == code
    tensor = Tensor("image", "BYTES", (2,), pack_texts([PICTURE, data]))
    with pytest.raises(InvalidInput) as caught:
        check_inputs(IMAGES, {"image": tensor})
    assert caught.value.code == code
    assert caught.value.context["input"] == "image"
    assert "row 1" in caught.value.message


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff", "not_utf8"),
        (b"a\x80", "not_utf8"),
        (b"\xed\xa0\x80", "not_utf8"),
        (b"\xc0\xaf", "not_utf8"),
        (b"a" * (MAX_TEXT_BYTES + 1), "text_too_large"),
        (b"\xff" * (MAX_TEXT_BYTES + 1), "text_too_large"),
    ],
)
def test_what_is_no_text_is_refused_whatever_the_transport(data, code):
    tensor = Tensor("text", "BYTES", (2,), pack_texts([b"good", data]))
    assert code_of(check_inputs, TEXTS, {"text": tensor}) == code


def test_the_longest_text_is_what_requests_are_grouped_by():
    data = pack_texts([b"a", b"x" * MAX_TEXT_BYTES, b""])
    assert check_content(TEXT, data) == MAX_TEXT_BYTES
    assert check_inputs(TEXTS, {"text": Tensor("text", "BYTES", (3,), data)}).length == MAX_TEXT_BYTES


def infer(signature, **changes):
    spec = signature.inputs[0]
    entry = {"name": spec.name, "datatype": "BYTES", "shape": [1], "data": [BASE64]} | changes
    body = json.dumps({"inputs": [{k: v for k, v in entry.items() if v is not None}]}).encode()
    return split_texts(check_inputs(signature, v2.decode_request(body, None).inputs).tensors[0].data)


def test_the_protocols_json_carries_images_as_base64_when_it_says_so():
    parameters = {"content_type": "base64"}
    assert infer(IMAGES, parameters=parameters) == [PICTURE]
    assert infer(IMAGES, parameters=parameters, shape=[2], data=[BASE64, BASE64]) == [PICTURE, PICTURE]
    with pytest.raises(InvalidInput) as caught:
        infer(IMAGES)
    assert caught.value.code == "not_an_image"
    assert '"content_type": "base64"' in caught.value.hint
    assert code_of(lambda: infer(IMAGES, parameters=parameters, data=["?"])) == "not_base64"
    assert code_of(lambda: infer(IMAGES, parameters=parameters, shape=[2])) == "wrong_size"


def test_the_protocols_json_carries_texts_as_they_are():
    assert infer(TEXTS, data=["grün"]) == ["grün".encode()]
    assert infer(TEXTS, data=["grün"], parameters={"content_type": "str"}) == ["grün".encode()]
    assert infer(TEXTS, data=["grün"], parameters={"content_type": "np"}) == ["grün".encode()]


def test_binary_tensors_carry_both_raw():
    for signature, item in ((TEXTS, "grün".encode()), (IMAGES, PICTURE)):
        raw = pack_texts([item])
        head = {"name": signature.inputs[0].name, "datatype": "BYTES", "shape": [1]}
        head["parameters"] = {"binary_data_size": len(raw)}
        text = json.dumps({"inputs": [head]}).encode()
        found = check_inputs(signature, v2.decode_request(text + raw, len(text)).inputs)
        assert split_texts(found.tensors[0].data) == [item]


def test_a_body_may_be_the_image_itself():
    found = plain.of_image(PICTURE, IMAGES)
    assert found.is_single
    assert split_texts(found.inputs["image"].data) == [PICTURE]
    assert split_texts(plain.of_image(memoryview(PICTURE), IMAGES).inputs["image"].data) == [PICTURE]
    two = Signature(inputs=(IMAGE, TEXT), outputs=(OUTPUT,))
    for signature in (TEXTS, two):
        assert code_of(image_of_body, PICTURE, signature) == "media_type"


def test_metadata_says_what_a_bytes_input_holds_and_how_json_carries_it():
    found = v2.metadata("m", ["1"], TEXTS)
    assert found["about"] == "texts are cut after 8 tokens"
    assert found["inputs"][0]["content"] == "text"
    assert found["inputs"][0]["parameters"] == {"content_type": "str"}
    found = v2.metadata("m", ["1"], IMAGES)
    assert "about" not in found
    assert found["inputs"][0]["parameters"] == {"content_type": "base64"}
    assert "content" not in found["outputs"][0]


def test_nested_base64_has_the_shape_of_its_lists():
    assert parse_base64(b'[["aGk="],["aG8="]]', "$") == ([b"hi", b"ho"], [2, 1])
    assert parse_base64(b'"aGk="', "$") == ([b"hi"], [])
