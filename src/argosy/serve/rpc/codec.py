"""Inference requests and answers: messages of the Open Inference Protocol to tensors and back.

Source: kserve/open-inference-protocol, `specification/protocol/inference_grpc.md`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

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
_KEPT, _KEPT_BYTES = 256, 4096
"""So many descriptions of requests are kept, up to this size."""
_RAW_INPUTS, _RAW_OUTPUTS = 7, 6  # numbers of raw_input_contents and raw_output_contents
# Numbers of the fields of an answer that are written without protobuf: `id`, `parameters`, a map entry's key and value,
# and `string_param` of a parameter.
_ID, _PARAMETERS, _MAP_KEY, _MAP_VALUE, _STRING_PARAM = 3, 4, 1, 2, 3
_PREDICTION_KEY = length_prefix(_MAP_KEY, len(b"prediction")) + b"prediction"

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


class Received(NamedTuple):
    """A ModelInferRequest that was read as far as is needed to know whom it is for."""

    message: Any
    """Without its raw tensors."""
    rest: bytes
    """The bytes of `message`."""
    raw: list[memoryview]


class _Described(NamedTuple):
    """What a request says beside its elements."""

    id: str
    inputs: tuple[tuple[str, str, tuple[int, ...]], ...]
    """Name, datatype, shape."""
    outputs: tuple[str, ...]
    timeout_s: float


def parse_infer(data: bytes) -> Received:
    """Return a request whose raw tensors are views of `data`. Raises InvalidInput when it is none."""
    rest, raw = cut_out(data, _RAW_INPUTS)
    if raw and len(rest) <= _KEPT_BYTES:
        return Received(_parse_kept(rest), rest, raw)
    if len(rest) > MAX_TYPED_BYTES:
        raise InvalidInput(
            f"the message has {len(rest)} bytes beside raw tensors; at most {MAX_TYPED_BYTES} are read, because others "
            "wait meanwhile",
            hint="send large tensors as raw_input_contents",
            code="body_too_large",
        )
    return Received(parse(ModelInferRequest, rest), rest, raw)


def read_request(received: Received) -> InferRequest:
    """Return what is asked, not yet checked against any version; InvalidInput has the path of the wrong field."""
    message, rest, raw = received
    data: Sequence[bytes | memoryview]
    if not raw:
        described = _describe(message)
        data = [_from_contents(item.contents, *described.inputs[i][1:], i) for i, item in enumerate(message.inputs)]
        is_raw = False
    else:
        described = _describe_kept(rest) if len(rest) <= _KEPT_BYTES else _describe(message, is_raw=True)
        data = raw
        is_raw = True
    if len(data) != len(described.inputs):
        raise InvalidInput(
            f"{len(described.inputs)} inputs are described, but {len(raw)} raw tensors were sent - at "
            "`$.raw_input_contents`",
            code="wrong_size",
            path="$.raw_input_contents",
        )
    inputs = {}
    for index, (name, datatype, shape) in enumerate(described.inputs):
        inputs[name] = tensor = Tensor(name, datatype, shape, data[index])
        if is_raw:
            check_size(tensor, f"$.inputs[{index}]")
    outputs = tuple([(name, is_raw) for name in described.outputs]) if described.outputs else ()
    return InferRequest(described.id, inputs, outputs, is_raw, described.timeout_s)


# Whoever asks again and again sends the same bytes but for the elements.
@functools.lru_cache(maxsize=_KEPT)
def _parse_kept(rest: bytes) -> Any:
    return parse(ModelInferRequest, rest)


@functools.lru_cache(maxsize=_KEPT)
def _describe_kept(rest: bytes) -> _Described:
    return _describe(_parse_kept(rest), is_raw=True)


def encode_response(
    request: InferRequest, name: str, version: str, outputs: Sequence[Tensor], prediction: str
) -> bytes:
    """Return an answer: raw when the request was, or when an output can only be raw; else with typed contents."""
    if request.outputs:
        by_name = {tensor.name: tensor for tensor in outputs}
        outputs = [by_name[output] for output, _ in request.outputs]
    if request.is_binary or any(tensor.datatype not in _FIELDS for tensor in outputs):
        described = tuple([(tensor.name, tensor.datatype, tensor.shape) for tensor in outputs])
        head = _head(name, version, described) + _told(request.id, prediction)
        return put_in(head, _RAW_OUTPUTS, [tensor.data for tensor in outputs])
    message = ModelInferResponse(model_name=name, model_version=version, id=request.id)
    message.parameters["prediction"].string_param = prediction
    for tensor in outputs:
        entry = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        _to_contents(entry.contents, tensor)
    return message.SerializeToString()  # type: ignore[no-any-return]


@functools.lru_cache(maxsize=_KEPT)
def _head(name: str, version: str, outputs: tuple[tuple[str, str, tuple[int, ...]], ...]) -> bytes:
    """Return what is the same in all raw answers of a version to requests of one shape."""
    described = [{"name": output, "datatype": kind, "shape": shape} for output, kind, shape in outputs]
    message = ModelInferResponse(model_name=name, model_version=version, outputs=described)
    return message.SerializeToString()  # type: ignore[no-any-return]


def _told(request_id: str, prediction: str) -> bytes:
    """Return the fields of an answer that are its own: `id`, and the parameter `prediction`."""
    value = prediction.encode()
    chosen = length_prefix(_STRING_PARAM, len(value)) + value
    entry = _PREDICTION_KEY + length_prefix(_MAP_VALUE, len(chosen)) + chosen
    told = length_prefix(_PARAMETERS, len(entry)) + entry
    if not request_id:
        return told
    given = request_id.encode()
    return length_prefix(_ID, len(given)) + given + told


def _describe(message: Any, *, is_raw: bool = False) -> _Described:
    refuse_parameters(message.parameters, "$")
    if max(len(message.inputs), len(message.outputs)) > _MAX_TENSORS:
        raise InvalidInput(f"a request has at most {_MAX_TENSORS} inputs and outputs", code="wrong_field", path="$")
    inputs = []
    names = set()
    for index, item in enumerate(message.inputs):
        where = f"$.inputs[{index}]"
        inputs.append(_describe_input(item, where))
        if item.name in names:
            raise InvalidInput(f"input '{item.name[:100]}' is sent twice - at `{where}`", code="repeated_input")
        names.add(item.name)
        if is_raw and item.HasField("contents"):
            raise InvalidInput(
                f"input '{item.name[:100]}' has contents, and raw_input_contents were sent too - at `{where}.contents`",
                hint="send all inputs of a request in one of the two ways",
                code="wrong_field",
                path=f"{where}.contents",
            )
    for index, output in enumerate(message.outputs):
        _refuse_unknown(output, f"$.outputs[{index}]")
        refuse_parameters(output.parameters, f"$.outputs[{index}]")
    outputs = tuple(output.name for output in message.outputs)
    return _Described(message.id, tuple(inputs), outputs, _timeout_s(message.parameters))


def _describe_input(item: Any, where: str) -> tuple[str, str, tuple[int, ...]]:
    _refuse_unknown(item, where)
    refuse_parameters(item.parameters, where)
    if item.datatype not in DATATYPES:
        raise InvalidInput(
            f"{item.datatype[:40]!r} is not a datatype; known are: {', '.join(DATATYPES)} - at `{where}.datatype`",
            code="wrong_datatype",
            path=f"{where}.datatype",
        )
    shape = tuple(item.shape[: _MAX_RANK + 1])
    if len(shape) > _MAX_RANK or any(size < 0 for size in shape):
        raise InvalidInput(
            f"the shape {list(shape[:_MAX_RANK])} has more than {_MAX_RANK} dimensions, or one below 0 - at "
            f"`{where}.shape`",
            code="wrong_shape",
            path=f"{where}.shape",
        )
    return item.name, item.datatype, shape


def _from_contents(contents: Any, datatype: str, shape: tuple[int, ...], index: int) -> bytes | memoryview:
    """Return typed elements as the raw tensor they are."""
    where = f"$.inputs[{index}].contents"
    field = _FIELDS.get(datatype)
    if field is None:
        raise InvalidInput(
            f"{datatype} has no typed contents - at `{where}`",
            hint="send it as raw_input_contents",
            code="wrong_field",
            path=where,
        )
    _refuse_unknown(contents, where)
    for other, _ in contents.ListFields():
        if other.name != field:
            raise InvalidInput(
                f"elements of {datatype} belong in `{field}`, but {other.name} was sent - at `{where}`",
                code="wrong_field",
                path=f"{where}.{other.name}",
            )
    elements = getattr(contents, field)
    count = math.prod(shape)
    if len(elements) != count:
        raise InvalidInput(
            f"the shape {list(shape)} needs {count} elements, but {len(elements)} were sent - at `{where}.{field}`",
            code="wrong_size" if elements else "missing_data",
            path=f"{where}.{field}",
        )
    if datatype in _AS_WRITTEN:
        written = contents.SerializeToString()
        return memoryview(written)[len(written) - count * values.item_size(datatype) :]
    return values.pack(list(elements), datatype, f"{where}.{field}")


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
