"""How a request looks in each contender's protocol, and how its answer is read."""

# ruff: noqa: ARG002 - all dialects are asked alike, and not each needs all it is told
import base64
import http.client
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

Row = np.ndarray[Any, np.dtype[np.float32]]
JSON = {"Content-Type": "application/json"}
RAW = {"Content-Type": "application/octet-stream"}
IMAGE = [1, 3, 224, 224]


class Dialect:
    """A protocol: what is sent for one input of a model, and the row of numbers in the answer."""

    def path(self, model: str) -> str:
        """Return the path that requests of a model go to."""
        raise NotImplementedError

    def body(self, model: str, item: Any) -> tuple[Mapping[str, str], bytes]:
        """Return the headers beside Host and Content-Length, and the body."""
        raise NotImplementedError

    def read(self, model: str, headers: Mapping[str, str], body: bytes) -> Row:
        """Return the row of numbers in an answer; anything may be raised for what is none."""
        raise NotImplementedError

    def request(self, model: str, item: Any, port: int, extra: Mapping[str, str]) -> bytes:
        """Return a whole HTTP request."""
        headers, body = self.body(model, item)
        fields = {"Host": f"127.0.0.1:{port}", **headers, **extra, "Content-Length": str(len(body))}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"POST {self.path(model)} HTTP/1.1\r\n{head}\r\n".encode() + body

    def ask(self, model: str, item: Any, port: int, extra: Mapping[str, str], timeout_s: float = 30.0) -> Row:
        """Send one request and return the answer's row; OSError or ValueError if there is none."""
        headers, body = self.body(model, item)
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
        try:
            connection.request("POST", self.path(model), body, {**headers, **extra})
            answer = connection.getresponse()
            found = answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()
        if answer.status != 200:
            raise ValueError(f"status {answer.status}: {found[:300].decode(errors='replace')}")
        try:
            return self.read(model, {name.lower(): value for name, value in answer.getheaders()}, found)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"an answer without a row: {found[:300].decode(errors='replace')}") from error


class Plain(Dialect):
    """JSON objects as people write them by hand; raw bytes for pixels. For FastAPI, LitServe, Ray Serve."""

    def __init__(self, path: str) -> None:
        self._path = path

    def path(self, model: str) -> str:
        return self._path.format(model=model)

    def body(self, model: str, item: Any) -> tuple[Mapping[str, str], bytes]:
        if model == "resnet18":
            return RAW, item
        return JSON, json.dumps({"text" if model == "minilm" else "x": item}).encode()

    def read(self, model: str, headers: Mapping[str, str], body: bytes) -> Row:
        if headers.get("content-type") == "application/octet-stream":
            return np.frombuffer(body, np.float32)
        return np.array(json.loads(body)["y"], np.float32)


class Bento(Dialect):
    """BentoML: named parameters as JSON, a list of one where batching is on; pixels as an uploaded file."""

    def __init__(self, *, batched: bool) -> None:
        self._batched = batched

    def path(self, model: str) -> str:
        return "/predict"

    def body(self, model: str, item: Any) -> tuple[Mapping[str, str], bytes]:
        if model == "resnet18":
            edge = "bench-edge"
            part = f'--{edge}\r\nContent-Disposition: form-data; name="x"; filename="x"\r\nContent-Type: {{}}\r\n\r\n'
            head = part.format("application/octet-stream").encode()
            return {
                "Content-Type": f"multipart/form-data; boundary={edge}"
            }, head + item + f"\r\n--{edge}--\r\n".encode()
        return JSON, json.dumps({"text" if model == "minilm" else "x": [item] if self._batched else item}).encode()

    def read(self, model: str, headers: Mapping[str, str], body: bytes) -> Row:
        found = np.array(json.loads(body), np.float32)
        return found[0] if self._batched else found


class V2(Dialect):
    """The Open Inference Protocol: JSON, and for pixels its binary tensors or, where they are unknown, base64."""

    def __init__(self, inputs: Mapping[str, str] | None = None, *, pixels: str = "binary") -> None:
        self._inputs = inputs or {}
        self._pixels = pixels

    def path(self, model: str) -> str:
        return f"/v2/models/{model}/infer"

    def body(self, model: str, item: Any) -> tuple[Mapping[str, str], bytes]:
        name = self._inputs.get(model, "x")
        if model == "minilm":
            return JSON, _v2({"name": name, "shape": [1, 1], "datatype": "BYTES", "data": [item]})
        if model == "mlp":
            return JSON, _v2({"name": name, "shape": [1, 64], "datatype": "FP32", "data": item})
        if self._pixels == "base64":
            text = base64.b64encode(item).decode()
            tensor = {"name": name, "shape": [1, 1], "datatype": "BYTES", "parameters": {"content_type": "base64"}}
            return JSON, _v2({**tensor, "data": [text]})
        tensor = {"name": name, "shape": IMAGE, "datatype": "FP32", "parameters": {"binary_data_size": len(item)}}
        head = _v2(tensor, binary_data_output=True)
        return {**RAW, "Inference-Header-Content-Length": str(len(head))}, head + item

    def read(self, model: str, headers: Mapping[str, str], body: bytes) -> Row:
        size = int(headers.get("inference-header-content-length", len(body)))
        found = json.loads(body[:size])["outputs"][0]
        if "data" in found:
            return np.array(found["data"], np.float32).ravel()
        return np.frombuffer(body, np.float32, offset=size)


class ArgosyDialect(V2):
    """Argosy: the Open Inference Protocol for tensors, and its own `POST /predict/NAME` for texts."""

    def path(self, model: str) -> str:
        return f"/predict/{model}" if model == "minilm" else super().path(model)

    def body(self, model: str, item: Any) -> tuple[Mapping[str, str], bytes]:
        if model == "minilm":
            return JSON, json.dumps({"inputs": {self._inputs.get(model, "text"): item}}).encode()
        return super().body(model, item)

    def read(self, model: str, headers: Mapping[str, str], body: bytes) -> Row:
        if model == "minilm":
            return np.array(next(iter(json.loads(body)["outputs"].values())), np.float32).ravel()
        return super().read(model, headers, body)


def _v2(tensor: dict[str, Any], **parameters: Any) -> bytes:
    asked: dict[str, Any] = {"inputs": [tensor]}
    if parameters:
        asked["parameters"] = parameters
    return json.dumps(asked).encode()
