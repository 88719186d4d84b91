"""What a client says and is told: predictions as JSON, tensors in the Open Inference Protocol's binary form, errors.

No sockets here; the blocking and the asyncio client share it. NumPy is imported only when arrays are given.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from argosy.client.http1 import Answer, Request, text_header
from argosy.core.errors import (
    ArgosyError,
    Conflict,
    DeadlineExceeded,
    Denied,
    IntegrityError,
    Internal,
    InvalidInput,
    NotFound,
    PluginError,
    Unavailable,
)
from argosy.core.tensors import DATATYPE_OF_NUMPY, DATATYPES, TensorSpec

if TYPE_CHECKING:
    import numpy as np

_JSON = ("content-type", "application/json")
_BINARY = ("content-type", "application/octet-stream")
_CLASSES: dict[int, type[ArgosyError]] = {
    401: Denied, 403: Denied, 404: NotFound, 409: Conflict, 408: DeadlineExceeded, 429: Unavailable, 500: Internal,
    501: PluginError, 502: Unavailable, 503: Unavailable, 504: DeadlineExceeded,
}  # fmt: skip


class Prediction(msgspec.Struct, frozen=True):
    """An answer: outputs by name, and who gave it."""

    outputs: dict[str, Any]
    """Plain values from `predict`; from `infer` arrays, or nested lists if lists were sent."""
    version: str
    """The version that answered, such as `digits:2`."""
    prediction: str
    """Its id; `argosy why ID` traces it back to data and code."""
    failover: str = ""
    """The version that stood in for the one that was drawn, if that failed; empty otherwise."""


class Model(msgspec.Struct, frozen=True):
    """One served name."""

    name: str
    version: str = ""
    """Number of the version that answers."""
    is_ready: bool = True
    reason: str = ""
    """Why it is not ready, or not served as it was asked for."""


class Metadata(msgspec.Struct, frozen=True):
    """What an endpoint takes and gives."""

    name: str
    versions: tuple[str, ...] = ()
    platform: str = ""
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


# Requests ------------------------------------------------------------------------------------------------------------


def model_path(name: str, version: str = "", what: str = "") -> str:
    """Return the path of a model, of one of its versions, or of something below it."""
    path = f"/v2/models/{quote(name, safe='')}"
    path += f"/versions/{quote(version, safe='')}" if version else ""
    return f"{path}/{what}" if what else path


def metadata_request(name: str) -> Request:
    """Ask what an endpoint takes."""
    return Request("GET", model_path(name))


def ready_request(name: str) -> Request:
    """Ask whether an endpoint is ready."""
    return Request("GET", model_path(name, "", "ready"))


def models_request() -> Request:
    """Ask for the list of endpoints."""
    return Request("POST", "/v2/repository/index", (_JSON,), (b"{}",))


def predict_request(endpoint: str, inputs: Any, caller: str) -> Request:
    """Ask for a prediction in plain JSON. Bytes travel as base64, arrays as nested lists, NaN as a missing value."""
    try:
        body = msgspec.json.encode({"inputs": inputs}, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the inputs can't be written as JSON: {error}"[:300], code="bad_input_value") from error
    # Infinities become null, which would be taken for a missing value.
    if b"null" in body and _has_infinity(inputs):
        raise InvalidInput("the inputs hold an infinity, which JSON can't carry", code="bad_input_value")
    return Request("POST", f"/predict/{quote(endpoint, safe='')}", (_JSON, *_caller(caller)), (body,))


def infer_request(
    endpoint: str,
    inputs: Mapping[str, Any],
    datatypes: Mapping[str, str],
    *,
    outputs: Sequence[str],
    version: str,
    caller: str,
) -> Request:
    """Ask with tensors: arrays as binary tensors, lists as JSON of the datatype that `datatypes` names."""
    entries, raw = [], []
    for name, value in inputs.items():
        if is_array(value):
            entry, data = _from_array(name, value)
            raw.append(data)
        else:
            entry = {"name": name, "datatype": datatypes[name], "shape": _shape(value), "data": value}
        entries.append(entry)
    head: dict[str, Any] = {"inputs": entries}
    if outputs:
        head["outputs"] = [{"name": name, "parameters": {"binary_data": bool(raw)}} for name in outputs]
    elif raw:
        head["parameters"] = {"binary_data_output": True}
    try:
        text = msgspec.json.encode(head, enc_hook=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"the inputs can't be written as JSON: {error}"[:300], code="bad_input_value") from error
    kind: tuple[tuple[str, str], ...] = (_JSON,)
    if raw:
        kind = (_BINARY, ("inference-header-content-length", str(len(text))))
    return Request("POST", model_path(endpoint, version, "infer"), (*kind, *_caller(caller)), (text, *raw))


def _caller(caller: str) -> tuple[tuple[str, str], ...]:
    return (text_header("argosy-caller", caller),) if caller else ()


def _plain(value: Any) -> Any:
    """Turn what msgspec can't write into what it can."""
    if is_array(value):
        return value.tolist()
    if _is_numpy(value):
        return value.item()
    raise TypeError(f"a {type(value).__name__} is neither a number, a text, a list nor an array")


def _has_infinity(value: Any) -> bool:
    if isinstance(value, float):
        return math.isinf(value)
    if isinstance(value, Mapping):
        return any(_has_infinity(inner) for inner in value.values())
    if isinstance(value, list | tuple):
        return any(_has_infinity(inner) for inner in value)
    return _is_numpy(value) and value.dtype.kind == "f" and bool(sys.modules["numpy"].isinf(value).any())


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def is_array(value: Any) -> bool:
    """Return whether it is a NumPy array, without importing NumPy: who has made one has imported it."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _from_array(name: str, array: "np.ndarray[Any, Any]") -> tuple[dict[str, Any], bytes | memoryview]:
    import numpy as np

    if array.dtype.kind in "OUS":
        datatype = "BYTES"
        data: bytes | memoryview = _pack_texts(name, array)
    else:
        datatype = DATATYPE_OF_NUMPY.get(array.dtype.name, "")
        if not datatype:
            raise InvalidInput(
                f"input '{name}' is an array of {array.dtype}, which has no datatype in the protocol",
                hint=f"convert it to one of: {', '.join(DATATYPE_OF_NUMPY)}",
                code="wrong_datatype",
            )
        # The wire is little-endian and row-major; an array that is so already is not copied.
        whole = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        data = whole.reshape(-1).view(np.uint8).data if whole.size else b""
    entry = {"name": name, "datatype": datatype, "shape": list(array.shape)}
    return entry | {"parameters": {"binary_data_size": len(data)}}, data


def _pack_texts(name: str, array: "np.ndarray[Any, Any]") -> bytes:
    pieces = []
    for item in array.ravel().tolist():
        if not isinstance(item, str | bytes):
            raise InvalidInput(f"input '{name}' holds a {type(item).__name__} among texts", code="bad_input_value")
        data = item.encode("utf-8") if isinstance(item, str) else item
        pieces.append(len(data).to_bytes(4, "little") + data)
    return b"".join(pieces)


def _shape(value: Any) -> list[int]:
    """Return the shape of nested lists, by their first elements; the server checks the others."""
    shape = []
    while isinstance(value, list | tuple):
        shape.append(len(value))
        if not value:
            break
        value = value[0]
    return shape


def named_input(metadata: Metadata, value: Any) -> dict[str, Any]:
    """Return a text, an image's bytes, or a list of them under the name of the one input that takes such.

    Raises InvalidInput if the endpoint has other inputs.
    """
    sample = value[0] if isinstance(value, list | tuple) and value else value
    content = "image" if isinstance(sample, bytes | bytearray | memoryview) else "text"
    if len(metadata.inputs) == 1 and metadata.inputs[0].content == content:
        return {metadata.inputs[0].name: value}
    found = ", ".join(f"'{spec.name}' ({spec.content or spec.datatype})" for spec in metadata.inputs)
    raise InvalidInput(
        f"'{metadata.name}' does not take {'an image' if content == 'image' else 'a text'} alone; its inputs are: "
        f"{found}",
        hint="name each input: {name: value}",
        code="unnamed_input",
    )


# Answers -------------------------------------------------------------------------------------------------------------


class _Predicted(msgspec.Struct):
    outputs: dict[str, Any]
    version: str = ""
    prediction: str = ""


class _Listed(msgspec.Struct):
    name: str
    version: str = ""
    state: str = "READY"
    reason: str = ""


class _Output(msgspec.Struct):
    name: str
    datatype: str
    shape: tuple[int, ...]
    parameters: dict[str, Any] = {}
    data: Any = None


class _Inferred(msgspec.Struct):
    outputs: list[_Output]
    model_name: str = ""
    model_version: str = ""


class _Refused(msgspec.Struct):
    error: str
    code: str = ""
    hint: str = ""
    path: str = ""


_predicted = msgspec.json.Decoder(_Predicted)
_inferred = msgspec.json.Decoder(_Inferred)
_refused = msgspec.json.Decoder(_Refused)
_listed = msgspec.json.Decoder(list[_Listed])
_metadata = msgspec.json.Decoder(Metadata)


def read_prediction(answer: Answer) -> Prediction:
    """Return what `predict_request` was answered."""
    found = _decode(_predicted, answer.body)
    return Prediction(found.outputs, found.version, found.prediction, answer.headers.get("argosy-failover", ""))


def read_inference(answer: Answer) -> Prediction:
    """Return what `infer_request` was answered; binary outputs are writable views of the answer's bytes."""
    text = answer.headers.get("inference-header-content-length")
    size = len(answer.body) if text is None else int(text) if _is_number(text) else -1
    if not 0 <= size <= len(answer.body):
        raise _spoilt("its header length does not fit its body")
    raw = memoryview(answer.body)
    found = _decode(_inferred, raw[:size])
    outputs: dict[str, Any] = {}
    at = size
    for output in found.outputs:
        length = output.parameters.get("binary_data_size")
        if length is None:
            outputs[output.name] = _nested(output)
            continue
        if not isinstance(length, int) or not 0 <= length <= len(raw) - at:
            raise _spoilt(f"output '{output.name}' is cut off")
        outputs[output.name] = _to_array(output, raw[at : at + length])
        at += length
    headers = answer.headers
    version = headers.get("argosy-version") or f"{found.model_name}:{found.model_version}"
    return Prediction(outputs, version, headers.get("argosy-prediction", ""), headers.get("argosy-failover", ""))


def read_models(answer: Answer) -> list[Model]:
    """Return what `models_request` was answered."""
    return [Model(m.name, m.version, m.state == "READY", m.reason) for m in _decode(_listed, answer.body)]


def read_metadata(answer: Answer) -> Metadata:
    """Return what `metadata_request` was answered."""
    found: Metadata = _decode(_metadata, answer.body)
    return found


def refusal(answer: Answer, url: str) -> ArgosyError:
    """Return the error that an answer other than 200 means, with the server's own code, hint and path."""
    status = answer.status
    if 300 <= status < 400:
        return InvalidInput(
            f"'{url}' redirects to '{answer.headers.get('location', '?')[:200]}', which is not followed",
            hint="give that server's URL, if you trust it",
            code="redirected",
            status=status,
        )
    kind = _CLASSES.get(status) or (InvalidInput if status < 500 else Internal)
    try:
        said = _refused.decode(answer.body)
    except msgspec.MsgspecError:
        text = bytes(answer.body[:200]).decode("utf-8", "replace").strip()
        said = _Refused(f"'{url}' answered {status}" + (f": {text}" if text else ""))
    if kind is Internal and said.code == IntegrityError.code:
        kind = IntegrityError
    context: dict[str, Any] = {"status": status}
    if said.path:
        context["path"] = said.path
    if kind is Unavailable:
        context["retry_after_s"] = _seconds(answer.headers.get("retry-after", ""))
    return kind(said.error, hint=said.hint, code=said.code, **context)


def _seconds(text: str) -> float:
    """Return Retry-After in seconds; a date, which a gateway never sends, counts as nothing said."""
    return min(float(text), 3600.0) if _is_number(text) else 0.0


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 19


def _decode(decoder: msgspec.json.Decoder[Any], body: bytearray | memoryview) -> Any:
    try:
        return decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _spoilt(str(error)[:200]) from error


def _spoilt(why: str) -> Internal:
    return Internal(
        f"the server's answer is not what the protocol says: {why}",
        hint="check that the URL is a gateway's, and its version",
        code="bad_answer",
    )


def _nested(output: _Output) -> Any:
    flat = output.data
    if not isinstance(flat, list) or len(flat) != math.prod(output.shape):
        raise _spoilt(f"output '{output.name}' has not as many values as its shape says")
    if not output.shape:
        return flat[0]
    for size in reversed(output.shape[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)] if size else []
    return flat


def _to_array(output: _Output, data: memoryview) -> "np.ndarray[Any, Any]":
    import numpy as np

    name, size = DATATYPES.get(output.datatype, ("", -1))
    count = math.prod(output.shape)
    if size == 0:
        items = _split_texts(output, data)
        if len(items) == count:
            array = np.empty(count, dtype=object)
            array[:] = items
            return array.reshape(output.shape)
    elif len(data) == count * size:
        return np.frombuffer(data, dtype=np.dtype(name).newbyteorder("<")).reshape(output.shape)
    raise _spoilt(f"output '{output.name}' has {len(data)} bytes for {output.datatype} {list(output.shape)}")


def _split_texts(output: _Output, data: memoryview) -> list[bytes]:
    items, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "little")
        if at + 4 + size > len(data):
            raise _spoilt(f"output '{output.name}' holds a text that is cut off")
        items.append(bytes(data[at + 4 : at + 4 + size]))
        at += 4 + size
    return items
