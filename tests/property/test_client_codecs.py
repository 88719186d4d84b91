"""What a client sends is what the gateway reads, and what the gateway answers is what the client reads."""

import contextlib
import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from argosy.client import messages
from argosy.client.http1 import Answer, AnswerReader, address_of
from argosy.core.errors import ArgosyError
from argosy.core.tensors import DATATYPE_OF_NUMPY, Signature, TensorSpec
from argosy.serve import plain, v2, values

KINDS = [name for name in DATATYPE_OF_NUMPY if name != "object"]
arrays = st.sampled_from(KINDS).flatmap(
    lambda kind: hnp.arrays(st.sampled_from([kind, np.dtype(kind).newbyteorder(">")]), hnp.array_shapes(max_side=4))
)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4)
texts = hnp.arrays(object, hnp.array_shapes(max_side=3), elements=st.binary(max_size=9) | words)
tensors = st.dictionaries(words, arrays | texts, min_size=1, max_size=3)


def bytes_of(item):
    return item.encode() if isinstance(item, str) else item


def sent(request):
    """Take a request through the wire: return the head as the gateway's parser has it, and the body."""
    head = request.head(address_of("http://127.0.0.1:1"), (), 1.0)
    lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:-2])
    body = b"".join(bytes(piece) for piece in request.body)
    assert int(lines[b"content-length"]) == len(body)
    length = lines.get(b"inference-header-content-length")
    return body, None if length is None else int(length)


@given(tensors, st.booleans())
def test_arrays_arrive_bit_for_bit_and_come_back_so(found, by_name):
    names = list(found) if by_name else ()
    request = messages.infer_request("m", found, {}, outputs=names, version="", caller="")
    asked = v2.decode_request(*sent(request))
    for name, array in found.items():
        tensor = asked.inputs[name]
        assert tensor.shape == array.shape
        if array.dtype == object:
            assert values.split_texts(tensor.data) == [bytes_of(item) for item in array.ravel()]
        else:
            assert bytes(tensor.data) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    pieces, size = v2.encode_response(asked, "m", "1", list(asked.inputs.values()), "p")
    body = bytearray(b"".join(bytes(piece) for piece in pieces))
    answer = messages.read_inference(Answer(200, {"inference-header-content-length": str(size)}, body, True))
    assert list(answer.outputs) == list(found)
    for name, array in found.items():
        back = answer.outputs[name]
        assert back.shape == array.shape
        if array.dtype == object:
            assert back.ravel().tolist() == [bytes_of(item) for item in array.ravel()]
        else:
            assert back.dtype.name == array.dtype.name
            assert back.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()
            assert back.flags.writeable


@given(hnp.arrays("float32", st.tuples(st.integers(1, 4), st.just(2)), elements={"allow_infinity": False}))
def test_lists_and_arrays_mean_the_same_in_a_plain_request(rows):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2), columns=("a", "b")),), outputs=()
    )
    found = [
        plain.decode_request(sent(messages.predict_request("m", {"x": given}, ""))[0], signature).inputs["x"]
        for given in (rows, rows.tolist(), list(rows))
    ]
    assert all(tensor.shape == rows.shape for tensor in found)
    for tensor in found:
        np.testing.assert_array_equal(np.frombuffer(tensor.data, "float32").reshape(rows.shape), rows)


lengths = st.fixed_dictionaries({}, optional={"inference-header-content-length": st.text("0123456789-²x", max_size=4)})


@given(st.binary(max_size=200), lengths, st.integers(200, 599))
def test_any_answer_is_read_or_an_error_of_argosys(body, headers, status):
    answer = Answer(status, headers, bytearray(body), True)
    for read in (messages.read_prediction, messages.read_inference, messages.read_models, messages.read_metadata):
        with contextlib.suppress(ArgosyError):
            read(answer)
    assert isinstance(messages.refusal(answer, "http://h"), ArgosyError)


@given(st.lists(st.binary(max_size=60), max_size=6), st.integers(0, 300))
def test_any_bytes_are_an_answer_or_an_error_of_argosys_and_never_more_than_was_allowed(pieces, most):
    reader = AnswerReader(most)
    with contextlib.suppress(ArgosyError):
        for piece in pieces:
            reader.feed(piece)
        reader.end()
    if reader.answer is not None:
        assert len(reader.answer.body) <= most


@given(st.binary(max_size=100), st.sampled_from(["length", "chunked", "close"]), st.data())
def test_an_answer_is_the_same_however_it_is_cut(body, form, data):
    head = b"HTTP/1.1 200 OK\r\nargosy-version: m:1\r\n"
    if form == "length":
        raw = head + b"content-length: %d\r\n\r\n" % len(body) + body
    elif form == "chunked":
        cut = data.draw(st.integers(0, len(body)))
        parts = [part for part in (body[:cut], body[cut:]) if part]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        raw = head + b"transfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"
    else:
        raw = head + b"\r\n" + body
    size = data.draw(st.integers(1, len(raw)))
    reader = AnswerReader(1000)
    for at in range(0, len(raw), size):
        reader.feed(raw[at : at + size])
    reader.end()
    assert bytes(reader.answer.body) == body
    assert reader.answer.headers["argosy-version"] == "m:1"


@given(words)
def test_a_name_travels_as_it_is(name):
    from urllib.parse import unquote

    request = messages.metadata_request(name)
    assert unquote(request.path.rpartition("/")[2]) == name
    assert "\r" not in request.path
    assert json.dumps(request.path).isascii()
