"""What is served, as OpenAPI 3.1: every path of serve/http.py, and for each endpoint what it takes and gives. Pure.

The plain body of `/predict/{endpoint}` is described exactly, so that generated clients and schema checkers can rely on
it, but for one thing that JSON Schema can't say: that lists are of equal length.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.serve.snippets import has_rows, sample, snippets

Json = dict[str, Any]

_FP_MAX = {"FP16": 65504.0, "FP32": 3.4028234663852886e38}  # IEEE 754, largest finite numbers
_IMAGES = ("image/jpeg", "image/png", "image/webp")
_ANSWER_HEADERS = {
    "argosy-prediction": (True, "Id of this prediction; `argosy why ID` traces it back."),
    "argosy-version": (True, "The version that answered."),
    "argosy-failover": (False, "The version that stood in for the one that was drawn."),
}


class Described(NamedTuple):
    """One endpoint as it is to be described."""

    name: str
    version: str
    """Name of the version that serves."""
    numbers: tuple[str, ...]
    """Numbers of the versions that can be asked for."""
    signature: Signature | None
    """None while no version of it has been ready."""


def describe(
    endpoints: Sequence[Described], url: str, *, release: str, grpc: str = "", needs_key: bool = False
) -> Json:
    """Return the whole document; `url` is the gateway's address as the caller knows it, for the snippets."""
    known = [(e, e.signature) for e in endpoints if e.signature is not None]
    paths: Json = _server_paths()
    for endpoint, signature in known:
        samples = snippets(endpoint.name, signature, url, grpc=grpc, needs_key=needs_key)
        name = quote(endpoint.name, safe="")
        paths[f"/predict/{name}"] = {"post": _predict(endpoint, signature, samples)}
        paths[f"/v2/models/{name}/infer"] = {"post": _infer(endpoint, signature)}
    if known:
        paths |= _model_paths([e for e, _ in known])
    document: Json = {
        "openapi": "3.1.0",
        "info": {
            "title": "Argosy",
            "version": release,
            "description": "Predictions in plain JSON, and the Open Inference Protocol v2.",
        },
        "paths": paths,
        "components": {"schemas": _schemas(), "responses": {"Error": _error_response()}, "headers": _headers()},
    }
    if needs_key:
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


# The server's own paths --------------------------------------------------------------------------------------------


def _server_paths() -> Json:
    ready = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}
    return {
        "/": {"get": _get("index", "What is served here", {"$ref": "#/components/schemas/Index"})},
        "/openapi.json": {"get": _get("openapi", "This document", {"type": "object"})},
        "/docs": {"get": _get("docs", "This document as a page", {"type": "string"}, kind="text/html", is_open=True)},
        "/metrics": {"get": _get("metrics", "Counters for Prometheus", {"type": "string"}, kind="text/plain")},
        "/v2": {"get": _get("server_metadata", "The server and its extensions", _ref("ServerMetadata"))},
        "/v2/health/live": {
            "get": _get("live", "Whether the server runs", {"type": "object"}, is_open=True),
        },
        "/v2/health/ready": {
            "get": _get("ready", "Whether every endpoint can answer", ready, is_open=True, unready=ready),
        },
        "/v2/repository/index": {
            "post": _get("repository_index", "Endpoints, as Triton lists models", _ref("RepositoryIndex"))
            | {"requestBody": {"content": {"application/json": {"schema": {}}}}}
        },
        "/v2/models/stats": {"get": _get("statistics", "Counts of every endpoint", _ref("Statistics"))},
    }


def _get(
    operation: str,
    summary: str,
    schema: Json,
    *,
    kind: str = "application/json",
    is_open: bool = False,
    unready: Json | None = None,
    parameters: Sequence[Json] = (),
) -> Json:
    found: Json = {"operationId": operation, "summary": summary, "tags": ["server"]}
    if parameters:
        found |= {"parameters": list(parameters), "tags": ["models"]}
    responses: Json = {"200": {"description": "OK", "content": {kind: {"schema": schema}}}}
    if unready:
        either = {"anyOf": [unready, _ref("Error")]}
        responses["503"] = {"description": "Not ready", "content": {"application/json": {"schema": either}}}
    found["responses"] = responses | {"default": {"$ref": "#/components/responses/Error"}}
    if is_open:
        found["security"] = []
    return found


def _model_paths(endpoints: Sequence[Described]) -> Json:
    """Return the paths that are alike for all endpoints, by name and by number of a version."""
    name = _parameter("name", [e.name for e in endpoints], "Name of the endpoint.")
    number = _parameter("number", sorted({n for e in endpoints for n in e.numbers}), "One of its versions.")
    ready = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "ready": {"type": "boolean"}},
        "required": ["name", "ready"],
    }
    found: Json = {}
    for prefix, parameters, suffix in (
        ("/v2/models/{name}", (name,), ""),
        ("/v2/models/{name}/versions/{number}", (name, number), "_of_version"),
    ):
        for path, operation, summary, schema, unready in (
            ("", "metadata", "Inputs and outputs", _ref("Metadata"), None),
            ("/ready", "model_ready", "Whether it can answer", ready, ready),
            ("/config", "model_config", "Inputs and outputs, as Triton describes them", {"type": "object"}, None),
            ("/stats", "model_statistics", "Counts since the gateway started", _ref("Statistics"), None),
        ):
            found[prefix + path] = {
                "get": _get(operation + suffix, summary, schema, unready=unready, parameters=parameters)
            }
    found["/v2/models/{name}/versions/{number}/infer"] = {
        "post": {
            "operationId": "infer_version",
            "summary": "Ask one version with tensors",
            "tags": ["models"],
            "parameters": [name, number, *_request_headers()],
            "requestBody": _infer_body({"$ref": "#/components/schemas/InferRequest"}),
            "responses": _infer_responses(),
        }
    }
    return found


def _parameter(name: str, values: Iterable[str], description: str) -> Json:
    listed = list(values)
    schema: Json = {"type": "string", "enum": listed} if listed else {"type": "string"}
    return {"name": name, "in": "path", "required": True, "description": description, "schema": schema}


# One endpoint's ----------------------------------------------------------------------------------------------------


def _predict(endpoint: Described, signature: Signature, samples: Mapping[str, str]) -> Json:
    content: Json = {
        "application/json": {"schema": predict_schema(signature), "example": {"inputs": sample(signature)}}
    }
    if len(signature.inputs) == 1 and signature.inputs[0].content == "image":
        content |= {kind: {"schema": {}} for kind in _IMAGES}
    outputs = {spec.name: _output_schema(spec) for spec in signature.outputs}
    answer = {
        "type": "object",
        "properties": {
            "endpoint": {"const": endpoint.name},
            "version": {"type": "string", "examples": [endpoint.version]},
            "prediction": {"type": "string"},
            "outputs": {"type": "object", "properties": outputs, "required": list(outputs)},
        },
        "required": ["endpoint", "version", "prediction", "outputs"],
    }
    return {
        "operationId": f"predict_{endpoint.name}",
        "summary": f"Ask {endpoint.name}",
        "description": "One row in gives one answer out; a list of rows, or lists of equal length, give lists. "
        f"Served by `{endpoint.version}`.",
        "tags": ["endpoints"],
        "parameters": _request_headers(),
        "requestBody": {"required": True, "content": content},
        "responses": _answers(answer, {"application/json": {}}),
        "x-endpoint": endpoint.name,
        "x-codeSamples": [{"lang": _lang(name), "label": name, "source": text} for name, text in samples.items()],
    }


def _lang(name: str) -> str:
    return "Shell" if name == "curl" else "Python"


def predict_schema(signature: Signature) -> Json:
    """Return the JSON Schema of a body of `POST /predict`: one row, rows, or one tensor of many rows."""
    row = _object({name: schema for spec in signature.inputs for name, schema in _row_properties(spec).items()})
    forms: list[Json] = []
    if all(has_rows(spec) or spec.columns for spec in signature.inputs):
        forms.append(row)
    if all(spec.is_batched for spec in signature.inputs):
        forms.append({"type": "array", "items": row, "minItems": 1})
    if not forms or (len(signature.inputs) == 1 and not signature.inputs[0].columns):
        forms.append(_object({spec.name: _nested(_item(spec), spec.shape) for spec in signature.inputs}))
    return _object({"inputs": forms[0] if len(forms) == 1 else {"anyOf": forms}})


def _row_properties(spec: TensorSpec) -> Json:
    if spec.columns:
        is_nullable = spec.datatype in ("FP16", "FP32", "FP64", "BYTES")
        return {name: _nullable(_item(spec)) if is_nullable else _item(spec) for name in spec.columns}
    return {spec.name: _nested(_item(spec), spec.shape[1:] if has_rows(spec) else spec.shape)}


def _object(properties: Json) -> Json:
    return {
        "type": "object", "properties": properties, "required": list(properties), "additionalProperties": False
    }  # fmt: skip


def _nullable(schema: Json) -> Json:
    return {"anyOf": [schema, {"type": "null"}]}


def _item(spec: TensorSpec) -> Json:
    """Return the schema of one element."""
    if spec.content == "text":
        return {"type": "string", "maxLength": 65536}
    if spec.content == "image":
        return {"type": "string", "contentEncoding": "base64", "description": "A whole JPEG, PNG or WebP file."}
    if spec.datatype == "BYTES":
        return {"type": "string"}
    if spec.datatype == "BOOL":
        return {"type": "boolean"}
    if spec.datatype.startswith("FP"):
        most = _FP_MAX.get(spec.datatype)
        return {"type": "number"} | ({"minimum": -most, "maximum": most} if most else {})
    bits = int(spec.datatype.lstrip("UINT"))
    low, high = (0, 2**bits - 1) if spec.datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return {"type": "integer", "minimum": low, "maximum": high}


def _nested(item: Json, shape: Sequence[int]) -> Json:
    for size in reversed(shape):
        bounds = {"minItems": 1} if size == -1 else {"minItems": size, "maxItems": size}
        item = {"type": "array", "items": item} | bounds
    return item


def _output_schema(spec: TensorSpec) -> Json:
    item: Json = {"type": "string"} if spec.datatype == "BYTES" else _item(spec)
    item.pop("minimum", None)
    item.pop("maximum", None)
    if spec.columns and len(spec.shape) == 2:
        row = {"type": "object", "properties": dict.fromkeys(spec.columns, item), "required": list(spec.columns)}
    else:
        row = _nested(item, spec.shape[1:])
    if not spec.shape:
        return item
    whole: Json = {"type": "array", "items": row}
    return {"anyOf": [row, whole]}


def _infer(endpoint: Described, signature: Signature) -> Json:
    tensors = [
        {
            "type": "object",
            "properties": {
                "name": {"const": spec.name},
                "datatype": {"const": spec.datatype},
                "shape": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 0},
                    "minItems": len(spec.shape),
                    "maxItems": len(spec.shape),
                },
                "parameters": _ref("Parameters"),
                "data": {"type": "array"},
            },
            "required": ["name", "datatype", "shape", "data"],
            "additionalProperties": False,
            "description": f"{spec.datatype} {list(spec.shape)}, -1: any size",
        }
        for spec in signature.inputs
    ]
    schema: Json = {
        "type": "object",
        "properties": {
            "id": {"type": "string"},
            "parameters": _ref("Parameters"),
            "inputs": {
                "type": "array",
                "items": {"anyOf": tensors} if tensors else {},
                "minItems": len(tensors),
                "maxItems": len(tensors),
            },
            "outputs": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {
                        "name": {"enum": [spec.name for spec in signature.outputs]},
                        "parameters": _ref("Parameters"),
                    },
                    "required": ["name"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["inputs"],
        "additionalProperties": False,
    }
    return {
        "operationId": f"infer_{endpoint.name}",
        "summary": f"Ask {endpoint.name} with tensors",
        "description": "Open Inference Protocol v2. Instead of `data`, a tensor may follow the JSON part as raw bytes: "
        "give its `binary_data_size` and the header `Inference-Header-Content-Length`.",
        "tags": ["endpoints"],
        "parameters": _request_headers(),
        "requestBody": _infer_body(schema),
        "responses": _infer_responses(),
    }


def _infer_body(schema: Json) -> Json:
    return {
        "required": True,
        "content": {"application/json": {"schema": schema}, "application/octet-stream": {"schema": {}}},
    }


def _infer_responses() -> Json:
    return _answers(
        {"$ref": "#/components/schemas/InferResponse"}, {"application/json": {}, "application/octet-stream": {}}
    )


def _answers(schema: Json, kinds: Mapping[str, Any]) -> Json:
    content = {kind: {"schema": schema if kind == "application/json" else {}} for kind in kinds}
    return {
        "200": {
            "description": "The answer",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in _ANSWER_HEADERS},
            "content": content,
        },
        "default": {"$ref": "#/components/responses/Error"},
    }


def _request_headers() -> list[Json]:
    return [
        {
            "name": "argosy-timeout",
            "in": "header",
            "description": "Seconds this caller waits at most; a unit may follow, as in `250ms`.",
            "schema": {"type": "number", "minimum": 0.001, "maximum": 600},
        },
        {
            "name": "argosy-caller",
            "in": "header",
            "description": "Who asks: a rollout may draw its version by caller. The first 256 bytes count.",
            "schema": {"type": "string"},
        },
    ]


# Shared parts ------------------------------------------------------------------------------------------------------


def _ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def _headers() -> Json:
    return {
        name: {"required": is_always, "description": text, "schema": {"type": "string"}}
        for name, (is_always, text) in _ANSWER_HEADERS.items()
    }


def _error_response() -> Json:
    return {
        "description": "What was wrong, with a stable code",
        "headers": {"retry-after": {"description": "With 503: seconds.", "schema": {"type": "integer"}}},
        "content": {"application/json": {"schema": _ref("Error")}},
    }


def _schemas() -> Json:
    text, texts = {"type": "string"}, {"type": "array", "items": {"type": "string"}}
    sizes = {"type": "array", "items": {"type": "integer"}}
    tensor = {"name": text, "datatype": {"enum": list(DATATYPES)}, "shape": sizes}
    parameters = _ref("Parameters")
    data = {"type": "array", "description": "Elements, flat in row-major order or nested like the shape."}

    def made(properties: Json, required: Sequence[str], *, is_closed: bool = False) -> Json:
        found: Json = {"type": "object", "properties": properties, "required": list(required)}
        return found | ({"additionalProperties": False} if is_closed else {})

    entry = made(tensor | {"parameters": parameters, "data": data}, [*tensor, "data"], is_closed=True)
    wanted = made({"name": text, "parameters": parameters}, ["name"], is_closed=True)
    described = made(tensor | {"columns": texts, "content": text}, list(tensor))
    endpoint = made(
        {"version": text, "is_ready": {"type": "boolean"}, "predict": text, "infer": text},
        ["version", "is_ready", "predict", "infer"],
    )
    model = made(
        {"name": text, "version": text, "state": {"enum": ["READY", "UNAVAILABLE"]}, "reason": text},
        ["name", "version", "state", "reason"],
    )
    return {
        "Error": made(
            {"error": text, "code": text, "hint": text, "path": text, "input": text, "known": texts}, ["error", "code"]
        ),
        "Index": made(
            {
                "server": text,
                "version": text,
                "endpoints": {"type": "object", "additionalProperties": endpoint},
            },
            ["server", "version", "endpoints"],
        ),
        "ServerMetadata": made({"name": text, "version": text, "extensions": texts}, ["name", "version", "extensions"]),
        "RepositoryIndex": {"type": "array", "items": model},
        "Metadata": made(
            {
                "name": text,
                "versions": texts,
                "platform": text,
                "inputs": {"type": "array", "items": described},
                "outputs": {"type": "array", "items": described},
            },
            ["name", "versions", "platform", "inputs", "outputs"],
        ),
        "Statistics": made({"model_stats": {"type": "array", "items": {"type": "object"}}}, ["model_stats"]),
        "Parameters": {
            "type": "object",
            "additionalProperties": {"type": ["boolean", "number", "string"]},
        },
        "InferRequest": made(
            {
                "id": text,
                "parameters": parameters,
                "inputs": {"type": "array", "items": entry},
                "outputs": {"type": "array", "items": wanted},
            },
            ["inputs"],
            is_closed=True,
        ),
        "InferResponse": made(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "parameters": parameters,
                "outputs": {
                    "type": "array",
                    "items": made(tensor | {"parameters": parameters, "data": data}, list(tensor)),
                },
            },
            ["model_name", "outputs"],
        ),
    }
