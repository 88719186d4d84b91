"""Raw tensors cut out of messages and put into them, against protobuf itself."""

import pytest

from argosy.core.errors import InvalidInput
from argosy.serve.rpc.envelope import MAX_FIELDS, cut_out, length_prefix, put_in
from argosy.serve.rpc.messages import ModelInferRequest, ModelInferResponse


def request(*raw, **more):
    return ModelInferRequest(model_name="m", raw_input_contents=list(raw), **more)


@pytest.mark.parametrize("size", [0, 1, 127, 128, 16383, 16384, 1 << 21])
def test_raw_tensors_of_every_size_of_length_are_cut_out_as_views(size):
    message = request(b"a" * size, b"", b"xyz", id="7", parameters={"p": {"int64_param": -1}})
    data = message.SerializeToString()
    rest, raw = cut_out(data, 7)
    assert [bytes(view) for view in raw] == [b"a" * size, b"", b"xyz"]
    assert all(view.obj is data for view in raw)
    message.ClearField("raw_input_contents")
    assert ModelInferRequest.FromString(rest) == message


def test_fields_in_any_order_are_found():
    parts = [request(b"one"), ModelInferRequest(id="7"), request(b"two"), ModelInferRequest(model_version="3")]
    rest, raw = cut_out(b"".join(part.SerializeToString() for part in parts), 7)
    assert [bytes(view) for view in raw] == [b"one", b"two"]
    assert ModelInferRequest.FromString(rest) == ModelInferRequest(model_name="m", id="7", model_version="3")


def test_a_message_without_raw_tensors_is_left_as_it_is():
    data = request(id="7").SerializeToString()
    rest, raw = cut_out(data, 7)
    assert (rest, raw) == (data, [])
    assert rest is data


def test_put_in_writes_what_protobuf_would():
    expected = ModelInferResponse(model_name="m", raw_output_contents=[b"a" * 300, b"", b"b"])
    head = ModelInferResponse(model_name="m").SerializeToString()
    written = put_in(head, 6, [memoryview(b"a" * 300), b"", b"b"])
    assert written == expected.SerializeToString()
    assert length_prefix(6, 300) == b"\x32\xac\x02"


@pytest.mark.parametrize(
    "data",
    [
        b"\x3a",  # a raw tensor without a length
        b"\x3a\x05abc",  # shorter than it says
        b"\x3a\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",  # a length of more than 64 bits
        b"\x3a\x80",  # a length that does not end
        b"\x3b\x3c",  # a group
        b"\x3f\x00",  # a kind that does not exist
    ],
)
def test_what_is_no_message_is_refused(data):
    with pytest.raises(InvalidInput, match="proto") as caught:
        cut_out(data, 7)
    assert caught.value.code == "bad_message"


def test_a_message_of_a_million_fields_is_refused_at_once():
    with pytest.raises(InvalidInput, match=f"more than {MAX_FIELDS}"):
        cut_out(b"\x2a\x00" * 1_000_000, 7)
