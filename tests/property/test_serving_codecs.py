"""Whatever is sent: tensors come back as they were, and anything else is an InvalidInput."""

import contextlib
import json

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPE_OF_NUMPY, Signature, TensorSpec
from argosy.serve import plain, v2, values, wire
from argosy.serve.batcher import Work
from argosy.serve.engine import read_inputs, write_outputs
from argosy.serve.pool import split
from argosy.serve.requests import Inputs, check_inputs

kinds = st.sampled_from([n for n in DATATYPE_OF_NUMPY if n != "object"])
shapes = hnp.array_shapes(min_dims=1, max_dims=4, max_side=4)
arrays = kinds.flatmap(
    lambda kind: hnp.arrays(
        kind, shapes, elements={"allow_nan": False, "allow_infinity": False} if kind.startswith("float") else None
    )
)
texts = st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1, max_size=8)


def datatype(array):
    return DATATYPE_OF_NUMPY[array.dtype.name]


@given(arrays, st.booleans())
def test_json_tensors_come_back_bit_for_bit(array, nested):
    data = array.tolist() if nested else array.ravel().tolist()
    entry = {"name": "x", "datatype": datatype(array), "shape": list(array.shape), "data": data}
    request = v2.decode_request(json.dumps({"inputs": [entry]}).encode(), None)
    assert bytes(request.inputs["x"].data) == array.tobytes()
    answer = msgspec.json.decode(v2.encode_response(request, "m", "1", list(request.inputs.values()), "")[0][0])
    back = np.array(answer["outputs"][0]["data"], dtype=array.dtype)
    assert back.tobytes() == array.tobytes()


@given(st.lists(arrays, min_size=1, max_size=4))
def test_binary_tensors_come_back_bit_for_bit(found):
    entries = [
        {"name": f"x{i}", "datatype": datatype(a), "shape": list(a.shape), "parameters": {"binary_data_size": a.nbytes}}
        for i, a in enumerate(found)
    ]
    head = json.dumps({"inputs": entries, "parameters": {"binary_data_output": True}}).encode()
    request = v2.decode_request(head + b"".join(a.tobytes() for a in found), len(head))
    pieces, size = v2.encode_response(request, "m", "1", list(request.inputs.values()), "")
    assert size == len(pieces[0])
    assert [bytes(piece) for piece in pieces[1:]] == [a.tobytes() for a in found]


@given(texts)
def test_texts_come_back_as_they_were(words):
    assert values.unpack(values.pack(words, "BYTES", "$"), "BYTES") == words


@given(st.binary(max_size=300), st.one_of(st.none(), st.integers(-5, 400)))
def test_any_bytes_are_a_request_or_an_invalid_input(raw, header):
    signature = Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),), outputs=())
    for read in (lambda: v2.decode_request(raw, header), lambda: plain.decode_request(raw, signature)):
        with contextlib.suppress(InvalidInput):
            read()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=10,
)


@given(json_values, json_values, json_values)
def test_any_json_is_a_request_or_an_invalid_input(data, shape, extra):
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="INT8", shape=(-1, 2), columns=("a", "b")),), outputs=()
    )
    bodies = (
        {"inputs": [{"name": "x", "datatype": "INT8", "shape": shape, "data": data}]},
        {"inputs": [{"name": "x", "datatype": "INT8", "shape": [1, 2], "data": data, "parameters": extra}]},
    )
    for body in bodies:
        with contextlib.suppress(InvalidInput):
            check_inputs(signature, v2.decode_request(json.dumps(body).encode(), None).inputs)
    for inputs in ({"x": data}, {"a": data, "b": shape}, data):
        with contextlib.suppress(InvalidInput):
            check_inputs(signature, plain.decode_request(json.dumps({"inputs": inputs}).encode(), signature).inputs)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=6))
def test_columns_are_the_rows_of_the_table(numbers):
    signature = Signature(
        inputs=(TensorSpec(name="f", datatype="FP32", shape=(-1, 2), columns=("a", "b")),), outputs=()
    )
    body = {"inputs": {"b": [2 * i for i in range(len(numbers))], "a": numbers}}
    tensor = plain.decode_request(json.dumps(body).encode(), signature).inputs["f"]
    table = np.frombuffer(tensor.data, "float32").reshape(tensor.shape)
    assert table[:, 0].tolist() == np.array(numbers, "float32").tolist()
    assert table[:, 1].tolist() == [2.0 * i for i in range(len(numbers))]


@given(st.data())
def test_joining_requests_and_splitting_answers_gives_each_its_own_rows(data):
    """The gateway joins raw bytes, the replica reads arrays and writes arrays, the gateway splits raw bytes."""
    width = data.draw(st.integers(1, 3))
    rows = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    kind = data.draw(kinds)
    numbers = [data.draw(hnp.arrays(kind, (n, width))) for n in rows]
    words = [data.draw(st.lists(st.binary(max_size=5), min_size=n, max_size=n)) for n in rows]
    order = wire.Run(1, (("a", datatype(numbers[0]), (sum(rows), width)), ("t", "BYTES", (sum(rows),))), tuple(rows))
    body = b"".join(a.tobytes() for a in numbers) + b"".join(values.pack_texts(w) for w in words)
    outputs, pieces = write_outputs(read_inputs(order, memoryview(bytearray(body))), rows)
    works = [Work(Inputs((), n, (), 0)) for n in rows]
    answers = split(outputs, memoryview(b"".join(bytes(p) for p in pieces)), works)
    for answer, array, own in zip(answers, numbers, words, strict=True):
        first, second = answer
        assert first.shape == array.shape
        assert bytes(first.data) == array.tobytes()
        assert values.split_texts(second.data) == own


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 50))
def test_frames_survive_any_cut(bodies, size):
    data = b"".join(b"".join(bytes(p) for p in wire.encode(wire.Run(i, (), (1,)), [b])) for i, b in enumerate(bodies))
    reader = wire.FrameReader()
    found = [bytes(b) for at in range(0, len(data), size) for _, b in reader.feed(data[at : at + size])]
    assert found == bodies
