"""How to ask an endpoint from the shell and from Python, ready to be pasted. Pure."""

import json
import math
import shlex
from typing import Any
from urllib.parse import quote

from argosy.core.tensors import DATATYPES, Signature, TensorSpec

MAX_SHOWN = 64
"""Larger samples are left to a file or to NumPy: nobody reads more numbers."""
_KEY = "ARGOSY_API_KEY"


def snippets(
    name: str, signature: Signature, url: str, *, grpc: str = "", needs_key: bool = False, ca_file: str = ""
) -> dict[str, str]:
    """Return ways to ask endpoint `name` at the gateway `url`: "curl", "python", "tritonclient", "tritonclient-grpc".

    `grpc`: host and port of the gRPC front; without it the last one is left out. `needs_key`: callers send the key in
    the variable `ARGOSY_API_KEY`. `ca_file`: certificates that callers must trust, if the system's are not enough.
    """
    found = {
        "curl": _curl(name, signature, url, needs_key=needs_key, ca_file=ca_file),
        "python": _python(name, signature, url, ca_file=ca_file),
        "tritonclient": _triton(name, signature, url, is_grpc=False, needs_key=needs_key, ca_file=ca_file),
    }
    if grpc:
        scheme = url.partition("://")[0]
        found["tritonclient-grpc"] = _triton(
            name, signature, f"{scheme}://{grpc}", is_grpc=True, needs_key=needs_key, ca_file=ca_file
        )
    return found


def sample(signature: Signature) -> dict[str, Any]:
    """Return one row that `POST /predict` takes; an image is only named."""
    row: dict[str, Any] = {}
    for spec in signature.inputs:
        if spec.columns:
            row |= dict.fromkeys(spec.columns, _value(spec))
        else:
            row[spec.name] = _filled(spec, _sizes(spec)[1:] if has_rows(spec) else _sizes(spec))
    return row


def has_rows(spec: TensorSpec) -> bool:
    """Return whether one row may be sent without the first dimension."""
    return bool(spec.shape) and spec.shape[0] in (-1, 1)


def _sizes(spec: TensorSpec) -> list[int]:
    return [1 if size == -1 else size for size in spec.shape]


def _value(spec: TensorSpec) -> Any:
    if spec.content == "text":
        return "a sentence"
    if spec.content == "image":
        return "<base64 of a JPEG, PNG or WebP file>"
    if spec.datatype == "BYTES":
        return "text"
    return False if spec.datatype == "BOOL" else 0.0 if spec.datatype.startswith("FP") else 0


def _filled(spec: TensorSpec, sizes: list[int]) -> Any:
    found = _value(spec)
    for size in reversed(sizes):
        found = [found] * size
    return found


def _is_small(signature: Signature) -> bool:
    return all(math.prod(_sizes(spec)) <= MAX_SHOWN for spec in signature.inputs)


def _one(signature: Signature, content: str) -> bool:
    return len(signature.inputs) == 1 and signature.inputs[0].content == content


def _curl(name: str, signature: Signature, url: str, *, needs_key: bool, ca_file: str) -> str:
    options = f" --cacert {shlex.quote(ca_file)}" if ca_file else ""
    options += f' -H "authorization: Bearer ${_KEY}"' if needs_key else ""
    command = f"curl{options} {shlex.quote(f'{url}/predict/{quote(name, safe=str())}')}"
    if _one(signature, "image"):
        return f"{command} -H 'content-type: image/jpeg' --data-binary @photo.jpg\n"
    body = json.dumps({"inputs": sample(signature)}, ensure_ascii=False)
    if _is_small(signature):
        return f"{command} \\\n  -d {shlex.quote(body)}\n"
    inputs = ", ".join(f'"{s.name}": {_shape_words(s)}' for s in signature.inputs)
    return f'# input.json: {{"inputs": {{{inputs}}}}}\n{command} -d @input.json\n'


def _shape_words(spec: TensorSpec) -> str:
    sizes = _sizes(spec)[1:] if has_rows(spec) else _sizes(spec)
    return f"[… {' x '.join(map(str, sizes))} {spec.datatype} …]"


def _python(name: str, signature: Signature, url: str, *, ca_file: str) -> str:
    options = f", ca_file={ca_file!r}" if ca_file else ""
    lines = ["import argosy", "", f"client = argosy.Client({url!r}{options})"]
    if _one(signature, "image"):
        lines = ["from pathlib import Path", "", *lines]
        lines.append(f'answer = client.predict({name!r}, Path("photo.jpg").read_bytes())')
    elif _one(signature, "text"):
        lines.append(f'answer = client.predict({name!r}, "a sentence")')
    elif _is_small(signature):
        lines.append(f"answer = client.predict({name!r}, {sample(signature)!r})")
    else:
        lines = ["import numpy as np", *lines]
        arrays = ", ".join(f"{spec.name!r}: {_array(spec)}" for spec in signature.inputs)
        lines.append(f"answer = client.infer({name!r}, {{{arrays}}})")
    return "\n".join([*lines, "print(answer.outputs, answer.version)", ""])


def _array(spec: TensorSpec) -> str:
    if spec.content == "image":
        return f'np.full({tuple(_sizes(spec))}, Path("photo.jpg").read_bytes(), dtype=object)'
    if spec.datatype == "BYTES":
        return f"np.full({tuple(_sizes(spec))}, {_value(spec)!r}, dtype=object)"
    return f'np.zeros({tuple(_sizes(spec))}, "{DATATYPES[spec.datatype][0]}")'


def _triton(name: str, signature: Signature, url: str, *, is_grpc: bool, needs_key: bool, ca_file: str) -> str:
    scheme, _, authority = url.partition("://")
    lines = ["import os", ""] if needs_key else []
    if any(spec.content == "image" for spec in signature.inputs):
        lines = [*lines[:-1], "from pathlib import Path", ""]
    lines += ["import numpy as np", f"import tritonclient.{'grpc' if is_grpc else 'http'} as triton", ""]
    options = ""
    if scheme == "https" and is_grpc:
        options = ", ssl=True" + (f", root_certificates={ca_file!r}" if ca_file else "")
    elif scheme == "https":
        options = ", ssl=True" + (f', ssl_options={{"ca_certs": {ca_file!r}}}' if ca_file else "")
    lines.append(f"client = triton.InferenceServerClient({authority!r}{options})")
    names = []
    for index, spec in enumerate(signature.inputs):
        names.append(f"x{index}")
        lines.append(f"x{index} = triton.InferInput({spec.name!r}, {_sizes(spec)}, {spec.datatype!r})")
        lines.append(f"x{index}.set_data_from_numpy({_array(spec)})")
    header = f', headers={{"authorization": f"Bearer {{os.environ[\'{_KEY}\']}}"}}' if needs_key else ""
    lines.append(f"answer = client.infer({name!r}, [{', '.join(names)}]{header})")
    lines += [f"print(answer.as_numpy({spec.name!r}))" for spec in signature.outputs]
    return "\n".join([*lines, ""])
