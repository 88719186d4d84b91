"""Inference requests and answers: messages of the Open Inference Protocol to tensors and back.

Source: kserve/open-inference-protocol, `specification/protocol/inference_grpc.md`.
"""

import math
from collections.abc import Sequence
from typing import Any

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES
from argosy.serve import values
from argosy.serve.requests import check_size
from argosy.serve.rpc.envelope import cut_out, length_prefix, put_in
from argosy.serve.rpc.messages import ModelInferRequest, ModelInferResponse
from argosy.serve.triton import refuse_parameters, timeout_of
from argosy.serve.v2 import MAX_JSON_BYTES, InferRequest
from argosy.serve.wire import Tensor

MAX_TYPED_BYTES = MAX_JSON_BYTES
"""Typed elements become Python's numbers on the event loop, as those of JSON do."""
_MAX_RANK = 16
_MAX_TENSORS = 1024
_RAW_INPUTS, _RAW_OUTPUTS = 7, 6  # numbers of raw_input_contents and raw_output_contents

_FIELDS = {
    "BOOL": "bool_contents", "INT8": "int_contents", "INT16": "int_contents", "INT32": "int_contents",
    "INT64": "int64_contents", "UINT8": "uint_contents", "UINT16": "uint_contents", "UINT32": "uint_contents",
    "UINT64": "uint64_contents", "FP32": "fp32_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents",
}  # fmt: skip
# Protobuf writes the elements of these, behind a prefix, exactly as a raw tensor has them. Their fields' numbers.
_AS_WRITTEN = {"BOOL": 1, "FP32": 6, "FP64": 7}


def parse(kind: Any, data: bytes) -> Any:
    """Return a message of class `kind`; InvalidInput when the bytes are none, or have fields it doesn't know."""
    try:
        message = kind.FromString(data)
    except (DecodeError, UnicodeDecodeError) as error:
        raise InvalidInput("the message is not what the protocol's .proto file says", code="bad_message") from error
    _refuse_unknown(message, "$")
    return message


def parse_infer(data: bytes) -> tuple[Any, list[memoryview]]:
    """Return a ModelInferRequest without its raw tensors, and these as views of `data`. Raises InvalidInput."""
    rest, raw = cut_out(data, _RAW_INPUTS)
    if len(rest) > MAX_TYPED_BYTES:
        raise InvalidInput(
            f"the message has {len(rest)} bytes beside raw tensors; at most {MAX_TYPED_BYTES} are read, because others "
            "wait meanwhile",
            hint="send large tensors as raw_input_contents",
            code="body_too_large",
        )
    return parse(ModelInferRequest, rest), raw


def read_request(message: Any, raw: Sequence[memoryview]) -> InferRequest:
    """Return what is asked, not yet checked against any version; InvalidInput has the path of the wrong field."""
    refuse_parameters(message.parameters, "$")
    if max(len(message.inputs), len(message.outputs)) > _MAX_TENSORS:
        raise InvalidInput(f"a request has at most {_MAX_TENSORS} inputs and outputs", code="wrong_field", path="$")
    tensors = [_tensor(item, f"$.inputs[{index}]") for index, item in enumerate(message.inputs)]
    if raw and len(raw) != len(tensors):
        raise InvalidInput(
            f"{len(tensors)} inputs are described, but {len(raw)} raw tensors were sent - at `$.raw_input_contents`",
            code="wrong_size",
            path="$.raw_input_contents",
        )
    inputs: dict[str, Tensor] = {}
    for index, (tensor, item) in enumerate(zip(tensors, message.inputs, strict=True)):
        where = f"$.inputs[{index}]"
        if tensor.name in inputs:
            raise InvalidInput(f"input '{tensor.name[:100]}' is sent twice - at `{where}`", code="repeated_input")
        if raw:
            found = _with_raw(tensor, item, raw[index], where)
        else:
            found = _with_data(tensor, _from_contents(item.contents, tensor, f"{where}.contents"))
        inputs[tensor.name] = found
    outputs = []
    for index, output in enumerate(message.outputs):
        _refuse_unknown(output, f"$.outputs[{index}]")
        refuse_parameters(output.parameters, f"$.outputs[{index}]")
        outputs.append((output.name, bool(raw)))
    return InferRequest(message.id, inputs, tuple(outputs), bool(raw), _timeout_s(message.parameters))


def encode_response(
    request: InferRequest, name: str, version: str, outputs: Sequence[Tensor], prediction: str
) -> bytes:
    """Return an answer: raw when the request was, or when an output can only be raw; else with typed contents."""
    message = ModelInferResponse(model_name=name, model_version=version, id=request.id)
    message.parameters["prediction"].string_param = prediction
    by_name = {tensor.name: tensor for tensor in outputs}
    wanted = [by_name[output] for output, _ in request.outputs] if request.outputs else outputs
    is_raw = request.is_binary or any(tensor.datatype not in _FIELDS for tensor in wanted)
    for tensor in wanted:
        entry = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if not is_raw:
            _to_contents(entry.contents, tensor)
    head: bytes = message.SerializeToString()
    return put_in(head, _RAW_OUTPUTS, [tensor.data for tensor in wanted]) if is_raw else head


def _tensor(item: Any, where: str) -> Tensor:
    """Return an input as it is described, still without its elements."""
    _refuse_unknown(item, where)
    refuse_parameters(item.parameters, where)
    if item.datatype not in DATATYPES:
        raise InvalidInput(
            f"{item.datatype[:40]!r} is not a datatype; known are: {', '.join(DATATYPES)} - at `{where}.datatype`",
            code="wrong_datatype",
            path=f"{where}.datatype",
        )
    if len(item.shape) > _MAX_RANK or any(size < 0 for size in item.shape):
        raise InvalidInput(
            f"the shape {list(item.shape[:_MAX_RANK])} has more than {_MAX_RANK} dimensions, or one below 0 - at "
            f"`{where}.shape`",
            code="wrong_shape",
            path=f"{where}.shape",
        )
    return Tensor(item.name, item.datatype, tuple(item.shape), b"")


def _with_data(tensor: Tensor, data: bytes | memoryview) -> Tensor:
    return Tensor(tensor.name, tensor.datatype, tensor.shape, data)


def _with_raw(tensor: Tensor, item: Any, data: memoryview, where: str) -> Tensor:
    if item.HasField("contents"):
        raise InvalidInput(
            f"input '{tensor.name[:100]}' has contents, and raw_input_contents were sent too - at `{where}.contents`",
            hint="send all inputs of a request in one of the two ways",
            code="wrong_field",
            path=f"{where}.contents",
        )
    found = _with_data(tensor, data)
    check_size(found, where)
    return found


def _from_contents(contents: Any, tensor: Tensor, where: str) -> bytes | memoryview:
    field = _FIELDS.get(tensor.datatype)
    if field is None:
        raise InvalidInput(
            f"{tensor.datatype} has no typed contents - at `{where}`",
            hint="send it as raw_input_contents",
            code="wrong_field",
            path=where,
        )
    _refuse_unknown(contents, where)
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidInput(
                f"elements of {tensor.datatype} belong in `{field}`, but {other.name} was sent - at `{where}`",
                code="wrong_field",
                path=f"{where}.{other.name}",
            )
    elements = getattr(contents, field)
    count = math.prod(tensor.shape)
    if len(elements) != count:
        raise InvalidInput(
            f"the shape {list(tensor.shape)} needs {count} elements, but {len(elements)} were sent - at "
            f"`{where}.{field}`",
            code="wrong_size" if elements else "missing_data",
            path=f"{where}.{field}",
        )
    if tensor.datatype in _AS_WRITTEN:
        written = contents.SerializeToString()
        return memoryview(written)[len(written) - count * values.item_size(tensor.datatype) :]
    return values.pack(list(elements), tensor.datatype, f"{where}.{field}")


def _to_contents(contents: Any, tensor: Tensor) -> None:
    number = _AS_WRITTEN.get(tensor.datatype)
    if number is not None:
        contents.MergeFromString(length_prefix(number, len(tensor.data)) + bytes(tensor.data))
        return
    if len(tensor.data) > MAX_TYPED_BYTES:
        raise InvalidInput(
            f"the answer's '{tensor.name}' has {len(tensor.data)} bytes; at most {MAX_TYPED_BYTES} are written as "
            "typed contents",
            hint="send the inputs as raw_input_contents, then the outputs come raw too; or send fewer rows",
            code="answer_too_large",
        )
    is_text = tensor.datatype == "BYTES"
    elements = values.split_texts(tensor.data) if is_text else values.unpack(tensor.data, tensor.datatype)
    getattr(contents, _FIELDS[tensor.datatype]).extend(elements)


def _refuse_unknown(message: Any, where: str) -> None:
    """Raise InvalidInput for fields the protocol doesn't have: what they ask for would not be done."""
    unknown = UnknownFieldSet(message)
    if len(unknown):
        raise InvalidInput(
            f"the message has the field number {unknown[0].field_number}, which is not known - at `{where}`",
            code="wrong_field",
            path=where,
        )


def _timeout_s(parameters: Any) -> float:
    """Return the seconds that the parameter `timeout` gives, 0 when there is none."""
    if not parameters or "timeout" not in parameters:
        return 0.0
    kind = parameters["timeout"].WhichOneof("parameter_choice")
    return timeout_of({"timeout": getattr(parameters["timeout"], kind) if kind else None})
