import json
import struct

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import v2, values
from argosy.serve.requests import check_inputs
from argosy.serve.wire import Tensor

ONE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
)


def body(**changes):
    entry = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.5, 2.5]} | changes
    return json.dumps({"inputs": [{k: v for k, v in entry.items() if v is not None}]}).encode()


def code_of(raw, header_length=None, signature=ONE):
    with pytest.raises(InvalidInput) as caught:
        check_inputs(signature, v2.decode_request(raw, header_length).inputs)
    return caught.value.code, caught.value.context.get("path", "")


def test_flat_and_nested_data_are_the_same_tensor():
    flat = v2.decode_request(body(data=[1.5, 2.5]), None).inputs["x"]
    nested = v2.decode_request(body(data=[[1.5, 2.5]]), None).inputs["x"]
    assert bytes(flat.data) == bytes(nested.data) == np.array([1.5, 2.5], "float32").tobytes()


def test_a_binary_tensor_stays_a_view_of_the_body():
    raw = np.array([1, 2], "float32").tobytes()
    head = body(data=None, parameters={"binary_data_size": 8})
    whole = head + raw
    found = v2.decode_request(whole, len(head)).inputs["x"]
    assert isinstance(found.data, memoryview)
    assert found.data.obj is whole
    assert bytes(found.data) == raw


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        ("BOOL", [True, False]), ("UINT8", [0, 255]), ("UINT16", [0, 65535]), ("UINT32", [0, 2**32 - 1]),
        ("UINT64", [0, 2**64 - 1]), ("INT8", [-128, 127]), ("INT16", [-(2**15), 2**15 - 1]),
        ("INT32", [-(2**31), 2**31 - 1]), ("INT64", [-(2**63), 2**63 - 1]), ("FP16", [-65504.0, 0.5]),
        ("FP32", [-3.4028234663852886e38, 0.5]), ("FP64", [1e300, -0.1]), ("BYTES", ["", "é\u0000x"]),
    ],
)  # fmt: skip
def test_each_datatype_keeps_its_extremes_there_and_back(datatype, values):
    request = v2.decode_request(body(datatype=datatype, shape=[2], data=values), None)
    answer, _ = v2.encode_response(request, "m", "1", list(request.inputs.values()), "id")
    assert json.loads(answer[0])["outputs"][0]["data"] == values


@pytest.mark.parametrize(
    ("datatype", "value"),
    [
        ("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT32", 2**31), ("UINT64", 2**64), ("INT64", 2**63),
        ("FP16", 65520.0), ("FP32", 1e39), ("FP32", "1"), ("FP32", True), ("FP32", None), ("INT32", 1.0),
        ("BOOL", 1), ("BYTES", 1),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_named_by_its_place(datatype, value):
    good = {"BOOL": True, "BYTES": "a"}.get(datatype, 0)
    assert code_of(body(datatype=datatype, shape=[2], data=[good, value])) in {
        ("wrong_value", "$.inputs[0].data[1]"),
        ("wrong_value", "$.inputs[0].data"),  # 64-bit bounds are checked behind the decoder
    }


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"data": [[1.0], [2.0, 3.0]], "shape": [2, 2]}, "ragged", "$.inputs[0].data"),
        ({"data": [1.0, 2.0, 3.0]}, "wrong_size", "$.inputs[0].data"),
        ({"data": [[1.0], [2.0]]}, "wrong_size", "$.inputs[0].data"),
        ({"shape": [2**31]}, "wrong_size", "$.inputs[0].data"),
        ({"shape": [-1, 2]}, "wrong_field", "$.inputs[0].shape[0]"),
        ({"shape": [1.5]}, "wrong_field", "$.inputs[0].shape[0]"),
        ({"shape": [1] * 17}, "wrong_field", "$.inputs[0].shape"),
        ({"datatype": "FP8"}, "wrong_datatype", "$.inputs[0].datatype"),
        ({"datatype": "FP64"}, "wrong_datatype", ""),
        ({"name": "z"}, "missing_input", ""),
        ({"data": None}, "missing_data", "$.inputs[0]"),
        ({"extra": 1}, "wrong_field", "$.inputs[0]"),
        ({"shape": [0, 2], "data": []}, "empty_input", ""),
        ({"shape": [1, 1, 2]}, "wrong_shape", ""),
        ({"shape": [2, 1]}, "wrong_shape", ""),
        ({"parameters": {"binary_data_size": 8}}, "wrong_size", "$.inputs[0].parameters.binary_data_size"),
    ],
)
def test_a_wrong_request_is_refused_with_code_and_path(changes, code, path):
    assert code_of(body(**changes)) == (code, path)


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"null", b'{"inputs": 1}', b'{"inputs": [{}]}', b"\xff", b"[" * 10_000]
)
def test_what_is_no_request_is_refused(text):
    with pytest.raises(InvalidInput):
        v2.decode_request(text, None)


def test_deeply_nested_data_is_refused_before_it_is_parsed():
    raw = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 900 + b"1" + b"]" * 900 + b"}]}"
    assert code_of(raw)[0] == "wrong_shape"


@pytest.mark.parametrize(
    ("size", "extra", "header"),
    [(8, b"", 0), (8, b"1234567", 0), (8, b"123456789", 0), (-1, b"12345678", 0), (True, b"1", 0), (8, b"12345678", 5)],
)
def test_binary_lengths_that_do_not_add_up_are_refused(size, extra, header):
    head = body(data=None, parameters={"binary_data_size": size})
    with pytest.raises(InvalidInput):
        v2.decode_request(head + extra, len(head) + header)


def test_binary_texts_whose_lengths_lie_are_refused():
    raw = struct.pack("<I", 100) + b"ab"
    head = body(datatype="BYTES", shape=[1], data=None, parameters={"binary_data_size": len(raw)})
    with pytest.raises(InvalidInput, match="announced"):
        v2.decode_request(head + raw, len(head))


def test_outputs_come_binary_where_asked_and_as_json_where_not():
    request = v2.decode_request(
        json.dumps(
            {
                "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}],
                "outputs": [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}],
            }
        ).encode(),
        None,
    )
    outputs = [Tensor("a", "INT32", (1,), struct.pack("<i", 7)), Tensor("b", "FP32", (1,), struct.pack("<f", 0.5))]
    pieces, head = v2.encode_response(request, "m", "3", outputs, "id")
    answer = json.loads(pieces[0])
    assert head == len(pieces[0])
    assert answer["outputs"] == [
        {"name": "b", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        {"name": "a", "datatype": "INT32", "shape": [1], "data": [7]},
    ]
    assert bytes(pieces[1]) == struct.pack("<f", 0.5)


def test_the_callers_id_comes_back():
    raw = json.dumps({"id": "abc", "inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}]}).encode()
    request = v2.decode_request(raw, None)
    answer = json.loads(v2.encode_response(request, "m", "1", [], "p")[0][0])
    assert answer["id"] == "abc"
    assert answer["parameters"] == {"prediction": "p"}


def test_an_unknown_output_is_refused_by_its_place():
    request = v2.decode_request(
        json.dumps(
            {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1]}], "outputs": [{"name": "q"}]}
        ).encode(),
        None,
    )
    with pytest.raises(InvalidInput, match=r"no output 'q'.*\$\.outputs\[0\]"):
        v2.check_outputs(ONE, request)


def test_an_output_of_bytes_that_are_no_text_asks_for_binary():
    request = v2.decode_request(body(), None)
    with pytest.raises(InvalidInput) as caught:
        v2.encode_response(request, "m", "1", [Tensor("y", "BYTES", (1,), b"\x01\0\0\0\xff")], "p")
    assert caught.value.code == "not_text"


def test_a_flat_list_nests_like_its_shape():
    flat = list(range(24))
    assert values.nest(flat, [2, 3, 4]) == np.arange(24).reshape(2, 3, 4).tolist()
    assert values.nest(flat[:1], []) == 0
