"""Bodies of the Open Inference Protocol, version 2, over HTTP: JSON, and the binary tensor data extension.

Sources: kserve/open-inference-protocol, `specification/protocol/inference_rest.md`; Triton's
`protocol/extension_binary_data.md`.
"""

import functools
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Union

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.serve import contents, triton, values
from argosy.serve.requests import check_size
from argosy.serve.wire import Tensor

MAX_JSON_BYTES = 16 << 20
"""JSON is parsed and written on the event loop: this much takes some tenths of a second."""
Parameters = dict[str, bool | int | float | str]
# How JSON carries what is in a BYTES tensor, in MLServer's words.
_CONTENT_TYPES = {"text": "str", "image": "base64"}


class _Input(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    datatype: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]
    parameters: Parameters = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class _Output(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    parameters: Parameters = {}


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: Annotated[list[_Input], msgspec.Meta(max_length=1024)]
    id: str = ""
    parameters: Parameters = {}
    outputs: Annotated[list[_Output], msgspec.Meta(max_length=1024)] = []


class InferRequest(msgspec.Struct, frozen=True, gc=False):
    """A request as it was sent: not yet checked against any version."""

    id: str
    inputs: dict[str, Tensor]
    outputs: tuple[tuple[str, bool], ...]
    """Names that were asked for, and whether as binary data; empty asks for all."""
    is_binary: bool
    """Whether outputs that were not asked for by name come as binary data."""
    timeout_s: float = 0.0
    """What the parameter `timeout` gives it; 0 for nothing."""


_requests = msgspec.json.Decoder(_Request)


class _Flat(msgspec.Struct, forbid_unknown_fields=True, tag_field="datatype"):
    """An input as almost all clients send it: its elements flat in JSON, and nothing else said about it."""

    name: str
    shape: Annotated[list[Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=16)]


# One class per datatype: the decoder picks it by the field `datatype` and checks each element as it reads it, so that
# one pass over the body does everything. Whatever does not fit here is read again by the general way, which also finds
# the words for what is wrong.
_FLAT_KINDS = tuple(
    msgspec.defstruct(
        f"_Flat{datatype}",
        [("data", list[kind])],  # type: ignore[valid-type]
        bases=(_Flat,),
        tag=datatype,
        forbid_unknown_fields=True,
    )
    for datatype, kind in values.PLAIN_ITEMS.items()
)
_FLAT_DATATYPE: dict[type, str] = dict(zip(_FLAT_KINDS, values.PLAIN_ITEMS, strict=True))


# Like `_Request`; made at run time because its inputs are a union of classes that are.
_FlatRequest: Any = msgspec.defstruct(
    "_FlatRequest",
    [
        ("inputs", list[Union[_FLAT_KINDS]]),  # type: ignore[valid-type]  # noqa: UP007
        ("id", str, ""),
        ("parameters", Parameters, msgspec.field(default_factory=dict)),
        ("outputs", Annotated[list[_Output], msgspec.Meta(max_length=1024)], msgspec.field(default_factory=list)),
    ],
    forbid_unknown_fields=True,
)
_flat_requests: msgspec.json.Decoder[Any] = msgspec.json.Decoder(_FlatRequest)


def decode_request(body: bytes | memoryview, header_length: int | None) -> InferRequest:
    """Read a request; `header_length` is the header `Inference-Header-Content-Length`, if there was one.

    Binary tensors stay views of `body`. Raises InvalidInput with the path of the wrong field.
    """
    if header_length is None and len(body) <= MAX_JSON_BYTES:
        return _decode_flat(body) or _decode_any(body, None)
    return _decode_any(body, header_length)


def _decode_flat(body: bytes | memoryview) -> InferRequest | None:
    """Read a request whose tensors are flat JSON; None if it is another one, or not right."""
    try:
        request = _flat_requests.decode(body)
        inputs = {}
        for item in request.inputs:
            shape = tuple(item.shape)
            data = item.data
            if math.prod(shape) != len(data) or item.name in inputs:
                return None
            datatype = _FLAT_DATATYPE[type(item)]
            inputs[item.name] = Tensor(item.name, datatype, shape, values.pack_plain(data, datatype))
    except (msgspec.MsgspecError, struct.error, OverflowError, UnicodeError, RecursionError):
        return None
    if not request.outputs and not request.parameters:
        return InferRequest(request.id, inputs, (), False)
    return _asked(request, inputs)


def _asked(request: Any, inputs: dict[str, Tensor]) -> InferRequest:
    triton.refuse_parameters(request.parameters, "$")
    for index, output in enumerate(request.outputs):
        triton.refuse_parameters(output.parameters, f"$.outputs[{index}]")
    return InferRequest(
        request.id,
        inputs,
        tuple([(o.name, o.parameters.get("binary_data", False) is True) for o in request.outputs]),
        request.parameters.get("binary_data_output", False) is True,
        triton.timeout_of(request.parameters),
    )


def _decode_any(body: bytes | memoryview, header_length: int | None) -> InferRequest:
    view = memoryview(body)
    if header_length is not None and not 0 <= header_length <= len(view):
        raise InvalidInput(
            f"Inference-Header-Content-Length is {header_length}, but the body has {len(view)} bytes", code="wrong_size"
        )
    end = len(view) if header_length is None else header_length
    request = decode_json(_requests, view[:end])
    raw = view[end:]
    inputs: dict[str, Tensor] = {}
    at = 0
    for index, item in enumerate(request.inputs):
        where = f"$.inputs[{index}]"
        if item.datatype not in DATATYPES:
            raise InvalidInput(
                f"{item.datatype[:40]!r} is not a datatype; known are: {', '.join(DATATYPES)} - at `{where}.datatype`",
                code="wrong_datatype",
                path=f"{where}.datatype",
            )
        if item.parameters:
            triton.refuse_parameters(item.parameters, where)
        if item.name in inputs:
            raise InvalidInput(f"input '{item.name[:100]}' is sent twice - at `{where}`", code="repeated_input")
        size = _binary_size(item, where, len(raw) - at)
        data = _from_json(item, where) if size is None else raw[at : at + size]
        at += size or 0
        tensor = Tensor(item.name, item.datatype, tuple(item.shape), data)
        if size is not None:
            check_size(tensor, where)
        inputs[item.name] = tensor
    if at != len(raw):
        raise InvalidInput(
            f"{len(raw)} bytes follow the JSON part, but the inputs' binary_data_size add up to {at}", code="wrong_size"
        )
    return _asked(request, inputs)


def decode_json(decoder: msgspec.json.Decoder[Any], body: bytes | memoryview) -> Any:
    """Decode strictly; InvalidInput says where and why."""
    if len(body) > MAX_JSON_BYTES:
        raise InvalidInput(
            f"the JSON has {len(body)} bytes; at most {MAX_JSON_BYTES} are read, because others wait meanwhile",
            hint="send large tensors as binary data (the protocol's binary tensor data extension)",
            code="body_too_large",
        )
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        path = message.rpartition("at `")[2].rstrip("`") if "at `" in message else "$"
        raise InvalidInput(message[:500], code="wrong_field", path=path[:200]) from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise InvalidInput(f"the body is not JSON: {error}"[:500], code="bad_json") from error


def _binary_size(item: _Input, where: str, left: int) -> int | None:
    size = item.parameters.get("binary_data_size")
    if size is None:
        if isinstance(item.data, msgspec.UnsetType):
            raise InvalidInput(
                f"input '{item.name[:100]}' has neither data nor the parameter binary_data_size - at `{where}`",
                code="missing_data",
                path=where,
            )
        return None
    path = f"{where}.parameters.binary_data_size"
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= left:
        raise InvalidInput(
            f"binary_data_size is {str(size)[:40]}, but {left} bytes are left in the body - at `{path}`",
            code="wrong_size",
            path=path,
        )
    if not isinstance(item.data, msgspec.UnsetType):
        raise InvalidInput(f"input has both data and binary_data_size - at `{where}`", code="wrong_field", path=where)
    return size


def _from_json(item: _Input, where: str) -> bytes:
    where = f"{where}.data"
    data = memoryview(item.data)  # type: ignore[arg-type]
    # MLServer's name for it; JSON has no other way to carry bytes that are no text.
    if item.datatype == "BYTES" and item.parameters.get("content_type") == "base64":
        flat, shape = contents.parse_base64(data, where)
    else:
        flat, shape = values.parse(data, item.datatype, where)
    # The protocol allows the elements flat in row-major order, or nested like the shape.
    if len(flat) != math.prod(item.shape) or (len(shape) != 1 and shape != item.shape):
        raise InvalidInput(
            f"the shape {item.shape} needs {math.prod(item.shape)} elements, flat or nested like it, but an array of "
            f"shape {shape} was sent - at `{where}`",
            code="wrong_size",
            path=where,
        )
    return values.pack(flat, item.datatype, where)


def check_outputs(signature: Signature, request: InferRequest) -> None:
    """Raise InvalidInput if an output is asked for that the version doesn't have."""
    known = [spec.name for spec in signature.outputs]
    for index, (name, _) in enumerate(request.outputs):
        if name not in known:
            raise InvalidInput(
                f"there is no output '{name[:100]}'; the outputs are: {', '.join(known)} - "
                f"at `$.outputs[{index}].name`",
                code="unknown_output",
                path=f"$.outputs[{index}].name",
            )


def encode_response(
    request: InferRequest, name: str, version: str, outputs: Sequence[Tensor], prediction: str
) -> tuple[list[bytes | memoryview], int | None]:
    """Return the pieces of the answer's body, and the length of its JSON part if binary tensors follow."""
    if len(outputs) == 1 and not (request.outputs or request.is_binary or request.id):
        # The usual case, said the shortest way.
        tensor = outputs[0]
        check_json_size(outputs)
        before, between = _frame(name, version, tensor.name, tensor.datatype, tensor.shape)
        data = _encode(values.unpack(tensor.data, tensor.datatype))
        return [b"".join((before, prediction.encode(), between, data, b"}]}"))], None
    wanted: Sequence[tuple[Tensor, bool]]
    if request.outputs:
        by_name = {tensor.name: tensor for tensor in outputs}
        wanted = [(by_name[output], is_binary) for output, is_binary in request.outputs]
    else:
        wanted = [(tensor, request.is_binary) for tensor in outputs]
    check_json_size([tensor for tensor, is_binary in wanted if not is_binary])
    binary: list[bytes | memoryview] = []
    asked_id = b'"id":' + _encode(request.id) + b"," if request.id else b""
    pieces = [_opening(name, version), asked_id]
    pieces += (b'"parameters":{"prediction":"', prediction.encode(), b'"},"outputs":[')
    separator = b""
    for tensor, is_binary in wanted:
        pieces += (separator, _described_output(tensor.name, tensor.datatype, tensor.shape))
        separator = b","
        if is_binary:
            pieces.append(b'"parameters":{"binary_data_size":%d}}' % len(tensor.data))
            binary.append(tensor.data)
        else:
            pieces += (b'"data":', _encode(values.unpack(tensor.data, tensor.datatype)), b"}")
    pieces.append(b"]}")
    head = b"".join(pieces)
    return [head, *binary], len(head) if binary else None


_encode = msgspec.json.encode


# The parts of an answer that are the same for every request of a version, as JSON.
@functools.lru_cache(maxsize=1024)
def _opening(name: str, version: str) -> bytes:
    return _encode({"model_name": name, "model_version": version})[:-1] + b","


@functools.lru_cache(maxsize=4096)
def _frame(name: str, version: str, output: str, datatype: str, shape: tuple[int, ...]) -> tuple[bytes, bytes]:
    return (
        _opening(name, version) + b'"parameters":{"prediction":"',
        b'"},"outputs":[' + _described_output(output, datatype, shape) + b'"data":',
    )


@functools.lru_cache(maxsize=4096)
def _described_output(name: str, datatype: str, shape: tuple[int, ...]) -> bytes:
    return _encode({"name": name, "datatype": datatype, "shape": shape})[:-1] + b","


def check_json_size(outputs: Sequence[Tensor]) -> None:
    """Raise InvalidInput if these outputs are too much to be written as JSON."""
    size = len(outputs[0].data) if len(outputs) == 1 else sum([len(tensor.data) for tensor in outputs])
    if size > MAX_JSON_BYTES:
        raise InvalidInput(
            f"the answer's tensors have {size} bytes; at most {MAX_JSON_BYTES} are written as JSON",
            hint="ask for them as binary data (binary_data_output: true), or send fewer rows",
            code="answer_too_large",
        )


def metadata(name: str, versions: Sequence[str], signature: Signature) -> dict[str, Any]:
    """Return a model's metadata, `GET /v2/models/{name}`."""
    found = {
        "name": name,
        "versions": list(versions),
        "platform": "argosy_onnx",
        "inputs": [_described(spec) for spec in signature.inputs],
        "outputs": [_described(spec) for spec in signature.outputs],
    }
    return found | {"about": signature.about} if signature.about else found


def _described(spec: TensorSpec) -> dict[str, Any]:
    found: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}
    if spec.columns:
        found["columns"] = list(spec.columns)
    if spec.content:
        found |= {"content": spec.content, "parameters": {"content_type": _CONTENT_TYPES[spec.content]}}
    return found
