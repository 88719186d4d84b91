"""Messages of the Open Inference Protocol over gRPC: to tensors and back, and what is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES
from argosy.serve.rpc import codec, messages
from argosy.serve.rpc.codec import MAX_TYPED_BYTES, encode_response, parse, parse_infer, read_request
from argosy.serve.rpc.messages import ModelInferRequest, ModelInferResponse
from argosy.serve.wire import Tensor

PROTO = Path(messages.__file__).with_name("inference.proto")

TYPED = {
    "BOOL": ("bool_contents", [True, False], b"\x01\0"),
    "INT8": ("int_contents", [-128, 127], b"\x80\x7f"),
    "INT16": ("int_contents", [-1, 2], struct.pack("<2h", -1, 2)),
    "INT32": ("int_contents", [-(2**31), 2**31 - 1], struct.pack("<2i", -(2**31), 2**31 - 1)),
    "INT64": ("int64_contents", [-(2**63), 5], struct.pack("<2q", -(2**63), 5)),
    "UINT8": ("uint_contents", [0, 255], b"\0\xff"),
    "UINT16": ("uint_contents", [0, 65535], struct.pack("<2H", 0, 65535)),
    "UINT32": ("uint_contents", [1, 2**32 - 1], struct.pack("<2I", 1, 2**32 - 1)),
    "UINT64": ("uint64_contents", [1, 2**64 - 1], struct.pack("<2Q", 1, 2**64 - 1)),
    "FP32": ("fp32_contents", [1.5, float("inf")], struct.pack("<2f", 1.5, float("inf"))),
    "FP64": ("fp64_contents", [1.1, -2.0], struct.pack("<2d", 1.1, -2.0)),
    "BYTES": ("bytes_contents", [b"Zo\xc3\xab", b""], b"\x04\0\0\0Zo\xc3\xab\0\0\0\0"),
}  # fmt: skip


def entry(datatype="FP32", shape=(1, 2), name="x", **contents):
    return {"name": name, "datatype": datatype, "shape": shape} | ({"contents": contents} if contents else {})


def infer(*inputs, raw=(), **more):
    return ModelInferRequest(model_name="m", inputs=inputs, raw_input_contents=list(raw), **more).SerializeToString()


def read(data):
    return read_request(parse_infer(data))


def refused(data):
    with pytest.raises(InvalidInput) as caught:
        read(data)
    return caught.value


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_elements_become_the_raw_tensor(datatype):
    field, elements, raw = TYPED[datatype]
    asked = read(infer(entry(datatype, (1, 2), **{field: elements})))
    tensor = asked.inputs["x"]
    assert (tensor.datatype, tensor.shape, bytes(tensor.data)) == (datatype, (1, 2), raw)
    assert not asked.is_binary


@pytest.mark.parametrize("datatype", DATATYPES)
def test_raw_tensors_stay_views_of_the_message(datatype):
    data = b"\x02\0\0\0ab\0\0\0\0" if datatype == "BYTES" else bytes(2 * DATATYPES[datatype][1])
    message = infer(entry(datatype), raw=[data], id="7")
    asked = read(message)
    assert (asked.id, asked.is_binary, bytes(asked.inputs["x"].data)) == ("7", True, data)
    assert asked.inputs["x"].data.obj is message


def test_every_datatype_but_half_precision_has_typed_contents():
    assert {*TYPED, "FP16"} == set(DATATYPES)
    error = refused(infer(entry("FP16", fp32_contents=[1, 2])))
    assert (error.code, error.context["path"]) == ("wrong_field", "$.inputs[0].contents")
    assert "raw_input_contents" in error.hint


def test_outputs_that_are_asked_for_are_noted():
    data = infer(entry(fp32_contents=[1, 2]), outputs=[{"name": "b"}, {"name": "a"}])
    assert read(data).outputs == (("b", False), ("a", False))


@pytest.mark.parametrize(
    ("name", "data", "code", "path"),
    [
        ("both ways", infer(entry(fp32_contents=[1, 2]), raw=[b"\0" * 8]), "wrong_field", "$.inputs[0].contents"),
        ("too few raw", infer(entry(), entry(name="z"), raw=[b"\0" * 8]), "wrong_size", "$.raw_input_contents"),
        ("too many raw", infer(entry(), raw=[b"\0" * 8] * 2), "wrong_size", "$.raw_input_contents"),
        ("raw too short", infer(entry(), raw=[b"\0" * 7]), "wrong_size", "$.inputs[0]"),
        ("raw too long", infer(entry(), raw=[b"\0" * 9]), "wrong_size", "$.inputs[0]"),
        ("texts that overlap", infer(entry("BYTES"), raw=[b"\x08\0\0\0" * 3]), "wrong_size", None),
        ("too few elements", infer(entry(fp32_contents=[1])), "wrong_size", "$.inputs[0].contents.fp32_contents"),
        ("too many elements", infer(entry(fp32_contents=[1] * 3)), "wrong_size", "$.inputs[0].contents.fp32_contents"),
        ("no elements", infer(entry()), "missing_data", "$.inputs[0].contents.fp32_contents"),
        ("another field", infer(entry(fp64_contents=[1, 2])), "wrong_field", "$.inputs[0].contents.fp64_contents"),
        ("two fields", infer(entry(fp32_contents=[1, 2], int_contents=[1, 2])), "wrong_field",
         "$.inputs[0].contents.int_contents"),
        ("beyond INT8", infer(entry("INT8", int_contents=[1, 128])), "wrong_value",
         "$.inputs[0].contents.int_contents"),
        ("beyond UINT16", infer(entry("UINT16", uint_contents=[1, 65536])), "wrong_value",
         "$.inputs[0].contents.uint_contents"),
        ("unknown datatype", infer(entry("FP31", fp32_contents=[1, 2])), "wrong_datatype", "$.inputs[0].datatype"),
        ("BF16", infer(entry("BF16"), raw=[b"\0" * 4]), "wrong_datatype", "$.inputs[0].datatype"),
        ("negative size", infer(entry(shape=(-1, 2), fp32_contents=[1, 2])), "wrong_shape", "$.inputs[0].shape"),
        ("17 dimensions", infer(entry(shape=(1,) * 17, fp32_contents=[1])), "wrong_shape", "$.inputs[0].shape"),
        ("a product beyond 64 bits", infer(entry(shape=(2**62, 2**62)), raw=[b"\0" * 8]), "wrong_size", "$.inputs[0]"),
        ("the same beyond 64 bits, typed", infer(entry(shape=(2**63 - 1, 4), fp32_contents=[1, 2])), "wrong_size",
         "$.inputs[0].contents.fp32_contents"),
        ("twice", infer(entry(fp32_contents=[1, 2]), entry(fp32_contents=[1, 2])), "repeated_input", None),
        ("shared memory", infer(entry() | {"parameters": {"shared_memory_region": {"string_param": "r"}}}),
         "unsupported_parameter", "$.inputs[0].parameters.shared_memory_region"),
        ("classification", infer(entry(fp32_contents=[1, 2]), outputs=[
            {"name": "y", "parameters": {"classification": {"int64_param": 3}}}]),
         "unsupported_parameter", "$.outputs[0].parameters.classification"),
        ("a sequence", infer(entry(fp32_contents=[1, 2]), parameters={"sequence_id": {"int64_param": 3}}),
         "unsupported_parameter", "$.parameters.sequence_id"),
        ("a timeout that is a text", infer(entry(fp32_contents=[1, 2]), parameters={"timeout": {"string_param": "1"}}),
         "bad_timeout", "$.parameters.timeout"),
        ("a timeout without a value", infer(entry(fp32_contents=[1, 2]), parameters={"timeout": {}}),
         "bad_timeout", "$.parameters.timeout"),
        ("too many outputs", infer(outputs=[{"name": "y"}] * 1025), "wrong_field", "$"),
        ("an unknown field", infer(entry(fp32_contents=[1, 2])) + b"\x98\x06\x01", "wrong_field", "$"),
        ("an unknown field of an input", infer() + b"\x2a\x03\x98\x06\x01", "wrong_field", "$.inputs[0]"),
        ("an unknown field of contents", infer() + b"\x2a\x0d\x12\x04FP32\x2a\x05\x98\x06\x01\x30\x00",
         None, None),
        ("no message", b"\xff\xff", "bad_message", None),
        ("a name that is not UTF-8", b"\x0a\x02\xff\xfe", "bad_message", None),
        ("a group", b"\x0b\x0c", "bad_message", None),
        ("text for a message", b'{"inputs": []}', "bad_message", None),
    ],
)  # fmt: skip
def test_what_is_wrong_is_refused_with_its_path(name, data, code, path):
    error = refused(data)
    if code is not None:
        assert (name, error.code) == (name, code)
    if path is not None:
        assert error.context["path"] == path


def test_the_time_of_tritons_parameter_is_read_in_microseconds():
    data = infer(entry(fp32_contents=[1, 2]), parameters={"timeout": {"int64_param": 1_500_000}})
    assert read(data).timeout_s == 1.5


def test_more_typed_elements_than_can_be_read_in_a_moment_are_refused():
    data = infer(entry("BYTES", (1,), bytes_contents=[b"a" * MAX_TYPED_BYTES]))
    error = refused(data)
    assert error.code == "body_too_large"
    assert "raw_input_contents" in error.hint
    assert read(infer(entry("BYTES", (1,)), raw=[struct.pack("<I", MAX_TYPED_BYTES) + b"a" * MAX_TYPED_BYTES]))


OUTPUTS = [
    Tensor("y", "FP32", (1, 2), np.array([1.5, -2], "float32").tobytes()),
    Tensor("n", "INT64", (1,), np.array([7], "int64").tobytes()),
    Tensor("t", "BYTES", (1,), b"\x02\0\0\0hi"),
]


def answered(request, outputs=OUTPUTS):
    found = ModelInferResponse.FromString(encode_response(read(request), "m", "3", outputs, "p1"))
    assert (found.model_name, found.model_version, found.parameters["prediction"].string_param) == ("m", "3", "p1")
    return found


def test_a_typed_request_gets_typed_outputs():
    found = answered(infer(entry(fp32_contents=[1, 2]), id="7"))
    assert (found.id, list(found.raw_output_contents)) == ("7", [])
    assert [(o.name, o.datatype, list(o.shape)) for o in found.outputs] == [
        ("y", "FP32", [1, 2]), ("n", "INT64", [1]), ("t", "BYTES", [1]),
    ]  # fmt: skip
    contents = [o.contents for o in found.outputs]
    assert list(contents[0].fp32_contents) == [1.5, -2.0]
    assert list(contents[1].int64_contents) == [7]
    assert list(contents[2].bytes_contents) == [b"hi"]


@pytest.mark.parametrize("datatype", TYPED)
def test_typed_outputs_of_every_kind_are_the_elements(datatype):
    field, elements, raw = TYPED[datatype]
    found = answered(infer(entry(fp32_contents=[1, 2])), [Tensor("y", datatype, (2,), memoryview(raw))])
    assert list(getattr(found.outputs[0].contents, field)) == elements


def test_a_raw_request_gets_raw_outputs_in_the_order_asked_for():
    found = answered(infer(entry(), raw=[b"\0" * 8], outputs=[{"name": "t"}, {"name": "y"}]))
    assert [output.name for output in found.outputs] == ["t", "y"]
    assert list(found.raw_output_contents) == [b"\x02\0\0\0hi", OUTPUTS[0].data]
    assert not any(output.HasField("contents") for output in found.outputs)


def test_half_precision_comes_raw_whatever_was_sent():
    outputs = [*OUTPUTS[:1], Tensor("h", "FP16", (1,), b"\0\x3c")]
    found = answered(infer(entry(fp32_contents=[1, 2])), outputs)
    assert list(found.raw_output_contents) == [OUTPUTS[0].data, b"\0\x3c"]


def test_an_answer_of_too_many_numbers_to_write_one_by_one_is_refused():
    large = Tensor("n", "INT64", (1, MAX_TYPED_BYTES // 8 + 1), bytes(MAX_TYPED_BYTES + 8))
    with pytest.raises(InvalidInput, match="written as typed contents") as caught:
        encode_response(read(infer(entry(fp32_contents=[1, 2]))), "m", "3", [large], "p")
    assert caught.value.code == "answer_too_large"


def test_other_messages_are_as_strict():
    with pytest.raises(InvalidInput, match="field number 9"):
        parse(messages.ModelReadyRequest, b"\x48\x01")


def test_the_compiled_messages_are_those_of_the_proto_file(tmp_path):
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is in the dev group")
    made = tmp_path / "made.binpb"
    status = protoc.main(["protoc", f"-I{PROTO.parent}", f"--descriptor_set_out={made}", PROTO.name])
    assert status == 0
    assert made.read_bytes() == PROTO.with_suffix(".binpb").read_bytes(), "run: make proto"


def test_names_and_numbers_are_those_of_tritons_client():
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2").DESCRIPTOR
    config = pytest.importorskip("tritonclient.grpc.model_config_pb2").DESCRIPTOR
    ours = messages.POOL.FindFileByName("inference.proto")
    assert len(ours.message_types_by_name) > 20
    for name, message in ours.message_types_by_name.items():
        other = theirs.message_types_by_name.get(name) or config.message_types_by_name[name]
        assert _same(message, other), name
    for method in ours.services_by_name["GRPCInferenceService"].methods:
        other = theirs.services_by_name["GRPCInferenceService"].methods_by_name[method.name]
        assert (method.input_type.name, method.output_type.name) == (other.input_type.name, other.output_type.name)
    kinds = {value.name: value.number for value in config.enum_types_by_name["DataType"].values}
    assert {v.name: v.number for v in ours.enum_types_by_name["DataType"].values}.items() <= kinds.items()


def _same(message, other):
    fields = {f.number: (f.name, f.type, f.is_repeated) for f in other.fields}
    nested = {n.name: n for n in other.nested_types}
    return all((f.name, f.type, f.is_repeated) == fields.get(f.number) for f in message.fields) and all(
        _same(n, nested[n.name]) for n in message.nested_types
    )


def test_messages_of_tritons_client_live_beside_ours_in_one_process():
    theirs = pytest.importorskip("tritonclient.grpc.service_pb2")
    data = theirs.ModelInferRequest(model_name="m").SerializeToString()
    assert codec.parse(ModelInferRequest, data).model_name == "m"
