"""`predict`: ask a served endpoint, with the client that every program can use."""

import json
import sys
from pathlib import Path
from typing import Any

from argosy.cli.output import Output
from argosy.cli.workspace import Workspace
from argosy.client import Client
from argosy.core.errors import ArgosyError, Denied, InvalidInput

_SHOWN_CHARACTERS = 240
# How JPEG, PNG and WebP files begin.
_IMAGES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF")


def predict(endpoint: str, inputs: str, *, url: str, timeout_s: float, as_json: bool) -> None:
    """Send the inputs to the endpoint and show the answer."""
    output = Output(as_json=as_json)
    given = typed_inputs(inputs)
    with _client(url, timeout_s) as client:
        try:
            answer = client.predict(endpoint, given)
        except ArgosyError as error:
            raise _in_words(error, endpoint) from error
    for name, value in answer.outputs.items():
        output.line(f"{name:<14} {_short(json.dumps(value, ensure_ascii=False))}")
    stood_in = ", in place of another version that failed" if answer.failover else ""
    output.line(f"[dim]by {answer.version}{stood_in}[/]")
    output.line(f"[dim]why: argosy why {answer.prediction}[/]")
    found: dict[str, Any] = {
        "endpoint": endpoint,
        "version": answer.version,
        "prediction": answer.prediction,
        "outputs": answer.outputs,
    }
    output.result(found | ({"failover": answer.failover} if answer.failover else {}))


def typed_inputs(inputs: str) -> Any:
    """Return what was typed as what is sent: JSON, a text, or the bytes of an image.

    `-` reads standard input and `@name` (or the name of a file that is there) a file; JSON begins with `{` or `[`.
    Raises InvalidInput.
    """
    if inputs == "-":
        return _meant(sys.stdin.buffer.read())
    if inputs.startswith("@"):
        return _meant(_read(Path(inputs[1:])))
    if not inputs.lstrip().startswith(("{", "[")) and _is_file(inputs):
        return _meant(_read(Path(inputs)))
    return _meant(inputs.encode())


def read_inputs(inputs: str) -> str:
    """Return the JSON text that was typed, or that stands in a file or on standard input."""
    if inputs == "-":
        return sys.stdin.read()
    if inputs.lstrip().startswith(("{", "[")):
        return inputs
    try:
        return Path(inputs.removeprefix("@")).read_text()
    except OSError as error:
        raise InvalidInput(
            f"the inputs {inputs!r} are neither JSON nor a file that can be read", hint="try: '{\"x\": 1.5}'"
        ) from error


def as_body(text: str) -> bytes:
    """Return the body of a request from what people type. Raises InvalidInput."""
    return json.dumps({"inputs": _rows(text)}).encode()


def _client(url: str, timeout_s: float) -> Client:
    if url:
        return Client(url, timeout_s=timeout_s)
    # From this machine the gateway may have to be reached by another way than its public name, and by its certificate.
    workspace = Workspace()
    there = workspace.gateway_address()
    key = workspace.settings.api_key
    return Client(there.url, api_key=key, timeout_s=timeout_s, ca_file=there.certificate or None, connect_to=there.host)


def _in_words(error: ArgosyError, endpoint: str) -> ArgosyError:
    if isinstance(error, Denied):
        error.hint = "set ARGOSY_API_KEY to a key for it"
    if error.code == "unnamed_input":
        error.hint = "name each input: '{\"name\": value}'"
    if "status" in error.context:
        error.message = f"'{endpoint}' answered {error.context['status']}: {error.message}"
    return error


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):
        return False  # a sentence is often too long for a name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (OSError, ValueError) as error:
        raise InvalidInput(f"'{path}' can't be read: {getattr(error, 'strerror', None) or error}") from error


def _meant(data: bytes) -> Any:
    if data.startswith(_IMAGES):
        return data
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "the inputs are neither text nor a JPEG, PNG or WebP image", hint="try: '{\"x\": 1.5}', or @photo.jpg"
        ) from error
    if text.lstrip().startswith(("{", "[")):
        return _rows(text)
    return text.rstrip("\n")


def _rows(text: str) -> Any:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidInput(f"the inputs are not JSON: {error}") from error
    # `{"x": 1}` is what people type; `{"inputs": {"x": 1}}` is what goes over the wire.
    return found["inputs"] if isinstance(found, dict) and set(found) == {"inputs"} else found


def _short(text: str) -> str:
    if len(text) <= _SHOWN_CHARACTERS:
        return text
    return f"{text[:_SHOWN_CHARACTERS]} … ({len(text)} characters; all of them with --json)"
