"""Bodies of `POST /predict/{endpoint}`: plain JSON with named inputs, one row or many.

    {"inputs": {"age": 41, "city": "Lyon"}}                       one row, by the names of columns
    {"inputs": {"age": [41, 37], "city": ["Lyon", "Oslo"]}}       many rows, column by column
    {"inputs": [{"age": 41, "city": "Lyon"}, {"age": 37, …}]}     many rows, row by row
    {"inputs": {"image": [[…], …]}}                               a tensor by its name, for one row or many
    {"inputs": {"text": "a sentence"}}                            a text, or a list of them
    {"inputs": {"image": "/9j/4AAQ…"}}                            an image file as base64, or a list; or the file itself
                                                                  as the body, with its content type

One row in gives one row out: `{"outputs": {"label": "yes", "probabilities": {"no": 0.1, "yes": 0.9}}, …}`; many in
give a list per output. A missing value of a table is `null`.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import contents, values
from argosy.serve.v2 import check_json_size, decode_json
from argosy.serve.wire import Tensor


class _Request(msgspec.Struct, forbid_unknown_fields=True):
    inputs: dict[str, msgspec.Raw] | list[dict[str, msgspec.Raw]]


_requests = msgspec.json.Decoder(_Request)


class PlainRequest(NamedTuple):
    """Named inputs as tensors; `is_single`: without a batch dimension, so the answer has none either."""

    inputs: dict[str, Tensor]
    is_single: bool


def decode_request(body: bytes | memoryview, signature: Signature) -> PlainRequest:
    """Read a request for a version with this signature; InvalidInput names what is wrong or missing, and the path."""
    given = decode_json(_requests, memoryview(body)).inputs
    if isinstance(given, list):
        given = _transposed(given)
    known = {spec.name for spec in signature.inputs}.union(*(spec.columns for spec in signature.inputs))
    for name in given:
        if name not in known:
            raise InvalidInput(
                f"there is no input '{name[:100]}'; send: {_wanted(signature)} - at `$.inputs`",
                code="unknown_input",
                path="$.inputs",
            )
    found = [_tensor(spec, given) for spec in signature.inputs]
    single = {is_single for _, is_single in found}
    if len(single) > 1:
        raise InvalidInput(
            "some inputs are single values and others lists; send one row or many - at `$.inputs`",
            code="wrong_shape",
            path="$.inputs",
        )
    return PlainRequest({tensor.name: tensor for tensor, _ in found}, single == {True})


def of_image(body: bytes | memoryview, signature: Signature) -> PlainRequest:
    """Read a body that is one image file, for a version that takes one; InvalidInput if it takes something else."""
    tensor = contents.image_of_body(body, signature)
    return PlainRequest({tensor.name: tensor}, is_single=True)


def _transposed(rows: Sequence[Mapping[str, msgspec.Raw]]) -> dict[str, msgspec.Raw]:
    if not rows:
        raise InvalidInput("the list of rows is empty; send at least one - at `$.inputs`", code="empty_input")
    names = rows[0].keys()
    for index, row in enumerate(rows):
        if row.keys() != names:
            name = min(row.keys() ^ names)
            raise InvalidInput(
                f"'{name[:100]}' is in some rows but not in all - at `$.inputs[{index}]`",
                code="missing_input",
                path=f"$.inputs[{index}]",
            )
    return {name: msgspec.Raw(b"[" + b",".join(bytes(row[name]) for row in rows) + b"]") for name in names}


def _tensor(spec: TensorSpec, given: Mapping[str, msgspec.Raw]) -> tuple[Tensor, bool]:
    if spec.name in given:
        if any(column in given for column in spec.columns):
            raise InvalidInput(
                f"'{spec.name}' is sent as a whole and by its columns; send one of them - at `$.inputs`",
                code="repeated_input",
                path="$.inputs",
            )
        return _whole(spec, given[spec.name])
    missing = [column for column in spec.columns if column not in given]
    if missing or not spec.columns:
        shown = ", ".join(repr(name) for name in (missing[:20] if spec.columns else [spec.name]))
        raise InvalidInput(
            f"missing in `$.inputs`: {shown}{f' and {len(missing) - 20} more' if len(missing) > 20 else ''}",
            hint="send null for a value that is not known" if spec.columns else "",
            code="missing_input",
            path="$.inputs",
        )
    return _from_columns(spec, given)


def _whole(spec: TensorSpec, raw: msgspec.Raw) -> tuple[Tensor, bool]:
    where = f"$.inputs.{spec.name}"
    if spec.content == "image":
        flat, shape = contents.parse_base64(memoryview(raw), where)
    else:
        flat, shape = values.parse(memoryview(raw), spec.datatype, where, nullable=bool(spec.columns))
    is_single = len(shape) == len(spec.shape) - 1 and spec.shape[0] in (-1, 1)
    shape = [1, *shape] if is_single else shape
    if len(shape) != len(spec.shape) or any(w not in (-1, h) for w, h in zip(spec.shape, shape, strict=True)):
        raise InvalidInput(
            f"'{spec.name}' has the shape {list(spec.shape)} (-1: any size; the first may be left out for one row), "
            f"but {shape[1:] if is_single else shape} was sent - at `{where}`",
            code="wrong_shape",
            path=where,
        )
    return Tensor(spec.name, spec.datatype, tuple(shape), _packed(flat, spec, where)), is_single


def _from_columns(spec: TensorSpec, given: Mapping[str, msgspec.Raw]) -> tuple[Tensor, bool]:
    columns = []
    shapes = set()
    for column in spec.columns:
        where = f"$.inputs.{column}"
        flat, shape = values.parse(memoryview(given[column]), spec.datatype, where, nullable=True)
        shapes.add(tuple(shape))
        if len(shape) > 1 or len(shapes) > 1:
            raise InvalidInput(
                f"the columns must all be single values, or all lists of one length, but the shape {shape} was sent - "
                f"at `{where}`",
                code="wrong_shape",
                path=where,
            )
        columns.append(flat)
    rows = list(itertools.chain.from_iterable(zip(*columns, strict=True)))
    size = len(columns[0])
    tensor = Tensor(spec.name, spec.datatype, (size, len(columns)), _packed(rows, spec, "$.inputs"))
    return tensor, shapes == {()}


def _packed(flat: Sequence[Any], spec: TensorSpec, where: str) -> bytes:
    if spec.columns and None in flat:
        if spec.datatype not in ("FP16", "FP32", "FP64", "BYTES"):
            raise InvalidInput(f"{spec.datatype} has no missing values - at `{where}`", code="wrong_value", path=where)
        missing = "" if spec.datatype == "BYTES" else math.nan
        flat = [missing if value is None else value for value in flat]
    return values.pack(flat, spec.datatype, where)


def _wanted(signature: Signature) -> str:
    names = list(itertools.chain.from_iterable(spec.columns or (spec.name,) for spec in signature.inputs))
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def encode_response(
    signature: Signature, outputs: Sequence[Tensor], *, is_single: bool, endpoint: str, ref: str, prediction: str
) -> bytes:
    """Return the answer's body."""
    check_json_size(outputs)
    specs = {spec.name: spec for spec in signature.outputs}
    shown = {tensor.name: _shown(tensor, specs.get(tensor.name), is_single=is_single) for tensor in outputs}
    return msgspec.json.encode({"endpoint": endpoint, "version": ref, "prediction": prediction, "outputs": shown})


def _shown(tensor: Tensor, spec: TensorSpec | None, *, is_single: bool) -> Any:
    nested = values.nest(values.unpack(tensor.data, tensor.datatype), tensor.shape)
    if spec is not None and spec.columns and len(tensor.shape) == 2 and tensor.shape[1] == len(spec.columns):
        nested = [dict(zip(spec.columns, row, strict=True)) for row in nested]
    return nested[0] if is_single and len(tensor.shape) > 0 and tensor.shape[0] == 1 else nested
