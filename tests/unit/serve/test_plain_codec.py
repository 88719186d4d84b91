import json
import math

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import plain
from argosy.serve.values import pack, pack_texts, split_texts
from argosy.serve.wire import Tensor

TABLE = Signature(
    inputs=(
        TensorSpec(name="features", datatype="FP32", shape=(-1, 2), columns=("age", "height")),
        TensorSpec(name="categories", datatype="BYTES", shape=(-1, 1), columns=("city",)),
    ),
    outputs=(
        TensorSpec(name="probabilities", datatype="FP32", shape=(-1, 2), columns=("no", "yes")),
        TensorSpec(name="label", datatype="BYTES", shape=(-1,)),
    ),
)
IMAGE = Signature(
    inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 2, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 3)),),
)


def read(inputs, signature=TABLE):
    return plain.decode_request(json.dumps({"inputs": inputs}).encode(), signature)


def refused(inputs, signature=TABLE):
    with pytest.raises(InvalidInput) as caught:
        read(inputs, signature)
    return caught.value


def features(request):
    tensor = request.inputs["features"]
    return np.frombuffer(tensor.data, "float32").reshape(tensor.shape).tolist()


def test_columns_of_single_values_make_one_row():
    request = read({"age": 41, "height": 1.5, "city": "Lyon"})
    assert request.is_single
    assert features(request) == [[41.0, 1.5]]
    assert request.inputs["categories"].shape == (1, 1)
    assert split_texts(request.inputs["categories"].data) == [b"Lyon"]


def test_columns_of_lists_make_many_rows_in_order():
    request = read({"city": ["Lyon", "Oslo"], "height": [1.5, 2.5], "age": [41, 37]})
    assert not request.is_single
    assert features(request) == [[41.0, 1.5], [37.0, 2.5]]


def test_a_list_of_rows_is_the_same_as_columns_of_lists():
    by_rows = read([{"age": 41, "height": 1.5, "city": "Lyon"}, {"city": "Oslo", "age": 37, "height": 2.5}])
    by_columns = read({"city": ["Lyon", "Oslo"], "height": [1.5, 2.5], "age": [41, 37]})
    assert by_rows == by_columns


def test_a_missing_value_of_a_table_is_null():
    request = read({"age": None, "height": 1.5, "city": None})
    assert math.isnan(features(request)[0][0])
    assert split_texts(request.inputs["categories"].data) == [b""]


def test_a_tensor_may_be_sent_whole_with_or_without_the_batch_dimension():
    one = read({"image": [[[1, 2], [3, 4]]]}, IMAGE)
    many = read({"image": [[[[1, 2], [3, 4]]]]}, IMAGE)
    assert (one.is_single, many.is_single) == (True, False)
    assert one.inputs == many.inputs
    assert one.inputs["image"].shape == (1, 1, 2, 2)


def test_a_table_may_be_sent_as_its_whole_tensors():
    request = read({"features": [[41, 1.5]], "categories": [["Lyon"]]})
    assert features(request) == [[41.0, 1.5]]


@pytest.mark.parametrize(
    ("inputs", "code", "words"),
    [
        ({"age": 1, "city": "a"}, "missing_input", "'height'"),
        ({"age": 1, "height": 2, "city": "a", "weight": 3}, "unknown_input", "'weight'; send: age, height, city"),
        ({"age": "41", "height": 2, "city": "a"}, "wrong_value", r"\$\.inputs\.age"),
        ({"age": True, "height": 2, "city": "a"}, "wrong_value", r"\$\.inputs\.age"),
        ({"age": 1, "height": 2, "city": 3}, "wrong_value", r"\$\.inputs\.city"),
        ({"age": [1, "x"], "height": [2, 2], "city": ["a", "b"]}, "wrong_value", r"\$\.inputs\.age\[1\]"),
        ({"age": [1, 2], "height": [2], "city": ["a", "b"]}, "wrong_shape", "one length"),
        ({"age": 1, "height": [2], "city": "a"}, "wrong_shape", "one length"),
        ({"age": 1, "height": 2, "city": ["a"]}, "wrong_shape", "single values and others lists"),
        ({"age": [[1]], "height": [[2]], "city": [["a"]]}, "wrong_shape", r"\[1, 1\]"),
        ({"age": 1e39, "height": 2, "city": "a"}, "wrong_value", r"\$\.inputs\.age"),
        ({"features": [1, 2], "age": 1, "categories": ["a"]}, "repeated_input", "by its columns"),
        ([], "empty_input", "empty"),
        ([{"age": 1}, {"height": 2}], "missing_input", r"\$\.inputs\[1\]"),
        ({}, "missing_input", "age"),
        ("x", "wrong_field", "inputs"),
    ],
)  # fmt: skip
def test_wrong_inputs_are_named(inputs, code, words):
    import re

    error = refused(inputs)
    assert error.code == code
    assert re.search(words, error.message)


def test_null_has_no_place_in_an_image():
    assert refused({"image": [[[1, 2], [3, None]]]}, IMAGE).code == "wrong_value"


def test_an_image_of_another_size_is_refused_with_both_sizes():
    error = refused({"image": [[[1, 2, 3], [3, 4, 5]]]}, IMAGE)
    assert error.code == "wrong_shape"
    assert "[-1, 1, 2, 2]" in error.message
    assert "[1, 2, 3]" in error.message


OUTPUTS = [
    Tensor("probabilities", "FP32", (2, 2), pack([0.25, 0.75, 1.0, 0.0], "FP32", "")),
    Tensor("label", "BYTES", (2,), pack_texts(["yes", "no"])),
]


def answer(outputs, *, is_single):
    raw = plain.encode_response(TABLE, outputs, is_single=is_single, endpoint="e", ref="e:1", prediction="p")
    return json.loads(raw)


def test_many_rows_get_a_list_per_output_with_probabilities_by_name():
    assert answer(OUTPUTS, is_single=False) == {
        "endpoint": "e", "version": "e:1", "prediction": "p",
        "outputs": {"probabilities": [{"no": 0.25, "yes": 0.75}, {"no": 1.0, "yes": 0.0}], "label": ["yes", "no"]},
    }  # fmt: skip


def test_one_row_gets_plain_values():
    one = [
        Tensor("probabilities", "FP32", (1, 2), pack([0.25, 0.75], "FP32", "")),
        Tensor("label", "BYTES", (1,), pack_texts(["yes"])),
    ]
    assert answer(one, is_single=True)["outputs"] == {"probabilities": {"no": 0.25, "yes": 0.75}, "label": "yes"}
