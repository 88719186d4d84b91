"""Whatever bytes come over gRPC: a request that was meant, or an InvalidInput; tensors come back as they were."""

import contextlib

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPE_OF_NUMPY
from argosy.serve.rpc.codec import encode_response, parse_infer, read_request
from argosy.serve.rpc.envelope import cut_out, put_in
from argosy.serve.rpc.messages import ModelInferRequest, ModelInferResponse
from argosy.serve.wire import Tensor

FIELDS = {
    "bool": "bool_contents", "int8": "int_contents", "int16": "int_contents", "int32": "int_contents",
    "int64": "int64_contents", "uint8": "uint_contents", "uint16": "uint_contents", "uint32": "uint_contents",
    "uint64": "uint64_contents", "float32": "fp32_contents", "float64": "fp64_contents",
}  # fmt: skip
shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
raw_arrays = st.sampled_from([n for n in DATATYPE_OF_NUMPY if n != "object"]).flatmap(lambda k: hnp.arrays(k, shapes))
typed_arrays = st.sampled_from(list(FIELDS)).flatmap(lambda kind: hnp.arrays(kind, shapes))


def message(array, *, is_raw):
    entry = {"name": "x", "datatype": DATATYPE_OF_NUMPY[array.dtype.name], "shape": array.shape}
    if not is_raw:
        entry["contents"] = {FIELDS[array.dtype.name]: array.ravel().tolist()}
    return ModelInferRequest(inputs=[entry], raw_input_contents=[array.tobytes()] if is_raw else [])


@given(raw_arrays)
def test_raw_tensors_come_back_bit_for_bit(array):
    request = read_request(parse_infer(message(array, is_raw=True).SerializeToString()))
    assert bytes(request.inputs["x"].data) == array.tobytes()
    answer = ModelInferResponse.FromString(encode_response(request, "m", "1", list(request.inputs.values()), ""))
    assert list(answer.raw_output_contents) == [array.tobytes()]


@given(typed_arrays)
def test_typed_tensors_come_back_as_they_were(array):
    request = read_request(parse_infer(message(array, is_raw=False).SerializeToString()))
    tensor = request.inputs["x"]
    found = np.frombuffer(bytes(tensor.data), array.dtype).reshape(array.shape)
    np.testing.assert_array_equal(found, array)
    answer = ModelInferResponse.FromString(encode_response(request, "m", "1", [tensor], ""))
    back = np.array(list(getattr(answer.outputs[0].contents, FIELDS[array.dtype.name])), array.dtype)
    np.testing.assert_array_equal(back, array.ravel())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data):
    with contextlib.suppress(InvalidInput):
        read_request(parse_infer(data))


@given(st.data(), st.booleans())
def test_a_damaged_message_is_read_or_refused(data, is_raw):
    array = np.arange(6, dtype="float32").reshape(2, 3)
    whole = bytearray(message(array, is_raw=is_raw).SerializeToString())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(whole) - 1))
        whole[at] = data.draw(st.integers(0, 255))
    with contextlib.suppress(InvalidInput):
        request = read_request(parse_infer(bytes(whole)))
        for tensor in request.inputs.values():
            assert isinstance(tensor, Tensor)


@given(st.lists(st.binary(max_size=300), max_size=5), st.text(max_size=20))
def test_what_is_put_in_is_cut_out_again(values, name):
    head = ModelInferRequest(model_name=name).SerializeToString()
    rest, found = cut_out(put_in(head, 7, values), 7)
    assert (rest, [bytes(view) for view in found]) == (head, values)
